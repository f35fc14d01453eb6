"""The filter of system calls, as the kernel understands it."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys

import pytest

from vac.host import syscall_filter
from vac.host.child_processes import run
from vac.host.syscall_filter import NESTING, REFUSED, compiled

TRY = """
import ctypes, json, os, sys
program, calls = bytes.fromhex(sys.argv[1]), json.loads(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, program)), 0, 0) == 0, ctypes.get_errno()
found = []
for number, first in calls:
    ctypes.set_errno(0)
    libc.syscall(ctypes.c_long(number), ctypes.c_ulong(first), ctypes.c_long(-1), ctypes.c_long(-1), None)
    found.append(ctypes.get_errno())
print(json.dumps(found))
"""
OTHERS = {"newest": 469, "newer": 470, "x32 getpid": 0x40000000 + 39}
"""On all architectures from 424 on; nobody has so large a number as x32's but x32."""
NEWNS, NEWUSER, VSOCK, UNIX, BAD_FLAGS = 0x20000, 0x10000000, 40, 1, 0x80000000


def attempt(nested: bool, *calls: tuple[str, int]) -> list[str]:
    """Names of the errors of system calls with these first arguments under the filter, "" for none."""
    resolve = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name
    found = [(OTHERS.get(name) or resolve(name.encode()), first) for name, first in calls]
    numbers = json.dumps(found)
    done = run([sys.executable, "-c", TRY, compiled(nested).hex(), numbers], time_limit_seconds=60)
    assert not done.failure, done.failure
    return [errno.errorcode.get(number, "") for number in json.loads(done.output)]


@pytest.mark.allow_subprocess
def test_the_kernel_refuses_what_dockers_default_does() -> None:
    names = [
        "keyctl",
        "add_key",
        "bpf",
        "userfaultfd",
        "perf_event_open",
        "io_uring_setup",
        "open_by_handle_at",
    ]
    for nested in (False, True):
        assert attempt(nested, *((name, 0) for name in names)) == len(names) * ["EPERM"]
        assert attempt(nested, ("socket", VSOCK), ("personality", 0x40000)) == ["EPERM", "EPERM"]
        assert attempt(nested, ("getpid", 0), ("personality", 0xFFFFFFFF)) == ["", ""]
        assert attempt(nested, ("socket", UNIX)) != ["EPERM"]


@pytest.mark.allow_subprocess
def test_newer_and_x32_system_calls_are_not_there() -> None:
    assert attempt(False, ("newer", 0), ("x32 getpid", 0)) == ["ENOSYS", "ENOSYS"]


@pytest.mark.allow_subprocess
def test_name_spaces_and_mounts_are_for_nested_machines_only() -> None:
    calls = [
        ("unshare", BAD_FLAGS),
        ("setns", 0),
        ("mount", 0),
        ("clone", NEWUSER),
        ("clone", NEWNS),
        ("clone3", 0),
    ]
    assert attempt(False, *calls) == [*5 * ["EPERM"], "ENOSYS"]
    allowed = attempt(True, ("unshare", BAD_FLAGS), ("setns", 0), ("clone3", 0))
    assert not {"EPERM", "ENOSYS"} & set(allowed)


def test_every_name_is_known_to_the_library() -> None:
    resolve = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name
    newer = {"set_mempolicy_home_node", "quotactl_fd", "process_madvise", "mount_setattr"}
    assert not [name for name in {*REFUSED, *NESTING} - newer if resolve(name.encode()) == -1]


def test_a_host_without_the_library_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscall_filter, "_LIBRARY", "libnot-there.so.2")
    compiled.cache_clear()
    with pytest.raises(OSError, match="is not installed: install libseccomp2") as raised:
        compiled(False)
    assert raised.value.errno == errno.ENOENT
    assert os.uname().machine
