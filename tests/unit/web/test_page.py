"""Metrics and status page: what they say, in formats that others read, whatever names and texts hold."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser as plain
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.samples import Sample

from tests.unit.state_dirs import STARTED, UUID, at, new_machine, new_state, running_machine
from vac import charts
from vac.accounting import history
from vac.charts import Span, processors
from vac.config.settings import Settings
from vac.daemon import role_process
from vac.drivers.base import Usage
from vac.machines import files, outputs
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.machines.machine import renew_heartbeat
from vac.machines.requests import Drain
from vac.machines.slots import write_slot
from vac.machines.status import Creation, EventCount, Status, TypeFacts
from vac.roles import ROLES
from vac.text import utc_time
from vac.vacquery.responder import counters_file, write_counters
from vac.vacquery.snapshot import SnapshotBuilder
from vac.web import page
from vac.web.http_server import Answer, Request, is_person, network_of
from vac.web.view import LONGEST_NAME, LONGEST_TEXT, View, look, name, shown

GUIDE = Path(__file__).parents[3] / "docs" / "monitoring.md"
NOW = STARTED + 1000.0
TAGS = (
    *("h1", "h2", "p", "table", "tr", "th", "td", "a", "header", "main", "footer", "div", "span", "ul", "li"),
    *("svg", "polygon", "rect", "text"),
)
OPEN = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
HOSTILE = '"} 1\nvac_forged{a="b\\</td><script src=//evil>&amp;\x1b[31m\x00\ud800'
NAME = HOSTILE.strip("\x00\ud800")
"""As a file name could be."""
SECRET = "https://user:hunter2@example.org/pipe?token=hunter2#hunter2 and https://hunter2@example.org/"
STATUS = Status(
    time=NOW - 5,
    space="vac01.example.org",
    site="SITE",
    factory="node1.example.org",
    version="4.0.0",
    factories=("node1.example.org", "node2.example.org"),
    slots=3,
    total_processors=3,
    mb_per_processor=2048,
    hs06_per_processor=10.0,
    machinetypes=(
        TypeFacts("lhcb-prod", "/lhcb", "lhcb", 3.0, "bubblewrap", fizzle_seconds=600),
        TypeFacts("held", None, "held", 1.0, "docker"),
    ),
    engines={"processes": None, "docker": "no such file: /run/docker.sock"},
    problems=("vac.conf: bad",),
    warnings=("this node is probably broken",),
    drain=Drain(NOW - 60, NOW + 600, "new kernel"),
    shutdown_time=NOW + 900,
    guard="this factory is draining: new kernel",
    guard_name="draining",
    passed_over={"held": "held back here after 2 aborts"},
    held_here={"held": NOW + 300},
    silent={"node2.example.org": None},
    failed={"held": Creation(NOW - 30, "held", reason="user_data: no such file")},
    pipes={"vo": "the server's certificate has expired", "good": None},
    joules=5000.5,
    disk_used={UUID: 300},
    begin=NOW - 500,
    event_counts=(
        EventCount("cycle", "", "", 7, 0.5),
        EventCount("creation", "bubblewrap", "created", 4, 6.0),
        EventCount("creation", "docker", "failed", 2, 3.0),
        EventCount("destruction", "bubblewrap", "destroyed", 3, 1.5),
        EventCount("end", "lhcb-prod", "300", 2, 20.0),
    ),
)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """One machine runs, one has ended, one slot is empty."""
    state = new_state(tmp_path)
    machine = running_machine(state, seen=NOW - 20)
    machine.joules = 70.0
    renew_heartbeat(state, machine, at(NOW - 10), Usage(35000.0, 5 << 20, 6 << 20, 100, 200))
    ended = new_machine(state, name="node1-01.example.org", uuid="other")
    files.write_new(ended.directory / "shutdown_message", b"300 <b>Nothing</b> to do\n")
    for name_of_file in ("started", "finished"):
        files.write_new(ended.directory / name_of_file, b"%d\n" % STARTED)
    for each in (machine, ended):
        write_slot(state, each)
    counters_file(state).parent.mkdir()
    write_counters(
        counters_file(state), {"factory_query": 5, "answers": 6, "dropped: other space": 2, "x" * 999: 1}
    )
    statuses.write(state, STATUS)
    return state


def ask(state: StateDir, path: str = "metrics", method: str = "GET", accept: str = "") -> Answer:
    parts = tuple(part for part in path.split("/") if part)
    return page.Site(state, lambda: NOW).respond(Request(method, parts, None, accept=accept))


def samples(answer: Answer) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples of an answer; the same series twice is an error."""
    open_format = "openmetrics" in answer.content_type
    parse: Any = (openmetrics if open_format else plain).text_string_to_metric_families
    found: list[Sample] = [
        one
        for family in parse(answer.body.decode())
        for one in family.samples
        if family.documentation or pytest.fail(f"{family.name} has no help text")
    ]
    series = {(one.name, frozenset(one.labels.items())): one.value for one in found}
    assert len(series) == len(found)
    return series


def value(found_in: StateDir, metric: str, **labels: str) -> float:
    return samples(ask(found_in))[metric, frozenset(labels.items())]


@pytest.mark.parametrize(
    ("metric", "labels", "expected"),
    [
        ("vac_factory_slots", {"state": "Running"}, 1),
        ("vac_factory_slots", {"state": "Shut down"}, 2),
        ("vac_factory_processors", {}, 3),
        ("vac_factory_running_hs06", {}, 10),
        ("vac_factory_creation_blocked", {"reason": "draining"}, 1),
        ("vac_factory_creation_blocked", {"reason": "full"}, 0),
        ("vac_factory_configuration_problems", {}, 1),
        ("vac_factory_report_timestamp_seconds", {}, NOW - 5),
        ("vac_factory_cycle_duration_seconds_count", {}, 7),
        ("vac_machine_creation_duration_seconds_sum", {"model": "bubblewrap", "outcome": "created"}, 6),
        ("vac_machine_creation_duration_seconds_count", {"model": "docker", "outcome": "failed"}, 2),
        (
            "vac_machine_destruction_duration_seconds_sum",
            {"model": "bubblewrap", "outcome": "destroyed"},
            1.5,
        ),
        ("vac_machinetype_ends_total", {"machinetype": "lhcb-prod", "code": "300"}, 2),
        ("vac_machinetype_machines", {"machinetype": "lhcb-prod"}, 1),
        ("vac_machinetype_target_share_ratio", {"machinetype": "lhcb-prod"}, 0.75),
        ("vac_machinetype_share_ratio", {"machinetype": "lhcb-prod"}, 1),
        ("vac_machinetype_held_back", {"machinetype": "held", "reason": "aborts_here"}, 1),
        ("vac_machinetype_held_back", {"machinetype": "held", "reason": "aborts_in_space"}, 0),
        ("vac_machinetype_held_back", {"machinetype": "lhcb-prod", "reason": "aborts_here"}, 0),
        (
            "vac_machinetype_held_until_timestamp_seconds",
            {"machinetype": "held", "reason": "aborts_here"},
            NOW + 300,
        ),
        ("vac_machinetype_creation_ok", {"machinetype": "held"}, 0),
        ("vac_machinetype_creation_ok", {"machinetype": "lhcb-prod"}, 1),
        (
            "vac_machinetype_creation_error_info",
            {"machinetype": "held", "reason": "user_data: no such file"},
            1,
        ),
        ("vac_engine_up", {"engine": "docker"}, 0),
        ("vac_engine_up", {"engine": "processes"}, 1),
        ("vac_vacuum_pipe_ok", {"pipe": "vo"}, 0),
        ("vac_vacuum_pipe_ok", {"pipe": "good"}, 1),
        (
            "vac_vacuum_pipe_error_info",
            {"pipe": "vo", "reason": "the server's certificate has expired"},
            1,
        ),
        ("vac_vacquery_queries_total", {"type": "factory_query"}, 5),
        ("vac_vacquery_answers_total", {}, 6),
        ("vac_vacquery_drops_total", {"reason": "other space"}, 2),
        ("vac_space_silent_factories", {}, 1),
        ("vac_factory_energy_joules_total", {}, 5000.5),
    ],
)
def test_metrics_say_what_the_factory_knows(
    state: StateDir, metric: str, labels: dict[str, str], expected: float
) -> None:
    assert value(state, metric, **labels) == expected


def test_a_metric_tells_of_a_reboot_that_is_required(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "reboot-required"
    monkeypatch.setattr("vac.web.metrics.REBOOT_REQUIRED", file)
    assert value(state, "vac_factory_reboot_required") == 0
    file.touch()
    assert value(state, "vac_factory_reboot_required") == 1


def test_running_machines_have_their_own_metrics(state: StateDir) -> None:
    expected = {
        "created_timestamp_seconds": STARTED - 60,
        "started_timestamp_seconds": STARTED,
        "seen_timestamp_seconds": NOW - 10,
        "processors": 1,
        "hs06": 10,
        "cpu_seconds_total": 35000,
        "memory_bytes": 5 << 20,
        "memory_peak_bytes": 6 << 20,
        "disk_bytes": 300,
        "network_receive_bytes_total": 100,
        "network_transmit_bytes_total": 200,
        "energy_joules_total": 70,
    }
    one = {"machine": "node1-00.example.org", "machinetype": "lhcb-prod"}
    for metric, number in expected.items():
        assert value(state, f"vac_machine_{metric}", **one) == number
    assert value(state, "vac_machine_info", model="bubblewrap", state="Running", **one) == 1
    assert not [labels for _, labels in samples(ask(state)) if ("machine", "node1-01.example.org") in labels]


def test_what_another_machine_used_is_not_the_present_ones(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    write_slot(state, running_machine(state, seen=NOW - 10))
    statuses.write(state, dataclasses.replace(STATUS, disk_used={"before": 300}))
    one = {"machine": "node1-00.example.org", "machinetype": "lhcb-prod"}
    assert value(state, "vac_machine_cpu_seconds_total", **one) == 34100
    for metric in ("memory", "disk"):
        assert (f"vac_machine_{metric}_bytes", frozenset(one.items())) not in samples(ask(state))


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        ("text/html,application/xhtml+xml", "text/plain; version=0.0.4"),
        (OPEN, "application/openmetrics-text; version="),
        ("application/openmetrics-text;version=a.b", ""),
        ("application/openmetrics-text;version=99.9", "application/openmetrics-text"),
        (", ;=,;version", "text/plain"),
    ],
)
def test_formats_are_negotiated_and_can_be_read_back(state: StateDir, accept: str, expected: str) -> None:
    answer = ask(state, accept=accept)
    assert answer.content_type.startswith(expected)
    assert len(samples(answer)) > 90
    assert {key for key, _ in samples(answer)} == {key for key, _ in samples(ask(state))}


def test_the_guide_names_exactly_the_metrics_that_there_are(state: StateDir) -> None:
    families = re.findall("^# TYPE (vac_[a-z0-9_]+) ", ask(state).body.decode(), re.MULTILINE)
    rows = re.findall("^\\| (`vac_[^|]+)", GUIDE.read_text(), re.MULTILINE)
    assert re.findall("vac_[a-z0-9_]+", "".join(rows)) == families


def test_a_state_dir_in_which_nothing_can_be_written_shows(state: StateDir, tmp_path: Path) -> None:
    assert samples(ask(state))["vac_state_dir_writable", frozenset()] == 1
    assert samples(ask(StateDir(tmp_path / "gone")))["vac_state_dir_writable", frozenset()] == 0


def test_before_a_factory_has_reported_there_is_little_to_say(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    assert {metric.split("_")[1] for metric, _ in samples(ask(state))} == {"vacquery", "state"}
    assert b"No factory has reported yet" in ask(state, "").body


class Page(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(answer.body.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_tells_people_what_is_going_on(state: StateDir) -> None:
    page_ = Page(ask(state, ""))
    text = "\n".join(page_.texts)
    for words in (
        *("node1.example.org", "Space vac01.example.org", "4.0.0", "1 of 3 processors"),
        *("Draining since ", "new kernel", "No machine may run past", "vac.conf: bad", "probably broken"),
        *("held back here after 2 aborts", "30 s ago: user_data: no such file", "75%", "100%"),
        *("node1-00.example.org", "Running", "300 <b>Nothing</b> to do", "5 MB"),
        *("no such file: /run/docker.sock", "the server's certificate has expired"),
        "No answer from 1 of 2 factories",
    ):
        assert words in text
    assert "not reported" not in text
    assert set(page_.tags) <= {"html", "head", "meta", "title", "style", "body", *TAGS}
    assert not [name for name, _ in page_.attributes if name in ("src", "onclick", "style")]
    links = {link for name, link in page_.attributes if name == "href"}
    assert links == {
        *("/", "/watch", "/metrics", "#content", "/machinetype/lhcb-prod", "/machinetype/held"),
        *(f"/machine/node1-0{number}.example.org" for number in range(3)),
    }
    assert ("Content-Security-Policy", "default-src 'none'") in [
        (key, text.partition(";")[0]) for key, text in ask(state, "").headers
    ]


def hostile(key: str, text: str) -> Status:
    """A status in which everything that others name has this name, and all that they say is this text."""
    return dataclasses.replace(
        STATUS,
        machinetypes=(dataclasses.replace(STATUS.machinetypes[0], fqan=text), TypeFacts(name=key)),
        engines={key: text},
        problems=(text,),
        warnings=(text,),
        drain=Drain(reason=text),
        guard=text,
        guard_name=text,
        passed_over={key: text},
        held_here={key: NOW},
        failed={key: Creation(NOW, key, reason=text)},
        pipes={key: text, key + "x": text},
        slot_states={"node1-02.example.org": text},
        event_counts=(EventCount("end", key, key, 1, 1.0),),
    )


@pytest.mark.parametrize(
    ("key", "text"),
    [(NAME, HOSTILE), ("x" * 100_000, "y" * 100_000), (NAME * 100, HOSTILE * 99), ("a", SECRET), ("", "")],
    ids=["hostile", "long", "both", "secret", "empty"],
)
def test_whatever_names_and_texts_hold_stays_a_label_or_a_cell(state: StateDir, key: str, text: str) -> None:
    (state.machines / "1795189401_lhcb-prod_node1-01.example.org" / "shutdown_message").write_bytes(
        text.encode("utf-8", "surrogatepass")
    )
    before, tags = len(samples(ask(state))), set(Page(ask(state, "")).tags)
    statuses.write(state, hostile(key, text))
    for accept in ("", OPEN):
        answer = ask(state, accept=accept)
        found = samples(answer)
        assert not [metric for metric, _ in found if "forged" in metric]
        assert len(found) < before + 20
        assert max(len(content) for _, labels in found for _, content in labels) <= LONGEST_TEXT
        assert answer.body.decode().count("\n") < 500
        assert "hunter2" not in answer.body.decode()
    answer = ask(state, "")
    assert set(Page(answer).tags) <= tags
    assert len(answer.body) < 60_000
    assert "hunter2" not in answer.body.decode()


@given(st.text(), st.text())
def test_names_are_short_printable_and_differ_where_they_did(one: str, other: str) -> None:
    for text in (one, one * 50):
        assert len(name(text)) <= LONGEST_NAME
        assert name(text).isprintable()
    assert (name(one) == name(other)) == (one == other)
    assert name(one * 100 + "a") != name(one * 100 + "b")


@given(st.text(max_size=500), st.integers(10, 300))
def test_texts_are_printable_and_of_limited_length(text: str, longest: int) -> None:
    assert len(shown(text, longest)) <= longest
    assert shown(text, longest).isprintable()


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/", "GET", 200),
        ("/", "HEAD", 200),
        ("/metrics", "HEAD", 200),
        ("/metrics/", "GET", 200),
        ("/metrics", "POST", 405),
        ("/", "PUT", 405),
        ("/metrics/x", "GET", 404),
        ("/status.json", "GET", 404),
        ("/../user_data", "GET", 404),
        ("/favicon.ico", "DELETE", 404),
    ],
)
def test_there_is_nothing_else(state: StateDir, path: str, method: str, status: int) -> None:
    assert ask(state, path, method).status == status


def test_the_state_is_read_at_most_once_a_second(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    now, views = [NOW], list[View]()
    site = page.Site(state, lambda: now[0])

    def counted(*arguments: Any) -> View:
        views.append(look(*arguments))
        return views[-1]

    monkeypatch.setattr(page, "look", counted)
    for number in range(5):
        site.respond(Request("GET", ("metrics",), None))
        site.respond(Request("GET", ("machine", str(number)), None))
    assert len(views) == 1
    now[0] += 1.5
    statuses.write(state, dataclasses.replace(STATUS, total_processors=2))
    body = site.respond(Request("GET", ("metrics",), None)).body
    assert b"vac_factory_processors 2.0\n" in body


def test_zeros_of_a_power_failure_need_no_codec(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def guess(content: bytes) -> str:
        raise AssertionError("json guesses an encoding, whose codec may be out of reach")

    monkeypatch.setattr(json, "detect_encoding", guess)
    machine = new_machine(state, name="node1-02.example.org", uuid="third")
    write_slot(state, machine)
    torn = [machine.directory / name for name in ("machinetype.json", "usage.json", outputs.CONTACTS)]
    torn += [state.history, counters_file(state)]
    for path in torn:
        path.write_bytes(bytes(100))
    view = look(state, SnapshotBuilder(state), NOW)
    assert view.snapshot is not None and not view.counters
    assert not outputs.read_contacts(machine) and not history.read(state)
    state.status.write_bytes(bytes(100))
    assert look(state, SnapshotBuilder(state), NOW).snapshot is None


@pytest.mark.parametrize("module", ["waitress", "prometheus_client"])
def test_a_missing_package_is_named_and_nothing_worse(
    module: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for loaded in [one for one in sys.modules if one.startswith((f"{module}.", "vac.web."))]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    role = next(role for role in ROLES if role.name == "page")
    with caplog.at_level(logging.ERROR, logger="vac"):
        assert role_process.load_main(role) is None
    assert f"the Python package {module} is missing" in caplog.text
    assert "install python3-prometheus-client and python3-waitress" in caplog.text


def test_without_an_address_there_is_nothing_to_serve() -> None:
    assert page.service(Settings()) is None
    service = page.service(Settings(metrics_listen="[::1]:9995"))
    assert service is not None
    assert (service.address, service.port, service.option) == ("::1", 9995, "metrics_listen = [::1]:9995")


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("127.3.2.1", "this host"),
        ("::1", "this host"),
        ("::ffff:127.0.0.9", "this host"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_client_is_its_network_where_it_has_all_of_that(address: str, network: str) -> None:
    assert network_of(address) == network
    assert is_person(address)


@pytest.mark.parametrize("address", ["169.254.169.7", "::ffff:169.254.169.7", "169.254.170.0"])
def test_machines_are_refused(address: str) -> None:
    assert not is_person(address)


DAY = 86400.0


def ends(state: StateDir) -> None:
    """A history: two machines of a type that is configured, one of another, one of long ago."""
    lives = (
        ("lhcb-prod", NOW - DAY, NOW - DAY / 2, 2, "200 Success"),
        ("lhcb-prod", NOW - 3 * DAY, NOW - 2 * DAY, 1, "300 <i>No</i> work"),
        ("gone", NOW - DAY, NOW - DAY / 2, 1, None),
        ("old", NOW - 30 * DAY, NOW - 29 * DAY, 1, None),
    )
    size = {"uuid": "u", "model": "docker", "processors": 1, "hs06": 10.0}
    lines = [
        {**size, "machine": "node1-00.example.org", "machinetype": one, "directory": f"{n}_m"}
        | {"started": begin, "ended": end, "processors": many, "hs06": 10.0 * many, "message": message}
        for n, (one, begin, end, many, message) in enumerate(lives)
    ]
    state.history.write_text("".join(f"\n{json.dumps(one)}" for one in lines))


def test_shares_and_ends_of_a_day_and_a_week_are_counted(state: StateDir) -> None:
    ends(state)
    html = ask(state, "").body.decode()
    text = "\n".join(Page(ask(state, "")).texts)
    rows = re.findall(r'<tr><td><a href="/machinetype/([\w-]+)">[^<]+</a></td>(.*?)</tr>', html)
    shares = {name: re.findall(r">([0-9]+%|none)<", row) for name, row in rows if 'class="bar"' in row}
    assert shares == {
        "lhcb-prod": ["75%", "100%", "67%", "80%"],
        "held": ["25%", "0%", "0%", "0%"],
        "gone": ["none", "0%", "33%", "20%"],
    }
    assert "Ends by shutdown code, day / week" in text
    codes = re.search(r"Ends by shutdown code.*?</table>", html, re.DOTALL)
    assert codes and re.findall(r">(\d / \d|200|300|none)<", codes[0]) == (
        ["200", "300", "none", "1 / 1", "1 / 1", "0 / 1"]
    )
    assert "Day (times in UTC): on average lhcb-prod 1.0, gone 0.5" in text


def test_a_slot_and_a_machinetype_have_pages_of_their_own(state: StateDir) -> None:
    ends(state)
    page_ = Page(ask(state, "machine/node1-00.example.org"))
    text = "\n".join(page_.texts)
    assert UUID in text and "Running" in text and "300 <i>No</i> work" in text and "token" not in text
    text = "\n".join(Page(ask(state, "machinetype/held")).texts)
    assert "held back here after 2 aborts" in text and utc_time(NOW + 300) in text
    assert "configured any more" in "\n".join(Page(ask(state, "machinetype/gone")).texts)
    for path in (
        "machine/x",
        "machinetype/old",
        "machine",
        "machinetype/held/x",
        "machine/node1-00.example.org/x",
    ):
        assert ask(state, path).status == 404, path


def test_only_the_page_for_walls_renews_itself(state: StateDir) -> None:
    assert ("Refresh", "60") in ask(state, "watch").headers
    assert ask(state, "watch").body == ask(state, "").body
    assert b"http-equiv" not in ask(state, "").body
    assert not [key for key, _ in ask(state, "").headers if key == "Refresh"]


SPANS = st.lists(
    st.builds(
        lambda name, start, length, size: Span(name, start, start + length, size, size * 10.0),
        st.sampled_from("abc"),
        st.floats(-500, 1500),
        st.floats(0, 1500),
        st.integers(1, 8),
    ),
    max_size=20,
)


@given(SPANS, st.integers(1, 50))
def test_a_chart_has_exactly_the_processor_seconds_of_its_time(spans: list[Span], steps: int) -> None:
    rows = processors(spans, 0.0, 1000.0, steps)
    work = sum(max(0.0, min(one.end, 1000.0) - max(one.start, 0.0)) * one.processors for one in spans)
    assert sum(map(sum, rows.values())) * 1000.0 / steps == pytest.approx(work, abs=0.01)
    assert all(len(row) == steps and min(row) >= 0 for row in rows.values())
    total = sum(charts.shares(spans, 0.0, 1000.0).values())
    assert total == pytest.approx(1.0 if work > 0.01 else total)


@pytest.mark.parametrize(
    ("most", "labels"),
    [(129.132, ["0", "65", "130"]), (0.0, ["0", "1", "2"]), (64.0, ["0", "32", "64"])],
)
def test_axes_of_charts_have_short_round_numbers(most: float, labels: list[str]) -> None:
    body = Element("div")
    charts.area_chart(body, "", {"a": [most, 0.0]}, {"a": "c0"}, most, ())
    assert [one.text for one in body.iter("text")] == labels
