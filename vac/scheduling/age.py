"""How old what is known of the space may be: the same for the daemon, which asks its peers, and the simulator."""

from __future__ import annotations

FRESH_SECONDS = 30.0
"""A view of the space no older than this is used again."""
RENEW_SECONDS_PER_FACTORY = 0.03
"""Times the number of factories: a decision on an older view has peers asked again, without waiting for them. So
each factory is asked by others 33 times a second at most, and in small spaces corrections aren't made twice."""
LEAST_RENEW_SECONDS = 1.0
SILENT_SECONDS = 300.0
"""A silent peer's last answer counts for so long."""
CAPACITY_SECONDS = 600.0
"""Capacities are asked for this often."""
REMEMBERED_CAPACITY_SECONDS = 3600.0
"""A silent factory's capacity counts for so long."""
CYCLE_SECONDS = 60.0
"""A decision is made at least this often, since load and disk change without an event."""


def is_fresh(age: float | None) -> bool:
    """Whether a view of this age in seconds is good enough to decide on; None: there is none yet."""
    return age is not None and 0 <= age < FRESH_SECONDS


def is_due(age: float | None, factories: int) -> bool:
    """Whether peers are to be asked again before or after a decision on a view of this age, in a space of this size."""
    renew = max(LEAST_RENEW_SECONDS, RENEW_SECONDS_PER_FACTORY * factories)
    return age is None or not 0 <= age < renew
