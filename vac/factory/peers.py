"""Asking the peers by VacQuery, for the decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from vac.config.load import Configuration
from vac.factory.space import Answers
from vac.vacquery.messages import Kind, Reason
from vac.vacquery.poll import PollResult, capacities, poll, to_reports, without_hs06
from vac.vacquery.resolver import Names
from vac.vacquery.signed_json import read_key


class Peers:
    """Polls all other factories of the space."""

    def __init__(self, names: Names, clock: Callable[[], float]) -> None:
        self._names = names
        self._clock = clock

    def ask(
        self, configuration: Configuration, with_capacities: bool, doubtful: Collection[str] = ()
    ) -> Answers:
        """What they run, and their capacities if wanted. Those that are doubtful aren't waited for long.

        Takes udp_timeout_seconds at most, twice that with capacities. OSError if it can't be asked at all.
        """
        capacity, unrated, results = None, frozenset[str](), []
        if with_capacities:
            first = self._poll(configuration, Kind.FACTORIES, doubtful)
            capacity, unrated = capacities(first.answers), without_hs06(first.answers)
            doubtful = {*doubtful, *first.missing}
            results.append(first)
        result = self._poll(configuration, Kind.MACHINETYPES, doubtful)
        now = self._clock()
        results.append(result)
        reports, unknown = to_reports(result.answers, configuration.machinetypes)
        partial = {name: reports.pop(name) for name in result.missing if name in reports}
        unusable = {name: str(why) for each in results for name, why in each.unusable.items()}
        dropped = Counter({Reason.MACHINETYPE.value: unknown} if unknown else {})
        for each in results:
            dropped.update({reason.value: count for reason, count in each.dropped.items()})
        return Answers(now, reports, capacity, unrated, partial, unusable, dropped)

    def _poll(self, configuration: Configuration, kind: Kind, doubtful: Collection[str]) -> PollResult:
        settings = configuration.settings
        return poll(
            [name for name in settings.factories if name != settings.factory_name],
            kind,
            settings.vac_space,
            names=self._names,
            port=settings.vacquery_port,
            timeout=settings.udp_timeout_seconds,
            key=read_key(settings.vacquery_key_file),
            doubtful=doubtful,
        )
