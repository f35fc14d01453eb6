"""Services for VMs: metadata, features and outputs."""

from __future__ import annotations

import io
import json
import re
import threading
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.state_dirs import machinetype_of, new_machine, new_state
from vac.machines import files
from vac.machines import outputs as joboutputs
from vac.machines.layout import StateDir, slot_address, slot_name
from vac.machines.machine import Machine
from vac.machines.outputs import shutdown_message
from vac.web import metadata, mjf
from vac.web.http_server import application, find_guest

FACTORY = "node1.example.org"
UUIDS = ("4b0a5e86-6d0f-4a7a-8a3c-9f3f0f1d2c3b", "0d2f1f3e-51c4-4e0f-9d8e-5b7c7d1f0a11")
KEY = b"ssh-rsa AAAAB3Nza root@node1\n"


class Reply(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


class Site:
    """A factory's state directory with two VMs, and both services."""

    def __init__(self, directory: Path) -> None:
        self.state: StateDir = new_state(directory)
        self.machinetype = machinetype_of(machine_model="cernvm4")
        self.machines = [self.vm(number, uuid) for number, uuid in enumerate(UUIDS)]
        guest_at = partial(find_guest, self.state, FACTORY)
        tmp = self.state.root / "mjf"
        tmp.mkdir()
        self.apps = {
            "metadata": application(metadata.respond, guest_at),
            "mjf": application(lambda request: mjf.respond(tmp, request), guest_at),
        }

    def vm(self, number: int, uuid: str, **changes: Any) -> Machine:
        return new_machine(
            self.state,
            self.machinetype,
            None,
            **{
                "name": slot_name(FACTORY, number),
                "uuid": uuid,
                "user_data": b"#!/bin/sh\n# \xff\x00 of slot %d\n" % number,
                "ip": slot_address(number),
                "root_public_key": KEY,
                **changes,
            },
        )

    def ask(
        self, service: str, path: str, method: str = "GET", body: bytes = b"", address: str = "169.254.169.0"
    ) -> Reply:
        """Return the reply to a client at this address; path: unquoted."""
        said: dict[str, object] = {}

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
            said.update(status=int(status.split()[0]), headers=dict(headers))

        environ = {
            "REQUEST_METHOD": method,
            "REMOTE_ADDR": address,
            "PATH_INFO": path.encode().decode("latin-1"),
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
        content = b"".join(self.apps[service](environ, start_response))  # type: ignore[arg-type]
        return Reply(said["status"], content, said["headers"])  # type: ignore[arg-type]

    def put(self, path: str, body: bytes, address: str = "169.254.169.0") -> int:
        return self.ask("mjf", path, "PUT", body, address).status


NAME = "node1-00.example.org"
USER_DATA = b"#!/bin/sh\n# \xff\x00 of slot 0\n"
KEYS = b"ami-id\nhostname\ninstance-id\nlocal-hostname\nlocal-ipv4\npublic-keys/"
ANSWERS = {
    "/": b"2007-12-15\n2009-04-04\nlatest",
    "/latest": b"meta-data\nuser-data",
    "/2009-04-04/": b"meta-data\nuser-data",
    "/latest/user-data": USER_DATA,
    "/latest/user-data/": USER_DATA,
    "/2007-12-15//user-data": USER_DATA,
    "/openstack": b"2012-08-10\nlatest",
    "/openstack/": b"2012-08-10\nlatest",
    "/openstack/latest": b"meta_data.json\nuser_data",
    "/openstack/latest/user-data": USER_DATA,
    "/openstack/latest/user_data": USER_DATA,
    "/openstack/2015-10-15/user_data": USER_DATA,
    "/latest/meta-data": KEYS,
    "/latest/meta-data/": KEYS,
    "/openstack/latest/meta-data/": KEYS,
    "/2009-04-04/meta-data/instance-id": UUIDS[0].encode(),
    "/2009-04-04/meta-data/ami-id": UUIDS[0].encode(),
    "/openstack/2009-04-04/meta-data/ami-id/": UUIDS[0].encode(),
    "/latest/meta-data/hostname": NAME.encode(),
    "/latest/meta-data/local-hostname": NAME.encode(),
    "/latest/meta-data/local-ipv4": b"169.254.169.0",
    "/latest/meta-data/public-keys/": b"0=" + NAME.encode(),
    "/latest/meta-data/public-keys/0": b"openssh-key",
    "/latest/meta-data/public-keys/0/openssh-key": KEY,
}
NOWHERE = (
    "/openstack/latest/vendor_data.json",
    "/openstack/latest/vendor_data2.json",
    "/openstack/latest/network_data.json",
    "/latest/api/token",
    "/latest/meta-data/placement",
    "/latest/meta-data/hostname/more",
    "/latest/meta-data/public-keys/1/openssh-key",
    "/newest/user-data",
    "/2009-4-4/user-data",
    "/latest/user-data/../../started",
    "/latest/../user_data",
    "/user_data",
    "/machinefeatures/total_cpu",
    "/latest/user-data\x00",
    "/latest/user-data\n",
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("path", ANSWERS)
def test_images_find_what_they_ask_for(site: Site, path: str) -> None:
    reply = site.ask("metadata", path)
    assert (reply.status, reply.body) == (200, ANSWERS[path])
    binary = reply.body == USER_DATA
    assert reply.headers["Content-Type"].startswith("application/octet-stream" if binary else "text/plain")
    head = site.ask("metadata", path, "HEAD")
    assert (head.body, head.headers) == (b"", reply.headers)
    assert head.headers["Content-Length"] == str(len(ANSWERS[path]))


@pytest.mark.parametrize(
    "path",
    [
        "/openstack/latest/meta_data.json",
        "/openstack/2012-08-10/meta-data.json",
        "/latest/meta-data.json",
    ],
)
def test_the_openstack_metadata_describe_the_machine(site: Site, path: str) -> None:
    reply = site.ask("metadata", path)
    assert reply.headers["Content-Type"] == "application/json"
    assert json.loads(reply.body) == {
        "uuid": UUIDS[0],
        "hostname": NAME,
        "name": NAME,
        "availability_zone": FACTORY,
        "public_keys": {NAME: KEY.decode()},
        "meta": {
            "machinefeatures": "http://169.254.169.253/machinefeatures",
            "jobfeatures": "http://169.254.169.253/jobfeatures",
            "joboutputs": "http://169.254.169.253/joboutputs",
            "machinetype": "lhcb-prod",
        },
    }


@pytest.mark.parametrize("path", NOWHERE)
def test_what_there_is_not_is_not_found(site: Site, path: str) -> None:
    assert site.ask("metadata", path).status == 404


def test_nothing_can_be_written(site: Site) -> None:
    for method in ("PUT", "POST", "DELETE", "nonsense"):
        assert site.ask("metadata", "/latest/user-data", method, b"x").status == 405
        assert site.ask("metadata", "/latest/meta-data/placement", method, b"x").status == 404


def test_a_token_can_be_had_and_is_not_required(site: Site) -> None:
    first, second = (site.ask("metadata", "/latest/api/token", "PUT") for _ in range(2))
    assert (first.status, first.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert first.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "21600"
    assert re.fullmatch(rb"[A-Za-z0-9_-]{43}", first.body)
    assert first.body != second.body
    assert site.ask("metadata", "/latest/api/token", "PUT", address="169.254.169.9").status == 404
    assert site.ask("metadata", "/latest/meta-data/hostname").status == 200


@pytest.mark.parametrize(
    "address",
    ["169.254.169.2", "169.254.169.253", "169.254.170.0", "127.0.0.1", "192.0.2.1", "::1", "169.254.169.00"],
)
def test_an_address_that_is_no_machines_gets_404_for_everything(site: Site, address: str) -> None:
    for path in ("/", "/openstack", "/latest/user-data", "/openstack/latest/meta_data.json"):
        assert site.ask("metadata", path, address=address).status == 404


def test_each_machine_gets_its_own(site: Site) -> None:
    reply = site.ask("metadata", "/latest/user-data", address="169.254.169.1")
    assert reply.body == USER_DATA.replace(b"slot 0", b"slot 1")


def test_a_machine_that_has_ended_gets_nothing_any_more(site: Site) -> None:
    files.write_new(site.machines[0].directory / "finished", b"")
    assert site.ask("metadata", "/latest/user-data").status == 404
    site.vm(0, UUIDS[1], user_data=b"the next one's", now=2e9)
    assert site.ask("metadata", "/latest/user-data").body == b"the next one's"


def test_a_container_has_no_metadata(site: Site) -> None:
    site.machinetype = type(site.machinetype)(name="docker-type", machine_model="docker")
    site.vm(2, UUIDS[0])
    assert site.ask("metadata", "/latest/user-data", address="169.254.169.2").status == 404


def test_slots_above_252_have_the_next_addresses(site: Site) -> None:
    site.vm(253, UUIDS[0])
    assert b"of slot 253" in site.ask("metadata", "/latest/user-data", address="169.254.170.0").body


def test_without_a_key_there_are_no_public_keys(site: Site) -> None:
    site.vm(2, UUIDS[0], root_public_key=None)
    listed, keys, described = (
        site.ask("metadata", path, address="169.254.169.2")
        for path in ("/latest/meta-data/", "/latest/meta-data/public-keys/", "/latest/meta-data.json")
    )
    assert b"public-keys" not in listed.body
    assert keys.status == 404
    assert json.loads(described.body)["public_keys"] == {}


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


PARTS = st.sampled_from(["openstack", "latest", "2009-04-04", "meta-data", "..", ".", "user_data", ""])


@given(path=st.lists(st.one_of(PARTS, st.text(max_size=8)), max_size=6), host=st.integers(0, 300))
def test_any_path_gives_an_answer_and_never_anothers_data(path: list[str], host: int, lasting: Site) -> None:
    text = "/" + "/".join(path).encode("utf-8", "replace").decode()
    reply = lasting.ask("metadata", text, address=f"169.254.169.{host}")
    assert reply.status in ((200, 404) if host < 2 else (404,))
    for other in {0, 1} - {host}:
        assert b"of slot %d" % other not in reply.body
        assert UUIDS[other].encode() not in reply.body


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def outputs(site: Site) -> Path:
    return site.machines[0].directory / "joboutputs"


def test_a_key_is_its_value_as_plain_text(site: Site) -> None:
    for path in ("/jobfeatures/job_id", "//jobfeatures/job_id/"):
        reply = site.ask("mjf", path)
        assert (reply.status, reply.body) == (200, UUIDS[0].encode())
        assert reply.headers["Content-Type"].startswith("text/plain")
    assert site.ask("mjf", "/jobfeatures/job_id", address="169.254.169.1").body == UUIDS[1].encode()


def test_directories_list_links_that_lead_to_their_keys(site: Site) -> None:
    todo, found = ["/"], set()
    while todo:
        reply = site.ask("mjf", todo.pop())
        if reply.headers["Content-Type"].startswith("text/html"):
            links = re.findall('href="([^"]+)"', reply.body.decode())
            todo += [link for link in links if link not in found]
            found.update(links)
    machine = site.machines[0].directory
    for name in ("machinefeatures", "jobfeatures"):
        assert {f"/{name}/{key}" for key in names_in(machine / name)} <= found
    assert site.ask("mjf", "/machinefeatures/").body == site.ask("mjf", "/machinefeatures").body


@pytest.mark.parametrize(
    "path",
    [
        "/user_data",
        "/latest/user-data",
        "/machinefeatures/nothing",
        "/machinefeatures/../user_data",
        "/machinefeatures/..",
        "/joboutputs/../user_data",
        "/jobfeatures/job_id/more",
        "/jobfeatures/job_id\x00",
        "/started",
        "/joboutputs/nothing",
    ],
)
def test_nothing_else_can_be_read(site: Site, path: str) -> None:
    assert site.ask("mjf", path).status == 404
    assert site.ask("mjf", path, address="169.254.169.77").status == 404


def test_files_are_stored_whole_and_can_be_replaced(site: Site, outputs: Path) -> None:
    names = ["shutdown_message", "shutdown_message.00", "messages-20260101", "größe", "two words"]
    for name in names:
        assert site.put(f"/joboutputs/{name}", b"first") == 201
        assert site.put(f"//joboutputs/{name}/", b"200 Done") == 201
        assert (outputs / name).read_bytes() == b"200 Done"
        assert site.ask("mjf", f"/joboutputs/{name}").body == b"200 Done"
    assert names_in(outputs) == sorted(names)
    assert shutdown_message(site.machines[0]) == "200 Done"
    assert names_in(site.machines[1].directory / "joboutputs") == []
    assert names_in(site.state.root / "mjf") == []


def test_the_largest_file_that_can_be_stored_can_be_read_again(site: Site) -> None:
    content = bytes(joboutputs.FILE_LIMIT_BYTES)
    assert site.put("/joboutputs/large", content) == 201
    assert site.ask("mjf", "/joboutputs/large") == (200, content, ANY)


@pytest.mark.parametrize(
    "path",
    [
        "/joboutputs",
        "/joboutputs/",
        "/joboutputs/.",
        "/joboutputs/..",
        "/joboutputs/.hidden",
        "/joboutputs/a/b",
        "/joboutputs/../user_data",
        "/joboutputs/line\nend",
        "/joboutputs/nul\x00",
        "/joboutputs/" + "x" * 201,
        "/joboutputs/" + "ü" * 101,
        "/machinefeatures/total_cpu",
        "/jobfeatures/new",
        "/user_data",
        "/",
    ],
)
def test_a_put_of_anything_else_is_refused(site: Site, path: str) -> None:
    before = sorted(site.machines[0].directory.rglob("*"))
    assert site.put(path, b"x") == 403
    assert sorted(site.machines[0].directory.rglob("*")) == before


def test_a_machines_refusals_are_logged_every_ten_minutes(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    now = [1000.0]
    monkeypatch.setattr(mjf, "_logged", {})
    monkeypatch.setattr("vac.web.mjf.time.monotonic", lambda: now[0])
    for name in ("a", "b", "\x1b[31m"):
        for machine in (0, 1):
            address = f"169.254.169.{machine}"
            assert site.put(f"/joboutputs/.{name}", b"", address) == 403
    assert [text.partition(":")[0] for text in caplog.messages] == [m.name for m in site.machines]
    now[0] += 601
    assert site.put("/joboutputs/.c", b"") == 403
    assert len(caplog.messages) == 3


def test_who_is_no_machine_stores_nothing(site: Site) -> None:
    assert site.put("/joboutputs/heartbeat", b"x", "169.254.169.9") == 403
    assert site.put("/joboutputs/heartbeat", b"x", "192.0.2.9") == 403


def test_only_put_stores(site: Site, outputs: Path) -> None:
    for method in ("POST", "DELETE", "PATCH"):
        assert site.ask("mjf", "/joboutputs", method, b"x").status == 405
        assert site.ask("mjf", "/joboutputs/heartbeat", method, b"x").status == 404
    assert names_in(outputs) == []


def test_planted_links_are_replaced_and_never_followed(site: Site, outputs: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"untouched")
    (outputs / "link").symlink_to(target)
    assert site.ask("mjf", "/joboutputs/link").status == 404
    assert site.put("/joboutputs/link", b"mine") == 201
    assert (target.read_bytes(), (outputs / "link").read_bytes()) == (b"untouched", b"mine")
    (outputs / "directory").mkdir()
    assert site.put("/joboutputs/directory", b"mine") == 403


def test_a_full_machine_can_replace_files_but_add_none(
    site: Site, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joboutputs, "FILE_LIMIT_BYTES", 10)
    monkeypatch.setattr(joboutputs, "MACHINE_LIMIT_BYTES", 25)
    monkeypatch.setattr(joboutputs, "MOST_FILES", 3)
    assert site.put("/joboutputs/large", b"x" * 11) == 403
    assert [site.put(f"/joboutputs/{name}", b"x" * 10) for name in "abc"] == [201, 201, 403]
    assert site.put("/joboutputs/a", b"y" * 10) == 201
    assert site.put("/joboutputs/c", b"x" * 5) == 201
    assert site.put("/joboutputs/d", b"") == 403
    assert {path.name: path.stat().st_size for path in outputs.iterdir()} == {"a": 10, "b": 10, "c": 5}
    assert site.put("/joboutputs/a", b"x" * 10, "169.254.169.1") == 201


def test_many_at_once_do_not_pass_the_limit(
    site: Site, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joboutputs, "MOST_FILES", 5)
    names = [f"/joboutputs/{number}" for number in range(20)]
    threads = [threading.Thread(target=site.put, args=(name, b"x")) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(names_in(outputs)) == 5


def test_a_disk_that_takes_no_more_is_a_refusal(site: Site, outputs: Path) -> None:
    (site.state.root / "mjf").rmdir()
    reply = site.ask("mjf", "/joboutputs/x", "PUT", b"x")
    assert (reply.status, names_in(outputs)) == (403, [])
    assert b"can't be stored" in reply.body


@given(path=st.text(max_size=20), body=st.binary(max_size=5))
def test_whatever_is_put_changes_nothing_but_joboutputs(path: str, body: bytes, lasting: Site) -> None:
    text = "/joboutputs/" + path.encode("utf-8", "replace").decode()
    status = lasting.ask("mjf", text, "PUT", body).status
    outputs = lasting.machines[0].directory / "joboutputs"
    stored = [entry for entry in outputs.iterdir() if entry.is_file()]
    assert len(stored) == (status == 201)
    assert status in (201, 403)
    for entry in stored:
        assert entry.read_bytes() == body
        entry.unlink()
    names = names_in(lasting.machines[0].directory)
    assert names == names_in(lasting.machines[1].directory)
