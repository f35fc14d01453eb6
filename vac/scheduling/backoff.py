"""Aborts, and how they hold a machinetype back: this factory's own ones here, those of several factories in the space.

An abort is a shutdown message with a code of 300 or above, or an end within fizzle_seconds of the start without
a message that begins with a three-digit code.

In the space the deficit policy holds back after the second-newest of the factories' abort times (the newest in a space
of one), so that one node's troubles stay that node's. Then factories probe in an order that is different for each abort
and known to all: first one, then two, four, eight…, each with one machine at a time, until one of them has outlived
fizzle_seconds. Where factories start more than probes, more of them must abort.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice

from vac.config.machinetype import Machinetype
from vac.scheduling.model import MachineEnd, Own, SpaceView, Standing
from vac.text import duration

SHORT_SECONDS = 60
"""An end this soon after the start (or within fizzle_seconds, if that is less) counts here, whatever its code."""
REMEMBERED_SECONDS = 86400.0
"""A type that has outlived fizzle_seconds here counts as known for so long."""
LONGEST_HOLD_SECONDS = 3600
FIRST_FAILURE_PAUSE_SECONDS = 10
LONGEST_FAILURE_PAUSE_SECONDS = 600

_CODE = re.compile(r"[0-9]{3}(?![0-9])")
_FIZZLE = re.compile(r"300 .*fizzle after [0-9]+ seconds$")


def message_code(message: str | None) -> int | None:
    """Return the three-digit code that a shutdown message begins with, or None."""
    found = _CODE.match(message or "")
    return int(found.group()) if found else None


def code_group(message: str | None) -> str:
    """Return the hundred of a reported message's code: `100` to `900`; `none` without a code."""
    code = message_code(message)
    return "none" if code is None or code < 100 else str(code // 100 * 100)


def is_abort(message: str | None) -> bool:
    """Return True if a message as reported (see reported_message) is an abort."""
    code = message_code(message)
    return code is not None and code >= 300


def reported_message(
    message: str | None, started_time: float, ended_time: float, fizzle_seconds: float
) -> str | None:
    """Return the message to report for a machine that started.

    This is its own first line if that begins with a three-digit code; `300 … fizzle after N seconds` if it lived for
    less than fizzle_seconds; else its own first line, or None.
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
    """Ends of this factory's own machines of one type."""

    aborts: int = 0
    """Consecutive tries that ended in an abort or within SHORT_SECONDS."""
    last_end: float = 0.0
    """When the last of these ended."""
    no_work: bool = False
    """True if that one itself reported a lack of work (3xx): then the fault isn't this node's."""
    failures: int = 0
    """Consecutive creations that failed."""
    last_failure: float = 0.0
    newest_created: float | None = None
    """Creation time of the most recently created machine that started and has finished."""
    abort_time: float | None = None
    """When that one ended, if it was an abort; VacQuery reports it."""
    abort_says_no_work: bool = False
    """True if that was for lack of work, as no_work is of the last early end."""
    outlived_time: float = 0.0
    """When the last machine ended that had outlived fizzle_seconds and was no abort."""

    def hold_seconds(self, backoff_seconds: float) -> float:
        """Return the pause after last_end here: backoff_seconds × 2^(aborts−1), at most an hour.

        It is at least a second, doubling, even when backoff_seconds is 0, so that nothing is restarted for ever.
        """
        if not self.aborts:
            return 0.0
        pause: float = max(backoff_seconds, 1) * 2 ** min(self.aborts - 1, 32)
        return min(pause, max(LONGEST_HOLD_SECONDS, backoff_seconds))

    def proven(self, now: float) -> bool:
        """Return True if a machine outlived fizzle_seconds lately and none has failed since."""
        return not self.aborts and not self.failures and now - self.outlived_time < REMEMBERED_SECONDS

    def failure_pause_seconds(self) -> float:
        """Return the pause after last_failure: 10 s, doubling, at most 10 min."""
        if not self.failures:
            return 0.0
        pause: float = FIRST_FAILURE_PAUSE_SECONDS * 2 ** min(self.failures - 1, 16)
        return min(pause, LONGEST_FAILURE_PAUSE_SECONDS)

    def add(self, outcome: MachineEnd, fizzle_seconds: float) -> TypeHistory:
        """Return this history with one more outcome.

        Of machines that were created together only the first that fails counts: the others were made before
        anything was known.
        """
        created, ended, lacked_work = outcome.created_time, outcome.ended_time, says_no_work(outcome.message)
        if outcome.started_time is None:
            failures = self.failures + (not self.failures or created > self.last_failure)
            return replace(self, failures=failures, last_failure=max(self.last_failure, created, ended))
        lived, abort = ended - outcome.started_time, is_abort(outcome.message)
        changed = self
        if created >= self.last_failure:
            changed = replace(changed, failures=0)
        if self.newest_created is None or created >= self.newest_created:
            abort_time = ended if abort else None
            changed = replace(
                changed, newest_created=created, abort_time=abort_time, abort_says_no_work=lacked_work
            )
        short = min(SHORT_SECONDS, fizzle_seconds) if fizzle_seconds else SHORT_SECONDS
        if abort or (lived < short and outcome.early_counts):
            aborts = self.aborts + (self.aborts == 0 or created >= self.last_end)
            no_work = lacked_work if ended >= self.last_end else self.no_work
            return replace(changed, aborts=aborts, last_end=max(self.last_end, ended), no_work=no_work)
        if lived >= fizzle_seconds:
            outlived_time = max(self.outlived_time, ended)
            return replace(changed, aborts=0, no_work=False, outlived_time=outlived_time)
        return changed

    def no_later_than(self, now: float) -> TypeHistory:
        """Return the same with future times, noted by a clock that was set back since, replaced by now."""
        return replace(
            self,
            last_end=min(self.last_end, now),
            last_failure=min(self.last_failure, now),
            outlived_time=min(self.outlived_time, now),
            newest_created=None if self.newest_created is None else min(self.newest_created, now),
            abort_time=None if self.abort_time is None else min(self.abort_time, now),
        )


_NOTHING = TypeHistory()


@dataclass(frozen=True)
class History:
    """This factory's outcomes by machinetype."""

    types: Mapping[str, TypeHistory] = field(default_factory=dict)

    @classmethod
    def of(cls, outcomes: Iterable[MachineEnd], fizzle_seconds: Mapping[str, float]) -> History:
        """Return the history of these outcomes, given in any order.

        fizzle_seconds is by machinetype; types that it doesn't name are left out.
        """
        history = cls()
        for outcome in sorted(outcomes, key=lambda one: one.ended_time):
            if outcome.machinetype in fizzle_seconds:
                history = history.add(outcome, fizzle_seconds[outcome.machinetype])
        return history

    def get(self, machinetype: str) -> TypeHistory:
        """Return the history of one type, an empty one if there is none."""
        return self.types.get(machinetype, _NOTHING)

    def add(self, outcome: MachineEnd, fizzle_seconds: float) -> History:
        """Return this history with one more outcome."""
        name = outcome.machinetype
        return History({**self.types, name: self.get(name).add(outcome, fizzle_seconds)})

    def no_later_than(self, now: float) -> History:
        """Return the same with no time in the future, as TypeHistory does."""
        return History({name: one.no_later_than(now) for name, one in self.types.items()})


def says_no_work(message: str | None) -> bool:
    """Return True if a machine's own message (3xx, not a fizzle) reports a lack of work."""
    return message_code(message) in range(300, 400) and not _FIZZLE.match(message or "")


LEAST_WINDOW_SECONDS = 30
"""Shortest probing window. It is the age up to which a view of the space is used: earlier than that, the next
factories could not know the results of the probes before them."""
PROBE_SECONDS = 120
"""Most probes start, find no work and end in this time; a window isn't shorter (or than fizzle_seconds, if less)."""
LEAST_ABORTING_FACTORIES = 2
"""Factories that have to abort: one node's troubles are that node's."""
MACHINES_PER_ABORT = 4
"""Machines before fizzle, other than probes, that outweigh one aborting factory."""


def deficit_hold(machinetype: Machinetype, own: Own, space: SpaceView, now: float) -> Standing | None:
    """Return the hold-back with ordered probing; None: the type isn't held back."""
    abort_time = last_abort(machinetype, own, space, now)
    if abort_time is None or proven_since(abort_time, machinetype, own, space, now):
        return None
    opens = abort_time + machinetype.backoff_seconds
    rank = probing_rank(machinetype.name, abort_time, own, space)
    mine = opens + rank.bit_length() * window_seconds(len(space.factories), machinetype)
    if now < mine:
        backoff = f", backoff for another {duration(opens - now)}" if now < opens else ""
        others = f"{rank} other factories may probe it first, " if rank else ""
        return _held(
            f"held back in the space after aborts{backoff}: {others}this one in {duration(mine - now)}", mine
        )
    if own.report.before_fizzle:
        return _held(
            "being probed after aborts in the space: one at a time here until one has outlived "
            f"fizzle_seconds ({machinetype.fizzle_seconds})",
            own.young_until,
        )
    return Standing(one_only="being probed after aborts in the space: one at a time")


def _held(reason: str, until: float | None) -> Standing:
    return Standing(reason, until, held="space")


def classic_hold(machinetype: Machinetype, own: Own, space: SpaceView, now: float) -> Standing | None:
    """Return the classic hold-back: after the newest abort time that any factory reports."""
    others = space.others(machinetype.name)
    times = [time for time, name in others.aborts[:2] if name != space.factory]
    if own.report.abort_time is not None:
        times.append(own.report.abort_time)
    if not times:
        return None
    opens = max(times) + machinetype.backoff_seconds
    if now < opens:
        return _held(f"held back in the space after an abort for another {duration(opens - now)}", opens)
    ends = opens + machinetype.fizzle_seconds
    if now < ends and others.before_fizzle + own.report.counted_before_fizzle:
        return _held(
            "held back in the space after an abort while a machine of it is younger than fizzle_seconds, "
            f"for another {duration(ends - now)} at most",
            ends,
        )
    return Standing(one_only="being tried after an abort in the space") if now < ends else None


def last_abort(machinetype: Machinetype, own: Own, space: SpaceView, now: float) -> float | None:
    """Return the abort time that counts for the deficit policy; None: there are too few aborts.

    Where factories have several machines before fizzle, and so do more than probe, more of the others must have aborted
    lately, that is since these machines or those before them were created.
    """
    others = space.others(machinetype.name)
    least = min(LEAST_ABORTING_FACTORIES, len(space.factories))
    needed = least + (others.beyond_probes + own.report.beyond_probe) // MACHINES_PER_ABORT
    elsewhere = (time for time, name in others.aborts if name != space.factory and name not in space.failing)
    times = list(islice(elsewhere, needed))
    if own.report.abort_time is not None and space.factory not in space.failing:
        times.append(own.report.abort_time)
        times.sort(reverse=True)
    if len(times) < needed:
        return None
    lately = now - 2 * machinetype.backoff_seconds - machinetype.fizzle_seconds
    return None if needed > least and times[needed - 1] < lately else times[least - 1]


def proven_since(time: float, machinetype: Machinetype, own: Own, space: SpaceView, now: float) -> bool:
    """Return True if a machine of the type that was created after this time has outlived fizzle_seconds.

    This is known of this factory's own machines. Of others' it is concluded when some have outlived fizzle_seconds and
    there has been time for two factories to probe and abort, as no factory creates any before the backoff is over.
    """
    if own.newest_outlived is not None and own.newest_outlived > time:
        return True
    backoff = machinetype.backoff_seconds
    wait = backoff + window_seconds(len(space.factories), machinetype) + machinetype.fizzle_seconds
    return now >= time + wait and runs_elsewhere(machinetype.name, space)


def runs_elsewhere(machinetype: str, space: SpaceView) -> bool:
    """Return True if another factory runs machines of the type that have outlived fizzle_seconds."""
    return space.others(machinetype).outlived_factories > 0


def window_seconds(factories: int, machinetype: Machinetype) -> float:
    """Return the time that one, two, four… factories have for probing.

    All have their turn after another backoff_seconds, unless windows would become shorter than a probe takes.
    """
    doublings = (factories - 1).bit_length()
    least = max(LEAST_WINDOW_SECONDS, min(PROBE_SECONDS, machinetype.fizzle_seconds))
    return max(machinetype.backoff_seconds / doublings, least) if doublings else 0.0


def probing_rank(machinetype: str, abort_time: float, own: Own, space: SpaceView) -> int:
    """Return the number of factories that probe before this one.

    The order is by sha256 of `FACTORY MACHINETYPE LAST_ABORT` (whole seconds); factories whose own last outcome is an
    abort come after all others.
    """
    aborted = {name for _, name in space.others(machinetype).aborts if name != space.factory}
    if own.report.abort_time is not None:
        aborted.add(space.factory)
    order = _sha256_order(space.factories, machinetype, int(abort_time))
    return sorted(order, key=aborted.__contains__).index(space.factory)


@lru_cache(maxsize=256)
def _sha256_order(factories: tuple[str, ...], machinetype: str, abort_time: int) -> tuple[str, ...]:
    def digest(name: str) -> bytes:
        return hashlib.sha256(f"{name} {machinetype} {abort_time}".encode()).digest()

    return tuple(sorted(factories, key=digest))


def broken_here(held_here: Iterable[str], space: SpaceView) -> dict[str, str]:
    """Return warnings by machinetype that own aborts hold back here while other factories run it."""
    return {
        name: f"{name} keeps failing on this factory while others run it: this node is probably broken"
        for name in held_here
        if runs_elsewhere(name, space)
    }
