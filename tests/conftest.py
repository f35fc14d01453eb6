"""What all tests share: Hypothesis profiles, usual signals, and how a test asks for a tool of this host."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from hypothesis import HealthCheck, settings

# Tests run on busy machines: how long an example takes says nothing.
settings.register_profile("vac", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("brief", settings.get_profile("vac"), max_examples=20, database=None)
settings.load_profile("vac")


# nohup and background jobs of scripts ignore signals, and so would all that tests start; Ctrl-C would end nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())


def require_tool(name: str) -> str:
    """The path of a program that the test can't do without; a host that lacks it fails the test."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not on PATH; as root, `tools/bootstrap test` installs what tests need")
    return path


def require_root() -> None:
    """Fails a test that can't work without root, instead of letting it fail in some odd place."""
    if os.geteuid() != 0:
        pytest.fail(f"this test needs root, and runs with user id {os.geteuid()}")
