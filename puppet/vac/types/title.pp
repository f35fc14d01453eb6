# What stands between the brackets of a section
type Vac::Title = Pattern[/\A(settings|(machinetype|vacuum_pipe) [a-z0-9-]{1,100})\z/]
