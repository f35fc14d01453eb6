"""Docker, and Podman through the same API: the driver and its parts."""
