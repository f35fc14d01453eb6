"""Input and output of a decision as plain values; times are Unix seconds.

Nothing in this package touches disk, clock, network or engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MOST_BEFORE_FIZZLE = 16
"""Most machines before fizzle with which one factory counts in TypeTotals."""


@dataclass(frozen=True)
class Occupied:
    """A slot of this factory with a machine that is starting, running, or can't be removed."""

    machinetype: str
    processors: int
    created_time: float
    started_time: float | None
    """None: it is still starting."""
    shutdown_time: float
    """When it must end."""


@dataclass(frozen=True)
class MachineEnd:
    """The end of one of this factory's machines."""

    machinetype: str
    created_time: float
    started_time: float | None
    """None: it never started, which says nothing about the type's work."""
    ended_time: float
    """When it was last seen alive."""
    message: str | None
    """First line of its shutdown message as reported, such as `200 Success` or `300 … fizzle after 12 seconds`."""
    early_counts: bool = True
    """An end soon after the start counts against the type. Not so one that people wanted, or that nobody saw."""


@dataclass(frozen=True)
class TypeReport:
    """One factory's figures for one machinetype: a VacQuery machinetype_status, or this factory's own."""

    running_machines: int = 0
    running_processors: int = 0
    running_hs06: float = 0.0
    before_fizzle: int = 0
    """Machines that are starting or younger than fizzle_seconds."""
    abort_time: float | None = None
    """When the most recently created machine that has finished ended, if that was an abort."""
    no_work: bool = False
    """True if that one itself reported a lack of work (3xx): then the fault isn't its node's."""

    @property
    def outlived(self) -> bool:
        """True if some of its machines have outlived fizzle_seconds."""
        return self.running_machines > self.before_fizzle

    @property
    def counted_before_fizzle(self) -> int:
        """Machines before fizzle as TypeTotals counts them."""
        return self.before_fizzle if self.before_fizzle < MOST_BEFORE_FIZZLE else MOST_BEFORE_FIZZLE

    @property
    def beyond_probe(self) -> int:
        """Machines before fizzle besides the one that may be a probe, as TypeTotals counts them."""
        return max(0, self.counted_before_fizzle - 1)


NO_REPORT = TypeReport()


@dataclass(frozen=True)
class TypeTotals:
    """The sum of all factories' reports of one machinetype, this factory's included."""

    running_hs06: float = 0.0
    before_fizzle: int = 0
    """Machines that are starting or younger than fizzle_seconds, at most MOST_BEFORE_FIZZLE of each factory."""
    beyond_probes: int = 0
    """Those of them that aren't the only one of their factory, as a probe is."""
    outlived_factories: int = 0
    """Number of factories with machines of it that have outlived fizzle_seconds."""
    aborts: tuple[tuple[float, str], ...] = ()
    """Abort times with their factories, newest first: those whose own last outcome is an abort."""


_NO_TOTALS = TypeTotals()


@dataclass(frozen=True)
class SpaceView:
    """The space as it is known at one moment. Built once per poll; a decision adds this factory's present state."""

    factory: str
    """This factory's name."""
    factories: tuple[str, ...]
    """Names of all configured factories, this one included."""
    capacity_hs06: float
    """Sum of the factories' max_hs06."""
    types: Mapping[str, TypeTotals] = field(default_factory=dict)
    own: Mapping[str, TypeReport] = field(default_factory=dict)
    """This factory's contribution to `types`, which a decision replaces by its present state."""
    failing: frozenset[str] = frozenset()
    """Factories on which everything fails while most others do well: their aborts don't count elsewhere."""
    silent: tuple[str, ...] = ()
    """Factories that have not answered; their last answers stand in while they are young enough."""

    def others(self, machinetype: str) -> TypeTotals:
        """Return the totals of one type without this factory's part; `aborts` still have its own."""
        totals, own = self.types.get(machinetype, _NO_TOTALS), self.own.get(machinetype, NO_REPORT)
        return TypeTotals(
            max(0.0, totals.running_hs06 - own.running_hs06),
            totals.before_fizzle - own.counted_before_fizzle,
            totals.beyond_probes - own.beyond_probe,
            totals.outlived_factories - own.outlived,
            totals.aborts,
        )


@dataclass(frozen=True)
class Host:
    """State of this host, for the guards."""

    load: tuple[float, float, float]
    """1, 5 and 15 minute load averages."""
    state_dir_free_bytes: int
    processors: int
    health_problem: str | None = None
    """First line of health_command's output when it failed."""
    excess_load: float = 0.0
    """Part of the 1-minute load that is machines' tasks beyond their processors."""


@dataclass(frozen=True)
class Create:
    """One machine to create."""

    machinetype: str
    processors: int
    shutdown_time: float
    """When it must end; whole seconds, so that superslots' ends stay equal when written to disk."""
    reason: str


@dataclass(frozen=True)
class Decision:
    """Machines to create now, and the reasons why no others."""

    creates: tuple[Create, ...] = ()
    guard: str | None = None
    """Reason why nothing at all can be created now; None if something could."""
    guard_name: str | None = None
    """The guard in one word, without changing numbers: for logging on change, and for metrics."""
    passed_over: Mapping[str, str] = field(default_factory=dict)
    """Reason by machinetype why none (or no more) of this type was created."""
    held_here: Mapping[str, float] = field(default_factory=dict)
    """Types held back because of this factory's own aborts, and until when."""
    held_in_space: Mapping[str, float] = field(default_factory=dict)
    """Types held back because of aborts in the space, and until when this factory may not probe."""
    notes: tuple[str, ...] = ()
    """Other facts worth a line in the log, such as processors that no superslot waits for any longer."""
    next_time: float | None = None
    """When time alone may change the decision (a pause or hold-back is over); None: only an event can."""


@dataclass(frozen=True)
class Standing:
    """Eligibility of one machinetype."""

    reason: str | None = None
    """Reason why none can be created; None: one can."""
    until: float | None = None
    """When time alone may change that."""
    one_only: str | None = None
    """Reason if only one can be created now (a probe)."""
    owed: bool = False
    """True if its debt counts though none can be created."""
    engine_problem: str | None = None
    """Set if only its engine, and perhaps a hold-back, prevents it."""
    held: str | None = None
    """`here` if this factory's own aborts hold it back, `space` if those of the space do."""


@dataclass(frozen=True)
class Own:
    """This factory's machines of one type."""

    report: TypeReport
    newest_started: float | None = None
    """Creation time of the newest machine that has started."""
    newest_outlived: float | None = None
    """Creation time of the newest machine that has outlived fizzle_seconds."""
    young_until: float | None = None
    """When the first of the machines before fizzle can have outlived it; None: there are none."""
