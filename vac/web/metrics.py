"""Prometheus metrics; names, units and kinds follow its conventions, formats come from its client library.

The number of label values is bounded by the configuration (machinetypes, pipes, slots); texts in labels are cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, cast

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from vac.host.facts import REBOOT_REQUIRED
from vac.machines.status import CountedEvent, Status
from vac.scheduling.eligibility import GUARD_NAMES
from vac.vacquery.messages import Kind, Reason
from vac.vacquery.responder import dropped_as
from vac.vacquery.snapshot import Snapshot
from vac.web.view import View, name, shares, shown

if TYPE_CHECKING:
    from prometheus_client.registry import Collector
else:
    Collector = object  # versions before 0.15 have no class for it

_Rows = Iterable[tuple[Sequence[str], Any]]
"""Values of the labels, and a number, or texts by name for an information."""
STATES = ("Shut down", "Starting", "Running", "Paused", "Zombie", "Unknown")
_TYPE = ("machinetype",)
_MACHINE = ("machine", "machinetype")
_BYTES_PER_KB = 1024
_REBOOT_REQUIRED = "1 if packages want this host to be rebooted (/run/reboot-required)."
_CONFIGURATION_PROBLEMS = (
    "Mistakes because of which the configuration on disk, a machinetype or a pipe isn't used."
)


class Metrics(Collector):
    """All metrics of a view."""

    def __init__(self, view: View) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families; those of the factory after its first report."""
        yield from _processes(self._view)
        yield from _vacquery(self._view)
        snapshot = self._view.snapshot
        if snapshot is not None:
            yield from _factory(snapshot)
            yield from _event_counts(snapshot.status)
            yield from _machinetypes(snapshot)
            yield from _holds(snapshot.status)
            yield from _troubles(snapshot.status)
            yield from _machines(snapshot)


def _family(kind: Callable[..., Any], metric: str, text: str, labels: Sequence[str], rows: _Rows) -> Metric:
    """Return a family without samples that have no value."""
    family = kind(metric, text, labels=labels)
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return cast(Metric, family)


_gauge = partial(_family, GaugeMetricFamily)
_counter = partial(_family, CounterMetricFamily)
_info = partial(_family, InfoMetricFamily)


def _single(*numbers: tuple[str, str, float | None]) -> Iterator[Metric]:
    """Yield metrics without labels of these names, texts and numbers."""
    for metric, text, number in numbers:
        yield _gauge(metric, text, (), [((), number)])


def _processes(view: View) -> Iterator[Metric]:
    text = "Time of the last sign of life of a vacd process."
    heartbeats = (([role], time) for role, time in view.heartbeats.items())
    yield _gauge("vac_process_heartbeat_timestamp_seconds", text, ("process",), heartbeats)
    processes = sorted({*view.heartbeats, *view.restarts})
    restarts = (([process], view.restarts.get(process, 0)) for process in processes)
    text = "Unexpected ends of a process since the start of vacd."
    yield _counter("vac_process_restarts", text, ("process",), restarts)
    text = "0 if state_dir can't be written: read-only, full, without inodes, or missing."
    yield _gauge("vac_state_dir_writable", text, (), [((), float(view.disk_problem is None))])


def _vacquery(view: View) -> Iterator[Metric]:
    counters = view.counters
    queries = (([kind.value], counters.get(kind.value, 0)) for kind in Kind)
    text = "Answered queries of other factories and of people."
    yield _counter("vac_vacquery_queries", text, ("type",), queries)
    answers = [((), counters.get("answers", 0))]
    yield _counter("vac_vacquery_answers", "Datagrams sent as answers.", (), answers)
    drops = (([reason.value], counters.get(dropped_as(reason), 0)) for reason in Reason)
    yield _counter("vac_vacquery_drops", "Datagrams that were not answered, by reason.", ("reason",), drops)


def _factory(snapshot: Snapshot) -> Iterator[Metric]:
    status, factory = snapshot.status, snapshot.factory
    facts = {
        "factory": name(status.factory),
        "space": name(status.space),
        "site": name(status.site),
        "version": shown(status.version),
        "kernel": shown(factory.kernel_version),
        "os": shown(factory.os_issue),
    }
    yield _info("vac_factory", "Name, space, site and version of this factory.", (), [((), facts)])
    yield from _single(
        ("vac_factory_report_timestamp_seconds", "Time of the factory's last report.", status.time),
        ("vac_factory_start_timestamp_seconds", "Start time of the factory's process.", status.begin),
        ("vac_factory_processors", "Processors that may be allocated.", status.total_processors),
        ("vac_factory_running_processors", "Processors of running machines.", factory.running_processors),
        ("vac_factory_hs06", "HS06 of all processors that may be allocated.", factory.max_hs06),
        ("vac_factory_running_hs06", "HS06 of running machines.", factory.running_hs06),
        ("vac_factory_load15", "Load average of the host over 15 minutes.", factory.load_average),
        ("vac_factory_reboot_required", _REBOOT_REQUIRED, int(REBOOT_REQUIRED.exists())),
    )
    if status.joules is not None:
        text = "Energy of the host's processors and memory, if the kernel measures it."
        yield _counter("vac_factory_energy_joules", text, (), [((), status.joules)])
    free = (
        (["root"], factory.root_disk_avail_kb, factory.root_disk_avail_inodes),
        (["state_dir"], factory.daemon_disk_avail_kb, factory.daemon_disk_avail_inodes),
    )
    sizes = [(place, kb * _BYTES_PER_KB) for place, kb, _ in free]
    yield _gauge("vac_factory_disk_free_bytes", "Free space for ordinary users.", ("place",), sizes)
    inodes = [(place, number) for place, _, number in free]
    yield _gauge("vac_factory_disk_free_inodes", "Free inodes for ordinary users.", ("place",), inodes)
    blocked = (([guard], float(guard == status.guard_name)) for guard in GUARD_NAMES)
    text = "1 for the reason why no machine can be created now."
    yield _gauge("vac_factory_creation_blocked", text, ("reason",), blocked)
    yield from _single(
        ("vac_factory_configuration_problems", _CONFIGURATION_PROBLEMS, len(status.problems)),
        ("vac_factory_warnings", "Warnings about this node or the space.", len(status.warnings)),
        (
            "vac_factory_shutdown_timestamp_seconds",
            "No machine may run past this time.",
            status.shutdown_time,
        ),
        ("vac_space_factories", "Configured factories of the space.", len(status.factories)),
        ("vac_space_silent_factories", "Factories of the space that don't answer.", len(status.silent)),
    )
    states = [machine.state for machine in snapshot.machines]
    rows = (([state], float(states.count(state))) for state in STATES)
    yield _gauge("vac_factory_slots", "Slots by state.", ("state",), rows)


def _event_counts(status: Status) -> Iterator[Metric]:
    """Yield the factory's counters since its start."""
    creation = "Creations, from the decision to the machine's start, or the failure."
    destruction = "Attempts to remove ended machines, from their end on."
    for event, thing, text, labels in (
        (CountedEvent.CYCLE, "factory_cycle", "Cycles of the factory.", ()),
        (CountedEvent.CREATION, "machine_creation", creation, ("model", "outcome")),
        (CountedEvent.DESTRUCTION, "machine_destruction", destruction, ("model", "outcome")),
    ):
        family = SummaryMetricFamily(f"vac_{thing}_duration_seconds", text, labels=labels)
        for one in status.event_counts:
            if one.event == event.value:
                values = (name(one.kind), name(one.outcome)) if labels else ()
                family.add_metric(values, one.count, one.seconds)
        yield family
    ends = [one for one in status.event_counts if one.event == CountedEvent.END.value]
    labels = ("machinetype", "code")
    counts = (([name(one.kind), name(one.outcome)], one.count) for one in ends)
    text = "Machines that ended, by the hundred of their shutdown code; 300 and above are aborts."
    yield _counter("vac_machinetype_ends", text, labels, counts)
    seconds = (([name(one.kind), name(one.outcome)], one.seconds) for one in ends)
    text = "Lifetimes of machines that ended."
    yield _counter("vac_machinetype_ended_wallclock_seconds", text, labels, seconds)


def _machinetypes(snapshot: Snapshot) -> Iterator[Metric]:
    facts, types = snapshot.status.machinetypes, snapshot.machinetypes
    rows = [
        ([name(one.name)], {"model": name(one.machine_model), "fqan": shown(one.fqan or "")}) for one in facts
    ]
    yield _info("vac_machinetype", "Machine model and FQAN of the type.", _TYPE, rows)
    for metric, text, attribute in (
        ("machines", "Machines that start or run.", "running_machines"),
        ("young_machines", "Machines younger than fizzle_seconds.", "num_before_fizzle"),
        ("processors", "Processors of these machines.", "running_processors"),
        ("hs06", "HS06 of these machines.", "running_hs06"),
    ):
        numbers = {one.machinetype: getattr(one, attribute) for one in types}
        yield _gauge(f"vac_machinetype_{metric}", text, _TYPE, _by_name(numbers))
    target, actual = shares(snapshot)
    text = "Target share of the type, from 0 to 1."
    yield _gauge("vac_machinetype_target_share_ratio", text, _TYPE, _by_name(target))
    text = "Share of the type in the HS06 of this factory's machines, from 0 to 1."
    yield _gauge("vac_machinetype_share_ratio", text, _TYPE, _by_name(actual))


def _by_name(numbers: Mapping[str, float]) -> _Rows:
    return [([name(one)], number) for one, number in numbers.items()]


def _holds(status: Status) -> Iterator[Metric]:
    reasons = {"aborts_here": status.held_here, "aborts_in_space": status.held_in_space}
    until = [
        ([name(facts.name), reason], times.get(facts.name))
        for facts in status.machinetypes
        for reason, times in reasons.items()
    ]
    held = [(values, float(time is not None)) for values, time in until]
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
        well_or_not = {one: float(trouble is None) for one, trouble in troubles.items()}
        yield _gauge(f"{metric}_{well}", f"{text}.", (label,), _by_name(well_or_not))
        reasons = [([name(one)], {"reason": shown(why)}) for one, why in troubles.items() if why is not None]
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
    for kind, metric, text, attribute in _MACHINE_METRICS:
        numbers = (getattr(machine, attribute) for _, machine in found)
        yield kind(f"vac_machine_{metric}", text, _MACHINE, zip(labels, numbers))
    disks = (snapshot.status.disk_used.get(machine.uuid) for _, machine in found)
    yield _gauge("vac_machine_disk_bytes", "Disk space that the machine uses.", _MACHINE, zip(labels, disks))


_MACHINE_METRICS = (
    (_gauge, "created_timestamp_seconds", "Creation time of the machine.", "created_time"),
    (_gauge, "started_timestamp_seconds", "Start time of the machine.", "started_time"),
    (_gauge, "seen_timestamp_seconds", "Time when the machine was last seen alive.", "heartbeat_time"),
    (_gauge, "shutdown_timestamp_seconds", "Time when the machine must end.", "shutdown_time"),
    (_gauge, "processors", "Processors of the machine.", "processors"),
    (_gauge, "hs06", "HS06 of the machine.", "hs06"),
    (_counter, "cpu_seconds", "CPU time that the machine has used.", "cpu_seconds"),
    (_gauge, "memory_bytes", "Memory that the machine uses.", "memory_bytes"),
    (_gauge, "memory_peak_bytes", "Most memory that the machine has used.", "peak_memory_bytes"),
    (_counter, "network_receive_bytes", "Bytes that the machine received.", "network_received_bytes"),
    (_counter, "network_transmit_bytes", "Bytes that the machine sent.", "network_sent_bytes"),
    (_counter, "energy_joules", "Energy of the machine: its part of the host's, by CPU time.", "joules"),
)
"""Kind, name, text, and the Machine's attribute."""
