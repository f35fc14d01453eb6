"""vacd that is killed by SIGKILL when it comes to a certain step for the first time.

The step is in the environment: one of tests/steps.py, or `before` or `after` and a driver's call; then a pattern for
the path, such as `rename */finished` or `after create .`.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable

from tests.steps import at_files
from vac.daemon import main
from vac.drivers.processes.process_driver import ProcessDriver

STEP = "VAC_TEST_STEP"
CALLS = ("create", "stop", "destroy")

wanted, _, pattern = os.environ.get(STEP, "").rpartition(" ")


def checkpoint(step: str, path: Path) -> None:
    """Die here?"""
    if step == wanted and fnmatch.fnmatch(str(path), pattern):
        os.kill(os.getpid(), signal.SIGKILL)


def between(name: str, call: Callable[..., None]) -> Callable[..., None]:
    """The driver's call between two checkpoints."""

    @functools.wraps(call)
    def wrapped(*arguments: Any) -> None:
        checkpoint(f"before {name}", Path())
        call(*arguments)
        checkpoint(f"after {name}", Path())

    return wrapped


if __name__ == "__main__":
    at_files(setattr, checkpoint)
    for each in CALLS:
        setattr(ProcessDriver, each, between(each, getattr(ProcessDriver, each)))
    sys.exit(main())
