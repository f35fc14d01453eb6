"""Containers as the engine is asked for them, and contents of images that are read."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import tarfile
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from vac.config.machinetype import CAPABILITIES, Machinetype
from vac.config.settings import Settings
from vac.drivers.base import CreationFailed, MachineSpec
from vac.drivers.docker.docker_api import Client, Server
from vac.drivers.docker.docker_container import (
    LONGEST_PASSWD_BYTES,
    container_config,
    creation_failure,
    make_container,
    make_tmp_binds,
    opens_namespaces,
    read_passwd,
    seccomp_profile,
    tmp_bind_directory,
)
from vac.drivers.docker.docker_images import Image
from vac.host.syscall_filter import REFUSED

GOLDEN = Path(__file__).parents[2] / "data" / "docker-create.json"
IMAGE = Image("sha256:1234", "example.com/pilot@sha256:5678", "", entrypoint=False)
UUID = "4b0a5e86-6d0f-4a7a-8a3c-9f3f0f1d2c3b"


def make_spec(
    directory: Path = Path("/var/lib/vac/machines/1"), processors: int = 2, **options: Any
) -> MachineSpec:
    settings = Settings(vac_space="vac.example.com", factory_name="factory1.example.com")
    machinetype = Machinetype("pilot", machine_model="docker", root_image="docker://example.com/pilot")
    own = {name: value for name, value in options.items() if hasattr(machinetype, name)}
    rest = {name: value for name, value in options.items() if name not in own}
    return MachineSpec(
        name="factory1-00.example.com",
        uuid=UUID,
        machinetype=dataclasses.replace(machinetype, **own),
        settings=dataclasses.replace(settings, **rest),
        processors=processors,
        memory_bytes=processors * 2048 * 1024 * 1024,
        directory=directory,
        files=Path("/var/lib/vac/machinetypes/pilot/files"),
    )


def config_of(spec: MachineSpec, *, podman: bool = False, systemd: bool = False) -> dict[str, Any]:
    return container_config(spec, IMAGE, podman=podman, systemd=systemd)


def host_config(spec: MachineSpec, *, podman: bool = False) -> dict[str, Any]:
    return cast("dict[str, Any]", config_of(spec, podman=podman)["HostConfig"])


def test_the_create_call_is_as_recorded() -> None:
    spec = make_spec(
        cvmfs_repositories=("lhcb.cern.ch",),
        tmp_binds=("/scratch", "/var/tmp"),
        token_dir=Path("/etc/grid-tokens"),
        container_dns=("192.0.2.53",),
    )
    assert config_of(spec, systemd=True) == json.loads(GOLDEN.read_text())


def test_a_password_in_the_image_s_url_is_in_no_label() -> None:
    config = config_of(make_spec(root_image="https://me:hunter2@example.com/image.tar"))
    assert "hunter2" not in json.dumps(config)
    assert "https://***@example.com/image.tar" in json.dumps(config["Labels"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"CapDrop": ["ALL"], "CapAdd": list(CAPABILITIES), "SecurityOpt": []}),
        (
            {"container_capabilities": ()},
            {"CapDrop": ["ALL"], "CapAdd": [], "SecurityOpt": ["no-new-privileges:true"]},
        ),
        ({"container_capabilities": ("CHOWN",)}, {"CapDrop": ["ALL"], "CapAdd": ["CHOWN"]}),
        ({"container_network": "host"}, {"NetworkMode": "host"}),
        ({"container_network": "none"}, {"NetworkMode": "none"}),
        ({"processors": 400}, {"CpuShares": 262144, "PidsLimit": 400 * 4096}),
        ({}, {"CpuPeriod": 100_000, "CpuQuota": 200_000}),
        ({"cpu_limit_factor": 0.75}, {"CpuQuota": 150_000}),
        ({"cpu_limit_factor": 0.001, "processors": 1}, {"CpuQuota": 1_000}),
        ({"memory_limit_factor": 1.5}, {"Memory": 6442450944, "MemorySwap": 6442450944}),
        ({"memory_limit_factor": 0.5}, {"Memory": 2147483648, "MemoryReservation": 2147483648}),
        ({"pids_per_processor": 100}, {"PidsLimit": 200}),
    ],
)
def test_each_option_has_its_effect(options: dict[str, Any], expected: dict[str, Any]) -> None:
    found = host_config(make_spec(**options))
    assert {name: found[name] for name in expected} == expected


def test_without_a_factor_there_is_no_hard_limit() -> None:
    found = host_config(make_spec(memory_limit_factor=0, cpu_limit_factor=0))
    assert found["MemoryReservation"] == 4294967296
    assert not {"Memory", "MemorySwap", "CgroupParent", "CpuQuota"} & found.keys()


PILOT: dict[str, Any] = {"container_nested": True, "container_capabilities": (), "container_user": "pilot"}


def test_nested_machines_get_only_the_system_calls_they_need() -> None:
    found = host_config(make_spec(**PILOT))
    options = dict(option.split("=", 1) for option in found["SecurityOpt"] if "=" in option)
    profile = json.loads(options["seccomp"])
    assert profile["syscalls"][0]["names"] == sorted(set(REFUSED))
    assert not {"unshare", "clone", "mount", "umount2", "pivot_root", "setns"} & set(REFUSED)
    assert "no-new-privileges:true" in found["SecurityOpt"]
    assert (found["MaskedPaths"], found["ReadonlyPaths"]) == (["/sys/firmware"], [])


@pytest.mark.parametrize(
    ("argument", "refused"),
    [
        *[(value, False) for value in (0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)],
        *[(1 << bit, True) for bit in range(32) if bit not in (3, 17)],
        *[(0xFFFFFFFF ^ (1 << bit), True) for bit in range(32)],
        (0x0040000, True),
        (0x0040008, True),
        (0x5550555, True),
    ],
)
def test_nested_machines_have_dockers_personalities(argument: int, refused: bool) -> None:
    rules = [
        one for one in json.loads(seccomp_profile(nested=True))["syscalls"] if one["names"] == ["personality"]
    ]
    found = [one["args"][0] for one in rules]
    assert {(one["index"], one["op"]) for one in found} == {(0, "SCMP_CMP_MASKED_EQ")}
    assert any(argument & one["value"] == one["valueTwo"] for one in found) == refused


@pytest.mark.parametrize(
    ("options", "refused"),
    [({}, True), ({"container_nested": True}, False), ({"container_capabilities": ("SYS_ADMIN",)}, False)],
)
def test_podmans_machines_make_no_namespaces_unless_allowed(options: dict[str, Any], refused: bool) -> None:
    spec = make_spec(**options)
    assert f"seccomp={spec.directory}/seccomp.json" in host_config(spec, podman=True)["SecurityOpt"]
    calls = json.loads(seccomp_profile(opens_namespaces(spec)))["syscalls"]
    assert (["clone3"] in [each["names"] for each in calls]) == refused


def test_a_full_disk_is_no_unexpected_error_with_podman(tmp_path: Path) -> None:
    (tmp_path / "seccomp.json").symlink_to("/dev/full")
    with pytest.raises(CreationFailed, match=r"seccomp\.json: No space left on device"):
        make_container(cast(Client, None), make_spec(tmp_path), IMAGE, Server(podman=True, systemd=False))


def test_podman_has_the_profile_in_a_file() -> None:
    spec = make_spec(**PILOT)
    found = host_config(spec, podman=True)
    assert {f"seccomp={spec.directory}/seccomp.json", "unmask=/proc/*"} <= set(found["SecurityOpt"])
    assert not {"MaskedPaths", "ReadonlyPaths"} & found.keys()


@pytest.mark.parametrize("podman", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"container_user": None},
        {"container_user": "root"},
        {"container_user": "00:1000"},
        {"container_capabilities": ("SETUID",)},
        {"container_nested": False},
    ],
)
def test_proc_stays_masked_where_there_may_be_a_root(options: dict[str, Any], podman: bool) -> None:
    found = host_config(make_spec(**{**PILOT, **options}), podman=podman)
    assert not {"MaskedPaths", "ReadonlyPaths"} & found.keys()
    assert not [option for option in found["SecurityOpt"] if "unmask" in option]


@pytest.mark.parametrize("nested", [False, True])
def test_nested_machines_have_fuse_where_the_host_has_it(
    nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse = tmp_path / "fuse"
    monkeypatch.setattr("vac.drivers.docker.docker_container.FUSE", fuse)
    assert "Devices" not in host_config(make_spec(container_nested=nested))
    fuse.touch()
    found = host_config(make_spec(container_nested=nested)).get("Devices", [])
    assert [device["PathOnHost"] for device in found] == [str(fuse)] * nested


@pytest.mark.parametrize(
    ("name", "hostname", "domainname"),
    [
        ("factory1-00.example.com", "factory1-00.example.com", ""),
        (f"factory1-00.{'x' * 60}.com", "factory1-00", f"{'x' * 60}.com"),
    ],
)
def test_a_name_that_the_kernel_cant_hold_is_split(name: str, hostname: str, domainname: str) -> None:
    config = config_of(dataclasses.replace(make_spec(), name=name))
    assert (config["Hostname"], config["Domainname"]) == (hostname, domainname)


def test_tmp_binds_are_fresh_and_never_share_a_directory(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, tmp_binds=("/a/b", "/a-b", "/a%2Fb"))
    make_tmp_binds(spec)
    directories = [tmp_bind_directory(spec, path) for path in spec.machinetype.tmp_binds]
    assert len(set(directories)) == 3
    assert all(directory.parent == tmp_path / "mnt" for directory in directories)
    assert {directory.stat().st_mode & 0o7777 for directory in directories} == {0o1777}
    with pytest.raises(FileExistsError):
        make_tmp_binds(spec)


def test_user_data_becomes_executable_for_its_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: dict[str, int] = {}
    monkeypatch.setattr("os.chown", lambda path, uid, gid: owners.update({Path(path).name: uid}))
    (tmp_path / "user_data").touch(0o644)
    make_spec(tmp_path).hand_over(4321)
    assert (tmp_path / "user_data").stat().st_mode & 0o777 == 0o500
    assert owners == {"user_data": 4321, "joboutputs": 4321}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            'invalid mount config for type "bind": bind source path does not exist: /cvmfs',
            "/cvmfs doesn't exist on this host, and the machinetype needs it bound into the container",
        ),
        (
            "path /cvmfs is mounted on / but it is not a shared or slave mount",
            "/cvmfs can't follow later mounts: make / shared (mount --make-rshared /)",
        ),
        (
            'exec: "docker-init": executable file not found in $PATH',
            "the engine lacks its docker-init, which reaps zombies in containers: install tini",
        ),
        (
            "container create: container-init binary not found on the host: stat /usr/libexec/podman/catatonit",
            "the engine lacks its container-init, which reaps zombies in containers: install catatonit",
        ),
        (
            "unable to find user pilot: no matching entry",
            "the image has no user as its USER says: unable to find user pilot: no matching entry",
        ),
        (
            'exec: "/init": stat /init: no such file or directory: unknown',
            '/init can\'t be run in the image: exec: "/init": stat /init: no such file or directory: unknown',
        ),
        (
            "determining run uid: unknown user error",
            "the image has no user as its USER says: determining run uid",
        ),
        ("Minimum memory limit allowed is 6MB", "Minimum memory limit allowed is 6MB"),
    ],
)
def test_what_the_engine_says_becomes_a_reason(said: str, reason: str) -> None:
    assert creation_failure(said, make_spec()).startswith(reason)


PASSWD = b"root:x:0:0::/:/bin/sh\npilot:x:1234:1235::/:/bin/sh\n"
DIRECTORY, LINK, DEVICE = 1 << 31, 1 << 27, 1 << 26


def one_file(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("passwd")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class ArchiveEngine:
    """Answers a request for an archive with pieces that have no end of their own."""

    def __init__(self, archive: bytes, mode: int = 0o644, size: int = len(PASSWD)) -> None:
        self.archive, self.mode, self.size = archive, mode, size
        self.sent, self.closed = 0, False

    def get_archive(self, container: str, path: str) -> tuple[Generator[bytes, None, None], dict[str, int]]:
        def pieces() -> Generator[bytes, None, None]:
            try:
                for start in range(0, len(self.archive), 65536):
                    self.sent += 65536
                    yield self.archive[start : start + 65536]
            finally:
                self.closed = True

        return pieces(), {"mode": self.mode, "size": self.size}


def read(engine: ArchiveEngine) -> str:
    return read_passwd(cast(Client, engine), "c0")


def test_passwd_is_read() -> None:
    assert read(ArchiveEngine(one_file(PASSWD))) == PASSWD.decode()
    largest = ArchiveEngine(one_file(bytes(LONGEST_PASSWD_BYTES)), size=LONGEST_PASSWD_BYTES)
    assert len(read(largest)) == LONGEST_PASSWD_BYTES


@pytest.mark.parametrize("kind", [DIRECTORY, LINK, DEVICE])
def test_nothing_is_read_of_what_is_no_regular_file(kind: int) -> None:
    engine = ArchiveEngine(one_file(PASSWD), mode=kind | 0o755, size=4096)
    assert (read(engine), engine.sent) == ("", 0)


def test_no_more_is_read_than_a_passwd_may_have() -> None:
    assert read(ArchiveEngine(one_file(PASSWD), size=LONGEST_PASSWD_BYTES + 1)) == ""
    endless = ArchiveEngine(bytes(8 * LONGEST_PASSWD_BYTES))
    assert read(endless) == ""
    assert endless.sent <= 2 * LONGEST_PASSWD_BYTES
    assert endless.closed


def test_an_archive_that_is_none_counts_as_no_passwd() -> None:
    assert read(ArchiveEngine(b"no archive at all")) == ""
    assert read(ArchiveEngine(b"")) == ""


class Api(BaseHTTPRequestHandler):
    """An engine in which there is one path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(b'{"ApiVersion": "1.41"}')

    def do_HEAD(self) -> None:
        there = self.path.endswith("/containers/c1/archive?path=%2Fbin%2Fthere")
        self.answer(b"", 200 if there else 404)

    def answer(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # docker 5.0's
def test_asking_for_a_path_leaves_no_connection_open() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        gc.disable()
        try:
            client = Client(f"tcp://127.0.0.1:{server.server_port}", 60, 60)
            assert client.has_path("c1", "/bin/there")
            open_files = len(list(Path("/proc/self/fd").iterdir()))
            for _ in range(5):
                assert client.has_path("c1", "/bin/there")
                assert not client.has_path("c1", "/bin/other")
            assert len(list(Path("/proc/self/fd").iterdir())) == open_files
            client.close()
        finally:
            gc.enable()
            server.shutdown()
            thread.join()
