"""A machine model whose program is a shell: it runs container_command, which says by itself how far it has come."""

from __future__ import annotations

from typing import Any

PROGRAMS = ("sh",)
PACKAGE, OPTION = "dash", ""
TELLS = True
TAKES_URLS = NEEDS_ACCOUNT = FILTERED = False


def plan(spec: Any, program: str) -> dict[str, Any]:
    return {"program": program, "image": "/", "command": spec.machinetype.container_command}


def command_line(plan: dict[str, Any]) -> list[str]:
    return ["/bin/sh", "-c", plan["command"]]


def scratch(spec: Any) -> list[tuple[str, str]]:
    return [("tmp", "/tmp")]


def running(status: str, first: bytes, others: list[bytes]) -> bool:
    return "child-pid" in status


def executed(status: str) -> bool:
    return "child-pid" in status


def may_pass(failure: str) -> bool:
    return "try again" in failure


def has_run(status: str, exit_code: int, said: str) -> bool:
    return "exit-code" in status
