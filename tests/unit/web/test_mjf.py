"""Machine/Job Features over HTTP, and what VMs may store in their joboutputs."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.web.guest_machines import UUIDS, Site
from vac.machines import joboutputs
from vac.machines.messages import shutdown_message


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


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


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


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
