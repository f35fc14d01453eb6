"""The commands `vac` and `check-vacd`."""
