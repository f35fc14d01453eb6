"""The factory's space: peers are asked when a decision needs them, and their last answers are remembered."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from vac.background import BackgroundWork, Outcome
from vac.config.load import Configuration
from vac.config.settings import Settings
from vac.scheduling.model import SpaceView, TypeReport
from vac.scheduling.space import (
    CAPACITY_SECONDS,
    REMEMBERED_CAPACITY_SECONDS,
    SILENT_SECONDS,
    is_due,
    is_fresh,
    view,
)
from vac.vacquery.messages import Kind, Reason
from vac.vacquery.poll import Poll, Resolver, capacities, to_reports

log = logging.getLogger(__name__)

MOST_LISTED = 5
"""Factories that a warning names, or peers that the log does."""


@dataclass(frozen=True)
class Answers:
    """Results of a poll, by factory."""

    time: float
    reports: Mapping[str, Mapping[str, TypeReport]] = field(default_factory=dict)
    capacities: Mapping[str, float] | None = None
    """max_hs06; None: not asked for this time."""
    without_hs06: Collection[str] = ()
    """Those of the factories in capacities on which a processor's HS06 isn't configured, and counts as 1."""
    partial: Mapping[str, Mapping[str, TypeReport]] = field(default_factory=dict)
    """Reports of factories that have not answered in full."""
    unusable: Mapping[str, str] = field(default_factory=dict)
    """Reasons why answers of such factories were not used."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Numbers of datagrams that were not used, by reason."""


Ask = Callable[[Configuration, bool, Collection[str]], Answers]
"""Asks all peers, and for their capacities too if the flag says so, and doesn't wait long for those that are listed.
It blocks, in a thread of its own."""


class Space:
    """Peers' last answers, which are renewed in the background."""

    def __init__(self, ask: Ask, post: Callable[[Answers], object], clock: Callable[[], float]) -> None:
        self._ask = ask
        self._post = post
        self._clock = clock
        self._work: BackgroundWork[Answers] = BackgroundWork("poll", self._polled)
        self._asking = False
        self._capacity_time = -math.inf
        """When capacities were last told."""
        self._reports: dict[str, tuple[float, Mapping[str, TypeReport]]] = {}
        self.last = Answers(-math.inf)
        """Results of the last poll; before the first one, of one that was infinitely long ago."""
        self._capacities: dict[str, tuple[float, float]] = {}
        self._without_hs06: set[str] = set()
        self._view: SpaceView | None = None
        """The space as the last poll and these settings show it, if it has been asked for since."""
        self._settings: Settings | None = None
        self._valid = (0.0, 0.0)
        """From when until when that holds: then the first silent peer's last answer is too old."""

    def fresh(self, configuration: Configuration) -> bool:
        """Return True if the space is known well enough to decide; if not, or soon not, ask the peers."""
        factories = len(configuration.settings.factories)
        if factories < 2:
            return True
        now = self._clock()
        age = now - self.last.time
        if is_due(age, factories) and not self._asking:
            self._asking = True
            due = not 0 <= now - self._capacity_time < CAPACITY_SECONDS
            doubtful = tuple(self.silent(configuration.settings))
            self._work.start("peers", lambda: self._ask(configuration, due, doubtful))
        return is_fresh(age)

    def _polled(self, outcome: Outcome[Answers]) -> None:
        if outcome.failure:
            log.warning("peers can't be asked: %s", outcome.failure)
        self._post(outcome.value or Answers(self._clock()))

    def answered(self, answers: Answers) -> None:
        """Take in what a poll has brought."""
        self._asking = False
        self._view = None
        if answers.unusable != self.last.unusable:
            told = [f"{name}: {why}" for name, why in sorted(answers.unusable.items())]
            level = logging.WARNING if told else logging.INFO
            log.log(level, "peers whose answers can't be used: %s", _listed(told) or "none any more")
        if answers.dropped.keys() != self.last.dropped.keys():
            told = [f"{count} {reason}" for reason, count in answers.dropped.items()]
            log.info("datagrams that a poll has dropped: %s", ", ".join(told) or "none any more")
        self.last = answers
        for factory, reports in answers.reports.items():
            self._reports[factory] = (answers.time, reports)
        if answers.capacities is not None:
            self._capacity_time = answers.time
            for factory, capacity in answers.capacities.items():
                self._capacities[factory] = (answers.time, capacity)
            self._without_hs06 = {*self._without_hs06.difference(answers.capacities), *answers.without_hs06}

    def silent(self, settings: Settings) -> dict[str, float | None]:
        """Return peers that did not answer the last poll in full, with the time of their last full answer."""
        peers = [name for name in settings.factories if name != settings.factory_name]
        if self.last.time == -math.inf:
            return {}
        heard = {name: self._reports[name][0] if name in self._reports else None for name in peers}
        return {name: time for name, time in heard.items() if time is None or time < self.last.time}

    def warning(self, settings: Settings) -> str | None:
        """Return a text if some factories have configured their HS06 and others haven't: shares mean nothing then."""
        without_hs06 = [name for name in settings.factories if name in self._without_hs06]
        if settings.hs06 == 1.0:
            without_hs06.append(settings.factory_name)
        known = {*self._capacities, settings.factory_name}.intersection(settings.factories)
        if not without_hs06 or len(without_hs06) >= len(known):
            return None
        return (
            f"{len(without_hs06)} of {len(known)} factories have no hs06_per_processor "
            f"({_listed(sorted(without_hs06))}), the others have: "
            "shares are counted in HS06, so all of them should have it, or none"
        )

    def view(self, settings: Settings, own: Callable[[], Mapping[str, TypeReport]], now: float) -> SpaceView:
        """Return the space as it is known now; own returns what this factory reports of itself.

        It is added up once per poll: a decision replaces this factory's part by its present state. What a peer has
        said in part stands only for one whose last full answer is too old.
        """
        valid = self._settings is settings and self._valid[0] <= now < self._valid[1]
        if self._view is None or not valid or len(settings.factories) < 2:
            ends = (time + SILENT_SECONDS for time, _ in self._reports.values())
            self._valid = (now, min((end for end in ends if end > now), default=now + SILENT_SECONDS))
            self._view, self._settings = self._sum(settings, own(), now), settings
        return self._view

    def _sum(self, settings: Settings, own: Mapping[str, TypeReport], now: float) -> SpaceView:
        partial = self.last.partial if 0 <= now - self.last.time < SILENT_SECONDS else {}
        full = {
            name: said for name, (time, said) in self._reports.items() if 0 <= now - time < SILENT_SECONDS
        }
        reports = {**partial, **full}
        capacities = {
            name: capacity
            for name, (time, capacity) in self._capacities.items()
            if 0 <= now - time < REMEMBERED_CAPACITY_SECONDS
        }
        reports[settings.factory_name] = own
        capacities[settings.factory_name] = settings.total_processors * settings.hs06
        return view(
            settings.factory_name, settings.factories, reports, capacities, now, self.silent(settings)
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_LISTED]) + (", …" if len(names) > MOST_LISTED else "")


def ask_peers(
    names: Resolver,
    clock: Callable[[], float],
    configuration: Configuration,
    with_capacities: bool,
    doubtful: Collection[str] = (),
) -> Answers:
    """Return all other factories' reports, and capacities if wanted. Don't wait long for those that are doubtful.

    Takes udp_timeout_seconds at most, twice that with capacities. OSError if they can't be asked at all.
    """
    settings = configuration.settings
    peers = [name for name in settings.factories if name != settings.factory_name]
    capacity, without_hs06, results = None, frozenset[str](), []
    if with_capacities:
        results.append(Poll.configured(settings, Kind.FACTORIES, names, peers).run(doubtful))
        capacity, without_hs06 = capacities(results[0].answers)
        doubtful = {*doubtful, *results[0].missing}
    result = Poll.configured(settings, Kind.MACHINETYPES, names, peers).run(doubtful)
    now = clock()
    results.append(result)
    reports, unknown = to_reports(result.answers, configuration.machinetypes)
    partial = {name: reports.pop(name) for name in result.missing if name in reports}
    unusable = {name: str(why) for each in results for name, why in each.unusable.items()}
    dropped = Counter({Reason.MACHINETYPE.value: unknown} if unknown else {})
    for each in results:
        dropped.update({reason.value: count for reason, count in each.dropped.items()})
    return Answers(now, reports, capacity, without_hs06, partial, unusable, dict(dropped))
