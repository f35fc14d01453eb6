"""`vac doctor`: files, the status page, CernVM-FS, engines of containers and VMs."""

from __future__ import annotations

import os
import socket
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.state_dirs import machinetype_of
from vac.cli import doctor, doctor_engines
from vac.cli.doctor import file_findings, tree_problem, weakening_findings
from vac.cli.doctor_engines import (
    Finding,
    cvmfs_findings,
    cvmfs_paths,
    disk_finding,
    engine_findings,
    nested_findings,
)
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers import volumes
from vac.drivers.base import CreationFailed
from vac.host import filesystems
from vac.host.nat import NatHost, NatProblem
from vac.machines.layout import StateDir

WORKER = Machinetype("worker", machine_model="docker", cvmfs_repositories=("a.b", "c.d"))
IMAGE = Machinetype("image", machine_model="cernvm4", root_image="/cvmfs/c.d/image.iso")
TREE = Machinetype("local", machine_model="bubblewrap", root_image="/")
SHARED = "/cvmfs in containers"
LOCAL = "unix:///var/run/docker.sock"
ROOT = "27 1 254:0 / / rw,relatime{} - ext4 /dev/vda rw\n"
CVMFS = "90 27 0:50 / /cvmfs rw,relatime{} - autofs /etc/auto.cvmfs rw\n"


@pytest.mark.parametrize("told", ["docker-init", "/opt/init"])
def test_containers_need_an_init(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    there = {told}
    monkeypatch.setattr("shutil.which", lambda name, path: name if name in there else None)
    rows = engine_findings({"InitBinary": told}, LOCAL, podman=False)
    assert (f"{told} of Docker", None, True) in [*rows]
    there.clear()
    missing = "isn't there, and no machine can be made: install tini"
    rows = engine_findings({"InitBinary": told}, LOCAL, podman=False)
    assert (f"{told} of Docker", missing, True) in [*rows]


def test_the_init_of_an_engine_elsewhere_can_not_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    url = "tcp://engine.example.com:2376"
    assert [*engine_findings({"LiveRestoreEnabled": True}, url, podman=False)] == [
        ("live-restore of Docker", None, False)
    ]
    assert [*engine_findings({}, LOCAL, podman=True)] == []


@pytest.mark.parametrize(("told", "noted"), [({"LiveRestoreEnabled": True}, False), ({}, True)])
def test_machines_that_end_with_dockerd_are_a_note(told: dict[str, Any], noted: bool) -> None:
    rows = {what: (problem, serious) for what, problem, serious in engine_findings(told, LOCAL, podman=False)}
    problem, serious = rows["live-restore of Docker"]
    assert (problem is not None, serious) == (noted, False)


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ({"Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "extfs"]]}, True),
        ({"Driver": "vfs"}, False),
        ({"Driver": "overlayfs", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}, False),
    ],
)
def test_layers_that_can_not_be_measured_are_a_note(told: dict[str, Any], known: bool) -> None:
    _, problem, serious = disk_finding(told)
    assert ((problem is None), serious) == (known, False)


@pytest.mark.parametrize(
    ("mounts", "shared"),
    [
        (ROOT.format(" shared:1"), True),
        (ROOT.format(""), False),
        (ROOT.format(" shared:1") + CVMFS.format(""), False),
        (ROOT.format("") + CVMFS.format(" shared:9"), True),
        (ROOT.format("") + CVMFS.format(" master:9"), True),
        (CVMFS.format(" shared:9") + CVMFS.format(""), False),
        (ROOT.format(" shared:1") + CVMFS.format("").replace("/cvmfs", "/cvmfs-other"), True),
        ("", False),
    ],
)
def test_private_cvmfs_is_noted(monkeypatch: pytest.MonkeyPatch, mounts: str, shared: bool) -> None:
    monkeypatch.setattr(filesystems, "mounts", lambda: [*filesystems.parse_mounts(mounts)])
    assert [problem is None for what, problem, _ in cvmfs_findings([WORKER]) if what == SHARED] == [shared]


@pytest.mark.parametrize(
    ("name", "value", "option"),
    [
        ("user/max_user_namespaces", "0", "user.max_user_namespaces"),
        ("user/max_user_namespaces", "95000", None),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone"),
        ("kernel/unprivileged_userns_clone", "1", None),
    ],
)
def test_user_namespaces_that_are_switched_off_keep_nested_containers_from_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, option: str | None
) -> None:
    monkeypatch.setattr(doctor_engines, "PROC_SYS", tmp_path)
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(f"{value}\n")
    found = [problem for _, problem, serious in nested_findings() if problem and serious]
    assert [problem.partition(" ")[0] for problem in found] == ([] if option is None else [option])


@pytest.mark.parametrize(("mode", "noted"), [(0o666, False), (0o600, True), (None, True)])
def test_image_files_in_nested_containers_need_fuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int | None, noted: bool
) -> None:
    fuse = tmp_path / "fuse"
    if mode is not None:
        fuse.touch()
        fuse.chmod(mode)
    monkeypatch.setattr(doctor_engines, "PROC_SYS", tmp_path)
    monkeypatch.setattr(doctor_engines, "FUSE", fuse)
    ((_, problem, serious),) = nested_findings()
    assert (problem is not None, serious) == (noted, False)


SECRET = "0123456789abcdef0123456789abcdef"


def test_programs_and_keys_that_are_not_there_are_problems(tmp_path: Path) -> None:
    health, key = tmp_path / "health", tmp_path / "key"
    settings = Settings(health_command=health, vacquery_key_file=key)

    assert [serious for _, problem, serious in file_findings(settings, []) if problem] == [True, True]
    health.write_text("#!/bin/sh\n")
    health.chmod(0o755)
    key.write_text(SECRET)
    key.chmod(0o604)
    readable = (f"vacquery_key_file {key}", f"others can read it: chmod 600 {key}", False)
    assert [*file_findings(settings, [])] == [(f"health_command {health}", None, True), readable]
    key.chmod(0o600)
    assert [problem for _, problem, _ in file_findings(settings, []) if problem] == []


@pytest.mark.parametrize(
    ("line", "mode", "noted"),
    [
        ("user_data_option_token = sesame", 0o644, True),
        ("user_data_option_token = sesame", 0o640, False),
        ("root_image = https://user:sesame@example.com/image", 0o644, True),
        ("root_image = https://example.com/image", 0o644, False),
    ],
)
def test_secrets_that_everybody_can_read_are_noted(tmp_path: Path, line: str, mode: int, noted: bool) -> None:
    path = tmp_path / "a.conf"
    path.write_text(f"[machinetype a]\n{line}\n")
    path.chmod(mode)
    found = [*file_findings(Settings(), [path])]
    assert [(what, serious) for what, _, serious in found] == [(str(path), False)] * noted
    assert "sesame" not in str(found)


@pytest.mark.parametrize("model", ["bubblewrap", "singularity"])
@pytest.mark.parametrize(
    ("root_image", "command", "words"),
    [
        ("tree", "/user_data", None),
        ("tree", "/bin/tool", None),
        ("tree", "/no/such/command", "container_command /no/such/command does not exist in root_image"),
        ("tree", "/tmp/made-later", None),
        ("/no/such/tree", "/user_data", "root_image /no/such/tree is"),
        ("https://example.com/image", "/no/such/command", None),
    ],
)
def test_images_and_commands_of_process_containers(
    tmp_path: Path, model: str, root_image: str, command: str, words: str | None
) -> None:
    tool = tmp_path / "tree" / "bin" / "tool"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    one = Machinetype("t", machine_model=model, root_image=root_image, container_command=command)
    problem = tree_problem(one, tmp_path)
    assert problem is None if words is None else words in (problem or "")


def test_an_image_file_is_for_singularity_alone(tmp_path: Path) -> None:
    (tmp_path / "image.sif").touch()
    one = Machinetype("t", machine_model="singularity", root_image="image.sif")
    assert tree_problem(one, tmp_path) is None
    other = Machinetype("t", machine_model="bubblewrap", root_image="image.sif")
    assert "is no directory tree" in (tree_problem(other, tmp_path) or "")


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
    monkeypatch.setattr("shutil.which", lambda name, path=None: name if name in there else None)
    return there


def vm_findings(settings: Settings, host: NatHost) -> list[Finding]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor_engines, "NatHost", lambda: host)
        return [*doctor_engines.vm_findings(settings)]


def problems(settings: Settings, host: NatHost) -> dict[str, str]:
    return {what: problem for what, problem, _ in vm_findings(settings, host) if problem is not None}


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
    rows = {what: serious for what, problem, serious in vm_findings(settings, Host()) if problem}
    assert rows[f"root_public_key {settings.root_public_key}"] is False


def test_lvms_programs_are_needed_only_if_a_group_is_used(
    settings: Settings, programs: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_group(_: Sequence[str]) -> str:
        raise CreationFailed("vgs isn't there")

    monkeypatch.setattr(volumes, "run_lvm", no_group)
    assert [*doctor_engines.lvm_findings(settings)] == []
    programs |= {"vgs", "lvs"}
    missing = "lvcreate lvremove not there: install lvm2"
    monkeypatch.setattr(volumes, "run_lvm", lambda _: "")
    assert [*doctor_engines.lvm_findings(settings)] == [("LVM's programs", missing, True)]


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], told: str
) -> None:
    files, certificates = tmp_path / "files", tmp_path / "certificates"
    monkeypatch.setattr("vac.context.downloads.GRID_CERTIFICATES", certificates)
    (files / "directory").mkdir(parents=True)
    (files / "there.iso").touch()
    kind = machinetype_of(machine_model="cernvm4", **options)
    problems = [*doctor_engines.vm_image_problems(kind, files)]
    assert len(problems) == (told != "")
    assert told in "".join(problems)
    certificates.mkdir()
    assert [*doctor_engines.vm_image_problems(kind, files)] == problems, "an empty one is of no use"
    (certificates / "ca.pem").touch()
    left = [] if "image_signing_dn" in options else problems
    assert [*doctor_engines.vm_image_problems(kind, files)] == left


def test_doctor_tells_of_a_missing_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "vac.conf"
    config.write_text(
        f"[settings]\nvac_space = vac.example.org\nfactory_name = node1.example.org\nstate_dir = {tmp_path}\n"
        "[machinetype vm]\ntarget_share = 1\n"
        "machine_model = vm-raw\nroot_image = missing.img\nuser_data = user_data\n"
    )
    for part in ("_host", "_peers", "_model"):
        monkeypatch.setattr(doctor, part, lambda *_: ())
    monkeypatch.setattr(doctor_engines, "vm_findings", lambda _: ())
    found = [
        one.problem for one in doctor.examine(Namespace(config=[config])) if one.what == "machinetype vm"
    ]
    assert any("missing.img isn't there" in (problem or "") for problem in found)


def test_a_taken_port_is_told_unless_the_page_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [*doctor.page_findings(Settings(state_dir=tmp_path))] == []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(state_dir=tmp_path, metrics_listen=f"127.0.0.1:{taken.getsockname()[1]}")
        ((what, problem, serious),) = doctor.page_findings(settings)
        assert (what, serious) == (f"metrics_listen {settings.metrics_listen}", False)
        assert "Address already in use by " in (problem or "") and f"({os.getpid()}): choose" in (
            problem or ""
        )
        StateDir(tmp_path).pid("page").write_text(f"{os.getpid()}\n")
        assert len([*doctor.page_findings(settings)]) == 1, "the process of that number is another one"
        monkeypatch.setattr(doctor, "serves", lambda state, role: role == "page")
        assert [*doctor.page_findings(settings)] == []
    assert [problem for _, problem, _ in doctor.page_findings(settings)] == []


@pytest.mark.parametrize(
    ("listen", "problem"),
    [
        ("127.0.0.1:0", None),
        ("192.0.2.1:9995", "Cannot assign requested address"),
        ("nowhere.invalid:9995", ""),
    ],
)
def test_an_address_must_be_this_hosts(tmp_path: Path, listen: str, problem: str | None) -> None:
    if problem is None:
        listen = listen.replace(":0", f":{_free_port()}")
    ((_, found, _),) = doctor.page_findings(Settings(state_dir=tmp_path, metrics_listen=listen))
    assert (found is None) == (problem is None)
    assert (problem or "") in (found or "")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture(autouse=True)
def hung(monkeypatch: pytest.MonkeyPatch) -> None:
    """One repository hangs."""
    answers = {"/cvmfs/c.d": "doesn't answer", "/cvmfs/c.d/image.iso": "doesn't answer"}
    monkeypatch.setattr(doctor_engines, "problem_of", answers.get)


def test_repositories_and_images_that_do_not_answer_are_problems() -> None:
    found = {what: problem for what, problem, serious in cvmfs_findings([WORKER, IMAGE, TREE]) if serious}
    assert found == {
        "/cvmfs/a.b": None,
        "/cvmfs/c.d": "doesn't answer",
        "/cvmfs/c.d/image.iso": "doesn't answer",
    }
    assert [cvmfs_paths(one) for one in (IMAGE, TREE)] == [["/cvmfs/c.d", "/cvmfs/c.d/image.iso"], []]


@pytest.mark.parametrize("model", ["docker", "singularity", "bubblewrap"])
@pytest.mark.parametrize(("options", "noted"), [("shared:1", False), ("master:2", False), ("", True)])
def test_cvmfs_that_is_private_is_noted_where_containers_need_it(
    monkeypatch: pytest.MonkeyPatch, model: str, options: str, noted: bool
) -> None:
    text = f"27 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n90 27 0:50 / /cvmfs rw {options} - autofs x rw\n"
    monkeypatch.setattr(filesystems, "mounts", lambda: [*filesystems.parse_mounts(text)])
    one = Machinetype("t", machine_model=model, cvmfs_repositories=("a.b",))
    assert [problem is not None for what, problem, _ in cvmfs_findings([one]) if what == SHARED] == [noted]
    assert not [what for what, _, _ in cvmfs_findings([IMAGE, TREE]) if what == SHARED]


def test_options_that_weaken_isolation_are_named() -> None:
    kinds = [
        Machinetype("safe", machine_model="docker", container_capabilities=()),
        Machinetype("nested", machine_model="bubblewrap", container_nested=True),
        Machinetype("open", machine_model="docker", container_network="host"),
        Machinetype("vm", machine_model="vm-raw"),
    ]
    settings = Settings(factory_name="f1.example.com")

    def rows(settings: Settings) -> dict[str, bool]:
        return {what: serious for what, problem, serious in weakening_findings(settings, kinds) if problem}

    assert rows(settings) == {
        "container_nested of nested": False,
        "container_network of open": False,
        "container_capabilities of open": False,
    }
    assert not [*weakening_findings(settings, kinds[:1])]
    shared = rows(Settings(factory_name="f1.example.com", cpu_limit_factor=0))
    assert shared.keys() - rows(settings).keys() == {"cpu_limit_factor 0 of safe, nested, open"}


def test_a_taken_port_is_told_with_its_holder() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        finding = doctor.port_finding(port)
        assert finding.problem is not None and f"({os.getpid()}): stop that" in finding.problem
    assert doctor.port_finding(port).problem is None


@pytest.mark.parametrize(
    ("mode", "flags", "words"),
    [
        (0o777, 0, "chmod go-w"),
        (0o755, os.ST_RDONLY, "read-only"),
        (0o755, os.ST_NOEXEC, "noexec"),
        (0o755, 0, ""),
    ],
)
def test_a_place_that_state_dir_should_not_have_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, flags: int, words: str
) -> None:
    tmp_path.chmod(mode)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=flags))
    problem = doctor._place_problem(tmp_path)
    assert words in (problem or "") and bool(problem) is bool(words)


@pytest.mark.parametrize(("options", "told"), [("rw", ["/srv/vac"]), ("rw,nosuid,nodev", [])])
def test_second_paths_of_state_dir_are_told(options: str, told: list[str]) -> None:
    table = filesystems.parse_mounts(
        "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "21 20 8:1 /no/vac /no/vac rw,nosuid,nodev - ext4 /dev/sda1 rw\n"
        f"22 20 8:1 /no/vac /srv/vac {options} - ext4 /dev/sda1 rw\n"
    )
    assert doctor._other_mounts(Path("/no/vac"), [*table]) == told


def test_a_state_dir_of_somebody_else_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Path, "stat", lambda path: SimpleNamespace(st_uid=1000, st_mode=0o40755))
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=0))
    assert "chown root" in (doctor._place_problem(tmp_path) or "")
