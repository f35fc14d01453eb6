"""What `vac doctor` looks at for what this host serves over HTTP. It changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from vac.config.settings import Settings
from vac.config.values import split_host_port
from vac.machines.layout import StateDir
from vac.roles import bind

Row = tuple[str, Optional[str], bool]
"""As doctor.Finding: what, the problem, whether it is serious."""


def rows(settings: Settings) -> Iterator[Row]:
    """Can the page be served where it is to be? That its packages are there is the configuration's to say."""
    if settings.metrics_listen is None or serves(StateDir(settings.state_dir), "page"):
        return
    host, port = split_host_port(settings.metrics_listen)
    what = f"metrics_listen {settings.metrics_listen}"
    try:
        bind(host, port).close()
    except OSError as error:
        yield what, f"{error.strerror}: choose an address of this host and a port that nobody has", False
    else:
        yield what, None, False


def serves(state: StateDir, role: str) -> bool:
    """Is the process of this role alive?"""
    try:
        number = int(state.pid(role).read_text(encoding="ascii"))
        name = Path(f"/proc/{number}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False
    return f"vacd-{role}".encode() in name
