"""vacd that waits less long than it should: for an engine that hangs, a registry that stalls, the next heartbeat or
measurement.

What happens then is the same, and a test of it takes seconds instead of minutes.
"""

from __future__ import annotations

import functools
import sys

from vac.daemon import main
from vac.drivers.docker import engine as docker_engine
from vac.drivers.docker.progress import PullLimits
from vac.drivers.engine import Deadlines, Engine
from vac.factory import process, rules, watching

RENEW_SECONDS = 3.0
OBSERVATION_SECONDS = 10.0
STALL_SECONDS = 3.0

if __name__ == "__main__":
    watching.RENEW_SECONDS = RENEW_SECONDS
    rules.MEASURE_SECONDS = (RENEW_SECONDS, RENEW_SECONDS)
    deadlines = Deadlines(observation_seconds=OBSERVATION_SECONDS)
    limits = PullLimits(stall_seconds=STALL_SECONDS, first_pause_seconds=1.0)
    setattr(process, "Engine", functools.partial(Engine, deadlines=deadlines))  # noqa: B010  mypy knows a class
    setattr(docker_engine, "DockerDriver", functools.partial(docker_engine.DockerDriver, limits=limits))  # noqa: B010
    sys.exit(main())
