"""What `vac doctor` says of a host for VMs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.state_dirs import machinetype_of
from vac.cli import doctor, doctor_vms
from vac.config.settings import Settings
from vac.drivers.base import CreationFailed
from vac.host.nat import NatHost, NatProblem

BOTH = ["169.254.169.253", "169.254.169.254"]


class Host(NatHost):
    """A host whose kernel says what a test wants."""

    found: list[str] | None = BOTH
    missing_rules: tuple[str, ...] = ()

    def addresses(self) -> list[str] | None:
        return self.found

    def missing(self) -> list[str]:
        return [*self.missing_rules]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    key = tmp_path / "key.pub"
    key.write_text("ssh-rsa AAAA")
    return Settings(state_dir=tmp_path, root_public_key=key, vm_domain_type="qemu")


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    there = {"dnsmasq", "qemu-img", "ip", "nft"}
    monkeypatch.setattr("shutil.which", lambda name: name if name in there else None)
    return there


def problems(settings: Settings, host: NatHost) -> dict[str, str]:
    return {what: problem for what, problem, _ in doctor_vms.rows(settings, host) if problem is not None}


def of_network(settings: Settings, host: NatHost) -> dict[str, str]:
    return {what: text for what, text in problems(settings, host).items() if "port 80" not in what}


def test_a_host_that_has_everything_has_no_problem(settings: Settings) -> None:
    assert of_network(settings, Host()) == {}


def test_missing_programs_come_with_their_packages(settings: Settings, programs: set[str]) -> None:
    programs.clear()
    found = of_network(settings, Host())
    assert found["dnsmasq"] == "install dnsmasq-base (EL9: dnsmasq)"
    assert set(found) == {"dnsmasq", "qemu-img", "ip", "iptables-save or nft"}


@pytest.mark.parametrize(
    ("addresses", "words"),
    [(None, "isn't there yet"), ([BOTH[0]], "has not 169.254.169.254:")],
)
def test_the_state_of_the_network_is_told(
    settings: Settings, addresses: list[str] | None, words: str
) -> None:
    host = Host()
    object.__setattr__(host, "found", addresses)
    assert words in of_network(settings, host)["network of VMs on virbr1"]


def test_missing_rules_and_a_missing_ip_program_are_problems(settings: Settings) -> None:
    host = Host()
    object.__setattr__(host, "missing_rules", ("no rule masquerades",))
    assert of_network(settings, host) == {"packet filter": "no rule masquerades"}

    class Without(NatHost):
        def addresses(self) -> list[str] | None:
            raise NatProblem("ip is not installed")

    assert of_network(settings, Without())["network of VMs on virbr1"] == "ip is not installed"


def test_a_missing_key_is_no_more_than_a_note(settings: Settings) -> None:
    settings.root_public_key.unlink()
    rows = {what: serious for what, problem, serious in doctor_vms.rows(settings, Host()) if problem}
    assert rows[f"root_public_key {settings.root_public_key}"] is False


def test_lvms_programs_are_needed_only_if_a_group_is_used(settings: Settings, programs: set[str]) -> None:
    def no_group(_: Sequence[str]) -> str:
        raise CreationFailed("vgs isn't there")

    assert [*doctor_vms.lvm_rows(settings, no_group)] == []
    programs |= {"vgs", "lvs"}
    missing = "lvcreate lvremove not there: install lvm2"
    assert [*doctor_vms.lvm_rows(settings, lambda _: "")] == [("LVM's programs", missing, True)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"root_image": "there.iso"}, ""),
        ({"root_image": "https://example.org/image.iso"}, ""),
        ({"root_image": "missing.iso"}, "files/missing.iso isn't there"),
        ({"root_image": "/nowhere/missing.iso"}, "root_image /nowhere/missing.iso isn't there"),
        ({"root_image": "directory"}, "is no file"),
        ({"root_image": "there.iso", "image_signing_dn": "CN=x"}, "needs the signers' CAs in"),
    ],
)
def test_a_type_of_vms_needs_its_image_and_the_cas_of_its_signers(
    tmp_path: Path, options: dict[str, str], told: str
) -> None:
    files, certificates = tmp_path / "files", tmp_path / "certificates"
    (files / "directory").mkdir(parents=True)
    (files / "there.iso").touch()
    kind = machinetype_of(machine_model="cernvm4", **options)
    problems = [*doctor_vms.image_problems(kind, files, certificates)]
    assert len(problems) == (told != "")
    assert told in "".join(problems)
    certificates.mkdir()
    assert [*doctor_vms.image_problems(kind, files, certificates)] == problems, "an empty one is of no use"
    (certificates / "ca.pem").touch()
    left = [] if "image_signing_dn" in options else problems
    assert [*doctor_vms.image_problems(kind, files, certificates)] == left


def test_doctor_tells_of_a_missing_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "vac.conf"
    config.write_text(
        f"[settings]\nvac_space = vac.example.org\nfactory_name = node1.example.org\nstate_dir = {tmp_path}\n"
        "[machinetype vm]\ntarget_share = 1\n"
        "machine_model = vm-raw\nroot_image = missing.img\nuser_data = user_data\n"
    )
    for part in ("_host", "_peers", "_model"):
        monkeypatch.setattr(doctor, part, lambda *_: ())
    monkeypatch.setattr(doctor_vms, "rows", lambda _: ())
    found = [
        one.problem for one in doctor.examine(Namespace(config=[config])) if one.what == "machinetype vm"
    ]
    assert any("missing.img isn't there" in (problem or "") for problem in found)
