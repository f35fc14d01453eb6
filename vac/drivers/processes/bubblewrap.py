"""The command line of a bubblewrap machine. Options are bubblewrap 0.4.1's (EL9) and later; see bwrap(1).

The launcher imports this module, too. bwrap can't make a mount point inside a read-only bind. Therefore the machine's
root is a fresh file system into which the image's top-level entries are bound one by one; a directory below in which a
mount point is missing is composed from its entries in the same way.
"""

# ruff: noqa: PTH110, PTH112, PTH113, PTH114, PTH115, PTH118, PTH120, PTH121

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vac.drivers.processes.launch import FILTER
from vac.host.filesystems import real_image, with_other_paths

if TYPE_CHECKING:
    from vac.drivers.base import MachineSpec

PROGRAMS = ("bwrap",)
PACKAGE = "bubblewrap"
OPTION = ""
TELLS = True
TAKES_URLS = False
NEEDS_ACCOUNT = False
FILTERED = True
HIDDEN = ("/run", "/home", "/root", "/etc/vac.d", "/etc/vac.conf")
"""Parts of the host's own tree that no machine sees, besides state_dir and what the factory names."""
RESOLVER_FILES = ("/etc/resolv.conf", "/etc/hosts")
"""The host's, since the machine shares the host's network."""
MOST_LINKS = 40
OWN_MARK = b"\0--json-status-fd\x003\0"
"""Part of bwrap's own command line that tells it from one that a machine starts."""


def plan(spec: MachineSpec, program: str, mounts: list[tuple[str, str, str]]) -> dict[str, Any]:
    kind = spec.machinetype
    root = os.path.normpath(spec.files / (kind.root_image or ""))
    paths = [os.path.normpath(path) for path in kind.tmp_binds]
    fresh = {
        "tmp": "/tmp",
        "var_tmp": "/var/tmp",
        **{f"bind{number}": path for number, path in enumerate(paths)},
    }
    hidden = with_other_paths([*HIDDEN, *map(str, spec.hidden), str(spec.settings.state_dir)])
    return {
        "program": program,
        "hostname": spec.name,
        "image": root,
        "files": os.path.realpath(spec.files),
        "mounts": [
            *(("rw", str(spec.directory / "mnt" / name), place) for name, place in fresh.items()),
            *(("dev", "", "/dev"), ("proc", "", "/proc")),
            *(("blank", "", path) for path in hidden),
            *(("try", path, path) for path in RESOLVER_FILES),
            *mounts,
        ],
        "fresh": list(fresh),
        "command": kind.container_command,
    }


def command_pids(told: Mapping[str, Any], first: bytes, others: Mapping[int, bytes]) -> list[int]:
    """See Model: a process that bwrap has forked keeps bwrap's command line until it executes something."""
    if "child-pid" not in told:
        return []
    return [pid for pid, each in others.items() if each not in (first, b"") and OWN_MARK not in each]


def executed(told: Mapping[str, Any]) -> bool:
    return "child-pid" in told


def may_pass(failure: str) -> bool:
    """See Model: entries of the host's own tree come and go while they are mounted one by one."""
    gone = failure.endswith("No such file or directory") or "(deleted)" in failure
    return failure.startswith("bwrap: Can't ") and gone


def has_run(told: Mapping[str, Any], exit_code: int, said: str) -> bool:
    """See Model: bwrap tells an exit code only if it has executed the command."""
    return "exit-code" in told


def command_line(plan: dict[str, Any]) -> list[str]:
    root, command = real_image(plan["image"]), plan["command"]
    if not os.path.isdir(root):
        what = "is a file" if os.path.exists(root) else "can't be found"
        raise ValueError(f"root_image {root} {what}; bubblewrap takes / or the path of a directory tree")
    check_root(root, plan)
    points = mount_points(root, plan["mounts"])
    check_command(root, command, points)
    return [
        plan["program"],
        *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--hostname", plan["hostname"], "--new-session", "--json-status-fd", "3"),
        *("--seccomp", str(FILTER)),
        *compose(root, points),
        *("--chdir", "/tmp", "--", command),
    ]


def check_root(root: str, plan: dict[str, Any]) -> None:
    """Raise ValueError if the image is, or lies in, a hidden place: there nothing of it could be hidden.

    The site's files/ directory of the machinetype is for images.
    """
    if f"{root}/".startswith(f"{plan['files']}/"):
        return
    for kind, _, dest in plan["mounts"]:
        if kind == "blank" and f"{root}/".startswith(f"{os.path.realpath(dest)}/"):
            raise ValueError(f"root_image {root} is in {dest}, which machines must not see")


def check_command(root: str, command: str, points: dict[str, tuple[str, str]]) -> None:
    """Raise ValueError if the command is certainly not there or may not be executed."""
    place = resolve(root, command, points)
    kind, file = points.get(place, ("", os.path.join(root, place[1:])))
    if not kind and inside(place, points):
        return
    try:
        os.lstat(file)
    except PermissionError:
        why = "every directory above it must be searchable by all"
        raise ValueError(f"user {os.getuid()} can't reach {file}: {why}") from None
    except FileNotFoundError:
        raise ValueError(f"container_command {command} does not exist in root_image {root}") from None
    if os.path.isdir(file) or not os.access(file, os.X_OK):
        raise ValueError(f"container_command {command} is not a file that user {os.getuid()} may execute")


def mount_points(root: str, mounts: list[tuple[str, str, str]]) -> dict[str, tuple[str, str]]:
    """Return kind and source of mounts by place, symbolic links resolved; of two at one place the later counts.

    A file to be hidden is left out of its directory: a mount on a file goes when another is renamed to its name.
    """
    points: dict[str, tuple[str, str]] = {}
    for kind, source, dest in mounts:
        if kind == "blank":
            hidden = unlistable(dest)
            below = os.path.relpath(hidden, root)
            place = resolve(root, "/" + below, points)
            if not below.startswith("..") and os.path.exists(hidden) and not inside(place, points):
                points.setdefault(place, ("blank" if os.path.isdir(hidden) else "left out", source))
            continue
        place = resolve(root, dest, points)
        if kind != "try":
            points[place] = (kind, source)
        elif wanted(os.path.join(root, place[1:]), source, inside(place, points)):
            points[place] = ("ro", source)
    return points


def unlistable(path: str) -> str:
    """Return the path, or the first directory above it that this user can't list.

    bwrap 0.12 mounts nothing below such a directory ("Can't mkdir parents").
    """
    above = (str(directory) for directory in reversed(Path(path).parents))
    return next((directory for directory in above if not os.access(directory, os.R_OK)), path)


def wanted(own: str, source: str, hidden: bool) -> bool:
    """Return True if the host's file has to be bound over the image's own, or where another mount hides that.

    Not if they are the same one: its directory on the host shows the file's successors, too.
    """
    if hidden or not os.path.isfile(own):
        return hidden and os.path.isfile(source)
    return os.path.isfile(source) and not os.path.samefile(own, source)


def resolve(root: str, path: str, points: dict[str, tuple[str, str]]) -> str:
    """Return the path with the image's symbolic links followed; below mount points there are none."""
    done, todo, links = "/", path.split("/"), 0
    while todo:
        part = todo.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            done = os.path.dirname(done)
            continue
        place = os.path.join(done, part)
        image_path = os.path.join(root, place[1:])
        if done in points or inside(done, points) or not os.path.islink(image_path):
            done = place
            continue
        links += 1
        if links > MOST_LINKS:
            raise ValueError(f"too many symbolic links in {path} of root_image {root}")
        target = os.readlink(image_path)
        done = "/" if target.startswith("/") else done
        todo = target.split("/") + todo
    return done


def inside(path: str, points: dict[str, tuple[str, str]]) -> bool:
    """Return True if the path is below one of the mount points."""
    return any(path.startswith(point + "/") for point in points)


def compose(root: str, points: dict[str, tuple[str, str]]) -> list[str]:
    """Return the arguments that make the machine's file system: image, mounts, and writable only what must be."""
    arguments = bind_entries(root, "/", points, directories_to_open(root, points))
    blanks = []
    for place, (kind, source) in sorted(points.items(), key=lambda point: point[0].split("/")):
        if kind == "blank":
            arguments += ["--tmpfs", place]
            blanks.append(place)
        elif kind in ("dev", "proc"):
            arguments += [f"--{kind}", place]
        elif kind != "left out":
            arguments += ["--bind" if kind == "rw" else "--ro-bind", source, place]
    for place in (*blanks, "/"):
        arguments += ["--remount-ro", place]
    return arguments


def directories_to_open(root: str, points: dict[str, tuple[str, str]]) -> set[str]:
    """Return directories of the image that have to be composed because a mount point is missing in them."""
    opened = {"/"}
    for place, (kind, source) in points.items():
        if inside(place, points):
            continue
        directory, parts = "/", place.split("/")[1:]
        while len(parts) > 1 and os.path.isdir(os.path.join(root, directory[1:], parts[0])):
            directory = os.path.join(directory, parts.pop(0))
        there = os.path.join(root, directory[1:], parts[0])
        wants_directory = kind not in ("ro", "rw") or os.path.isdir(source)
        suits = os.path.isdir(there) if wants_directory else os.path.isfile(there)
        if len(parts) > 1 or not suits:
            while directory not in opened:
                opened.add(directory)
                directory = os.path.dirname(directory)
    return opened


def bind_entries(
    root: str, directory: str, points: dict[str, tuple[str, str]], opened: set[str]
) -> list[str]:
    """Return arguments that bring the entries of a directory of the image into the machine.

    One that vanishes meanwhile, as in the host's own tree others' files may, is left out.
    """
    arguments = []
    with os.scandir(os.path.join(root, directory[1:])) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            place = os.path.join(directory, entry.name)
            if place in points:
                continue
            with contextlib.suppress(FileNotFoundError):
                if entry.is_symlink():
                    arguments += ["--symlink", os.readlink(entry.path), place]
                elif place in opened:
                    arguments += ["--dir", place, *bind_entries(root, place, points, opened)]
                elif entry.is_dir() or entry.is_file():
                    arguments += ["--ro-bind-try", entry.path, place]
    return arguments
