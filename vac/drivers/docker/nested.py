"""The system calls of a Docker container in which unprivileged user name spaces must work (container_nested).

Docker's default profile (docs.docker.com/engine/security/seccomp) refuses what makes name spaces and mounts
unless the container holds CAP_SYS_ADMIN. Here those are allowed, the kernel asking for the capability in the
caller's own user name space, and the rest of what the default refuses stays refused: of the system calls of
Linux 5.17, personality() but for the default's five values, and sockets of AF_VSOCK. It is a list of refusals,
since a profile can't be laid over the engine's own.
"""

from __future__ import annotations

import json

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
PERSONALITIES = (0x8, 0x20000)
"""Flags that personality() may set (PER_LINUX32, UNAME26); all 32 together only ask for the present ones."""
_AF_VSOCK = 40
_EPERM = 1


def nested_profile() -> str:
    """The seccomp profile, as the JSON that the engine takes; 32-bit programs are filtered alike."""
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            ],
            "syscalls": [
                _refuse(sorted(REFUSED)),
                _refuse(["socket"], {"index": 0, "op": "SCMP_CMP_EQ", "value": _AF_VSOCK}),
                *(_refuse(["personality"], one) for one in _personalities()),
            ],
        }
    )


def _refuse(names: list[str], *arguments: dict[str, object]) -> dict[str, object]:
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM, "args": list(arguments)}


def _personalities() -> list[dict[str, object]]:
    """What the argument of a refused personality() looks like; one rule compares an argument but once.

    Some other flag is set, but not all 32 are: then, in a circle of the others, one that is set is followed by one
    that isn't; or all others are set, and one of those that are allowed isn't.
    """
    others = [1 << bit for bit in range(32) if 1 << bit not in PERSONALITIES]
    pairs = [*zip(others, [*others[1:], others[0]]), *((others[0], flag) for flag in PERSONALITIES)]
    return [
        {"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": is_set | is_not, "valueTwo": is_set}
        for is_set, is_not in pairs
    ]
