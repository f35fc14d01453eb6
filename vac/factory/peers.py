"""Asking the peers by VacQuery, for the decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vac.config.load import Configuration
from vac.factory.space import Answers
from vac.vacquery.messages import Kind, Received
from vac.vacquery.names import Names
from vac.vacquery.poll import poll
from vac.vacquery.reports import capacities, to_reports
from vac.vacquery.signing import read_key


class Peers:
    """Polls all other factories of the space."""

    def __init__(self, names: Names, clock: Callable[[], float]) -> None:
        self._names = names
        self._clock = clock

    def ask(self, configuration: Configuration, with_capacities: bool) -> Answers:
        """What they run, and their capacities if wanted.

        Takes udp_timeout_seconds at most, twice that with capacities. OSError if it can't be asked at all.
        """
        capacity = capacities(self._poll(configuration, Kind.FACTORIES)) if with_capacities else None
        answers = self._poll(configuration, Kind.MACHINETYPES)
        now = self._clock()
        reports, _ = to_reports(answers, configuration.machinetypes, now)
        return Answers(now, reports, capacity)

    def _poll(self, configuration: Configuration, kind: Kind) -> Mapping[str, tuple[Received, ...]]:
        settings = configuration.settings
        return poll(
            [name for name in settings.factories if name != settings.factory_name],
            kind,
            settings.vac_space,
            names=self._names,
            port=settings.vacquery_port,
            timeout=settings.udp_timeout_seconds,
            key=read_key(settings.vacquery_key_file),
        ).answers
