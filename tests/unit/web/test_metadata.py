"""The metadata service: every path that images ask for, and nothing of anybody else's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.web.guest_machines import FACTORY, KEY, UUIDS, Site
from vac.machines import files

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
        assert site.ask("metadata", "/latest/api/token", method, b"x").status == 404


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


def test_slots_above_252_have_the_addresses_after_the_factorys_own(site: Site) -> None:
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
