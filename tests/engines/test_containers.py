"""The driver of containers on a real dockerd and on a real Podman: what machines see, how they end, whose they are.

One table of behaviour for both engines; where one differs, the test says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Callable

import docker
import pytest

from tests.driver_contract import details_of, usages
from tests.engines.docker_fixture import IMAGE, PrivateDocker, PrivateEngine, root_tar
from tests.engines.docker_machines import FACTORY, LOOK, Machines
from tests.engines.factory_fixture import Kind, factory_site
from tests.engines.podman_fixture import PrivatePodman
from tests.engines.process_site import shell_seconds
from tests.engines.shared_places import cvmfs_mount_point
from tests.waiting import wait_for
from vac.cli.doctor_engines import docker_findings
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.drivers.base import WRITES_TO, CreationFailed, EngineState, Usage
from vac.drivers.docker import docker_container

pytestmark = pytest.mark.engine

READINGS = 3
"""The last reading of a container's usage races with its removal by the engine; on a busy host it may be lost."""


@pytest.fixture(scope="module", params=[PrivateDocker, PrivatePodman], ids=["docker", "podman"])
def engine(request: pytest.FixtureRequest) -> Iterator[PrivateEngine]:
    engine = request.param()
    yield engine
    engine.close()


@pytest.fixture
def client(engine: PrivateEngine) -> Iterator[docker.APIClient]:
    with contextlib.closing(engine.client()) as client:
        yield client


@pytest.fixture
def machines(engine: PrivateEngine, tmp_path: Path) -> Iterator[Machines]:
    with contextlib.closing(Machines(engine.url, tmp_path)) as machines:
        yield machines
    engine.remove_containers()


def test_a_machine_sees_its_files_name_and_resolvers(machines: Machines) -> None:
    spec = machines.spec(
        LOOK, container_dns=("192.0.2.1", "192.0.2.2"), tmp_binds=("/scratch", "/var/scratch/deep")
    )
    machines.create(spec)
    outputs = machines.wait_for_output(spec, "done")
    assert (outputs / "hostname").read_text().strip() == spec.name
    assert f"{spec.name} {spec.name.partition('.')[0]}" in (outputs / "hosts").read_text()
    written = (outputs / "resolv.conf").read_text().splitlines()
    resolvers = [line for line in written if line.startswith("nameserver")]
    assert resolvers == ["nameserver 192.0.2.1", "nameserver 192.0.2.2"]
    assert (outputs / "features").read_text() == f"2{spec.uuid}"
    environment = (outputs / "env").read_text().splitlines()
    assert {
        "MACHINEFEATURES=/etc/machinefeatures",
        "JOBFEATURES=/etc/jobfeatures",
        "JOBOUTPUTS=/var/spool/joboutputs",
    } <= set(environment)
    assert (outputs / "refused").read_text().count("Read-only file system") == 3
    assert "init" in (outputs / "init").read_text()
    assert "docker.sock" not in (outputs / "run").read_text() + (outputs / "mountinfo").read_text()
    assert sorted(path.name for path in (spec.directory / "mnt").rglob("file")) == ["file", "file"]
    assert (spec.directory / "user_data").stat().st_mode & 0o777 == 0o500


def test_an_entrypoint_is_given_the_command(engine: PrivateEngine, machines: Machines) -> None:
    wrapper = '#!/bin/sh\necho "$@" > /var/spool/joboutputs/wrapped\nexec "$@"\n'
    engine.import_image(
        "wrapped:1", root_tar({"wrapper": wrapper}), 'ENTRYPOINT ["/wrapper"]', 'CMD ["/odd"]'
    )
    spec = machines.spec(
        "#!/bin/sh\ntouch /var/spool/joboutputs/done\nexec sleep 600\n", root_image="docker://wrapped:1"
    )
    machines.create(spec)
    outputs = machines.wait_for_output(spec, "done")
    assert (outputs / "wrapped").read_text() == "/user_data\n"


def test_tokens_and_cvmfs_that_are_mounted_later_appear_inside(
    engine: PrivateEngine, machines: Machines, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    with cvmfs_mount_point():
        engine.run("mount", "-t", "tmpfs", "vac-test", "/cvmfs")
        engine.run("mkdir", "/cvmfs/repo.example.com")
        script = (
            "#!/bin/sh\ncd /var/spool/joboutputs\ntouch started\n"
            "until cat /cvmfs/repo.example.com/file > seen 2> error; do sleep 0.1; done\n"
            "touch /cvmfs/x /etc/vac-tokens/x 2> refused\ncat /etc/vac-tokens/token >> seen\n"
            "touch done\nexec sleep 600\n"
        )
        spec = machines.spec(script, cvmfs_repositories=("repo.example.com",), token_dir=tokens)
        if engine.kind == "docker":  # Podman makes it, and sees nothing that is mounted later
            with pytest.raises(CreationFailed, match="make /cvmfs shared"):
                machines.create(spec)
        engine.run("mount", "--make-shared", "/cvmfs")
        spec = replace(machines.spec(script), machinetype=spec.machinetype)
        machines.create(spec)
        machines.wait_for_output(spec, "started")
        (tokens / "token").write_text(" and a token")
        engine.run("mount", "-t", "tmpfs", "vac-test", "/cvmfs/repo.example.com")
        engine.run("sh", "-c", "printf 'a repository' > /cvmfs/repo.example.com/file")
        outputs = machines.wait_for_output(spec, "done")
        assert (outputs / "seen").read_text() == "a repository and a token"
        assert (outputs / "refused").read_text().count("Read-only") == 2
        machines.driver.destroy(spec.name, spec.uuid)
        engine.run("umount", "--recursive", "/cvmfs")


def test_limits_are_those_of_the_machine(machines: Machines, client: docker.APIClient) -> None:
    spec = machines.spec(LOOK)
    machines.create(spec)
    machines.wait_for_output(spec, "done")
    pid = int(details_of(machines.driver, spec.uuid)["pid"])
    paths = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())

    def read(controller: str, file: str) -> int:
        return int(Path(f"/sys/fs/cgroup/{controller}{paths[controller]}/{file}").read_text())

    assert read("cpu", "cpu.shares") == 2048
    assert read("memory", "memory.limit_in_bytes") == 2 * spec.memory_bytes
    assert read("memory", "memory.soft_limit_in_bytes") == spec.memory_bytes
    assert read("pids", "pids.max") == 200
    assert Path(f"/proc/{pid}/limits").exists()


def test_a_memory_eater_dies_alone_and_its_peak_is_known(machines: Machines) -> None:
    neighbour = machines.spec("#!/bin/sh\nexec sleep 600\n")
    machines.create(neighbour)

    def peak_bytes() -> int:
        eater = machines.spec("#!/bin/sh\nsleep 1\nexec dd if=/dev/zero of=/dev/null bs=200M\n")
        machines.create(eater)
        machines.wait_for_state(eater, EngineState.ENDED)
        assert machines.state(neighbour) is EngineState.RUNNING
        assert details_of(machines.driver, eater.uuid)["exit_code"] == "137"
        return usages(machines.driver)[eater.uuid].peak_memory_bytes or 0

    limit_bytes = 2 * neighbour.memory_bytes
    assert limit_bytes * 0.9 <= max(peak_bytes() for _ in range(READINGS)) <= limit_bytes


def test_usage_until_the_end_is_known_after_it(machines: Machines) -> None:
    script = (
        "#!/bin/sh\ni=0\nwhile [ $i -lt 300000 ]; do i=$((i+1)); done\ntimes > /var/spool/joboutputs/times\n"
    )

    def used() -> tuple[float, Usage]:
        """Return the engine's CPU time less that which its shell measured, and the engine's usage."""
        spec = machines.spec(script)
        machines.create(spec)
        machines.wait_for_state(spec, EngineState.ENDED)
        own = (spec.directory / "joboutputs/times").read_text().splitlines()[0].split()
        usage = usages(machines.driver)[spec.uuid]
        return (usage.cpu_seconds or 0.0) - sum(map(shell_seconds, own)), usage

    more, usage = max((used() for _ in range(READINGS)), key=lambda found: found[0])
    assert usage.cpu_seconds is not None and more > -0.05
    assert usage.peak_memory_bytes is not None and usage.peak_memory_bytes > 0
    assert usage.network_received_bytes is not None or usage.network_sent_bytes is None


@pytest.mark.parametrize(("network", "counted"), [("bridge", True), ("host", False), ("none", False)])
def test_network_bytes_are_counted_on_an_own_network_only(
    machines: Machines, network: str, counted: bool
) -> None:
    spec = machines.spec(LOOK, container_network=network)
    machines.create(spec)
    outputs = machines.wait_for_output(spec, "done")
    assert (outputs / "hostname").read_text().strip() == spec.name
    usage = usages(machines.driver)[spec.uuid]
    assert (usage.network_sent_bytes is not None) is counted
    assert bool(details_of(machines.driver, spec.uuid).get("addresses")) is counted


def test_what_people_do_to_a_container_is_seen(machines: Machines, client: docker.APIClient) -> None:
    specs = [machines.spec("#!/bin/sh\nexec sleep 600\n") for _ in range(4)]
    for spec in specs:
        machines.create(spec)
    removed, paused, stopped, renamed = specs
    client.remove_container(removed.name, force=True)
    client.pause(paused.name)
    client.stop(stopped.name, timeout=0)
    client.rename(renamed.name, "another-name")
    states = {each.uuid: (each.name, each.state) for each in machines.driver.list()}
    assert states == {
        paused.uuid: (paused.name, EngineState.PAUSED),
        stopped.uuid: (stopped.name, EngineState.ENDED),
        renamed.uuid: (renamed.name, EngineState.RUNNING),
    }
    for spec in specs:
        machines.driver.stop(spec.name, spec.uuid)
    assert {each.state for each in machines.driver.list()} == {EngineState.ENDED}
    for spec in specs:
        machines.driver.destroy(spec.name, spec.uuid)
    assert client.containers(all=True) == []


def test_strangers_containers_are_left_alone(machines: Machines, client: docker.APIClient) -> None:
    spec = machines.spec("#!/bin/sh\nexec sleep 600\n")
    other = {"vac.factory": "other.example.com", "vac.uuid": spec.uuid, "vac.machine": spec.name}
    kept = set()
    for name, labels in ((spec.name, {}), ("factory1-01.example.com", other)):
        made = client.create_container(IMAGE, ["/bin/sleep", "600"], name=name, labels=labels)
        client.start(made["Id"])
        kept.add(made["Id"])
    assert machines.driver.list() == []
    machines.driver.stop(spec.name, spec.uuid)
    machines.driver.destroy(spec.name, spec.uuid)
    assert {each["Id"] for each in client.containers()} == kept
    machines.create(spec)
    assert [(each.name, each.uuid) for each in machines.driver.list()] == [(spec.name, spec.uuid)]
    machines.driver.destroy(spec.name, str(uuid.uuid4()))
    assert machines.state(spec) is EngineState.RUNNING
    machines.driver.destroy(spec.name, spec.uuid)
    assert {each["Id"] for each in client.containers()} == kept


def test_an_older_vacs_container_is_adopted_by_its_id_alone(
    machines: Machines, client: docker.APIClient
) -> None:
    name = f"{FACTORY.partition('.')[0]}-07.example.com"
    ours = client.create_container(IMAGE, ["/bin/sleep", "600"], name=name)["Id"]
    client.create_container(IMAGE, ["/bin/sleep", "600"], name="factory1-08.example.com")
    client.start(ours)
    assert machines.driver.list() == []
    machines.driver.adopt({ours: name, str(uuid.uuid4()): "factory1-08.example.com"}, {})
    assert [(each.name, each.uuid, each.state) for each in machines.driver.list()] == [
        (name, ours, EngineState.RUNNING)
    ]
    assert usages(machines.driver)[ours].cpu_seconds is not None
    machines.driver.stop(name, ours)
    assert [each.state for each in machines.driver.list()] == [EngineState.ENDED]
    machines.driver.destroy(name, ours)
    assert machines.driver.list() == []
    assert len(client.containers(all=True)) == 1


def test_a_creation_that_was_cut_short_is_told_and_removed(
    machines: Machines, client: docker.APIClient
) -> None:
    spec = machines.spec("#!/bin/sh\nexec sleep 600\n")
    labels = {"vac.factory": FACTORY, "vac.uuid": spec.uuid, "vac.machine": spec.name}
    client.create_container(IMAGE, ["/bin/sleep", "600"], name=spec.name, labels=labels)
    assert machines.state(spec) is EngineState.HALF_MADE
    machines.driver.stop(spec.name, spec.uuid)
    machines.driver.destroy(spec.name, spec.uuid)
    assert machines.driver.list() == []
    machines.create(spec)
    assert machines.state(spec) is EngineState.RUNNING


def test_events_name_the_machine(machines: Machines, client: docker.APIClient) -> None:
    spec = replace(machines.spec("#!/bin/sh\nexec sleep 600\n"), name="factory1-77.example.com")
    with machines.listening() as news:
        machines.create(spec)
        changes: list[Callable[[], object]] = [
            lambda: client.pause(spec.name),
            lambda: client.unpause(spec.name),
            lambda: client.rename(spec.name, "another"),
            lambda: client.kill("another"),
            lambda: client.remove_container("another"),
        ]
        for change in changes:
            change()
            while news.get(timeout=300) != spec.name:
                pass  # late news of an earlier test's machines
        stranger = client.create_container(IMAGE, ["/bin/sleep", "600"])["Id"]
        client.start(stranger)
        client.remove_container(stranger, force=True)
        machines.driver.close()
        assert spec.name not in iter(lambda: news.get(timeout=300), None)


def test_an_end_is_listed_as_soon_as_it_is_told(machines: Machines) -> None:
    with machines.listening() as news:
        for number in range(80, 83):
            name = f"factory1-{number}.example.com"
            spec = replace(machines.spec("#!/bin/sh\nexec sleep 0.5\n"), name=name)
            machines.create(spec)
            while news.get(timeout=300) != spec.name:
                pass
            assert machines.state(spec) is EngineState.ENDED


def test_a_machine_whose_monitor_was_killed_leaves_nothing(machines: Machines) -> None:
    spec = machines.spec("#!/bin/sh\nexec sleep 600\n")
    machines.create(spec)
    process = int(details_of(machines.driver, spec.uuid)["pid"])
    monitor = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    assert any(name in Path(f"/proc/{monitor}/cmdline").read_text() for name in ("containerd-shim", "conmon"))
    assert usages(machines.driver)[spec.uuid].cpu_seconds is not None
    os.kill(monitor, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # Docker has ended it; Podman doesn't notice either end
        os.kill(process, signal.SIGKILL)
    machines.wait_for_state(spec, EngineState.ENDED)
    assert usages(machines.driver)[spec.uuid].cpu_seconds is not None
    machines.driver.stop(spec.name, spec.uuid)
    machines.driver.destroy(spec.name, spec.uuid)
    assert machines.driver.list() == []


def test_a_driver_that_did_not_see_the_end_knows_when_and_how(machines: Machines) -> None:
    begun = time.time()
    spec = machines.spec("#!/bin/sh\nexit 7\n")
    machines.create(spec)
    machines.wait_for_state(spec, EngineState.ENDED)
    driver = machines.successor()
    (seen,) = driver.list()
    assert seen.usage.ended_time is not None
    assert int(begun) <= seen.usage.ended_time <= time.time()
    assert seen.usage.exit_code == 7


def test_what_a_container_said_last_stays_with_its_machine(machines: Machines) -> None:
    spec = machines.spec("#!/bin/sh\necho for standard output\necho for standard error >&2\n")
    machines.create(spec)
    machines.wait_for_state(spec, EngineState.ENDED)
    machines.driver.destroy(spec.name, spec.uuid)
    console = spec.directory / "console.log"
    assert set(console.read_text().splitlines()) == {"for standard output", "for standard error"}
    assert console.stat().st_mode & 0o777 == 0o600


def test_its_console_and_commands_in_it_are_the_administrators(engine: PrivateEngine) -> None:
    script = "echo begun; cd /var/spool/joboutputs; until [ -e end ]; do sleep 0.2; done; echo over; exit 3"
    options = {"machine_model": "docker", "root_image": f"docker://{IMAGE}", "container_user": "pilot"}
    with factory_site({}, processors=1, start=False) as site:
        site.configure({"docked": Kind(script, options)}, docker_host=engine.url)
        site.start()
        site.wait_for(site.running, "one runs")
        machine = site.running()[0]
        site.vac("drain")
        inside = "id -u; cat /proc/1/cmdline; echo $0 $1; exit 5"
        done = site.vac("exec", machine.name.partition(".")[0], "--", "sh", "-c", inside, "two", "words; $0")
        assert done.returncode == 5, done.stderr
        assert done.stdout.startswith("1234\n") and done.stdout.endswith("two words; $0\n")
        assert "root: sh -c" in (machine.directory / "exec.log").read_text()
        assert site.vac("exec", machine.uuid, "no-such-program").returncode in (126, 127)
        code, told, _ = site.type_into_shell(machine, b"echo terminal:$(readlink /proc/self/fd/0):; exit 4\n")
        assert code == 4 and re.search(r"terminal:/dev/pts/\d+:", told), told
        assert site.vac("logs", machine.name).stdout == "begun\n"
        end = machine.directory / "joboutputs" / "end"
        assert site.follow_console(machine, end.touch) == ["begun\n", "over\n"]
        site.wait_for(lambda: not site.running(), "it has ended")
        shown = [site.vac("logs", machine.uuid)]
        site.wait_for((machine.directory / "console.log").exists, "its console is kept")
        shown.append(site.vac("logs", machine.uuid))
        assert [(done.stdout, done.stderr) for done in shown] == [("begun\nover\n", "")] * 2
        (ended,) = json.loads(site.vac("history", "--json").stdout)
        assert ended["exit_code"] == 3
        assert "doesn't run" in site.vac("exec", machine.uuid).stderr


def test_details_tell_what_an_incident_team_asks_for(
    engine: PrivateEngine, machines: Machines, client: docker.APIClient
) -> None:
    spec = machines.spec("#!/bin/sh\nexec sleep 600\n")
    machines.create(spec)
    details = details_of(machines.driver, spec.uuid)
    assert details["container"] == client.inspect_container(spec.name)["Id"]
    assert details["image"] == f"docker://{IMAGE}"
    assert details["image_id"] == engine.image_id(IMAGE)
    assert details["addresses"].startswith(("172.", "10."))
    assert int(details["pid"]) > 1
    assert details_of(machines.driver, str(uuid.uuid4())) == {}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"container_command": "/no/such/program"}, "the image has no /no/such/program"),
        ({"cvmfs_repositories": ("a.example.com",)}, "/no-such-cvmfs doesn't exist on this host"),
        (
            {"token_dir": Path("/no/such/directory")},
            "/no/such/directory, the token_dir, is no directory of this host",
        ),
    ],
)
def test_what_is_wrong_with_a_machinetype_is_the_reason(
    machines: Machines, options: dict[str, object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_container, "CVMFS", "/no-such-cvmfs")  # this host may have the real one
    with pytest.raises(CreationFailed, match=reason):
        machines.create(machines.spec(LOOK, **options))
    assert machines.driver.list() == []


def test_a_containers_own_layer_is_where_its_engine_says(machines: Machines) -> None:
    spec = machines.spec("#!/bin/sh\ntouch /fat /var/spool/joboutputs/done\nexec sleep 600\n")
    machines.create(spec)
    machines.wait_for_output(spec, "done")
    (layer,) = details_of(machines.driver, spec.uuid)[WRITES_TO].split(":")
    assert Path(layer, "fat").exists()


def test_the_doctor_finds_no_serious_problem(engine: PrivateEngine) -> None:
    limited = Machinetype("limited", disk_gb_per_processor=1)
    rows = [*docker_findings(Settings(docker_host=engine.url), [limited])]
    assert [what for what, problem, serious in rows if problem and serious] == []
    told = {what: problem for what, problem, _ in rows}
    assert told["disk_gb_per_processor of containers"] is None
    assert (told.get("live-restore of Docker") is not None) == isinstance(engine, PrivateDocker)


def test_many_machines_are_listed_and_measured(engine: PrivateEngine, machines: Machines) -> None:
    many = 20 if engine.kind == "docker" else 5
    specs = [machines.spec("#!/bin/sh\nexec sleep 600\n") for _ in range(many)]
    for spec in specs:
        machines.create(spec)
    started = time.perf_counter()
    listed = machines.driver.list()
    print(f"{many} containers: list {time.perf_counter() - started:.4f} s")
    assert {each.uuid for each in listed} == {spec.uuid for spec in specs}
    usage = [each.usage for each in listed]
    assert all(each.cpu_seconds is not None and each.memory_bytes is not None for each in usage)
    uuids = [each.uuid for each in listed]
    wait_for(lambda: [*usages(machines.successor())] == uuids, "a new driver lists the same")
