"""The system calls of a Docker container in which unprivileged user name spaces must work (container_nested).

Docker's default profile (docs.docker.com/engine/security/seccomp) refuses what makes name spaces and mounts
unless the container holds CAP_SYS_ADMIN. Here those are allowed, the kernel asking for the capability in the
caller's own user name space, and the rest of what the default refuses stays refused. It is a list of
refusals, since a profile can't be laid over the engine's own.
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
            "syscalls": [{"names": sorted(REFUSED), "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM}],
        }
    )
