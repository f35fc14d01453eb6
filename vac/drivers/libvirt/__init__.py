"""Virtual machines through libvirt: the driver, its network and their parts."""
