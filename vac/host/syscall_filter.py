"""System calls that machines may not use: a filter like Docker's default, as rules and as a program for the kernel.

Docker's default profile (docs.docker.com/engine/security/seccomp) refuses what makes name spaces and mounts unless the
container holds CAP_SYS_ADMIN. Here the rules with `nested` allow those, the kernel asking for the capability in the
caller's own user name space; all else that the default refuses stays refused: personality() but for the default's five
values, sockets of AF_VSOCK, and the system calls below. compiled() also refuses those that are newer than these lists.
libseccomp, which systemd and apt need, makes the program for all architectures of the processor: seccomp_init(3).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import functools
import os
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

REFUSED = (
    *("acct", "quotactl", "quotactl_fd", "swapon", "swapoff", "reboot", "vhangup", "syslog"),
    *("add_key", "keyctl", "request_key"),
    *("bpf", "perf_event_open", "userfaultfd", "fanotify_init", "lookup_dcookie", "open_by_handle_at"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("clock_adjtime", "clock_adjtime64", "clock_settime", "clock_settime64", "settimeofday", "stime"),
    *("create_module", "delete_module", "finit_module", "init_module", "query_module", "get_kernel_syms"),
    *("kexec_load", "kexec_file_load"),
    *("ioperm", "iopl", "vm86", "vm86old", "uselib"),
    *("get_mempolicy", "set_mempolicy", "set_mempolicy_home_node", "mbind", "move_pages", "migrate_pages"),
    *("kcmp", "process_madvise", "pidfd_getfd"),
    *("nfsservctl", "sysfs", "_sysctl", "ustat"),
)
NESTING = (
    *("mount", "umount", "umount2", "pivot_root", "setns", "unshare"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "move_mount", "open_tree", "mount_setattr"),
)
"""System calls that make name spaces and mounts."""
NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
"""Flags of clone() for new name spaces, CLONE_NEWNS to CLONE_NEWNET."""
PERSONALITIES = (0x8, 0x20000)
"""Flags that personality() may set (PER_LINUX32, UNAME26); all 32 together only ask for the present ones."""
NEWEST = 469
"""Number of the newest system call that is known here, of Linux 6.17; from 424 on all architectures have the same."""
_APART = 0xF0000
_AF_VSOCK = 40
_LIBRARY = "libseccomp.so.2"
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EQ, _MASKED_EQ = 4, 7
_BAD_ARCHITECTURE = 2  # SCMP_FLTATR_ACT_BADARCH
_OLDER = {"x86_64": 0x40000003, "aarch64": 0x40000028}
"""The 32-bit architecture whose programs the processor runs, too: AUDIT_ARCH_I386 and _ARM of linux/audit.h."""


class Rule(NamedTuple):
    """A refusal of system calls, perhaps only if their first argument, under a mask, has a value."""

    names: tuple[str, ...]
    value: int | None = None
    mask: int | None = None
    """None: all of the argument."""
    error: int = errno.EPERM


def rules(nested: bool) -> Iterator[Rule]:
    """Yield the refusals; everything else is allowed."""
    yield Rule(REFUSED)
    yield Rule(("socket",), _AF_VSOCK)
    yield from _personalities()
    if not nested:
        yield Rule(NESTING)
        yield Rule(("clone3",), error=errno.ENOSYS)  # its flags are in memory: libraries fall back to clone()
        for flag in NAMESPACES:
            yield Rule(("clone",), flag, flag)


def _personalities() -> Iterator[Rule]:
    """Yield the arguments of a refused personality(), since one rule compares an argument but once.

    Some other flag is set, but not all 32 are: then, in a circle of the others, one that is set is followed by one
    that isn't; or all others are set, and one of those that are allowed isn't.
    """
    others = [1 << bit for bit in range(32) if 1 << bit not in PERSONALITIES]
    for is_set, is_not in (
        *zip(others, [*others[1:], others[0]]),
        *((others[0], flag) for flag in PERSONALITIES),
    ):
        yield Rule(("personality",), is_set, is_set | is_not)


@functools.cache
def compiled(nested: bool) -> bytes:
    """Return the filter as a program of the kernel's BPF. Raises OSError if libseccomp isn't there or fails."""
    library = _load()
    context = library.seccomp_init(_ALLOW)
    if not context:
        raise OSError(errno.ENOMEM, "can't make a filter", _LIBRARY)
    try:
        _check(library.seccomp_attr_set(context, _BAD_ARCHITECTURE, _ERRNO | errno.ENOSYS), "architecture")
        older = _OLDER.get(os.uname().machine)
        if older is not None:
            _check(library.seccomp_arch_add(context, older), "architecture")
        for rule in rules(nested):
            for name in rule.names:
                _add(library, context, name, rule)
        descriptor = os.memfd_create("filter")
        try:
            _check(library.seccomp_export_bpf(context, descriptor), "export")
            size = os.lseek(descriptor, 0, os.SEEK_END)
            return _refuse_newer() + os.pread(descriptor, size, 0)
        finally:
            os.close(descriptor)
    finally:
        library.seccomp_release(context)


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp of seccomp.h."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def _load() -> Any:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        what = "is not installed: install libseccomp2 (Debian) or libseccomp (EL)"
        raise OSError(errno.ENOENT, what, _LIBRARY) from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
    library.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_rule_add_array.argtypes = (
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint),
        ctypes.POINTER(_Comparison),
    )
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    return library


def _add(library: Any, context: int, name: str, rule: Rule) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == -1:  # newer than this libseccomp
        return
    comparison = _Comparison()
    if rule.value is not None and rule.mask is not None:
        comparison = _Comparison(0, _MASKED_EQ, rule.mask, rule.value)
    elif rule.value is not None:
        comparison = _Comparison(0, _EQ, rule.value, 0)
    action, compared = _ERRNO | rule.error, int(rule.value is not None)
    _check(library.seccomp_rule_add_array(context, action, number, compared, ctypes.byref(comparison)), name)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}", _LIBRARY)


def _refuse_newer() -> bytes:
    """Return instructions for before the program: ENOSYS for a number above NEWEST (linux/bpf_common.h, seccomp(2)).

    Those of 32-bit ARM alone, such as set_tls(), and of x32, which the program refuses, are left to the program.
    """
    load, above, at_least, answer = 0x20, 0x25, 0x35, 0x06
    instructions = (
        (load, 0, 0, 0),
        (above, 0, 2, NEWEST),
        (at_least, 1, 0, _APART),
        (answer, 0, 0, _ERRNO | errno.ENOSYS),
    )
    return b"".join(struct.pack("=HBBI", *each) for each in instructions)
