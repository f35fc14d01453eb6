"""The libvirt driver with a hypervisor that is none: what it is asked, how often, and what is made of its refusals."""

# ruff: noqa: N802  libvirt's names

from __future__ import annotations

import contextlib
import logging
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import libvirt
import pytest

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import CreationFailed, MachineSpec
from vac.drivers.libvirt.libvirt_api import Connection
from vac.drivers.libvirt.libvirt_domain import FILTER
from vac.drivers.libvirt.libvirt_driver import LibvirtDriver
from vac.host.filesystems import stamp_of

pytestmark = pytest.mark.engine

CAPABILITIES = """<capabilities><host><cpu><arch>x86_64</arch></cpu></host><guest><os_type>hvm</os_type>
<arch name="x86_64"><domain type="qemu"/></arch></guest></capabilities>"""
RUNNING, STARTING_UP = {"state.state": 1, "state.reason": 1}, {"state.state": 3, "state.reason": 11}
SETTINGS = Settings(vac_space="vac.example.com", factory_name="factory1.example.com")


def refusal(code: int, domain: int, words: str) -> libvirt.libvirtError:
    error = libvirt.libvirtError(words)
    error.err = (code, domain, words)
    return error


REFUSED = refusal(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_FIREWALL, "the tables are locked")
NO_FILTER = refusal(libvirt.VIR_ERR_NO_NWFILTER, libvirt.VIR_FROM_NWFILTER, "no such filter")
NO_DISK = refusal(libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_FROM_QEMU, "no such bus")


class Domain:
    """One that runs."""

    def __init__(self, asked: list[str], xml: str) -> None:
        self.xml = xml
        self._asked = asked
        self._root = ET.fromstring(xml)

    def name(self) -> str:
        return self._root.findtext("name", "")

    def UUIDString(self) -> str:
        return self._root.findtext("uuid", "")

    def XMLDesc(self) -> str:
        self._asked.append("XMLDesc")
        return self.xml

    def info(self) -> Sequence[int]:
        self._asked.append("info")
        return 1, 98304, 98304, 1, 5_000_000_000

    def destroy(self) -> None:
        self._asked.append("destroy")


class Hypervisor:
    """In place of a virConnect. refusals: what the next creations with the filter fail with."""

    def __init__(self) -> None:
        self.has_filter = True
        self.refusals: list[libvirt.libvirtError] = []
        self.starting: Callable[[], object] = lambda: None
        self.domains: list[Domain] = []
        self.asked: list[str] = []
        self.state = RUNNING

    def isAlive(self) -> bool:
        return True

    def close(self) -> None:
        self.asked.append("close")

    def getCapabilities(self) -> str:
        return CAPABILITIES

    def nwfilterLookupByName(self, name: str) -> object:
        if not self.has_filter:
            raise NO_FILTER
        return name

    def createXML(self, xml: str, flags: int) -> Domain:
        if self.refusals and FILTER in xml:
            raise self.refusals.pop()
        self.starting()
        self.domains.append(Domain(self.asked, xml))
        return self.domains[-1]

    def getAllDomainStats(self, statistics: int, flags: int) -> list[tuple[Domain, Mapping[str, Any]]]:
        self.asked.append("getAllDomainStats")
        assert not statistics & libvirt.VIR_DOMAIN_STATS_CPU_TOTAL, "a QEMU that hangs would hold up all"
        return [(domain, self.state) for domain in self.domains]


class Site:
    """A driver of that hypervisor, and the machines that it is to make."""

    def __init__(self, directory: Path) -> None:
        self.hypervisor = Hypervisor()
        self.driver = LibvirtDriver(
            SETTINGS, lambda source, signing_dn=None: (Path(source), stamp_of(source))
        )
        self.directory = directory
        (directory / "boot.iso").write_bytes(b"an image")

    def spec(self, number: int, **options: Any) -> MachineSpec:
        directory = self.directory / str(number)
        directory.mkdir()
        return MachineSpec(
            name=f"factory1-{number:02}.example.com",
            uuid=str(uuid.uuid4()),
            machinetype=Machinetype("t", root_image="boot.iso", disk_gb_per_processor=1, **options),
            settings=SETTINGS,
            processors=1,
            memory_bytes=2**27,
            directory=directory,
            files=self.directory,
            address=f"169.254.169.{number}",
        )

    def create(self, number: int) -> bool:
        """Make a machine; has it the filter?"""
        self.driver.create(self.spec(number))
        return FILTER in self.hypervisor.domains[-1].xml

    def notices(self) -> Sequence[str]:
        self.driver.list()
        return self.driver.notices()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(tmp_path)
    monkeypatch.setattr(Connection, "_open", lambda self, purpose: site.hypervisor)
    with contextlib.closing(site.driver):
        yield site


def test_machines_without_the_filter_are_reported(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    assert site.create(0)
    assert site.notices() == []
    site.hypervisor.refusals = [REFUSED]
    with caplog.at_level(logging.WARNING):
        assert not site.create(1)
    assert "this host refuses it: the tables are locked" in caplog.text
    assert site.create(2), "what kept the filter from working has passed"
    (notice,) = site.notices()
    assert notice.startswith(f"1 VM(s) without libvirt's filter {FILTER}")
    successor = LibvirtDriver(SETTINGS)
    successor.list()
    assert successor.notices() == [notice], "so does a factory that was started anew"
    del site.hypervisor.domains[1]
    assert site.notices() == []


def test_a_filter_refused_after_the_first_look_is_reported(site: Site) -> None:
    site.create(0)
    site.hypervisor.state = STARTING_UP
    site.driver.list()
    without = ET.fromstring(site.hypervisor.domains[0].xml)
    for card in without.iterfind("devices/interface"):
        card.remove(card.findall("filterref")[0])
    site.hypervisor.domains = [Domain([], ET.tostring(without, encoding="unicode"))]
    site.hypervisor.state = RUNNING
    assert len(site.notices()) == 1


def test_a_libvirt_without_the_filter_is_reported(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.hypervisor.has_filter = False
    with caplog.at_level(logging.WARNING):
        assert not site.create(0)
    assert "libvirt has no such filter" in caplog.text
    assert len(site.notices()) == 1
    site.hypervisor.has_filter = True
    assert site.create(1)


def test_what_else_is_refused_is_not_made_without_the_filter(site: Site) -> None:
    site.hypervisor.refusals = [NO_DISK]
    with pytest.raises(CreationFailed, match="no such bus"):
        site.create(0)
    assert not site.hypervisor.domains


def test_a_listing_takes_one_call_and_one_for_each_machines_cpu(site: Site) -> None:
    for number in range(3):
        site.create(number)
    site.hypervisor.domains.append(
        Domain(site.hypervisor.asked, "<domain><name>a.stranger</name><uuid>0</uuid></domain>")
    )
    site.driver.list()
    site.hypervisor.asked.clear()
    assert [machine.usage.cpu_seconds for machine in site.driver.list()] == [5.0] * 3
    assert site.hypervisor.asked == ["getAllDomainStats", "info", "info", "info"]


def test_an_image_replaced_after_its_check_is_not_booted(site: Site, tmp_path: Path) -> None:
    opened: list[bytes] = []

    def replace_then_open() -> None:
        (tmp_path / "unjudged").write_bytes(b"another")
        (tmp_path / "unjudged").replace(tmp_path / "boot.iso")
        opened.append((tmp_path / "0" / "root.image").read_bytes())

    site.hypervisor.starting = replace_then_open
    spec = site.spec(0, image_signing_dn="/CN=signer")
    site.driver.create(spec)
    assert opened == [b"an image"]
    (domain,) = site.hypervisor.domains
    cd = ET.fromstring(domain.xml).find("devices/disk[@device='cdrom']/source")
    assert cd is not None
    assert cd.get("file") == str(spec.directory / "root.image")
    assert list(spec.directory.iterdir()) == []


def test_a_failed_machine_leaves_no_links_to_its_image(site: Site) -> None:
    site.hypervisor.refusals = [NO_DISK]
    spec = site.spec(0, image_signing_dn="/CN=signer")
    with pytest.raises(CreationFailed):
        site.driver.create(spec)
    (site.directory / "boot.iso").write_bytes(b"QFI\xfb")
    spec = site.spec(1, image_signing_dn="/CN=another")
    with pytest.raises(CreationFailed, match="cut off"):
        site.driver.create(spec)
    assert not list(site.directory.glob("*/root.*"))
