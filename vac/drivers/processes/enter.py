"""The small program of `vac exec`: a command in a running process machine, with no right that the machine lacks.

It is started as `python -I -S enter.py PLAN`, PLAN being JSON: it joins the namespaces and root of the machine's first
process (setns(2)), forks, has the child join the cgroup, become the machine's user without capabilities, groups and
keys, take the filter of system calls, and execute the command. The machine's programs may be hostile: the command
inherits no descriptor but the three, and no controlling terminal but the one that was made for it.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import sys
import warnings as warnings  # os.execvpe imports it, when this host's files are out of reach
from pathlib import Path
from typing import NoReturn

_USER = 0x10000000
NAMESPACES = {
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "net": 0x40000000,
    "pid": 0x20000000,
    "mnt": 0x20000,
}
"""Flags by name in /proc/PID/ns. The user namespace to which they belong gives the rights to join them."""
_NO_NEW_PRIVILEGES = 38
_GET_OWNER = 0xB701
"""NS_GET_USERNS of linux/nsfs.h: opens the user namespace to which a namespace belongs."""


def first_process(processes: list[int]) -> int | None:
    """Return that one of these processes which is the first of a PID namespace right below ours."""
    depth = len(_numbers("self")) + 1
    for process in processes:
        numbers = _numbers(str(process))
        if len(numbers) == depth and numbers[-1] == "1":
            return process
    return None


def _identity(process: Path, key: str) -> int:
    """Return the real user or group of a process, by the key of its status."""
    lines = (process / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def _numbers(process: str) -> list[str]:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return []
    return next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])


def inner(mapping: str, number: int) -> int:
    """Return how a user namespace with this uid_map or gid_map calls a user or group of ours."""
    for line in mapping.splitlines():
        inside, outside, length = map(int, line.split())
        if outside <= number < outside + length:
            return inside + number - outside
    raise OSError(f"{number} is not mapped in the machine")


def main() -> NoReturn:
    """Enter and execute; the exit status is the command's, 126 if it can't be executed."""
    plan = json.loads(sys.argv[1])
    process, command = Path(f"/proc/{plan['pid']}"), plan["command"]
    try:
        uid = inner((process / "uid_map").read_text(), _identity(process, "Uid:"))
        gid = inner((process / "gid_map").read_text(), _identity(process, "Gid:"))
        root = os.open(process / "root", os.O_RDONLY | os.O_DIRECTORY)
        spaces = [(os.open(process / "ns" / name, os.O_RDONLY), flag) for name, flag in NAMESPACES.items()]
        # bubblewrap's others belong to its first user namespace, and the machine is in a second one
        first = fcntl.ioctl(os.open(process / "ns/mnt", os.O_RDONLY), _GET_OWNER)
        spaces = [(first, _USER), *spaces, (os.open(process / "ns/user", os.O_RDONLY), _USER)]
        seen = {Path(f"/proc/self/ns/{name}").stat().st_ino for name in ("user", *NAMESPACES)}
        spaces = [each for each in spaces if not _seen(each[0], seen)]
        entrances = [os.open(path, os.O_WRONLY) for path in plan["entrances"]]
        libc = ctypes.CDLL(None, use_errno=True)
        sys.path.insert(0, plan["path"])
        from vac.drivers.processes.launch import install_filter, join_new_session_keyring

        join_new_session_keyring()
        os.setgroups([])
        sys.meta_path.clear()  # from here on the machine's files are seen: nothing may be imported of them
        for space, flag in spaces:
            _check(libc.setns(space, flag))
        child = os.fork()
        if child:
            for number in (signal.SIGINT, signal.SIGQUIT):
                signal.signal(number, signal.SIG_IGN)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os._exit(code if code >= 0 else 128 - code)
        if os.isatty(0):  # shells look for the terminal's process group, and see none of outside
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.setpgid(0, 0)
            os.tcsetpgrp(0, os.getpgrp())
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        for entrance in entrances:
            os.write(entrance, b"0")
        os.fchdir(root)
        os.chroot(".")
        os.chdir("/")
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        os.closerange(3, 1 << 16)
        _check(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
        install_filter(bytes.fromhex(plan["filter"]))
        os.execvpe(command[0], command, plan["environment"])
    except OSError as error:
        sys.stderr.write(f"vac exec: {command[0]}: {error.strerror or error}\n")
        sys.stderr.flush()
        os._exit(126)


def _seen(space: int, seen: set[int]) -> bool:
    """Return True if this process is, or will be, in the namespace; note it."""
    number = os.fstat(space).st_ino
    known = number in seen
    seen.add(number)
    return known


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main()
