"""This host: cgroups, networks, file systems, child processes, privileges."""
