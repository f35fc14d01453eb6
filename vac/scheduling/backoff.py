"""Aborts, and how they hold a machinetype back on this factory.

An abort is a shutdown message with a code of 300 or above, or an end within fizzle_seconds of the start without
a message that begins with a three-digit code.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vac.scheduling.model import Outcome

SHORT_SECONDS = 60
"""An end this soon after the start (or within fizzle_seconds, if that is less) counts here, whatever its code."""
LONGEST_HOLD_SECONDS = 3600
FIRST_FAILURE_PAUSE_SECONDS = 10
LONGEST_FAILURE_PAUSE_SECONDS = 600

_CODE = re.compile(r"[0-9]{3}(?![0-9])")
_FIZZLE = re.compile(r"300 .*fizzle after [0-9]+ seconds$")


def message_code(message: str | None) -> int | None:
    """The three-digit code that a shutdown message begins with, or None."""
    found = _CODE.match(message or "")
    return int(found.group()) if found else None


def code_group(message: str | None) -> str:
    """The hundred that the code of a message as reported belongs to: `100` to `900`; `none` without one."""
    code = message_code(message)
    return "none" if code is None or code < 100 else str(code // 100 * 100)


def is_abort(message: str | None) -> bool:
    """Whether a message as reported (see reported_message) is an abort."""
    code = message_code(message)
    return code is not None and code >= 300


def reported_message(
    message: str | None, started_time: float, ended_time: float, fizzle_seconds: float
) -> str | None:
    """What is reported as the shutdown message of a machine that started.

    Its own first line if that begins with a three-digit code; `300 … fizzle after N seconds` if it lived for
    less than fizzle_seconds; else whatever it wrote, or None.
    """
    lines = (message or "").strip().splitlines()
    first = lines[0].strip() if lines else None
    if message_code(first) is not None:
        return first
    lived = max(0.0, ended_time - started_time)
    if lived < fizzle_seconds:
        return f"300 No shutdown message: fizzle after {lived:.0f} seconds"
    return first


@dataclass(frozen=True)
class TypeHistory:
    """What this factory's own machines of one type have come to."""

    aborts: int = 0
    """Tries in a row that ended in an abort or within SHORT_SECONDS."""
    last_end: float = 0.0
    """When the last of these ended."""
    no_work: bool = False
    """Did that one itself say that there is no work (3xx)? Then the fault isn't this node's."""
    failures: int = 0
    """Creations in a row that failed."""
    last_failure: float = 0.0
    newest_created: float | None = None
    """Creation time of the most recently created machine that started and has finished."""
    abort_time: float | None = None
    """When that one ended, if it was an abort: what VacQuery reports."""
    abort_says_no_work: bool = False
    """Was that for lack of work, as no_work is of the last early end?"""

    def hold_seconds(self, backoff_seconds: float) -> float:
        """How long after last_end the type is held back here: backoff_seconds × 2^(aborts−1), at most an hour.

        At least a second, doubling, even when backoff_seconds is 0, so that nothing is restarted for ever.
        """
        if not self.aborts:
            return 0.0
        pause: float = max(backoff_seconds, 1) * 2 ** min(self.aborts - 1, 32)
        return min(pause, max(LONGEST_HOLD_SECONDS, backoff_seconds))

    def failure_pause_seconds(self) -> float:
        """How long after last_failure no creation is tried: 10 s, doubling, at most 10 min."""
        if not self.failures:
            return 0.0
        pause: float = FIRST_FAILURE_PAUSE_SECONDS * 2 ** min(self.failures - 1, 16)
        return min(pause, LONGEST_FAILURE_PAUSE_SECONDS)

    def add(self, outcome: Outcome, fizzle_seconds: float) -> TypeHistory:
        """This history with one more outcome.

        Of machines that were created together only the first that fails counts: the others tried before
        anything was known.
        """
        if outcome.started_time is None:
            end = max(outcome.created_time, outcome.ended_time)
            again = not self.failures or outcome.created_time > self.last_failure
            return dataclasses.replace(
                self,
                failures=self.failures + again,
                last_failure=max(self.last_failure, end),
            )
        return self._ended(outcome, outcome.ended_time - outcome.started_time, fizzle_seconds)

    def _ended(self, outcome: Outcome, lived: float, fizzle_seconds: float) -> TypeHistory:
        abort = is_abort(outcome.message)
        changed = self
        if outcome.created_time >= self.last_failure:
            changed = dataclasses.replace(changed, failures=0)
        if self.newest_created is None or outcome.created_time >= self.newest_created:
            changed = dataclasses.replace(
                changed,
                newest_created=outcome.created_time,
                abort_time=outcome.ended_time if abort else None,
                abort_says_no_work=says_no_work(outcome.message),
            )
        short = min(SHORT_SECONDS, fizzle_seconds) if fizzle_seconds else SHORT_SECONDS
        if abort or (lived < short and outcome.early_counts):
            newest = outcome.ended_time >= self.last_end
            return dataclasses.replace(
                changed,
                aborts=self.aborts + (self.aborts == 0 or outcome.created_time >= self.last_end),
                last_end=max(self.last_end, outcome.ended_time),
                no_work=says_no_work(outcome.message) if newest else self.no_work,
            )
        if lived >= fizzle_seconds:
            return dataclasses.replace(changed, aborts=0, no_work=False)
        return changed

    def no_later_than(self, now: float) -> TypeHistory:
        """The same with times that are yet to come, as noted by a clock that has been set back since, taken as now."""
        return dataclasses.replace(
            self,
            last_end=min(self.last_end, now),
            last_failure=min(self.last_failure, now),
            newest_created=None if self.newest_created is None else min(self.newest_created, now),
            abort_time=None if self.abort_time is None else min(self.abort_time, now),
        )


_NOTHING = TypeHistory()


@dataclass(frozen=True)
class History:
    """This factory's history of outcomes, by machinetype."""

    types: Mapping[str, TypeHistory] = field(default_factory=dict)

    @classmethod
    def of(cls, outcomes: Iterable[Outcome], fizzle_seconds: Mapping[str, float]) -> History:
        """The history that these outcomes make, in whatever order they come.

        fizzle_seconds is by machinetype; types that it doesn't name are left out.
        """
        types: dict[str, TypeHistory] = {}
        for outcome in sorted(outcomes, key=lambda one: one.ended_time):
            name = outcome.machinetype
            if name in fizzle_seconds:
                types[name] = types.get(name, _NOTHING).add(outcome, fizzle_seconds[name])
        return cls(types)

    def get(self, machinetype: str) -> TypeHistory:
        """The history of one type, an empty one if there is none."""
        return self.types.get(machinetype, _NOTHING)

    def add(self, outcome: Outcome, fizzle_seconds: float) -> History:
        """This history with one more outcome."""
        name = outcome.machinetype
        return History({**self.types, name: self.get(name).add(outcome, fizzle_seconds)})

    def no_later_than(self, now: float) -> History:
        """See TypeHistory."""
        return History({name: one.no_later_than(now) for name, one in self.types.items()})


def says_no_work(message: str | None) -> bool:
    """Whether a machine's own message (3xx, not a fizzle) says that it found nothing to do."""
    return message_code(message) in range(300, 400) and not _FIZZLE.match(message or "")
