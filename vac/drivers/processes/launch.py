"""The small programs between the driver and a machine's first process, and between `vac exec` and its command.

Both are started as `python -I -S launch.py PLAN`, PLAN being JSON. The first enters the machine's cgroup, drops
everything of the factory, becomes the unprivileged user, works out the command line (which may mean to look at an image
on a network file system: never in the factory's process) and executes it. Descriptor 3 is the machine's status file,
not a pipe: a machine depends on no reader. Into it go the machine's group, model and process number, {"failure":
REASON} or {"image_path": PATH, "stamp": VERSION} and {"executing": TIME} in Unix seconds; bubblewrap adds {"child-pid":
PID} and at the machine's end {"exit-code": CODE}.

The second joins the namespaces and root of a running machine's first process (setns(2)), forks, has the child join the
cgroup, become the machine's user without capabilities, groups and keys, take the filter of system calls, and execute
the command. The machine's programs may be hostile: the command inherits no descriptor but the three, and no controlling
terminal but the one that was made for it.

They are programs of their own because in a process with threads little else than exec is safe after a fork.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import importlib
import json
import os
import signal
import stat
import struct
import sys
import time
import warnings as warnings  # os.execvpe imports it, when this host's files are out of reach
from pathlib import Path
from typing import Any, NoReturn

STATUS = 3
"""The descriptor of the status file."""
FILTER = 4
"""The descriptor of the filter of system calls, for a program that takes one."""
_KEYCTL = {"x86_64": 250, "aarch64": 219, "ppc64le": 271}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_PR_SET_SECCOMP, _FILTER_MODE, _PR_SET_NO_NEW_PRIVS = 22, 2, 38
_INSTRUCTION_BYTES = 8
_CLONE_NEWUSER = 0x10000000
NAMESPACES = {
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "net": 0x40000000,
    "pid": 0x20000000,
    "mnt": 0x20000,
}
"""Flags by name in /proc/PID/ns. The user namespace to which they belong gives the rights to join them."""
_GET_OWNER = 0xB701
"""NS_GET_USERNS of linux/nsfs.h: opens the user namespace to which a namespace belongs."""
_NO_KEYS = (errno.ENOSYS, errno.EPERM)
"""Errors of a kernel without keys, or of a container in which nobody reaches them."""


def fail(reason: str) -> NoReturn:
    """Tell the driver why there will be no machine."""
    tell({"failure": reason})
    sys.exit(1)


def tell(message: dict[str, Any]) -> None:
    """Write a message into the status file."""
    os.write(STATUS, json.dumps(message).encode() + b"\n")


def drop_privileges(plan: dict[str, Any]) -> None:
    """Leave session, descriptors, keys, handling of signals, cgroup and user of the factory."""
    os.setsid()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) > STATUS:
            try:
                os.close(int(name))
            except OSError:  # the listing's own
                continue
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    join_new_session_keyring()
    for procs_file in plan["procs_files"]:
        descriptor = os.open(procs_file, os.O_WRONLY)
        os.write(descriptor, b"0")
        os.close(descriptor)
    os.umask(0o022)
    os.chdir("/")
    if plan.get("inherited_filter"):
        install_filter(bytes.fromhex(plan["inherited_filter"]))
    if plan.get("most_user_namespaces"):
        enter_user_namespace(plan["uid"], plan["gid"], plan["most_user_namespaces"])
    os.setgroups([])
    os.setresgid(plan["gid"], plan["gid"], plan["gid"])
    os.setresuid(plan["uid"], plan["uid"], plan["uid"])


def join_new_session_keyring() -> None:
    """Get a session keyring of the machine's own, empty and without a way to root's: keyctl(2), session-keyring(7).

    Done as root, whose quota no machine can use up. Raises OSError.
    """
    number = _KEYCTL.get(os.uname().machine)
    if number is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None) < 0 and ctypes.get_errno() not in _NO_KEYS:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "session keyring")


def install_filter(program: bytes) -> None:
    """Put this process and all that it starts under a filter of system calls: seccomp(2). Raises OSError.

    Root may do so without no_new_privs, which Apptainer's setuid starter wouldn't survive.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HP", len(program) // _INSTRUCTION_BYTES, ctypes.addressof(instructions))
    _check(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_SECCOMP, _FILTER_MODE, header, 0, 0), "seccomp")


def enter_user_namespace(uid: int, gid: int, most: int) -> None:
    """Enter a user name space that has this user and no other, and in which few more can be made: user_namespaces(7).

    A child that stays outside gives it the user. Raises OSError.
    """
    entered, tell_entered = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        os.read(entered, 1)
        for kind, number in (("uid", uid), ("gid", gid)):
            with open(f"/proc/{parent}/{kind}_map", "w") as numbers:  # noqa: PTH123
                numbers.write(f"{number} {number} 1")
        os._exit(0)
    _check(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER), "user name space")
    os.write(tell_entered, b".")
    os.waitpid(child, 0)
    with open("/proc/sys/user/max_user_namespaces", "w") as limit:  # noqa: PTH123
        limit.write(str(most))


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)


def open_filter(program: str) -> None:
    """Open the filter of system calls, given in hex, as descriptor FILTER."""
    descriptor = os.memfd_create("filter")
    os.write(descriptor, bytes.fromhex(program))
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.dup2(descriptor, FILTER)
    os.set_inheritable(FILTER, True)  # it may have had this number from the start


def tell_image(path: str) -> None:
    """Tell the driver which version of which file the image is, null for a tree."""
    path = os.path.realpath(path)
    status = os.stat(path)  # noqa: PTH116
    version = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]
    tell({"image_path": path, "stamp": version if stat.S_ISREG(status.st_mode) else None})


def launch(plan: dict[str, Any]) -> NoReturn:
    """Become the machine."""
    tell({"machine": plan["machine"], "model": plan["model"], "pid": os.getpid()})
    sys.path.insert(0, plan["path"])
    model = importlib.import_module(plan["module"])  # before the user changes, who may not be able to read it
    try:
        drop_privileges(plan)
        if plan.get("filter"):
            open_filter(plan["filter"])
        arguments = model.command_line(plan)
        tell_image(plan["image"])
        tell({"executing": time.time()})
        os.set_inheritable(STATUS, model.TELLS)
        os.execve(arguments[0], arguments, plan["environment"])
    except OSError as error:
        fail(f"{error.filename or model.PROGRAMS[0]}: {error.strerror}")
    except ValueError as error:
        fail(str(error))


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


def enter(plan: dict[str, Any]) -> NoReturn:
    """Enter and execute; the exit status is the command's, 126 if it can't be executed."""
    process, command = Path(f"/proc/{plan['pid']}"), plan["command"]
    try:
        uid = inner((process / "uid_map").read_text(), _identity(process, "Uid:"))
        gid = inner((process / "gid_map").read_text(), _identity(process, "Gid:"))
        root = os.open(process / "root", os.O_RDONLY | os.O_DIRECTORY)
        spaces = [(os.open(process / "ns" / name, os.O_RDONLY), flag) for name, flag in NAMESPACES.items()]
        # bubblewrap's others belong to its first user namespace, and the machine is in a second one
        first = fcntl.ioctl(os.open(process / "ns/mnt", os.O_RDONLY), _GET_OWNER)
        spaces = [
            (first, _CLONE_NEWUSER),
            *spaces,
            (os.open(process / "ns/user", os.O_RDONLY), _CLONE_NEWUSER),
        ]
        seen = {Path(f"/proc/self/ns/{name}").stat().st_ino for name in ("user", *NAMESPACES)}
        spaces = [each for each in spaces if not _seen(each[0], seen)]
        procs_files = [os.open(path, os.O_WRONLY) for path in plan["procs_files"]]
        libc = ctypes.CDLL(None, use_errno=True)
        join_new_session_keyring()
        os.setgroups([])
        sys.meta_path.clear()  # from here on the machine's files are seen: nothing may be imported of them
        for space, flag in spaces:
            _check(libc.setns(space, flag), "namespace")
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
        for procs_file in procs_files:
            os.write(procs_file, b"0")
        os.fchdir(root)
        os.chroot(".")
        os.chdir("/")
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        os.closerange(3, 1 << 16)
        _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "privileges")
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


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    (launch if "machine" in given else enter)(given)
