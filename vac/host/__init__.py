"""What the kernel offers: cgroups, /proc, users."""
