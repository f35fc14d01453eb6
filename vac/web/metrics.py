"""Prometheus metrics; names, units and kinds follow its conventions, formats come from its client library.

The number of label values is bounded by the configuration (machinetypes, pipes, slots); texts in labels are cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Optional, cast

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from vac.host.facts import REBOOT_REQUIRED
from vac.machines.machine import Machine
from vac.machines.status import CountedEvent, Status
from vac.scheduling.eligibility import GUARD_NAMES
from vac.vacquery.messages import FactoryStatus, Kind, MachinetypeStatus, Reason
from vac.vacquery.responder import dropped_as
from vac.vacquery.snapshot import Snapshot
from vac.web.view import View, name, shares, shown

if TYPE_CHECKING:
    from prometheus_client.registry import Collector
else:
    Collector = object  # versions before 0.15 have no class for it

_Rows = Iterable[tuple[Sequence[str], Any]]
"""Values of the labels, and a number, or texts by name for an information."""
_Kind = Callable[..., Any]
STATES = ("Shut down", "Starting", "Running", "Paused", "Zombie", "Unknown")
_TYPE = ("machinetype",)
_MACHINE = ("machine", "machinetype")
_BYTES_PER_KB = 1024


class Metrics(Collector):
    """All metrics of a view."""

    def __init__(self, view: View) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families; those of the factory after its first report."""
        view, snapshot = self._view, self._view.snapshot
        text = "Time of the last sign of life of a vacd process."
        heartbeats = (([role], time) for role, time in view.heartbeats.items())
        yield _gauge("vac_process_heartbeat_timestamp_seconds", text, ("process",), heartbeats)
        processes = sorted({*view.heartbeats, *view.restarts})
        restarts = (([process], view.restarts.get(process, 0)) for process in processes)
        text = "Unexpected ends of a process since the start of vacd."
        yield _counter("vac_process_restarts", text, ("process",), restarts)
        text = "0 if state_dir can't be written: read-only, full, without inodes, or missing."
        yield _one("vac_state_dir_writable", text, float(view.disk_problem is None))
        yield from _vacquery(view)
        if snapshot is not None:
            yield from _factory(snapshot.status, snapshot.factory)
            yield from _slots(snapshot)
            yield from _event_counts(snapshot.status)
            yield from _machinetypes(snapshot)
            yield from _holds(snapshot.status)
            yield from _troubles(snapshot.status)
            yield from _machines(snapshot)


def _family(kind: _Kind, metric: str, text: str, labels: Sequence[str], rows: _Rows) -> Metric:
    """Return a family without samples that have no value."""
    family = kind(metric, text, labels=labels)
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return cast(Metric, family)


_gauge = partial(_family, GaugeMetricFamily)
_counter = partial(_family, CounterMetricFamily)
_info = partial(_family, InfoMetricFamily)


def _one(metric: str, text: str, number: float | None) -> Metric:
    return _gauge(metric, text, (), [((), number)])


def _vacquery(view: View) -> Iterator[Metric]:
    counters = view.counters
    text = "Answered queries of other factories and of people."
    queries = (([kind.value], counters.get(kind.value, 0)) for kind in Kind)
    yield _counter("vac_vacquery_queries", text, ("type",), queries)
    text = "Datagrams sent as answers."
    yield _counter("vac_vacquery_answers", text, (), [((), counters.get("answers", 0))])
    text = "Datagrams that were not answered, by reason."
    drops = (([reason.value], counters.get(dropped_as(reason), 0)) for reason in Reason)
    yield _counter("vac_vacquery_drops", text, ("reason",), drops)


def _factory(status: Status, factory: FactoryStatus) -> Iterator[Metric]:
    facts = {
        "factory": name(status.factory),
        "space": name(status.space),
        "site": name(status.site),
        "version": shown(status.version),
        "kernel": shown(factory.kernel_version),
        "os": shown(factory.os_issue),
    }
    yield _info("vac_factory", "Name, space, site and version of this factory.", (), [((), facts)])
    yield _one("vac_factory_report_timestamp_seconds", "Time of the factory's last report.", status.time)
    yield _one("vac_factory_start_timestamp_seconds", "Start time of the factory's process.", status.begin)
    yield _one("vac_factory_processors", "Processors that may be allocated.", status.total_processors)
    yield _one(
        "vac_factory_running_processors", "Processors of running machines.", factory.running_processors
    )
    yield _one("vac_factory_hs06", "HS06 of all processors that may be allocated.", factory.max_hs06)
    yield _one("vac_factory_running_hs06", "HS06 of running machines.", factory.running_hs06)
    yield _one("vac_factory_load15", "Load average of the host over 15 minutes.", factory.load_average)
    text = "1 if packages want this host to be rebooted (/run/reboot-required)."
    yield _one("vac_factory_reboot_required", text, int(REBOOT_REQUIRED.exists()))
    if status.joules is not None:
        text = "Energy of the host's processors and memory, if the kernel measures it."
        yield _counter("vac_factory_energy_joules", text, (), [((), status.joules)])
    free = {
        "root": (factory.root_disk_avail_kb, factory.root_disk_avail_inodes),
        "state_dir": (factory.daemon_disk_avail_kb, factory.daemon_disk_avail_inodes),
    }
    rows = [([place], kb * _BYTES_PER_KB) for place, (kb, _) in free.items()]
    yield _gauge("vac_factory_disk_free_bytes", "Free space for ordinary users.", ("place",), rows)
    inodes = [([place], number) for place, (_, number) in free.items()]
    yield _gauge("vac_factory_disk_free_inodes", "Free inodes for ordinary users.", ("place",), inodes)
    blocked = (([guard], float(guard == status.guard_name)) for guard in GUARD_NAMES)
    text = "1 for the reason why no machine can be created now."
    yield _gauge("vac_factory_creation_blocked", text, ("reason",), blocked)
    text = "Mistakes because of which the configuration on disk, a machinetype or a pipe isn't used."
    yield _one("vac_factory_configuration_problems", text, len(status.problems))
    text = "Warnings about this node or the space."
    yield _one("vac_factory_warnings", text, len(status.warnings))
    text = "No machine may run past this time."
    yield _one("vac_factory_shutdown_timestamp_seconds", text, status.shutdown_time)
    yield _one("vac_space_factories", "Configured factories of the space.", len(status.factories))
    yield _one("vac_space_silent_factories", "Factories of the space that don't answer.", len(status.silent))


def _slots(snapshot: Snapshot) -> Iterator[Metric]:
    states = [machine.state for machine in snapshot.machines]
    rows = (([state], float(states.count(state))) for state in STATES)
    yield _gauge("vac_factory_slots", "Slots by state.", ("state",), rows)


def _event_counts(status: Status) -> Iterator[Metric]:
    """Yield the factory's counters since its start."""
    summaries = (
        (CountedEvent.CYCLE, "vac_factory_cycle_duration_seconds", "Cycles of the factory.", ()),
        (
            CountedEvent.CREATION,
            "vac_machine_creation_duration_seconds",
            "Creations, from the decision to the machine's start, or the failure.",
            ("model", "outcome"),
        ),
        (
            CountedEvent.DESTRUCTION,
            "vac_machine_destruction_duration_seconds",
            "Attempts to remove ended machines, from their end on.",
            ("model", "outcome"),
        ),
    )
    for event, metric, text, labels in summaries:
        family = SummaryMetricFamily(metric, text, labels=labels)
        for one in status.event_counts:
            if one.event == event.value:
                values = (name(one.kind), name(one.outcome)) if labels else ()
                family.add_metric(values, one.count, one.seconds)
        yield family
    ends = [one for one in status.event_counts if one.event == CountedEvent.END.value]
    by_code = ("machinetype", "code")
    text = "Machines that ended, by the hundred of their shutdown code; 300 and above are aborts."
    rows = (([name(one.kind), name(one.outcome)], one.count) for one in ends)
    yield _counter("vac_machinetype_ends", text, by_code, rows)
    seconds = (([name(one.kind), name(one.outcome)], one.seconds) for one in ends)
    yield _counter(
        "vac_machinetype_ended_wallclock_seconds", "Lifetimes of machines that ended.", by_code, seconds
    )


def _machinetypes(snapshot: Snapshot) -> Iterator[Metric]:
    facts, types = snapshot.status.machinetypes, snapshot.machinetypes
    rows = [
        ([name(one.name)], {"model": name(one.machine_model), "fqan": shown(one.fqan or "")}) for one in facts
    ]
    yield _info("vac_machinetype", "Machine model and FQAN of the type.", _TYPE, rows)
    for metric, text, value in _TYPE_METRICS:
        yield _gauge(metric, text, _TYPE, [([name(one.machinetype)], value(one)) for one in types])
    target, actual = shares(snapshot)
    text = "Target share of the type, from 0 to 1."
    yield _gauge("vac_machinetype_target_share_ratio", text, _TYPE, _by_type(target))
    text = "Share of the type in the HS06 of this factory's machines, from 0 to 1."
    yield _gauge("vac_machinetype_share_ratio", text, _TYPE, _by_type(actual))


_TYPE_METRICS: tuple[tuple[str, str, Callable[[MachinetypeStatus], float]], ...] = (
    ("vac_machinetype_machines", "Machines that start or run.", lambda one: one.running_machines),
    (
        "vac_machinetype_young_machines",
        "Machines younger than fizzle_seconds.",
        lambda one: one.num_before_fizzle,
    ),
    ("vac_machinetype_processors", "Processors of these machines.", lambda one: one.running_processors),
    ("vac_machinetype_hs06", "HS06 of these machines.", lambda one: one.running_hs06),
)


def _by_type(numbers: dict[str, float]) -> _Rows:
    return [([name(machinetype)], number) for machinetype, number in numbers.items()]


def _holds(status: Status) -> Iterator[Metric]:
    reasons = {"aborts_here": status.held_here, "aborts_in_space": status.held_in_space}
    held: list[tuple[list[str], float]] = []
    until: list[tuple[list[str], float]] = []
    for facts in status.machinetypes:
        for reason, times in reasons.items():
            values = [name(facts.name), reason]
            held.append((values, float(facts.name in times)))
            if facts.name in times:
                until.append((values, times[facts.name]))
    labels = ("machinetype", "reason")
    text = "1 while aborts, here or anywhere in the space, hold the type back."
    yield _gauge("vac_machinetype_held_back", text, labels, held)
    text = "Time until which aborts hold the type back."
    yield _gauge("vac_machinetype_held_until_timestamp_seconds", text, labels, until)


def _troubles(status: Status) -> Iterator[Metric]:
    """Yield failures: numbers for alerts, reasons for people."""
    failed = {facts.name: status.failed.get(facts.name) for facts in status.machinetypes}
    creation = {one: None if trouble is None else trouble.reason for one, trouble in failed.items()}
    tables = (
        ("vac_machinetype_creation", "ok", "machinetype", "0 if the last creation failed", creation),
        ("vac_engine", "up", "engine", "0 if the engine can't be used", status.engines),
        ("vac_vacuum_pipe", "ok", "pipe", "0 if there is a problem with the Vacuum Pipe", status.pipes),
    )
    for metric, well, label, text, troubles in tables:
        rows = [([name(one)], float(trouble is None)) for one, trouble in troubles.items()]
        yield _gauge(f"{metric}_{well}", f"{text}.", (label,), rows)
        reasons = [
            ([name(one)], {"reason": shown(trouble)})
            for one, trouble in troubles.items()
            if trouble is not None
        ]
        yield _info(f"{metric}_error", f"Reason if {metric}_{well} is 0.", (label,), reasons)


def _machines(snapshot: Snapshot) -> Iterator[Metric]:
    found = [
        (machine, slot.machine)
        for machine, slot in zip(snapshot.machines, snapshot.slots)
        if slot.machine is not None and not slot.machine.finished
    ]
    labels = [(name(machine.name), name(machine.machinetype)) for _, machine in found]
    text = "Machine model and state of a machine that starts or runs."
    facts = [{"model": name(machine.model), "state": name(said.state)} for said, machine in found]
    yield _info("vac_machine", text, _MACHINE, zip(labels, facts))
    for kind, metric, text, value in _MACHINE_METRICS:
        numbers = (value(machine) for _, machine in found)
        yield _family(kind, f"vac_machine_{metric}", text, _MACHINE, zip(labels, numbers))
    disks = (snapshot.status.disk_used.get(machine.uuid) for _, machine in found)
    yield _gauge("vac_machine_disk_bytes", "Disk space that the machine uses.", _MACHINE, zip(labels, disks))


_Value = Callable[[Machine], Optional[float]]
_MACHINE_METRICS: tuple[tuple[_Kind, str, str, _Value], ...] = (
    (
        GaugeMetricFamily,
        "created_timestamp_seconds",
        "Creation time of the machine.",
        lambda m: m.created_time,
    ),
    (GaugeMetricFamily, "started_timestamp_seconds", "Start time of the machine.", lambda m: m.started_time),
    (
        GaugeMetricFamily,
        "seen_timestamp_seconds",
        "Time when the machine was last seen alive.",
        lambda m: m.heartbeat_time,
    ),
    (
        GaugeMetricFamily,
        "shutdown_timestamp_seconds",
        "Time when the machine must end.",
        lambda m: m.shutdown_time,
    ),
    (GaugeMetricFamily, "processors", "Processors of the machine.", lambda m: m.processors),
    (GaugeMetricFamily, "hs06", "HS06 of the machine.", lambda m: m.hs06),
    (CounterMetricFamily, "cpu_seconds", "CPU time that the machine has used.", lambda m: m.cpu_seconds),
    (GaugeMetricFamily, "memory_bytes", "Memory that the machine uses.", lambda m: m.memory_bytes),
    (
        GaugeMetricFamily,
        "memory_peak_bytes",
        "Most memory that the machine has used.",
        lambda m: m.peak_memory_bytes,
    ),
    (
        CounterMetricFamily,
        "network_receive_bytes",
        "Bytes that the machine received.",
        lambda m: m.network_received_bytes,
    ),
    (
        CounterMetricFamily,
        "network_transmit_bytes",
        "Bytes that the machine sent.",
        lambda m: m.network_sent_bytes,
    ),
    (
        CounterMetricFamily,
        "energy_joules",
        "Energy of the machine: its part of the host's, by CPU time.",
        lambda m: m.joules,
    ),
)
