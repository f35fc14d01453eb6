"""The responder: answers, access, and robustness."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.host.test_connections import ROUTES
from tests.unit.vacquery.recorded import (
    FACTORY,
    NOW,
    SPACE,
    WIRE,
    datagrams,
    factory_status,
    make_state,
    messages,
)
from vac import __version__
from vac.config.load import Configuration
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.host.connections import connected_networks
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.machines.status import TypeFacts, prepare_role
from vac.vacquery import messages as messages_module
from vac.vacquery import poll as poll_module
from vac.vacquery import responder as module
from vac.vacquery import snapshot as snapshot_module
from vac.vacquery.messages import Kind, Query, Received, decode_answer, encode_query
from vac.vacquery.poll import Resolver, plain_address
from vac.vacquery.responder import (
    AccessList,
    Refresher,
    Responder,
    SeenSignatures,
    counters_file,
    listen,
    read_counters,
    serve,
)
from vac.vacquery.signed_json import identity
from vac.vacquery.snapshot import Answers, SnapshotBuilder

KEY = b"a secret of the space"
PROBES = [json.loads(line) for line in (WIRE / "probes.jsonl").read_text().splitlines()]
HOME = "127.0.0.1"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> StateDir:
    return make_state(tmp_path_factory.mktemp("responder") / "state")


def make_responder(state: StateDir, key: bytes | None = None) -> Responder:
    snapshot = SnapshotBuilder(state).build(NOW)
    assert snapshot is not None
    responder = Responder(key)
    responder.answers = Answers(snapshot, key)
    responder.access_is_complete = True
    return responder


@pytest.fixture(scope="module")
def responder(state: StateDir) -> Responder:
    return make_responder(state)


class NoNames(Resolver):
    """A DNS that knows a few."""

    def __init__(self, known: dict[str, tuple[str, ...]] | None = None) -> None:
        self.addresses = known or {}
        self.pending: set[str] = set()

    def request(self, hosts: object) -> None:
        pass

    def known(self, host: str) -> tuple[str, ...]:
        return self.addresses.get(host, ())

    def looking(self, host: str) -> bool:
        return host in self.pending


@pytest.mark.parametrize("kind", Kind)
def test_every_recorded_query_is_answered_in_full(kind: Kind, responder: Responder) -> None:
    for query in datagrams(kind, "query"):
        answers = [json.loads(answer) for answer in responder.handle(query, HOME, NOW)]
        assert len(answers) == len(messages(kind))
        for answer in answers:
            assert answer["cookie"] == json.loads(query)["cookie"]
            assert answer["time_sent"] == int(NOW)
            assert answer["daemon_version"] == answer["vac_version"] == f"Vac {__version__} vacd-responder"


@pytest.mark.parametrize("probe", PROBES, ids=[probe["probe"] for probe in PROBES])
def test_odd_queries_get_as_many_answers_as_from_a_classic(
    probe: dict[str, object], responder: Responder
) -> None:
    answers = responder.handle(str(probe["query"]).encode("latin-1"), HOME, NOW)
    assert len(answers) == probe["responses"]
    assert sorted({json.loads(answer)["message_type"] for answer in answers}) == probe["types"]
    assert all(len(answer) + 48 < 1500 for answer in answers)


def test_a_cookie_is_repeated_whatever_it_is(responder: Responder) -> None:
    for cookie in ("é", 'a"b\\', "", None, 0, [1, {"a": 2.5}], "c" * 700):
        query = encode_query(Query(Kind.FACTORIES, SPACE, cookie), NOW)
        (answer,) = responder.handle(query, HOME, NOW)
        assert json.loads(answer)["cookie"] == cookie


def test_long_messages_of_machines_do_not_make_too_long_answers(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    for message in tmp_path.glob("machines/*/joboutputs/shutdown_message"):
        message.write_text("300 " + "é" * 3000)
    facts = tuple(dataclasses.replace(one, fqan="/" + "x" * 1500) for one in factory_status().machinetypes)
    statuses.write(state, dataclasses.replace(factory_status(), machinetypes=facts))
    for key in (None, KEY):
        responder = make_responder(state, key)
        for kind in Kind:
            answers = responder.handle(encode_query(Query(kind, SPACE, "c" * 64), NOW, key), HOME, NOW)
            assert len(answers) == len(messages(kind))
            assert all(len(answer) + 48 < 1500 for answer in answers)


def test_long_cookies_cost_few_more_makings_of_each_answer(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    responder = make_responder(state)
    made: list[object] = []
    really = messages_module.shortened

    def shortened(message: dict[str, object], limit: int) -> dict[str, object] | None:
        made.append(message)
        return really(message, limit)

    monkeypatch.setattr(snapshot_module, "shortened", shortened)
    found = []
    for cookie in [
        *("c" * length for length in range(60, 850)),
        *("\\" * length for length in range(400)),
        "é" * 240,
    ]:
        query = json.dumps({"message_type": Kind.MACHINES.value, "space": SPACE, "cookie": cookie}).encode()
        datagrams = responder.handle(query, HOME, NOW)
        assert all(len(datagram) + 48 < 1500 for datagram in datagrams)
        assert all(
            isinstance(decode_answer(datagram, Kind.MACHINES, SPACE, {cookie: FACTORY}, NOW), Received)
            for datagram in datagrams
        )
        found.append(len(datagrams))
    assert len(made) == (len(snapshot_module.COOKIE_SIZES) - 1) * len(messages(Kind.MACHINES))
    assert set(found) == {0, 8}


def test_a_machinetype_that_fits_no_datagram_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = make_state(tmp_path)
    statuses.write(state, dataclasses.replace(factory_status(), machinetypes=(TypeFacts(name="x" * 2000),)))
    responder = make_responder(state)
    assert responder.handle(encode_query(Query(Kind.MACHINETYPES, SPACE, "c"), NOW), HOME, NOW) == ()
    assert "too long" in caplog.text
    assert responder.counts == {"dropped: nothing to answer from": 1}


def test_with_a_key_answers_are_signed(state: StateDir) -> None:
    responder = make_responder(state, KEY)
    for kind in Kind:
        query = Query(kind, SPACE, "c" * 64)
        assert responder.handle(encode_query(query, NOW), HOME, NOW) == ()
        answers = responder.handle(encode_query(query, NOW, KEY), HOME, NOW)
        assert len(answers) == len(messages(kind))
        for answer in answers:
            assert isinstance(decode_answer(answer, kind, SPACE, {"c" * 64: FACTORY}, NOW, KEY), Received)


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.0.2.7", True),  # a factory
        ("::ffff:192.0.2.7", True),
        ("192.0.2.8", False),
        ("::ffff:192.0.2.8", False),
        ("10.1.2.3", True),  # in an allowed network
        ("::ffff:10.1.2.3", True),
        ("10.2.0.1", False),
        ("2001:db8::5", True),
        ("2001:db8:1::5", False),
        ("fe80::1%eth0", False),
        ("", False),
        ("garbage", False),
    ],
)
def test_only_allowed_sources_get_answers(source: str, allowed: bool, state: StateDir) -> None:
    responder = make_responder(state)
    responder.access = AccessList(["192.0.2.7"], [ip_network("10.1.0.0/16"), ip_network("2001:db8::/48")])
    for query in (*datagrams(Kind.MACHINES, "query"), b"junk"):
        answers = responder.handle(query, source, NOW)
        assert bool(answers) is (allowed and query != b"junk")


def test_a_refused_source_is_logged_once_and_counted_each_time(
    state: StateDir, caplog: pytest.LogCaptureFixture
) -> None:
    responder = make_responder(state)
    for _ in range(3):
        responder.handle(datagrams(Kind.MACHINES, "query")[0], "203.0.113.9", NOW)
    assert caplog.text.count("203.0.113.9") == 1
    assert responder.counts == {"dropped: source not allowed": 3}


def test_other_keys_or_clocks_are_logged_once(state: StateDir, caplog: pytest.LogCaptureFixture) -> None:
    responder = make_responder(state, KEY)
    asked = Query(Kind.MACHINES, SPACE, "c")
    for time_sent, key in (
        (NOW, None),
        (NOW, b"another secret, of nobody"),
        (NOW - 301, KEY),
        (NOW + 301, KEY),
    ):
        assert responder.handle(encode_query(asked, time_sent, key), HOME, NOW) == ()
    assert responder.counts == {"dropped: wrong or no signature": 2, "dropped: signed too long ago": 2}
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert caplog.text.count(f"query from {HOME} not answered: ") == 2


def test_a_flood_of_spoofed_sources_fills_neither_log_nor_memory(
    state: StateDir, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_LOGGED", 10)
    responder = make_responder(state)
    for number in range(10):
        assert responder.handle(b"junk", f"203.0.113.{number}", NOW) == ()
    remembered = responder._warned
    for number in range(10, 200):
        assert responder.handle(b"junk", f"203.0.113.{number}", NOW + number) == ()
    assert len(caplog.records) == 10
    assert len(responder._warned) == 10
    assert responder._warned is remembered, "each refusal costs what all remembered sources cost"


@pytest.mark.parametrize("source", ["203.0.113.1", "::ffff:203.0.113.1", "2001:db8:7::1"])
def test_an_address_is_parsed_once_for_many_datagrams(
    state: StateDir, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []

    def parse(text: str) -> object:
        parsed.append(text)
        return ip_address(text)

    monkeypatch.setattr(poll_module, "ip_address", parse)
    plain_address.cache_clear()
    responder = make_responder(state)
    for _ in range(3):
        assert responder.handle(b"junk", source, NOW) == ()
    assert parsed.count(source) == 1


def test_a_source_refused_again_after_a_day_is_logged_again(
    state: StateDir, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_LOGGED", 2)
    responder = make_responder(state)
    for now in (NOW, NOW + 1, NOW + 86402):
        for source in ("203.0.113.1", "203.0.113.2", "203.0.113.3"):
            responder.handle(b"junk", source, now)
    assert [caplog.text.count(f"203.0.113.{number} ") for number in (1, 2, 3)] == [2, 2, 0]


def test_a_signed_query_is_answered_once(state: StateDir) -> None:
    responder = make_responder(state, KEY)
    query = Query(Kind.MACHINES, SPACE, "c")
    first, second = encode_query(query, NOW, KEY), encode_query(query, NOW, KEY)
    assert [len(responder.handle(one, HOME, NOW)) for one in (first, second, first, second)] == [8, 8, 0, 0]
    ahead = encode_query(query, NOW + 299, KEY)
    for now in (NOW, NOW + 300, NOW + 598):
        responder.handle(ahead, HOME, now)
    assert responder.counts["dropped: signature seen before"] == 4


def test_seen_signatures_use_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_REMEMBERED", 10)
    seen = SeenSignatures()
    assert all(seen.add(f"signature {number}", NOW) for number in range(100))
    assert not seen.add("signature 99", NOW)
    assert len(seen._present) + len(seen._past) <= 20


def test_a_source_gets_only_so_much_in_a_second(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    query = datagrams(Kind.MACHINES, "query")[0]
    responder = make_responder(state)
    responder.access = AccessList(["192.0.2.7", "192.0.2.8"])
    size = sum(map(len, responder.handle(query, HOME, NOW)))
    monkeypatch.setattr(module, "MOST_BYTES_PER_SECOND", 2 * size)
    assert [len(responder.handle(query, "192.0.2.7", NOW)) for _ in range(5)] == [8, 8, 8, 0, 0]
    assert [len(responder.handle(query, source, NOW)) for source in ("192.0.2.8", HOME)] == [8, 8]
    assert len(responder.handle(query, "192.0.2.7", NOW + 1)) == 8
    assert responder.counts["dropped: more than the source may get in a second"] == 2


def test_what_is_dropped_is_counted_by_reason(state: StateDir) -> None:
    responder = make_responder(state)
    for data in (b"5", b"x" * 2000, b'{"message_type":"x"}', b'{"message_type":"factory_query","space":"x"}'):
        responder.handle(data, HOME, NOW)
    responder.handle(datagrams(Kind.MACHINES, "query")[0], HOME, NOW)
    assert responder.counts == {
        "dropped: not JSON": 1,
        "dropped: too long": 1,
        "dropped: unknown message type": 1,
        "dropped: other space": 1,
        "machines_query": 1,
        "answers": 8,
    }


def test_before_the_factory_has_ever_run_nothing_is_answered() -> None:
    responder = Responder()
    assert responder.handle(datagrams(Kind.MACHINES, "query")[0], HOME, NOW) == ()
    assert responder.counts == {"dropped: nothing to answer from": 1}


@given(st.binary(max_size=1100), st.text(max_size=30))
def test_no_datagram_from_anywhere_makes_it_raise(responder: Responder, data: bytes, source: str) -> None:
    responder.handle(data, source, NOW)
    responder.handle(data, HOME, NOW)


def test_snapshot_and_access_follow_disk_and_status(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    prepare_role(state, "responder", None, counters_file(state).parent)
    responder = Responder()
    refresher = Refresher(responder, state, NoNames({"peer.example.org": ("198.51.100.9",)}))
    refresher.refresh(NOW)
    query = datagrams(Kind.MACHINES, "query")[0]
    assert json.loads(responder.handle(query, HOME, NOW)[0])["machinetype"] == "type-00"
    assert responder.handle(query, "198.51.100.9", NOW) == ()
    state.slot("vac-85-00.example.org").unlink()
    factories = (FACTORY, "peer.example.org")
    statuses.write(state, dataclasses.replace(factory_status(), factories=factories))
    refresher.refresh(NOW + 6)
    assert json.loads(responder.handle(query, HOME, NOW)[0])["machinetype"] is None
    assert len(responder.handle(query, "198.51.100.9", NOW)) == 8


@pytest.mark.parametrize(
    ("seconds", "reported", "machinetype"), [(1, False, "type-00"), (1, True, None), (6, False, None)]
)
def test_answers_follow_reports_at_once_and_disk_in_seconds(
    tmp_path: Path, seconds: int, reported: bool, machinetype: str | None
) -> None:
    state, responder = make_state(tmp_path), Responder()
    refresher = Refresher(responder, state, NoNames())
    refresher.refresh(NOW)
    state.slot("vac-85-00.example.org").unlink()
    if reported:
        statuses.write(state, factory_status())
    refresher.refresh(NOW + seconds)
    answer = responder.handle(datagrams(Kind.MACHINES, "query")[0], HOME, NOW)[0]
    assert json.loads(answer)["machinetype"] == machinetype


@pytest.mark.parametrize(
    ("allow", "source", "allowed"),
    [
        ((), "169.254.169.1", False),
        ((), "192.0.2.77", True),
        (("169.254.0.0/16",), "169.254.169.1", True),
        (("169.254.0.0/16",), "192.0.2.77", False),
    ],
)
def test_virtual_machines_may_ask_only_if_their_network_is_named(
    allow: tuple[str, ...], source: str, allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "route").write_text(ROUTES)
    monkeypatch.setattr(module, "connected_networks", lambda: connected_networks(tmp_path))
    state = make_state(tmp_path / "state")
    statuses.write(state, dataclasses.replace(factory_status(), vacquery_allow=allow))
    responder = Responder()
    Refresher(responder, state, NoNames()).refresh(NOW)
    assert bool(responder.handle(datagrams(Kind.MACHINES, "query")[0], source, NOW)) is allowed


def test_no_refusal_is_logged_while_addresses_are_looked_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = make_state(tmp_path)
    prepare_role(state, "responder", None, counters_file(state).parent)
    state.status.unlink()
    responder, names = Responder(), NoNames()
    refresher = Refresher(responder, state, names)
    query = datagrams(Kind.MACHINES, "query")[0]
    refresher.refresh(NOW)
    assert responder.handle(query, "198.51.100.9", NOW) == ()
    factories = (FACTORY, "peer.example.org")
    statuses.write(state, dataclasses.replace(factory_status(), factories=factories))
    names.pending.add("peer.example.org")
    refresher.refresh(NOW + 1)
    assert responder.handle(query, "198.51.100.9", NOW + 1) == ()
    names.pending.clear()
    names.addresses["peer.example.org"] = ("198.51.100.9",)
    refresher.refresh(NOW + 2)
    assert len(responder.handle(query, "198.51.100.9", NOW + 2)) == 8
    assert caplog.messages == []
    responder.handle(query, "198.51.100.10", NOW + 2)
    assert len(caplog.messages) == 1


def test_without_a_status_the_configuration_answers(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    prepare_role(state, "responder", None, counters_file(state).parent)
    state.status.unlink()
    settings = Settings(
        factory_name=FACTORY, vac_space=SPACE, factories=(FACTORY, "198.51.100.9"), host_processors=8
    )
    types = {one.name: Machinetype(one.name, fizzle_seconds=600) for one in factory_status().machinetypes}
    configured = statuses.configured(Configuration(settings, types, {}, {}, ()))
    responder = Responder()
    refresher = Refresher(responder, state, Resolver(), configured=configured)
    refresher.refresh(NOW)
    found = [
        json.loads(answer)
        for answer in responder.handle(datagrams(Kind.MACHINES, "query")[0], "198.51.100.9", NOW)
    ]
    assert [one["state"] for one in found] == [one["state"] for one in messages(Kind.MACHINES)]
    (types_query,) = datagrams(Kind.MACHINETYPES, "query")[:1]
    answers = [json.loads(answer) for answer in responder.handle(types_query, HOME, NOW)]
    recorded = messages(Kind.MACHINETYPES)
    for key in ("machinetype", "running_machines", "shutdown_message", "shutdown_machine"):
        assert sorted(str(one[key]) for one in answers) == sorted(str(one[key]) for one in recorded)


def test_answers_stay_as_they_were_while_the_status_is_missing(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    responder = Responder()
    refresher = Refresher(responder, state, NoNames())
    refresher.refresh(NOW)
    state.status.unlink()
    refresher.refresh(NOW + 1)
    assert len(responder.handle(datagrams(Kind.MACHINES, "query")[0], HOME, NOW)) == 8


def test_port_and_key_file_have_an_identity_without_secrets(tmp_path: Path) -> None:
    key = tmp_path / "key"
    seen = [identity(995, None), identity(996, None), identity(995, key)]
    for content in ("first secret", "second secret"):
        key.write_text(content)
        os.utime(key, ns=(0, len(seen)))
        seen.append(identity(995, key))
        assert identity(995, key) == seen[-1]
        assert content not in seen[-1]
    assert len(set(seen)) == 5


def test_heartbeat_and_counters_are_kept(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    prepare_role(state, "responder", None, counters_file(state).parent)
    responder = Responder()
    refresher = Refresher(responder, state, NoNames())
    responder.handle(b"junk", HOME, NOW)
    before = time.time()
    refresher.refresh(NOW)
    assert state.heartbeat("responder").stat().st_mtime >= int(before)
    assert read_counters(state) == {"dropped: nothing to answer from": 1}


def test_unwritable_files_are_logged_once_and_stop_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = make_state(tmp_path)
    responder = Responder()
    refresher = Refresher(responder, state, NoNames())
    for seconds in (0, 10, 20):
        refresher.refresh(NOW + seconds)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert len(responder.handle(datagrams(Kind.MACHINES, "query")[0], HOME, NOW)) == 8


@pytest.mark.parametrize(
    "content", ["", "[]", '{"a": "b"}', '{"a": NaN}', pytest.param("[" * 60_000, id="deep")]
)
def test_bad_counters_count_for_nothing(tmp_path: Path, content: str) -> None:
    state = StateDir(tmp_path)
    counters_file(state).parent.mkdir()
    counters_file(state).write_text(content)
    assert read_counters(state) == {}


@contextmanager
def serving(responder: Responder) -> Iterator[int]:
    """A responder at work on loopback; gives its port."""
    receiver = listen(0)
    stop, stopped = socket.socketpair()
    thread = threading.Thread(target=serve, args=(responder, receiver, (stopped,)))
    thread.start()
    try:
        yield receiver.getsockname()[1]
    finally:
        stop.close()
        thread.join(60)
        assert not thread.is_alive()
        for each in (receiver, stopped):
            each.close()


def ask(port: int, data: bytes, answers: int, host: str = "127.0.0.1") -> list[bytes]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(60)
        client.sendto(data, (host, port))
        return [client.recv(9000) for _ in range(answers)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_it_answers_over_ipv4_and_ipv6(host: str, state: StateDir) -> None:
    with serving(make_responder(state)) as port:
        for kind in Kind:
            assert len(ask(port, datagrams(kind, "query")[0], len(messages(kind)), host)) == len(
                messages(kind)
            )


def test_one_socket_for_both_takes_ipv4_as_mapped_addresses(state: StateDir) -> None:
    with listen(0) as receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", ("127.0.0.1", receiver.getsockname()[1]))
        receiver.settimeout(60)
        _, source = receiver.recvfrom(10)
        assert AccessList().allows(source[0])


def test_a_taken_port_is_an_error() -> None:
    with listen(0) as first, pytest.raises(OSError, match="in use"):
        listen(first.getsockname()[1])


def test_it_answers_after_any_amount_of_garbage(state: StateDir) -> None:
    responder = make_responder(state)
    with serving(responder) as port, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for junk in (b"", b"5", b"[]", b"[" * 1024, b"\xff" * 5000, b'{"cookie": 1e999}'):
            client.sendto(junk, ("127.0.0.1", port))
        assert len(ask(port, datagrams(Kind.MACHINES, "query")[0], 8)) == 8
    assert sum(count for reason, count in responder.counts.items() if reason.startswith("dropped")) == 6


def test_the_process_is_ready_and_ends_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_state(tmp_path)
    monkeypatch.setattr(module, "unprivileged_user", lambda: None)
    receiver = listen(0)
    stop, stopped = socket.socketpair()
    ready = threading.Event()
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(module.run(state, receiver, stopped, names=NoNames(), ready=ready.set))
    )
    thread.start()
    assert ready.wait(60)
    assert len(ask(receiver.getsockname()[1], datagrams(Kind.MACHINES, "query")[0], 8)) == 8
    stop.close()
    thread.join(60)
    assert codes == [0]
    assert state.pid("responder").exists()
    receiver.close()
