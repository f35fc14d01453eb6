"""The places in containers at which tmp_binds can't have fresh directories.

Launchers of machines import this module, so it imports next to nothing.
"""

from __future__ import annotations

import os

_TAKEN = {
    "bubblewrap": ("/", "/dev", "/proc", "/user_data"),
    "singularity": ("/", "/dev", "/proc", "/sys", "/tmp", "/var/tmp", "/user_data"),
    "docker": (
        *("/", "/proc", "/user_data"),
        *("/etc/machinefeatures", "/etc/jobfeatures", "/var/spool/joboutputs"),
    ),
}
"""By machine model: what its program, or engine, refuses, and where the machine's own files are."""


def taken_binds(machine_model: str, paths: tuple[str, ...]) -> list[str]:
    """Those of the absolute paths of tmp_binds that can't be fresh directories, in their plain form."""
    plain = [os.path.normpath(f"/{path.lstrip('/')}") for path in paths]
    return [path for path in plain if path in _TAKEN.get(machine_model, ())]
