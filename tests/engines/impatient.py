"""vacd that waits less long than it should: for an engine that hangs, a registry that stalls, the next heartbeat or
measurement.

What happens then is the same, and a test of it takes seconds instead of minutes.
"""

from __future__ import annotations

import argparse
import sys

from vac.background import Rest
from vac.daemon import command, main
from vac.drivers import engine
from vac.drivers.docker import docker_images
from vac.drivers.libvirt import libvirt_api as api
from vac.factory import effects, watch
from vac.roles import Role

RENEW_SECONDS = 3.0
OBSERVATION_SECONDS = 10.0
STALL_SECONDS = 3.0
KEEPALIVE_SECONDS = 2


def impatient(role: Role, arguments: argparse.Namespace) -> list[str]:
    """Return the command line that the supervisor executes for a role: this module."""
    words = command.command_for(role, arguments)
    return [__spec__.name if word == "vac.daemon" else word for word in words]


if __name__ == "__main__":
    effects.RENEW_SECONDS = RENEW_SECONDS
    api.KEEPALIVE_SECONDS = KEEPALIVE_SECONDS
    watch.LEAST_PAUSE_SECONDS = watch.MOST_PAUSE_SECONDS = RENEW_SECONDS
    engine.OBSERVATION_SECONDS = OBSERVATION_SECONDS
    docker_images.STALL_SECONDS = STALL_SECONDS
    docker_images.REST = Rest(6 * 3600.0, first_failure_seconds=1.0)
    sys.exit(main(command=impatient))
