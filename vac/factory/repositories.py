"""Which CernVM-FS repositories machinetypes need, and which of them can't be used now."""

from __future__ import annotations

import logging

from vac.config.checks import needed_repositories
from vac.config.machinetype import Machinetype
from vac.factory.state import FactoryState
from vac.host.probes import CVMFS, RepositorySeen, RepositoryWatch


class Repositories:
    """Keeps an eye on all that are needed; a machinetype whose repository doesn't answer has to wait."""

    def __init__(self, state: FactoryState, watch: RepositoryWatch) -> None:
        self._state = state
        self._watch = watch
        self._problems: dict[str, str | None] = {}
        """By repository that has been looked at."""

    def look(self) -> None:
        """Once a cycle: look at all that machinetypes need which have a share or machines."""
        running = {slot.machine.machinetype for slot in self._state.slots if slot.machine and slot.occupied}
        types = self._state.configuration.machinetypes.values()
        needing = (one for one in types if one.target_share > 0 or one.name in running)
        wanted = {each for one in needing for each in needed_repositories(one)}
        self._problems = {each: problem for each, problem in self._problems.items() if each in wanted}
        self._watch.look(wanted)

    def seen(self, message: RepositorySeen) -> None:
        """A repository has answered, or has not in time."""
        name, problem = message.repository, message.problem
        if self._problems.get(name, "") != problem:
            self._state.changed = True
        self._problems[name] = problem
        if problem is None:
            self._state.changes.clear(("cvmfs", name))
        else:
            self._state.changes.say(("cvmfs", name), f"{CVMFS / name} {problem}", logging.WARNING)

    def problem(self, machinetype: Machinetype) -> str | None:
        """Why no machine of this type can be made now: the first of its repositories that can't be used."""
        for name in needed_repositories(machinetype):
            problem = self._problems.get(name, "has not answered yet")
            if problem is not None:
                return f"repository {CVMFS / name} {problem}"
        return None
