"""The small program between the driver and a machine's first process.

The driver starts it as `python -I -S launch.py PLAN`, PLAN being JSON. It enters the machine's cgroup, drops everything
of the factory, becomes the unprivileged user, works out the command line (which may mean to look at an image on a
network file system: never in the factory's process) and executes it. Descriptor 3 is the machine's status file, not a
pipe: a machine depends on no reader. Into it go the machine's group, model and process number, {"failure": REASON} or
{"image_path": PATH, "stamp": VERSION} and {"executing": TIME} in Unix seconds; bubblewrap adds {"child-pid": PID} and
at the machine's end {"exit-code": CODE}.

It is a program of its own because in a process with threads little else than exec is safe after a fork.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import signal
import stat
import struct
import sys
import time
from typing import Any, NoReturn

STATUS = 3
"""The descriptor of the status file."""
FILTER = 4
"""The descriptor of the filter of system calls, for a program that takes one."""
_KEYCTL = {"x86_64": 250, "aarch64": 219, "ppc64le": 271}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_PR_SET_SECCOMP, _FILTER_MODE = 22, 2
_INSTRUCTION_BYTES = 8
_CLONE_NEWUSER = 0x10000000
_NO_KEYS = (errno.ENOSYS, errno.EPERM)
"""Errors of a kernel without keys, or of a container in which nobody reaches them."""


def fail(reason: str) -> NoReturn:
    """Tell the driver why there will be no machine."""
    tell({"failure": reason})
    sys.exit(1)


def tell(message: dict[str, Any]) -> None:
    """Write a message into the status file."""
    os.write(STATUS, json.dumps(message).encode() + b"\n")


def become(plan: dict[str, Any]) -> None:
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
    for entrance in plan["entrances"]:
        descriptor = os.open(entrance, os.O_WRONLY)
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


def main() -> NoReturn:
    """Become the machine."""
    plan = json.loads(sys.argv[1])
    tell({"machine": plan["machine"], "model": plan["model"], "pid": os.getpid()})
    sys.path.insert(0, plan["path"])
    model = importlib.import_module(plan["module"])  # before the user changes, who may not be able to read it
    try:
        become(plan)
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


if __name__ == "__main__":
    main()
