"""A machine model whose program is a shell: it runs container_command, which says by itself how far it has come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROGRAMS = ("sh",)
PACKAGE, OPTION = "dash", ""
TELLS = True
TAKES_URLS = NEEDS_ACCOUNT = FILTERED = False


def plan(spec: Any, program: str, mounts: object) -> dict[str, Any]:
    command = spec.machinetype.container_command
    return {"program": program, "image": "/", "fresh": ["tmp"], "command": command}


def command_line(plan: dict[str, Any]) -> list[str]:
    return ["/bin/sh", "-c", plan["command"]]


def command_pids(told: Mapping[str, Any], first: bytes, others: Mapping[int, bytes]) -> list[int]:
    return [told["pid"]] if "child-pid" in told else []


def executed(told: Mapping[str, Any]) -> bool:
    return "child-pid" in told


def may_pass(failure: str) -> bool:
    return "try again" in failure


def has_run(told: Mapping[str, Any], exit_code: int, said: str) -> bool:
    return "exit-code" in told
