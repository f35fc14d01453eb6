# Name of a machinetype, or prefix of a Vacuum Pipe
type Vac::Name = Pattern[/\A[a-z0-9-]{1,100}\z/]
