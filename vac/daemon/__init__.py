"""vacd: its processes and their supervisor."""

from __future__ import annotations

from vac.daemon.command import main

__all__ = ["main"]
