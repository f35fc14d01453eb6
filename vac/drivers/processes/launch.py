"""The small program between the driver and a machine's first process.

Started by vac.drivers.processes.engine as `python -I -S launch.py PLAN`, PLAN being JSON. It enters the machine's
cgroup, becomes the unprivileged user, works out the command line (which may mean to look at an image on a
network file system: never in the factory's process) and executes it. What is wrong is written to descriptor
3 as {"failure": REASON}, and what the image is as {"image_path": PATH, "stamp": VERSION}. A program of its own
because in a process with threads little else than exec is safe after a fork, and in Python, not in shell,
because paths are not to be parsed; it costs some 20 ms.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import stat
import sys
from typing import Any, NoReturn

STATUS = 3
"""The descriptor for its own and the program's messages to the driver."""
EXECUTING = b'{"executing": true}\n'
"""The last message before the program is executed."""


def fail(reason: str) -> NoReturn:
    """Tell the driver why there will be no machine."""
    os.write(STATUS, json.dumps({"failure": reason}).encode() + b"\n")
    sys.exit(1)


def become(plan: dict[str, Any]) -> None:
    """Leave behind everything of the factory: session, descriptors, signals' handling, cgroup, user."""
    os.setsid()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  pathlib would add 5 ms
        if int(name) > STATUS:
            try:
                os.close(int(name))
            except OSError:  # the listing's own
                continue
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    for entrance in plan["entrances"]:
        descriptor = os.open(entrance, os.O_WRONLY)
        os.write(descriptor, b"0")
        os.close(descriptor)
    os.umask(0o022)
    os.chdir("/")
    os.setgroups([])
    os.setresgid(plan["gid"], plan["gid"], plan["gid"])
    os.setresuid(plan["uid"], plan["uid"], plan["uid"])


def tell_image(path: str) -> None:
    """Tell the driver which version of which file the image is; "stamp" as vac.host.sha256.stamp(), null for a tree."""
    path = os.path.realpath(path)
    status = os.stat(path)  # noqa: PTH116
    version = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]
    told = {"image_path": path, "stamp": version if stat.S_ISREG(status.st_mode) else None}
    os.write(STATUS, json.dumps(told).encode() + b"\n")


def main() -> NoReturn:
    """Become the machine."""
    plan = json.loads(sys.argv[1])
    sys.path.insert(0, plan["path"])
    model = importlib.import_module(plan["module"])  # before the user changes, who may not be able to read it
    try:
        become(plan)
        arguments = model.command_line(plan)
        tell_image(plan["image"])
        os.write(STATUS, EXECUTING)
        os.set_inheritable(STATUS, model.TELLS)
        os.execve(arguments[0], arguments, plan["environment"])
    except OSError as error:
        fail(f"{error.filename or model.PROGRAMS[0]}: {error.strerror}")
    except ValueError as error:
        fail(str(error))


if __name__ == "__main__":
    main()
