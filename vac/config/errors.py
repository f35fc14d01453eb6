"""What can be wrong with a configuration, in words that name the place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vac.config.pipe import VacuumPipe
from vac.config.settings import Settings


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or (as a warning) that somebody should look at."""

    file: str
    section: str
    option: str
    text: str
    """What was found and what would be right."""

    def __str__(self) -> str:
        where = f"[{self.section}] {self.option}".strip() if self.section else self.option
        return ": ".join(part for part in (self.file, where, self.text) if part)


class ConfigurationError(Exception):
    """The configuration can't be used: every problem, and the warnings that there would be besides.

    settings are what could be understood of [settings], defaults standing in for the rest: not to create
    machines by, but enough to go on watching those that there are. pipes are those that may be fetched meanwhile.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        warnings: Sequence[Problem] = (),
        settings: Settings | None = None,
        pipes: Mapping[str, VacuumPipe] | None = None,
    ) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)
        self.settings = settings
        self.pipes = {name: pipe for name, pipe in (pipes or {}).items() if pipe.vacuum_pipe_url}
