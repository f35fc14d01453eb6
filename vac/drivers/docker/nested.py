"""The system calls of a Docker container in which unprivileged user name spaces must work (container_nested).

A list of refusals, since a profile can't be laid over the engine's own.
"""

from __future__ import annotations

import json

from vac.host.syscall_filter import Rule, rules


def nested_profile() -> str:
    """Return the seccomp profile, as the JSON that the engine takes; 32-bit programs are filtered alike."""
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            ],
            "syscalls": [_refusal(rule) for rule in rules(nested=True)],
        }
    )


def _refusal(rule: Rule) -> dict[str, object]:
    arguments: list[dict[str, object]] = []
    if rule.mask is not None:
        arguments.append({"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": rule.mask, "valueTwo": rule.value})
    elif rule.value is not None:
        arguments.append({"index": 0, "op": "SCMP_CMP_EQ", "value": rule.value})
    return {
        "names": sorted(rule.names),
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": rule.error,
        "args": arguments,
    }
