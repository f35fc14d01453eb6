"""`vac gocdb`: the census of the space and what is sent to GOCDB, to a stand-in that wants a certificate."""

from __future__ import annotations

import dataclasses
import json
import os
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509

import vac
from tests.certificates import certify, key
from tests.unit.state_dirs import machinetype_of, new_state, settings_of
from vac.accounting.gocdb import Capacity, Failed, census, properties, publish
from vac.cli.main import main
from vac.config.settings import Settings
from vac.vacquery.messages import FactoryStatus, Received
from vac.vacquery.poll import Poll, PollResult

NOW = 1_800_000_000.0
DAY = 86400.0
ONE, TWO = Capacity(8, 8, 80.0), Capacity(16, 16, 200.5)
TYPES = [
    machinetype_of(name="a", target_share=3.0, accounting_fqan="/lhcb/Role=NULL"),
    machinetype_of(name="b", target_share=1.0, accounting_fqan="/atlas/prod"),
    machinetype_of(name="c", target_share=0.0, accounting_fqan="/cms"),
    machinetype_of(name="d", target_share=5.0, accounting_fqan=None),
]


class GocDb(BaseHTTPRequestHandler):
    """Knows one service, and takes properties of those who have a certificate."""

    def do_GET(self) -> None:
        found = "hostname=vac01.example.org" in self.path and "sitename=UKI-TEST-SITE" in self.path
        inner = '<SERVICE_ENDPOINT PRIMARY_KEY="8012G0"/>' if found else ""
        self._answer(200, f"<?xml version='1.0'?><results>{inner}</results>".encode())

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.connection, ssl.SSLSocket)
        self.server.taken.append((self.path, self.connection.getpeercert(), json.loads(body)))  # type: ignore[attr-defined]
        refusal = b'{"Error": {"Code": 403, "Message": "not your site"}}'
        self._answer(*((403, refusal) if b"refused" in body else (204, b"")))

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[HTTPServer, Settings]]:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key(11).public_key())
    ca = certify("/O=Vac tests/CN=Vac test CA", ca=True, own_key=key(11), extensions=[(identifier, False)])
    (tmp_path / "ca.pem").write_bytes(ca.certificate_pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("no_proxy", "*")
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    certificate = certify(
        "/O=Vac tests/CN=server", ca, own_key=key(13), hosts=["127.0.0.1"], extensions=[(issuer, False)]
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate.write(tmp_path, "server"))
    context.load_verify_locations(tmp_path / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    own = certify("/O=Vac tests/CN=vac01", ca, own_key=key(14)).write(tmp_path, "host")
    made = HTTPServer(("127.0.0.1", 0), GocDb)
    made.taken = []  # type: ignore[attr-defined]
    made.socket = context.wrap_socket(made.socket, server_side=True)
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    url = f"https://127.0.0.1:{made.server_port}"
    state = new_state(tmp_path)
    yield made, settings_of(state, gocdb_url=url, gocdb_cert_file=own[0], gocdb_key_file=own[1])
    made.shutdown()
    made.server_close()
    thread.join()


def test_the_census_outlives_a_silence_of_a_day(tmp_path: Path) -> None:
    state = new_state(tmp_path)
    census(state, {"f1": ONE, "f2": TWO}, NOW)
    for name, age in (("f1", DAY / 2), ("f2", DAY + 10)):
        os.utime(state.space_census / name, (NOW - age, NOW - age))
    (state.space_census / "odd").write_text("{")
    os.utime(state.space_census / "odd", (NOW, NOW))
    assert census(state, {}, NOW) == {"f1": ONE}
    state.space_catalogue.write_text(json.dumps({"f1": TWO._asdict(), "f9": ONE._asdict()}))
    assert census(state, {}, NOW) == {"f1": TWO, "f9": ONE}
    census(state, {}, NOW + DAY)
    assert not (state.space_census / "f2").exists()
    state.space_catalogue.write_text("[]")
    with pytest.raises(OSError, match="can't be used"):
        census(state, {}, NOW)


def test_properties_are_sums_and_shares() -> None:
    assert properties({"f1": ONE, "f2": TWO}, TYPES, NOW) == {
        "ComputingManagerCreationTime": "2027-01-15T08:00:00Z",
        "ComputingManagerProductName": "Vac",
        "ComputingManagerProductVersion": vac.__version__,
        "ComputingManagerTotalLogicalCPUs": "24",
        "ComputingManagerTotalSlots": "24",
        "ComputingManagerTotalPhysicalCPUs": "2",
        "BenchmarkType": "specint2000",
        "BenchmarkValue": "70125",
        "ComputingManagerOtherInfo": "Share=lhcb:75,Share=atlas:25",
        "PolicyScheme": "org.glite.standard",
        "PolicyRule": "VOMS:/lhcb/Role=NULL,VOMS:/atlas/prod",
    }
    assert "PolicyScheme" not in properties({"f1": ONE}, [], NOW)
    many = [
        machinetype_of(name=str(n), target_share=1.0, accounting_fqan=f"/vo{n}/'{'x' * 20}")
        for n in range(40)
    ]
    many += [
        machinetype_of(name=f"g{n}", target_share=1.0, accounting_fqan=f"/vo{n}/{'x' * 20}")
        for n in range(40)
    ]
    assert all(len(value) <= 255 and "'" not in value for value in properties({}, many, NOW).values())


def test_capacity_is_published_with_the_sites_certificate(server: tuple[HTTPServer, Settings]) -> None:
    made, settings = server
    assert publish(settings, {"a": "b"}).endswith("/gocdbpi/v5/Service/8012/ExtensionProperties")
    path, peer, body = made.taken[0]  # type: ignore[attr-defined]
    assert (path, body) == ("/gocdbpi/v5/Service/8012/ExtensionProperties", {"a": "b"})
    assert (("commonName", "vac01"),) in peer["subject"]
    with pytest.raises(Failed, match="status 403: not your site"):
        publish(settings, {"a": "refused"})
    with pytest.raises(Failed, match="register one"):
        publish(dataclasses.replace(settings, gocdb_sitename="OTHER"), {})
    with pytest.raises(Failed, match="gocdb_cert_file"):
        publish(dataclasses.replace(settings, gocdb_cert_file=Path("/nowhere")), {})
    with pytest.raises(Failed, match=r"127\.0\.0\.1:1"):
        publish(dataclasses.replace(settings, gocdb_url="https://127.0.0.1:1"), {})


def test_a_dry_run_sends_nothing(
    server: tuple[HTTPServer, Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made, settings = server
    status = FactoryStatus("vac01.example.org", "s", "node1.example.org", max_processors=8, max_hs06=80.0)
    answers = {"node1.example.org": (Received(status, {}),)}
    result = PollResult(answers, frozenset(answers), (), frozenset(), {}, 0.0)
    monkeypatch.setattr(Poll, "run", lambda poll: result)
    lines = [
        *("[settings]", "vac_space = vac01.example.org", "factory_name = node1.example.org"),
        *(f"state_dir = {settings.state_dir}", f"gocdb_url = {settings.gocdb_url}"),
    ]
    conf = tmp_path / "vac.conf"
    conf.write_text("\n".join(lines))
    assert main(["--config", str(conf), "gocdb"]) == 0
    assert "Nothing is published" in capsys.readouterr().out
    lines += [
        *("gocdb_sitename = UKI-TEST-SITE", f"gocdb_cert_file = {settings.gocdb_cert_file}"),
        f"gocdb_key_file = {settings.gocdb_key_file}",
    ]
    conf.write_text("\n".join(lines))
    assert main(["--config", str(conf), "gocdb", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["ComputingManagerTotalLogicalCPUs"] == "8"
    assert made.taken == []  # type: ignore[attr-defined]
    assert main(["--config", str(conf), "gocdb"]) == 0
    assert "1 factories in https://127.0.0.1" in capsys.readouterr().out
    assert made.taken[0][2]["BenchmarkValue"] == "20000"  # type: ignore[attr-defined]
