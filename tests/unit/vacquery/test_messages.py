"""VacQuery's messages: wire format, reports made of them, and status messages to VacMon."""

from __future__ import annotations

import dataclasses
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vacquery.recorded import (
    FACTORY,
    NOW,
    SPACE,
    STARTED,
    cookies,
    datagrams,
    messages,
    overridden_datagrams,
)
from tests.unit.vacquery.test_responder import NoNames
from vac import __version__
from vac.machines.layout import StateDir
from vac.scheduling.model import TypeReport
from vac.vacquery.messages import (
    ANSWER_LIMIT,
    ANSWERED_WITH,
    QUERY_LIMIT,
    AnyStatus,
    Dropped,
    FactoryStatus,
    Kind,
    MachineStatus,
    MachinetypeStatus,
    Query,
    Reason,
    Received,
    cookie,
    decode_answer,
    decode_query,
    encode_query,
    message_of,
    read_status,
    shortened,
)
from vac.vacquery.poll import capacities, to_report, to_reports
from vac.vacquery.signed_json import canonical, signature
from vac.vacquery.snapshot import VacMon

KEY = b"a secret of the space"
COMMON: dict[str, Any] = {"space": SPACE, "site": "example.org", "factory": FACTORY}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def decode(data: bytes, kind: Kind = Kind.MACHINETYPES, key: bytes | None = None) -> Received | Dropped:
    return decode_answer(data, kind, SPACE, {"c": FACTORY}, NOW, key)


def machinetype_message(**changes: Any) -> dict[str, Any]:
    """A good machinetype_status; a value of ... takes the field away."""
    message = {**messages(Kind.MACHINETYPES)[2], "cookie": "c", **changes}
    return {name: value for name, value in message.items() if value is not ...}


def decode_changed(**changes: Any) -> Received | Dropped:
    return decode(json.dumps(machinetype_message(**changes)).encode())


@pytest.mark.parametrize("kind", Kind)
def test_every_recorded_query_is_understood(kind: Kind) -> None:
    for datagram in datagrams(kind, "query"):
        query = decode_query(datagram, SPACE, NOW)
        assert isinstance(query, Query)
        assert (query.kind, query.cookie) == (kind, next(iter(cookies(kind))))


@pytest.mark.parametrize("kind", Kind)
def test_every_recorded_answer_is_read_with_all_its_fields(kind: Kind) -> None:
    for datagram in datagrams(kind, "response"):
        received = decode_answer(datagram, kind, SPACE, cookies(kind), NOW)
        assert isinstance(received, Received)
        read = message_of(received.status)
        for name, value in received.message.items():
            if name not in ("cookie", "time_sent"):
                assert read[name] == value, name


@pytest.mark.parametrize("kind", Kind)
def test_our_queries_say_what_the_recorded_ones_say(kind: Kind) -> None:
    recorded = json.loads(datagrams(kind, "query")[0])
    ours = json.loads(encode_query(Query(kind, SPACE, recorded["cookie"]), NOW))
    assert ours.pop("vac_version") == f"Vac {__version__} vac-command"
    recorded.pop("vac_version")
    assert ours == recorded


def test_a_cookie_differs_between_factories_and_between_polls() -> None:
    assert len({cookie(salt, factory) for salt in ("1", "2") for factory in ("a", "b")}) == 4
    assert len(cookie("salt", FACTORY)) == 64


@pytest.mark.parametrize(
    ("kind", "old"),
    [
        (Kind.MACHINETYPES, {"running_cpus": 3.0}),
        (Kind.MACHINES, {"num_cpus": 3}),
        (Kind.FACTORIES, {"max_cpus": 3}),
        (Kind.FACTORIES, {"total_cpus": 3}),
    ],
)
def test_the_old_name_is_read_where_the_new_one_is_missing(kind: Kind, old: dict[str, float]) -> None:
    message = messages(kind)[0]
    attribute = {"running_cpus": "running_processors", "num_cpus": "num_processors"}
    new = attribute.get(next(iter(old)), "max_processors")
    without = {name: value for name, value in message.items() if name not in (new, "max_cpus")}
    status = read_status({**without, **old}, ANSWERED_WITH[kind])
    assert not isinstance(status, Dropped)
    assert getattr(status, new) == 3
    status = read_status({**without, **old, new: 200}, ANSWERED_WITH[kind])
    assert not isinstance(status, Dropped)
    assert getattr(status, new) == 200


def test_a_sibling_that_sends_new_names_only_is_understood() -> None:
    received = decode_changed(running_cpus=..., vac_version=..., vacquery_version="VacQuery 01.02", fqan=...)
    assert isinstance(received, Received)
    assert received.status.version == "Vac 03.01 vacd-responder"


def test_an_unknown_fqan_is_omitted_other_values_are_null() -> None:
    message = message_of(MachinetypeStatus(**COMMON, machinetype="t"))
    assert "fqan" not in message
    assert message["shutdown_message"] is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cookie": "other"}, Reason.COOKIE),
        ({"cookie": ["c"]}, Reason.COOKIE),
        ({"space": "x"}, Reason.SPACE),
        ({"factory": "other.example.org"}, Reason.FACTORY),
        ({"factory": None}, Reason.FACTORY),
        ({"message_type": "machine_status"}, Reason.KIND),
        ({"machinetype": ...}, Reason.FIELD),
        ({"machinetype": ""}, Reason.FIELD),
        ({"machinetype": "a\nb"}, Reason.FIELD),
        ({"machinetype": 5}, Reason.FIELD),
        ({"num_machinetypes": -1}, Reason.FIELD),
        ({"num_machinetypes": 10**29}, Reason.FIELD),
        ({"running_processors": 1.5}, Reason.FIELD),
        ({"running_processors": True}, Reason.FIELD),
        ({"running_processors": "1"}, Reason.FIELD),
        ({"running_processors": None, "running_cpus": None}, Reason.FIELD),
        ({"running_machines": [1]}, Reason.FIELD),
        ({"running_hs06": -0.5}, Reason.FIELD),
        ({"running_hs06": 1e300}, Reason.FIELD),
        ({"running_hs06": 5000.0}, Reason.FIELD),  # on one processor
        ({"shutdown_time": 1e20}, Reason.FIELD),
        ({"shutdown_message": 300}, Reason.FIELD),
        ({"shutdown_message": "x" * 5000}, Reason.FIELD),
        ({"fqan": {}}, Reason.FIELD),
    ],
)
def test_an_answer_with_a_bad_field_is_dropped(changes: dict[str, Any], reason: Reason) -> None:
    assert isinstance(decode_changed(), Received)
    dropped = decode_changed(**changes)
    assert isinstance(dropped, Dropped)
    assert dropped.reason is reason


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_what_is_no_finite_number_is_no_json(number: str) -> None:
    text = json.dumps(machinetype_message(running_hs06=7777)).replace("7777", number)
    dropped = decode(text.encode())
    assert isinstance(dropped, Dropped)
    assert dropped.reason is Reason.JSON


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"[]",
        b"5",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b"[" * 1000,
        b'{"a":' * 190,
        b"9" * 1020,
        b'{"a":1,"a":1}',
    ],
)
def test_what_is_no_json_object_is_dropped(data: bytes) -> None:
    for found in (decode(data), decode_query(data, SPACE, NOW)):
        assert isinstance(found, Dropped)
        assert found.reason is Reason.JSON


@pytest.mark.parametrize(("pairs", "read"), [(150, True), (300, False)])
def test_a_message_of_many_brackets_is_dropped_unparsed(pairs: int, read: bool) -> None:
    message = {**machinetype_message(), "more": [[] for _ in range(pairs)]}
    assert isinstance(decode(json.dumps(message).encode()), Dropped) is not read


def test_nothing_longer_than_a_query_is_read_as_one() -> None:
    query = encode_query(Query(Kind.MACHINES, SPACE, "c" * (QUERY_LIMIT - 200)), NOW)
    padded = query + b" " * (QUERY_LIMIT - len(query))
    assert isinstance(decode_query(padded, SPACE, NOW), Query)
    assert decode_query(padded + b" ", SPACE, NOW) == Dropped(Reason.LONG)


def test_lone_surrogates_in_texts_become_question_marks() -> None:
    received = decode_changed(shutdown_message="300 \ud800 é")
    assert isinstance(received, Received)
    assert isinstance(received.status, MachinetypeStatus)
    assert received.status.shutdown_message == "300 ? é"


def test_a_whole_float_counts_as_the_whole_number_that_it_is() -> None:
    received = decode_changed(running_processors=8.0, running_machines=8.0)
    assert isinstance(received, Received)
    assert isinstance(received.status, MachinetypeStatus)
    assert (received.status.running_processors, received.status.running_machines) == (8, 8)


@pytest.mark.parametrize(
    "status",
    [
        MachinetypeStatus(**COMMON, machinetype="t", shutdown_message="é" * 4000, fqan="/x" * 2000),
        MachineStatus(**COMMON, machine="m", shutdown_message='"' * 4000, fqan="/x" * 100),
        FactoryStatus(**COMMON, kernel_version="k" * 2000, os_issue="o" * 2000),
    ],
)
def test_long_texts_are_cut_so_that_a_datagram_holds_the_answer(
    status: MachinetypeStatus | MachineStatus | FactoryStatus,
) -> None:
    short = shortened(message_of(status), ANSWER_LIMIT)
    assert short is not None
    assert ANSWER_LIMIT - 30 < len(canonical(short)) <= ANSWER_LIMIT
    assert set(short) == set(message_of(status))


def test_what_can_not_be_cut_enough_is_not_sent() -> None:
    assert shortened(message_of(MachineStatus(**COMMON, machine="m" * 2000)), ANSWER_LIMIT) is None


def signed(message: dict[str, Any], key: bytes = KEY) -> bytes:
    return json.dumps({**message, "hmac": signature(canonical(message), key)}).encode()


def test_with_a_key_only_fresh_answers_signed_with_it_are_taken() -> None:
    message = machinetype_message(time_sent=int(NOW))
    assert isinstance(decode(signed(message), key=KEY), Received)
    forged = json.loads(signed(message)) | {"running_processors": 64.0}
    cases = {
        json.dumps(message).encode(): Reason.SIGNATURE,
        signed(message, b"another secret of this space"): Reason.SIGNATURE,
        json.dumps(forged).encode(): Reason.SIGNATURE,
        json.dumps({**message, "hmac": "\u00e9"}).encode(): Reason.SIGNATURE,
        json.dumps({**message, "hmac": None}).encode(): Reason.SIGNATURE,
        signed({**message, "time_sent": int(NOW) - 301}): Reason.STALE,
        signed({**message, "time_sent": int(NOW) + 301}): Reason.STALE,
        signed({**message, "time_sent": 10**29}): Reason.STALE,
        signed({**message, "time_sent": None}): Reason.STALE,
    }
    for data, reason in cases.items():
        assert decode(data, key=KEY) == Dropped(reason, factory=FACTORY), data


def test_with_a_key_queries_are_and_must_be_signed() -> None:
    query = Query(Kind.MACHINES, SPACE, "c")
    text = encode_query(query, NOW, KEY)
    assert len(text) < QUERY_LIMIT
    assert decode_query(text, SPACE, NOW, KEY) == query
    assert decode_query(encode_query(query, NOW), SPACE, NOW, KEY) == Dropped(Reason.SIGNATURE)
    assert decode_query(text, SPACE, NOW + 400, KEY) == Dropped(Reason.STALE)
    assert {"hmac", "time_sent"}.isdisjoint(json.loads(encode_query(query, NOW)))


@given(st.binary(max_size=1100))
def test_no_bytes_make_decoding_raise(data: bytes) -> None:
    for key in (None, KEY):
        assert isinstance(decode_query(data, SPACE, NOW, key), (Query, Dropped))
        for kind in Kind:
            assert isinstance(decode(data, kind, key), (Received, Dropped))


def test_recorded_queries_for_another_space_are_that_ones_only() -> None:
    found = overridden_datagrams()
    assert found
    for data in found:
        asked = decode_query(data, "other.example.org", NOW)
        assert asked == Query(Kind.MACHINES, "other.example.org", json.loads(data)["cookie"])
        assert decode_query(data, SPACE, NOW) == Dropped(Reason.SPACE)


@given(st.data())
def test_no_changed_answer_raises_or_gives_absurd_numbers(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(Kind))
    message: dict[str, Any] = {**messages(kind)[0], "cookie": "c"}
    for name in data.draw(st.lists(st.sampled_from(sorted(message)), max_size=3)):
        message[name] = data.draw(json_values)
    received = decode(json.dumps(message).encode(), kind)
    if isinstance(received, Received):
        for field in dataclasses.fields(received.status):
            value = getattr(received.status, field.name)
            assert value is None or isinstance(value, str) or 0 <= value <= 2**63
            if isinstance(value, str):
                value.encode()


@given(
    st.dictionaries(
        st.sampled_from(["message_type", "method", "space", "cookie", "hmac", "time_sent"]), json_values
    )
)
def test_no_changed_query_makes_decoding_raise(changes: dict[str, Any]) -> None:
    query = {"message_type": "factory_query", "space": SPACE, "cookie": "c", **changes}
    for key in (None, KEY):
        assert isinstance(decode_query(json.dumps(query).encode(), SPACE, NOW, key), (Query, Dropped))


OF_TYPE: dict[str, Any] = {"space": SPACE, "site": "", "factory": FACTORY, "machinetype": "t"}


def recorded(kind: Kind) -> dict[str, tuple[Received, ...]]:
    found = [decode_answer(data, kind, SPACE, cookies(kind), NOW) for data in datagrams(kind, "response")]
    return {FACTORY: tuple(one for one in found if isinstance(one, Received))}


def test_recorded_answers_become_reports() -> None:
    reports, unknown = to_reports(recorded(Kind.MACHINETYPES), {"type-00", "type-03", "type-06"})
    assert reports == {
        FACTORY: {
            "type-00": TypeReport(1, 1, 12.5, 1, float(STARTED), no_work=True),
            "type-03": TypeReport(1, 1, 12.5, 1, None),
            "type-06": TypeReport(0, 0, 0.0, 0, float(STARTED), no_work=True),
        }
    }
    assert unknown == 7


def test_capacity_is_a_factorys_max_hs06() -> None:
    assert capacities(recorded(Kind.FACTORIES))[0] == {FACTORY: 100.0}


@pytest.mark.parametrize(
    ("message", "time", "abort"),
    [
        (None, None, None),
        (None, NOW, None),
        ("200 Success", NOW - 5, None),
        ("300 No work", NOW - 5, NOW - 5),
        ("700 Broken", NOW - 5, NOW - 5),
        ("300 No work", None, None),
        ("no code", NOW - 5, None),
    ],
)
def test_an_abort_counts_from_its_message(
    message: str | None, time: float | None, abort: float | None
) -> None:
    when = None if time is None else int(time)
    report = to_report(MachinetypeStatus(**OF_TYPE, shutdown_message=message, shutdown_time=when))
    assert report.abort_time == (None if abort is None else pytest.approx(abort, abs=1))


STATUSES: list[AnyStatus] = [
    FactoryStatus(space=SPACE, site="example.org", factory=FACTORY, max_processors=8),
    MachinetypeStatus(space=SPACE, site="example.org", factory=FACTORY, machinetype="type-00"),
]


def test_a_service_gets_every_message_with_cookie_0(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 0))
        service.settimeout(60)
        port = service.getsockname()[1]
        names = NoNames({"vacmon.example.org": ("127.0.0.1",)})
        vacmon = VacMon(StateDir(tmp_path), names, lambda: NOW)
        vacmon.send([f"vacmon.example.org:{port}"], STATUSES)
        received = [json.loads(service.recv(9000)) for _ in STATUSES]
    assert [message["message_type"] for message in received] == ["factory_status", "machinetype_status"]
    assert {(message["cookie"], message["time_sent"]) for message in received} == {("0", int(NOW))}
    assert "fqan" not in received[1]


@pytest.mark.parametrize("addresses", [(), ("not an address",)])
def test_a_service_that_can_not_be_reached_costs_one_log_line(
    tmp_path: Path, addresses: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    names = NoNames({"vacmon.example.org": addresses})
    vacmon = VacMon(StateDir(tmp_path), names, lambda: NOW)
    for _ in range(3):
        vacmon.send(["vacmon.example.org:8884"], STATUSES)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "vacmon.example.org:8884" in caplog.text
    names.addresses = {"vacmon.example.org": ("127.0.0.1",)}
    vacmon.send(["vacmon.example.org:8884"], STATUSES)
    assert caplog.records[-1].levelname == "INFO"
