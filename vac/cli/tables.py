"""The tables that `vac` prints of the space, in the classic columns that sites' scripts read.

Everything comes from other hosts: what can't be printed becomes question marks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from vac.scheduling.backoff import is_abort
from vac.vacquery.messages import FactoryStatus, MachineStatus, MachinetypeStatus

MODELS = {
    "cernvm3": "VM",
    "cernvm4": "VM",
    "vm-raw": "VM",
    "docker": "DC",
    "singularity": "SC",
    "bubblewrap": "SC",
}
COLOURS = {"Running": "32", "Starting": "33", "Paused": "35", "Zombie": "35", "Unknown": "35"}
ABORT_COLOUR = "31"


def short_host(name: str) -> str:
    """The first label of a host name."""
    return printable(name.partition(".")[0])


def printable(text: str) -> str:
    """The text with question marks for what would change lines, colours or direction."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def machine_rows(statuses: Iterable[MachineStatus], now: float, colour: bool = False) -> list[str]:
    """A row per slot. now: Unix seconds, for ages."""
    return [_machine_row(status, now, colour) for status in statuses]


def _machine_row(status: MachineStatus, now: float, colour: bool) -> str:
    name = short_host(status.machine)
    machinetype = printable(status.machinetype or "----------")
    state = f"  {printable(status.state):<9}"
    model = MODELS.get(status.machine_model or "", "??")
    recent = f"{status.cpu_percentage:5.1f}%" if status.state == "Running" else " " * 6
    code = _state_colour(status) if colour else ""
    return (
        f"{name:<15} {machinetype:<14.14} {_coloured(state, code)}  {status.num_processors:2d} {model} "
        f"{_machine_details(status, now):<21}{recent}"
    )


def _machine_details(status: MachineStatus, now: float) -> str:
    if status.state == "Running":
        started = status.started_time or now
        lived = (status.heartbeat_time or 0) - started
        percent = 100.0 * status.cpu_seconds / lived if lived > 0 else 0.0
        return f"{(now - started) / 3600:5.2f} hrs {percent:0.1f}%"
    if status.state == "Starting":
        return f" {(now - (status.created_time or now)) / 60:0.2f} mins"
    if status.state == "Shut down" and status.shutdown_message:
        return f'"{printable(status.shutdown_message[:19])}"'
    return ""


def _state_colour(status: MachineStatus) -> str:
    aborted = status.state == "Shut down" and is_abort(status.shutdown_message)
    return ABORT_COLOUR if aborted else COLOURS.get(status.state, "")


def _coloured(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m" if code else text


def machinetype_rows(statuses: Sequence[MachinetypeStatus], colour: bool = False) -> list[str]:
    """A row per factory, about one machinetype."""
    width = max((len(short_host(status.factory)) for status in statuses), default=0)
    rows = []
    for status in statuses:
        end = _end(status)
        code = ABORT_COLOUR if colour and is_abort(status.shutdown_message) else ""
        rows.append(
            f"{short_host(status.factory):<{width}} {int(status.running_processors):2d} "
            f"{status.running_hs06:5.1f} {_coloured(end, code)}"
        )
    return rows


def _end(status: MachinetypeStatus) -> str:
    """When and with which message the last machine ended."""
    when = "-"
    if status.shutdown_time is not None:
        when = time.strftime("%d %b %H:%M:%S", time.localtime(status.shutdown_time))
    return f'{when} "{printable(status.shutdown_message or "-")}"'


def type_rows(statuses: Iterable[MachinetypeStatus], colour: bool = False) -> list[str]:
    """A heading and a row per machinetype with the totals of the space and its latest end anywhere."""
    by_type: dict[str, list[MachinetypeStatus]] = {}
    for status in statuses:
        by_type.setdefault(printable(status.machinetype), []).append(status)
    width = max(map(len, (*by_type, "MACHINETYPE")))
    rows = [f"{'MACHINETYPE':<{width}} FACTORIES MACHINES PROCESSORS      HS06 YOUNG LAST END"]
    for name, mine in sorted(by_type.items()):
        last = max(mine, key=lambda status: status.shutdown_time or 0)
        code = ABORT_COLOUR if colour and is_abort(last.shutdown_message) else ""
        rows.append(
            f"{name:<{width}} {len(mine):9d} {sum(status.running_machines for status in mine):8d} "
            f"{sum(int(status.running_processors) for status in mine):10d} "
            f"{sum(status.running_hs06 for status in mine):9.1f} "
            f"{sum(status.num_before_fizzle for status in mine):5d} {_coloured(_end(last), code)}"
        )
    return rows


def factory_rows(statuses: Sequence[FactoryStatus]) -> list[str]:
    """A row per factory."""
    width = max((len(short_host(status.factory)) for status in statuses), default=0)
    return [
        f"{short_host(status.factory):<{width}} "
        f"{status.running_processors:2d}/{status.max_processors} "
        f"{status.running_machines:2d}/{status.max_machines} {status.load_average:6.2f} "
        f"{status.root_disk_avail_kb:9d} {status.daemon_disk_avail_kb:9d} "
        f'{status.mem_used_kb:8d}/{status.mem_total_kb} "{printable(status.version)}"'
        for status in statuses
    ]
