"""What a decision is made from, and what comes out of it.

Plain values: nothing here touches disk, clock, network or engine. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MOST_YOUNG = 16
"""For how many machines before fizzle one factory counts at most in TypeTotals."""


@dataclass(frozen=True)
class Occupied:
    """One of this factory's slots that holds a machine which is starting, running, or can't be removed."""

    machinetype: str
    processors: int
    created_time: float
    started_time: float | None
    """None: it is still starting."""
    shutdown_time: float
    """When it must end."""


@dataclass(frozen=True)
class Outcome:
    """How one of this factory's machines ended."""

    machinetype: str
    created_time: float
    started_time: float | None
    """None: it never started; that says nothing about the type's work."""
    ended_time: float
    """When it was last seen alive."""
    message: str | None
    """First line of its shutdown message as reported, such as `200 Success` or `300 … fizzle after 12 seconds`."""
    early_counts: bool = True
    """An end soon after the start counts against the type. Not so one that people wanted, or that nobody saw."""


@dataclass(frozen=True)
class TypeReport:
    """What one factory says of one machinetype (VacQuery machinetype_status, or this factory of itself)."""

    running_machines: int = 0
    running_processors: int = 0
    running_hs06: float = 0.0
    before_fizzle: int = 0
    """Machines that are starting or younger than fizzle_seconds."""
    abort_time: float | None = None
    """When the most recently created machine that has finished ended, if that was an abort."""
    no_work: bool = False
    """Did that one itself say that there is no work (3xx)? Then the fault isn't its node's."""


@dataclass(frozen=True)
class TypeTotals:
    """What the whole space, this factory included, says of one machinetype."""

    running_processors: int = 0
    running_hs06: float = 0.0
    running_machines: int = 0
    before_fizzle: int = 0
    """Machines that are starting or younger than fizzle_seconds; no factory counts for more than MOST_YOUNG."""
    beyond_probes: int = 0
    """Those of them that aren't the only ones of their factory, as probes are."""
    outlived_factories: int = 0
    """How many factories run machines of it that have outlived fizzle_seconds."""
    aborts: tuple[tuple[float, str], ...] = ()
    """Abort times with their factories, newest first."""
    aborted_factories: frozenset[str] = frozenset()
    """Factories whose own last outcome is an abort: those of `aborts`."""


@dataclass(frozen=True)
class SpaceView:
    """The space as it is known at one moment."""

    factory: str
    """This factory's name."""
    factories: tuple[str, ...]
    """Names of all configured factories, this one included."""
    capacity_hs06: float
    """Sum of the factories' max_hs06."""
    types: Mapping[str, TypeTotals] = field(default_factory=dict)
    own: Mapping[str, TypeReport] = field(default_factory=dict)
    """What this factory contributed to `types`: a decision puts the present in its place."""
    failing: frozenset[str] = frozenset()
    """Factories on which everything fails while most others do well: what they report of aborts is their own."""
    silent: tuple[str, ...] = ()
    """Factories that have not answered, whose last answers (if any are young enough) stand in."""


@dataclass(frozen=True)
class Host:
    """What the guards ask about this host."""

    load: tuple[float, float, float]
    """1, 5 and 15 minute load averages."""
    state_dir_free_bytes: int
    processors: int
    health_problem: str | None = None
    """First line of health_command's output when it failed."""


@dataclass(frozen=True)
class Create:
    """Make one machine."""

    machinetype: str
    processors: int
    shutdown_time: float
    """When it must end; whole seconds, so that superslots' ends stay equal when written down."""
    reason: str


@dataclass(frozen=True)
class Decision:
    """What to do now, and why nothing more."""

    creates: tuple[Create, ...] = ()
    guard: str | None = None
    """In words, why nothing at all can be created now; None if something could."""
    guard_name: str | None = None
    """The guard in one word that doesn't change with its numbers: for logging on change, and for metrics."""
    passed_over: Mapping[str, str] = field(default_factory=dict)
    """In words, by machinetype, why none (or no more) of this type was created."""
    held_here: Mapping[str, float] = field(default_factory=dict)
    """Types held back because of this factory's own aborts, and until when."""
    held_in_space: Mapping[str, float] = field(default_factory=dict)
    """Types held back because of aborts in the space, and until when this factory may not probe."""
    notes: tuple[str, ...] = ()
    """What else is worth a line in the log, such as processors that no superslot waits for any longer."""
    next_time: float | None = None
    """When time alone may change the decision (a pause or hold-back is over); None: only an event can."""
