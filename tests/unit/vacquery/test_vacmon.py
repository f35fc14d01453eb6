"""VacMon gets the status messages, and costs a log line when it can't be reached."""

from __future__ import annotations

import json
import socket

import pytest

from tests.unit.vacquery.recorded import FACTORY, NOW, SPACE
from tests.unit.vacquery.test_responder import NoNames
from vac.vacquery.messages import AnyStatus, FactoryStatus, MachinetypeStatus
from vac.vacquery.vacmon import VacMon

STATUSES: list[AnyStatus] = [
    FactoryStatus(space=SPACE, site="example.org", factory=FACTORY, max_processors=8),
    MachinetypeStatus(space=SPACE, site="example.org", factory=FACTORY, machinetype="type-00"),
]


def test_a_service_gets_every_message_with_cookie_0() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 0))
        service.settimeout(60)
        port = service.getsockname()[1]
        VacMon([f"vacmon.example.org:{port}"], NoNames({"vacmon.example.org": ("127.0.0.1",)})).send(
            STATUSES, NOW
        )
        received = [json.loads(service.recv(9000)) for _ in STATUSES]
    assert [message["message_type"] for message in received] == ["factory_status", "machinetype_status"]
    assert {(message["cookie"], message["time_sent"]) for message in received} == {("0", int(NOW))}
    assert "fqan" not in received[1]


@pytest.mark.parametrize("addresses", [(), ("not an address",)])
def test_a_service_that_can_not_be_reached_costs_one_log_line(
    addresses: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    names = NoNames({"vacmon.example.org": addresses})
    vacmon = VacMon(["vacmon.example.org:8884"], names)
    for _ in range(3):
        vacmon.send(STATUSES, NOW)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "vacmon.example.org:8884" in caplog.text
    names.addresses = {"vacmon.example.org": ("127.0.0.1",)}
    vacmon.send(STATUSES, NOW)
    assert caplog.records[-1].levelname == "INFO"
