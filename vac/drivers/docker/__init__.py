"""Docker containers, and those of other engines with Docker's API such as Podman."""
