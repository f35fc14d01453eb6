"""Privileges of Vac's own processes; uids and limits of machines'.

Sources: capabilities(7), capset(2), prctl(2), linux/capability.h, linux/prctl.h, subuid(5), namespaces(7).

Those that need no rights run as `vac`, or as `nobody` where there is no such account, but never in nobody's group: it
may enter machines' directories.
"""

from __future__ import annotations

import contextlib
import ctypes
import encodings.ascii  # noqa: F401  state files need it later, when the interpreter's own files may be out of reach
import os
import pwd
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from vac.host.child_processes import run

PREFERRED, OTHER = "vac", "nobody"
OWN_GROUP = 65531
"""Number without a name, for who is `nobody`: accounts and systemd's dynamic users get none from 65520 to 65533."""
READ_ANY_FILE = (2, 1)
"""CAP_DAC_READ_SEARCH; where a container's root lacks it, CAP_DAC_OVERRIDE, which allows writing too."""
SUBORDINATE_IDS = (Path("/etc/subuid"), Path("/etc/subgid"))
MOST_USER_NAMESPACES = 1000
"""In a machine: enough for containers of its own. The kernel's own limit is per uid, and some 100,000."""
_LIMIT_SECONDS = 20.0
_LIMIT = """
import ctypes, os, sys
with open(sys.argv[1]) as namespace:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace.fileno(), 0x10000000):
        sys.exit(os.strerror(ctypes.get_errno()))
with open("/proc/sys/user/max_user_namespaces", "w") as limit:
    limit.write(sys.argv[2])
"""
"""A program, since a process with threads can't enter a user name space."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_KEEPCAPS = 8
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_CHILD_SUBREAPER = 36
_CAPABILITY_VERSION_3 = 0x20080522


def unprivileged_user() -> pwd.struct_passwd | None:
    """Return the account of processes that need no rights; None when this process isn't root, and stays what it is."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(PREFERRED)
    except KeyError:
        name, password, uid, _, *rest = pwd.getpwnam(OTHER)
        return pwd.struct_passwd((name, password, uid, OWN_GROUP, *rest))


def drop_privileges(user: pwd.struct_passwd | None, keep: tuple[int, ...] = ()) -> None:
    """Drop privileges to this user, without a way back, supplementary groups, or what set-uid programs give.

    keep: capabilities of which the first that this process has stays in force. Call it while the process has one
    thread only. Raises OSError if keep is given and can't be had.
    """
    if user is None:
        return
    kept = next((number for number in keep if _permitted() >> number & 1), None)
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    if keep:
        _prctl(_PR_SET_KEEPCAPS, 1)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if keep:
        _capset(0 if kept is None else 1 << kept)


def subordinate_ids() -> range:
    """Return the numbers that account `vac` may give to others, both as uids and as gids; empty if there are none.

    Only those from 1000 on count: others may be accounts.
    """
    found = []
    for path in SUBORDINATE_IDS:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            return range(0)
        found.append(re.search(rf"^{PREFERRED}:([0-9]{{4,10}}):([0-9]{{1,10}})$", text, re.MULTILINE))
    if found[0] is None or found[1] is None or found[0].groups() != found[1].groups():
        return range(0)
    first, count = map(int, found[0].groups())
    return range(first, first + count)


def limit_user_namespaces(processes: Iterable[int], most: int = MOST_USER_NAMESPACES) -> str | None:
    """Let no more user name spaces be made in those that these processes have of their own; return why that failed.

    Where a machine has none of its own, as with Apptainer's setuid starter, nothing can be limited.
    """
    spaces: dict[int, int] = {}
    with contextlib.ExitStack() as stack:
        for process in processes:
            with contextlib.suppress(OSError):  # it has ended
                space = os.open(f"/proc/{process}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, space)
                spaces[os.fstat(space).st_ino] = space
        spaces.pop(Path("/proc/self/ns/user").stat().st_ino, None)
        command = [sys.executable, "-I", "-S", "-c", _LIMIT]
        paths = [f"/proc/{os.getpid()}/fd/{space}" for space in spaces.values()]
        done = [run([*command, path, str(most)], time_limit_seconds=_LIMIT_SECONDS) for path in paths]
    return next((one.failure for one in done if one.failure), None)


def become_subreaper() -> None:
    """Make this process the parent of orphans among its descendants, which it then has to wait for.

    Where process 1 isn't an init system nobody else would. Raises OSError if the kernel refuses.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _permitted() -> int:
    found = re.search(r"^CapPrm:\s+([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1], 16) if found else 0


def _prctl(option: int, value: int) -> None:
    _check(_LIBC.prctl(option, value, 0, 0, 0), "prctl")


def _capset(capabilities: int) -> None:
    """Set exactly these capabilities, all numbered below 32, permitted and effective; none inheritable."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(capabilities, capabilities, 0, 0, 0, 0)
    _check(_LIBC.capset(header, sets), "capset")


def _check(result: int, call: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{call}: {os.strerror(error)}")
