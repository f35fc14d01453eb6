"""The status page's HTML: overview, pages of a machine's slot and of a machinetype.

Plain HTML and SVG without scripts or external resources, built and escaped by ElementTree; colours are never the only
sign of anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, tostring

from vac.accounting.history import Ended
from vac.charts import COLOUR_STYLES, COLOURS, Span, area_chart, bar, processors
from vac.charts import shares as shares_of
from vac.machines.status import STALE_SECONDS, Status
from vac.scheduling.backoff import code_group
from vac.text import count, duration, utc_time
from vac.vacquery.messages import MachineStatus
from vac.vacquery.snapshot import Slot, Snapshot
from vac.web.view import View, name, shares, shown

LONGEST_TEXT = 500
DAY, WEEK = 86400.0, 7 * 86400.0
_STEPS = 168
_MOST_ENDS = 25
_LONG_CELL = 40
_BYTES_PER_MB = 1024 * 1024
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --soft: #f0f0f0; --line: #767676; --bad: #a40000;
  --link: #0b4f9e; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --paper: #161616; --soft: #262626; --line: #8c8c8c;
  --bad: #ff9c8f; --link: #8ec5ff; } }
body { font: 1rem/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 100rem; padding: 1rem; color: var(--ink);
  background: var(--paper); overflow-wrap: break-word; }
h1 { margin: 0; } h2 { margin: 1.6rem 0 .4rem; font-size: 1.2rem; } p { margin: .4rem 0; }
a { color: var(--link); } a:focus-visible, .wide:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.bad { color: var(--bad); font-weight: 600; } .wide { overflow-x: auto; }
table { border-collapse: collapse; } caption { text-align: left; padding: .2rem 0; }
th, td { border: 1px solid var(--line); padding: .2rem .6rem; text-align: left; vertical-align: top;
  white-space: nowrap; } td.long, th[scope=row] { white-space: normal; }
td.long { min-width: min(22rem, 55vw); overflow-wrap: anywhere; }
th { background: var(--soft); } td { min-width: 3.5rem; } td.number { text-align: right; }
ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem .8rem; margin: .4rem 0; }
li { min-width: 0; }
ul.slots { display: grid; grid-template-columns: repeat(auto-fill, minmax(3.75rem, 1fr)); gap: .25rem; }
ul.slots a { display: block; padding: .5rem 0; text-align: center; border: 2px solid var(--line);
  text-decoration: none; color: var(--ink); }
ul.slots a.busy { color: #000; } ul.slots a.abnormal { border: 3px double var(--bad); font-weight: 700; }
ul.slots a.new { border-style: dashed; }
.swatch { display: inline-block; width: 1rem; height: 1rem; border: 1px solid var(--line); vertical-align: -.15rem;
  margin-right: .3rem; }
svg { width: 100%; height: auto; max-width: 60rem; } svg text { font-size: 11px; fill: var(--ink); }
svg polygon { stroke: var(--ink); stroke-width: .4; } .frame { fill: none; stroke: var(--line); }
svg.bar { width: 8rem; height: .8rem; display: block; } .mark { fill: var(--bad); }
@media (max-width: 40rem) { svg text { font-size: 20px; } svg.bar { width: 3.5rem; } th, td { padding: .2rem .3rem; } }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
@media print { .skip { display: none; } body { padding: 0; max-width: none; } h2 { break-after: avoid; }
  .wide { overflow: visible; } body { font-size: .7rem; }
  th, td, td.long { white-space: normal; min-width: 0; padding: .1rem .2rem; } }
@media print { ul.slots a, svg, .swatch { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def page(view: View, ends: Sequence[Ended], parts: Sequence[str]) -> bytes | None:
    """Return the page of this path, as UTF-8; None if there is none. ends: within a week, the last one last."""
    if view.snapshot is not None:
        return _Page(view, view.snapshot, ends).render(parts)
    main = Element("main", {"id": "content"})
    _text(main, "p", view.disk_problem or "No factory has reported yet.", "bad")
    return None if parts else _document("Vac factory", main)


class _Page:
    """One page of a factory that has reported."""

    def __init__(self, view: View, snapshot: Snapshot, ends: Sequence[Ended]) -> None:
        self.disk_problem, self.now, self.ends = view.disk_problem, view.now, ends
        self.snapshot, self.status = snapshot, snapshot.status
        self.main = Element("main", {"id": "content"})
        known = [facts.name for facts in self.status.machinetypes]
        present = [slot.machine.machinetype for slot in snapshot.slots if slot.machine]
        every = dict.fromkeys([*known, *sorted({*present, *(one.machinetype for one in ends)})])
        self.styles = {one: f"c{number % COLOURS}" for number, one in enumerate(every)}
        """By machinetype: those configured, and others that ran within a week."""
        self.spans = [Span(one.machinetype, one.started, one.ended, one.processors, one.hs06) for one in ends]
        for slot in snapshot.slots:
            machine = slot.machine
            if machine is not None and machine.started_time is not None and not machine.finished:
                size = (machine.processors, machine.hs06)
                self.spans.append(Span(machine.machinetype, machine.started_time, self.now, *size))

    def render(self, parts: Sequence[str]) -> bytes | None:
        title = name(self.status.factory)
        if not parts:
            self._overview()
        elif len(parts) != 2:
            return None
        else:
            kind, title = parts
            pairs = zip(self.snapshot.slots, self.snapshot.machines)
            found = next((pair for pair in pairs if name(pair[0].name) == title), None)
            machinetype = next((one for one in self.styles if name(one) == title), None)
            if kind == "machine" and found is not None:
                self._machine(*found)
            elif kind == "machinetype" and machinetype is not None:
                self._machinetype(machinetype)
            else:
                return None
        return _document(title, self.main)

    def _overview(self) -> None:
        body, status = self.main, self.status
        facts = (
            f"Space {name(status.space)}, site {name(status.site)}, Vac {shown(status.version)}, "
            f"{self.snapshot.factory.running_processors} of {status.total_processors} processors in use, "
            f"load {self.snapshot.factory.load_average:.2f}, as of {utc_time(status.time)}."
        )
        _text(body, "p", facts)
        if self.disk_problem is not None:
            _text(body, "p", f"Nothing can be written: {_long(self.disk_problem)}.", "bad")
        for line, bad in _news(status, self.now):
            _text(body, "p", line, "bad" if bad else "")
        self._slot_map()
        self._shares()
        self._charts()
        self._ends_by_code()
        _table(body, "Machinetypes", _type_rows(self.snapshot, self.now).values())
        self._slots()
        for title, kind, troubles in (
            ("Engines", "Engine", status.engines),
            ("Vacuum Pipes", "Pipe", status.pipes),
        ):
            states = {one: "ok" if trouble is None else _long(trouble) for one, trouble in troubles.items()}
            _table(body, title, ({kind: name(one), "State": state} for one, state in states.items()))
        peers = (one for one in status.factories if one != status.factory)
        polls = ({"Factory": name(one), "Last poll": _silence(one, status)} for one in peers)
        _table(body, "Other factories of the space", polls)

    def _slot_map(self) -> None:
        _text(self.main, "h2", "Slot map")
        legend = SubElement(self.main, "ul", {"aria-label": "Colours of machinetypes"})
        for one, style in self.styles.items():
            entry = SubElement(legend, "li")
            SubElement(entry, "span", {"class": f"swatch {style}"})
            _link(entry, "machinetype", one)
        cells = SubElement(self.main, "ul", {"class": "slots", "aria-label": "Slots"})
        for number, (slot, said) in enumerate(zip(self.snapshot.slots, self.snapshot.machines)):
            kinds, size = [], ""
            words = f"{name(slot.name)}: {shown(said.state)}"
            machine = slot.machine
            if machine and not machine.finished:
                kinds = [self.styles[machine.machinetype], "busy"]
                words += f", {name(machine.machinetype)}, {count(machine.processors, 'processor')}"
                size = f"×{machine.processors}" if machine.processors > 1 else ""
            kinds += {"Starting": ["new"], "Running": [], "Shut down": []}.get(said.state, ["abnormal"])
            text = f"{number}{size}" + ("!" if "abnormal" in kinds else "")
            link = _text(SubElement(cells, "li"), "a", text, href=_path("machine", slot.name), title=words)
            link.set("class", " ".join(kinds))
            _text(link, "span", f" {words}", "hidden")

    def _shares(self) -> None:
        target, actual = shares(self.snapshot)
        periods = (actual, *(shares_of(self.spans, self.now - seconds, self.now) for seconds in (DAY, WEEK)))
        table = _open_table(self.main, "Shares", ("Machinetype", "Target", "Now", "Day", "Week"))
        for one, style in self.styles.items():
            line = SubElement(table, "tr")
            _link(SubElement(line, "td", _style_of(one)), "machinetype", one)
            _text(line, "td", f"{target[one]:.0%}" if one in target else "none", "number")
            for period in periods:
                value = period.get(one, 0.0)
                cell = _text(line, "td", f"{value:.0%}", "number")
                words = f"{value:.0%}" + (f" of a target of {target[one]:.0%}" if one in target else "")
                bar(cell, value, target.get(one), style, words)

    def _charts(self, only: str | None = None) -> None:
        _text(self.main, "h2", "Running processors")
        place = SubElement(self.main, "div", {"class": "charts"})
        spans = [span for span in self.spans if only in (None, span.machinetype)]
        for title, seconds, form, parts in (("Day", DAY, "%H:%M", 4), ("Week", WEEK, "%a", 7)):
            begin = self.now - seconds
            rows = processors(spans, begin, self.now, _STEPS)
            ordered = {one: rows[one] for one in self.styles if one in rows}
            means = (
                ", ".join(f"{name(one)} {sum(row) / _STEPS:.1f}" for one, row in ordered.items()) or "none"
            )
            half = SubElement(place, "div")
            _text(half, "p", f"{title} (times in UTC): on average {means}")
            labels = [utc_time(begin + part * seconds / parts, form) for part in range(parts + 1)]
            most = max([float(self.status.total_processors or 1), *map(sum, zip(*rows.values()))])
            area_chart(
                half, f"Running processors, {title.lower()}: {means}", ordered, self.styles, most, labels
            )

    def _ends_by_code(self) -> None:
        found: dict[str, Counter[str]] = {}
        day: dict[str, Counter[str]] = {}
        for one in self.ends:
            group = code_group(one.message)
            found.setdefault(one.machinetype, Counter())[group] += 1
            day.setdefault(one.machinetype, Counter())[group] += one.ended > self.now - DAY
        codes = sorted({code for one in found.values() for code in one})
        rows = (
            {"Machinetype": name(one)}
            | {code: f"{day[one][code]} / {total[code]}" if total[code] else "" for code in codes}
            for one, total in sorted(found.items())
        )
        _table(self.main, "Ends by shutdown code, day / week", rows)

    def _machine(self, slot: Slot, said: MachineStatus) -> None:
        facts = _slot_row(slot, said, self.status, self.now)
        machine = slot.machine
        if machine is not None:
            facts["UUID"] = shown(machine.uuid)
            facts["Created"] = utc_time(machine.created_time)
            facts["Started"] = "" if machine.started_time is None else utc_time(machine.started_time)
            facts["FQAN"] = shown(machine.fqan or "")
            facts["CPU seconds"] = f"{machine.cpu_seconds:.0f}"
            facts["Directory"] = shown(machine.directory.name)
        _facts(self.main, "Present or last machine", facts)
        self._ended_table([one for one in self.ends if one.machine == slot.name])

    def _machinetype(self, own: str) -> None:
        row = _type_rows(self.snapshot, self.now).get(own)
        if row is None:
            _text(self.main, "p", "It isn't configured any more.")
        else:
            _facts(self.main, "Now", row)
        self._charts(own)
        self._slots(own)
        self._ended_table([one for one in self.ends if one.machinetype == own])

    def _slots(self, only: str | None = None) -> None:
        rows = (
            _slot_row(slot, said, self.status, self.now)
            for slot, said in zip(self.snapshot.slots, self.snapshot.machines)
            if only is None or (slot.machine and slot.machine.machinetype == only)
        )
        _table(self.main, "Slots", rows, _SLOT_COLUMNS)

    def _ended_table(self, ends: Sequence[Ended]) -> None:
        rows = (
            {
                "End": utc_time(one.ended),
                "Machine": name(one.machine),
                "Machinetype": name(one.machinetype),
                "Lived": duration(one.lived_seconds),
                "CPU": f"{one.efficiency:.0%}",
                "Exit": one.exit_words,
                "Shutdown message": _long(one.message or "no shutdown message"),
            }
            for one in reversed(ends[-_MOST_ENDS:])
        )
        _table(self.main, f"The last {_MOST_ENDS} ends within a week", rows)


def _document(title: str, main: Element) -> bytes:
    html = Element("html", lang="en")
    head = SubElement(html, "head")
    SubElement(head, "meta", charset="utf-8")
    SubElement(head, "meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"})
    _text(head, "title", title)
    _text(head, "style", _STYLE + COLOUR_STYLES)
    body = SubElement(html, "body")
    _text(body, "a", "To the content", "skip", href="#content")
    _text(SubElement(body, "header"), "h1", title)
    body.append(main)
    foot = SubElement(SubElement(body, "footer"), "p")
    for words, path in _PAGES:
        _text(foot, "a", words, href=path).tail = " "
    return f"<!DOCTYPE html>\n{tostring(html, encoding='unicode', method='html')}".encode()


_PAGES = (
    ("Overview", "/"),
    ("Overview, renewed every minute", "/watch"),
    ("Metrics for Prometheus", "/metrics"),
)


def _news(status: Status, now: float) -> Iterator[tuple[str, bool]]:
    """Yield lines about problems and administrators' actions, each with True for a problem."""
    if now - status.time > STALE_SECONDS:
        yield f"The factory has not reported for {duration(now - status.time)}: is vacd running?", True
    if status.drain is not None:
        until = "" if status.drain.until is None else f" until {utc_time(status.drain.until)}"
        since = "" if status.drain.since is None else f" since {utc_time(status.drain.since)}"
        yield f"Draining{since}{until}: {_long(status.drain.reason) or 'no reason given'}.", False
    if status.guard is not None:
        yield f"Nothing is created: {_long(status.guard)}.", status.guard_name not in ("full", "draining")
    if status.shutdown_time is not None:
        yield f"No machine may run past {utc_time(status.shutdown_time)}.", False
    for problem in status.problems[:20]:
        yield f"Configuration: {_long(problem)}", True
    for warning in status.warnings[:20]:
        yield f"Warning: {_long(warning)}.", True
    if status.silent:
        yield f"No answer from {len(status.silent)} of {len(status.factories)} factories.", True


def _silence(factory: str, status: Status) -> str:
    if factory in status.unusable:
        return _long(f"its answer can't be used: {status.unusable[factory]}")
    if factory not in status.silent:
        return "answered"
    last = status.silent[factory]
    return "no answer yet" if last is None else f"no answer since {utc_time(last)}"


def _type_rows(snapshot: Snapshot, now: float) -> dict[str, dict[str, str]]:
    """Return the rows of the table of machinetypes, by name."""
    status = snapshot.status
    target, actual = shares(snapshot)
    rows = {}
    for facts, one in zip(status.machinetypes, snapshot.machinetypes):
        held = [
            times[facts.name] for times in (status.held_here, status.held_in_space) if facts.name in times
        ]
        failed = status.failed.get(facts.name)
        rows[facts.name] = {
            "Machinetype": name(facts.name),
            "Model": name(facts.machine_model),
            "Machines": str(one.running_machines),
            "Processors": f"{one.running_processors:.0f}",
            "HS06": f"{one.running_hs06:.1f}",
            "Share": f"{actual[facts.name]:.0%}",
            "Target": f"{target[facts.name]:.0%}",
            "Why no more are created": _long(status.passed_over.get(facts.name, "")),
            "Held back until": utc_time(max(held)) if held else "",
            "Last creation that failed": f"{duration(now - failed.time)} ago: {_long(failed.reason)}"
            if failed
            else "",
            "Last end": _long(one.shutdown_message or ""),
        }
    return rows


_SLOT_COLUMNS = (
    *("Slot", "State", "Machinetype", "Model", "Processors", "Age"),
    *("CPU", "Memory", "Ends by", "Last end"),
)


def _slot_row(slot: Slot, said: MachineStatus, status: Status, now: float) -> dict[str, str]:
    """Return what is known of _SLOT_COLUMNS."""
    row = {"Slot": name(slot.name), "State": shown(said.state)}
    machine = slot.machine
    if machine is None:
        return row
    row |= {"Machinetype": name(machine.machinetype), "Model": name(machine.model)}
    if machine.finished:
        return row | {"Last end": _long(slot.message or "no shutdown message")}
    memory = machine.memory_bytes
    return row | {
        "Processors": str(machine.processors),
        "Age": duration(now - (machine.started_time or machine.created_time)),
        "CPU": "" if machine.cpu_percent is None else f"{machine.cpu_percent:.0f} %",
        "Memory": "" if memory is None else f"{memory / _BYTES_PER_MB:.0f} MB",
        "Ends by": utc_time(machine.shutdown_time),
    }


def _long(text: str) -> str:
    return shown(text, LONGEST_TEXT)


def _path(kind: str, one: str) -> str:
    return f"/{kind}/{quote(name(one), safe='')}"


def _link(parent: Element, kind: str, one: str) -> Element:
    return _text(parent, "a", name(one), href=_path(kind, one))


def _text(parent: Element, tag: str, text: str, style: str = "", **attributes: str) -> Element:
    element = SubElement(parent, tag, {"class": style} if style else {}, **attributes)
    element.text = text
    return element


def _region(body: Element, title: str) -> Element:
    """Append a heading and a table that scrolls by itself; return the table."""
    _text(body, "h2", title)
    region = {"class": "wide", "tabindex": "0", "role": "region", "aria-label": f"{title}, table"}
    return SubElement(SubElement(body, "div", region), "table")


def _open_table(body: Element, title: str, columns: Iterable[str]) -> Element:
    table = _region(body, title)
    line = SubElement(table, "tr")
    for column in columns:
        _text(line, "th", column, scope="col")
    return table


def _table(body: Element, title: str, rows: Iterable[Mapping[str, str]], columns: Sequence[str] = ()) -> None:
    """Append a table with its heading, unless it has no rows; columns: by default those of the first row."""
    found = list(rows)
    if not found:
        return
    columns = columns or tuple(found[0])
    table = _open_table(body, title, columns)
    for row in found:
        line = SubElement(table, "tr")
        for column in columns:
            cell = row.get(column, "")
            place = SubElement(line, "td", _style_of(cell))
            if column in ("Slot", "Machinetype") and cell:
                _link(place, "machine" if column == "Slot" else "machinetype", cell)
            else:
                place.text = cell


def _facts(body: Element, title: str, facts: Mapping[str, str]) -> None:
    """Append a table of those that are known."""
    table = _region(body, title)
    for key, text in facts.items():
        if text:
            line = SubElement(table, "tr")
            _text(line, "th", key, scope="row")
            SubElement(line, "td", _style_of(text)).text = text


def _style_of(cell: str) -> dict[str, str]:
    """Return the attributes of a cell with this text: only long ones are broken into lines."""
    return {"class": "long"} if len(cell) > _LONG_CELL else {}
