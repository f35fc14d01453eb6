"""What the configuration has to know of this host, as the kernel and the user database tell it (no DNS)."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

ASSUME_PROCESSORS = "VAC_ASSUME_PROCESSORS"
MOST_ASSUMED = 10000
VGS_SECONDS = 20


@dataclass(frozen=True)
class HostFacts:
    """This host. Two that differ in their look-ups only are equal."""

    name: str
    """The kernel's host name, lower-cased; perhaps without a domain."""
    processors: int
    """Logical processors, or what VAC_ASSUME_PROCESSORS says."""
    user_id: Callable[[str], int | None]
    """The uid of an account, None if there is none of that name."""
    volume_group_exists: Callable[[str], bool]
    """Is there such an LVM volume group, as far as can be told?"""
    assumed: bool = False
    """True: the number of processors is VAC_ASSUME_PROCESSORS', for demonstrations and tests."""
    problem: str = ""
    """What is wrong with VAC_ASSUME_PROCESSORS, in words."""
    module_exists: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None
    """Is there a Python module of this name, at top level?"""

    def same(self, other: HostFacts) -> bool:
        """Do both describe one and the same state of the host? Look-ups are not compared."""
        mine = (self.name, self.processors, self.assumed, self.problem)
        return mine == (other.name, other.processors, other.assumed, other.problem)


def read(environ: Mapping[str, str] = os.environ) -> HostFacts:
    """Ask the kernel; environ may hold VAC_ASSUME_PROCESSORS. A bad one is told in `problem` and ignored."""
    processors, assumed, problem = os.cpu_count() or 1, False, ""
    text = environ.get(ASSUME_PROCESSORS, "").strip()
    if re.fullmatch("[0-9]{1,9}", text) and 1 <= int(text) <= MOST_ASSUMED:
        processors, assumed = int(text), True
    elif text:
        problem = f"{text!r} is not an integer from 1 to {MOST_ASSUMED}"
    return HostFacts(os.uname().nodename.lower(), processors, user_id, volume_group_exists, assumed, problem)


def user_id(name: str) -> int | None:
    """The account's uid, None if there is none."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def volume_group_exists(name: str) -> bool:
    """Ask LVM. True also when it can't be asked (not root, a device that hangs): creation will tell then."""
    if Path("/dev", name).is_dir():
        return True
    try:
        answer = subprocess.run(
            ["vgs", "--noheadings", "-o", "vg_name"], capture_output=True, timeout=VGS_SECONDS, check=True
        )
    except FileNotFoundError:
        return False
    except (OSError, subprocess.SubprocessError):
        return True
    return os.fsencode(name) in answer.stdout.split()
