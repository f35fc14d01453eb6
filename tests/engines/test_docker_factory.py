"""A factory with Docker and bubblewrap machines: what people do to containers, and what an engine's outage means."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import pytest

from tests.engines.docker_fixture import IMAGE, PrivateDocker, root_tar
from tests.engines.factory_fixture import (
    FactorySite,
    Kind,
    Option,
    ended,
    factory_site,
    message,
    records,
    uuids,
)
from tests.engines.impatient import STALL_SECONDS
from tests.engines.registry_fixture import Registry, incompressible
from vac.drivers.docker.docker_container import LABEL_FACTORY, LABEL_NAME, LABEL_UUID
from vac.host.privileges import unprivileged_user
from vac.machines.machine import Machine

pytestmark = pytest.mark.engine

IN_DOCKER, IN_BUBBLEWRAP = "/var/spool/joboutputs", "/tmp/joboutputs"
FIZZLE_SECONDS = 2
PATIENCE_SECONDS = 300.0


def lasting(outputs: str) -> str:
    """A script that goes on until it is told to end()."""
    return f"cd {outputs}\nuntil [ -e end ]; do sleep 0.5; done\necho '200 told to end' > shutdown_message\n"


def in_docker(script: str = lasting(IN_DOCKER), **options: Option) -> Kind:
    """A type of Docker machines."""
    usual: dict[str, Option] = {
        "machine_model": "docker",
        "root_image": f"docker://{IMAGE}",
        "fizzle_seconds": FIZZLE_SECONDS,
    }
    return Kind(script, {**usual, **options})


BESIDE = Kind(lasting(IN_BUBBLEWRAP), {"fizzle_seconds": FIZZLE_SECONDS})
CYCLES_WITHOUT = 5
"""Number of the factory's observations while the engine is down."""
AT_ONCE = 100
"""machines_per_cycle: what the ramp does is tested elsewhere."""


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivateDocker]:
    """It keeps its containers while it is down."""
    with contextlib.closing(PrivateDocker(live_restore=True)) as engine:
        yield engine


@pytest.fixture(scope="module")
def registry(engine: PrivateDocker) -> Iterator[Registry]:
    with contextlib.closing(Registry(engine.listening_socket(), "site/pilot", root_tar())) as registry:
        yield registry


@pytest.fixture
def stalling(engine: PrivateDocker) -> Iterator[Registry]:
    """A registry of which no more than half of an image comes."""
    root = root_tar({"large": incompressible(4_000_000)})
    with contextlib.closing(Registry(engine.listening_socket(), "slow", root, stalling=True)) as registry:
        yield registry


@contextlib.contextmanager
def half_and_half(engine: PrivateDocker, kinds: Mapping[str, Kind], slots: int) -> Iterator[FactorySite]:
    """A factory whose slots are shared by types of equal shares, two of which are `docked` and `beside`.

    Nothing is created before both can be.
    """
    with factory_site(kinds, processors=slots, start=False) as site:
        site.configure(kinds, docker_host=engine.url, machines_per_cycle=AT_ONCE)
        site.state.prepare()
        assert site.vac("drain").returncode == 0
        site.start("tests.engines.impatient")

        def ready() -> bool:
            reasons = site.status().passed_over
            return all("drain" in reasons.get(name, "") for name in ("docked", "beside"))

        site.wait_for(ready, "the image is there and both engines have answered", PATIENCE_SECONDS)
        assert site.vac("undrain").returncode == 0
        yield site


@pytest.fixture(scope="module")
def site(engine: PrivateDocker, registry: Registry) -> Iterator[FactorySite]:
    """Its Docker machines' image has to be pulled first."""
    docked = in_docker(root_image=f"docker://{registry.image}", disk_gb_per_processor=1)
    with half_and_half(engine, {"docked": docked, "beside": BESIDE}, 8) as site:
        yield site


@pytest.fixture
def full(site: FactorySite) -> FactorySite:
    """All its slots are taken by machines that are older than fizzle_seconds, half of them in Docker.

    On a busy host its engine may have seemed to hang for a while, and the other machines have taken more.
    """
    wait_until_full(site)
    while len(site.running("docked")) < site.processors // 2:
        end(site.running("beside")[0])
        wait_until_full(site)
    return site


def wait_until_full(site: FactorySite) -> None:
    """Wait until all slots are taken by machines that go on and are older than fizzle_seconds."""

    def old_enough() -> bool:
        running = [one for one in site.running() if not (one.directory / "joboutputs" / "end").exists()]
        newest = max((machine.started_time or 0.0 for machine in running), default=0.0)
        return len(running) == site.processors and time.time() > newest + FIZZLE_SECONDS + 1

    site.wait_for(old_enough, "all slots are taken", PATIENCE_SECONDS)


def end(machine: Machine) -> None:
    """Let it end by itself."""
    (machine.directory / "joboutputs" / "end").touch()


def wait_for_replacement(site: FactorySite, *machines: Machine, but: Sequence[Machine] = ()) -> None:
    """Wait until these have ended with one record each and all slots are taken by others.

    but: machines that can't be seen; as far as anybody knows they go on.
    """
    for machine in machines:
        site.wait_for((machine.directory / "finished").exists, f"{machine.name} has ended", PATIENCE_SECONDS)
    before, unseen = {machine.uuid for machine in machines}, {machine.uuid for machine in but}

    def replaced() -> bool:
        running = uuids(site)
        return len(running) == site.processors and unseen <= running and not before & running

    site.wait_for(replaced, "all are replaced", PATIENCE_SECONDS)
    assert before <= set(records(site))


def told_of(site: FactorySite, machine: Machine) -> dict[str, object]:
    """Return the output of `vac machine`."""
    told: dict[str, object] = json.loads(site.vac("machine", "--json", machine.name).stdout)
    return told


def test_vac_machine_shows_image_and_usage(full: FactorySite, registry: Registry) -> None:
    machine = full.running("docked")[0]
    full.wait_for((machine.directory / "details.json").exists, "its details are kept")
    told = told_of(full, machine)
    assert told["state"] == "Running"
    assert told["image"] == f"docker://{registry.image}"
    assert told["image_digest"] == registry.digest
    assert told["container_name"] == machine.name
    assert told["user"] == "root (0)"
    assert str(told["addresses"]).startswith("172.")

    def renewed() -> bool:
        full.wake()
        return float(heartbeat(machine)[0]) > 0

    full.wait_for(renewed, "its CPU use is in its heartbeat")
    told = told_of(full, machine)
    used = {name: float(str(told[name])) for name in ("CPU seconds", "peak memory MiB", "bytes received")}
    assert min(used.values()) > 0, used
    assert "memory MiB" in told and "bytes sent" in told


def heartbeat(machine: Machine) -> list[str]:
    return (machine.directory / "heartbeat").read_text().split()


def test_a_containers_own_layer_counts_for_its_disk_limit(engine: PrivateDocker, full: FactorySite) -> None:
    fat, *others = full.running("docked")
    with contextlib.closing(engine.client()) as client:
        command = ["/bin/busybox", "fallocate", "-l", "1100M", "/fat"]
        client.exec_start(client.exec_create(fat.name, command)["Id"])

    def ended_for_it() -> bool:
        full.wake()
        return message(fat) == "700 Disk limit"

    full.wait_for(ended_for_it, "it is ended for what it has written")
    wait_for_replacement(full, fat)
    assert {machine.uuid for machine in others} <= uuids(full, "docked")


def test_a_machines_directory_is_for_root_and_the_responder(full: FactorySite) -> None:
    user = unprivileged_user()
    assert user is not None
    for machine in full.running("docked"):
        directory, user_data = machine.directory.stat(), (machine.directory / "user_data").stat()
        assert (directory.st_mode & 0o7777, directory.st_gid) == (0o750, user.pw_gid)
        assert (user_data.st_mode & 0o7777, user_data.st_uid) == (0o500, 0)


def test_what_people_do_to_containers_and_strangers_containers(
    engine: PrivateDocker, full: FactorySite
) -> None:
    short = full.name.partition(".")[0]
    other = {LABEL_FACTORY: "other.example.com", LABEL_UUID: "1-2-3", LABEL_NAME: f"{short}-00.example.com"}
    with contextlib.closing(engine.client()) as client:
        strangers = {
            client.create_container(IMAGE, ["/bin/sleep", "600"], name=name, labels=labels)["Id"]
            for name, labels in ((f"{short}-99.example.com", {}), (f"{short}-000.example.com", other))
        }
        for stranger in strangers:
            client.start(stranger)
        renamed, removed, paused = sorted(full.running("docked"), key=lambda machine: machine.name)[:3]
        beside = uuids(full, "beside")
        client.rename(renamed.name, "quite-another")
        client.remove_container(removed.name, force=True)
        client.pause(paused.name)
        wait_for_replacement(full, removed, paused)
        assert message(removed) == ""
        assert message(paused) == "700 Paused"
        assert renamed.uuid in uuids(full)
        assert beside <= uuids(full)
        client.stop("quite-another", timeout=0)
        wait_for_replacement(full, renamed)
        running = {container["Id"] for container in client.containers(all=True)}
        assert strangers < running
        assert len(running - strangers) == len(full.running("docked"))
        for stranger in strangers:
            client.remove_container(stranger, force=True)


def test_an_engine_that_is_down_ends_nothing_and_is_used_again(
    engine: PrivateDocker, full: FactorySite
) -> None:
    victim, *others = full.running("docked")
    kept, accounted, lives = {machine.uuid for machine in others}, records(full), len(full.lives("docked"))
    with killed(engine):
        end(victim)
        full.wait_for(lambda: "is the engine" in why(full, "docked"), "`vac why` says that it is down")
        assert told_of(full, others[0])["state"] == "Unknown"
        beside = full.running("beside")[0]
        end(beside)
        wait_for_replacement(full, beside, but=[victim])
        for _ in range(CYCLES_WITHOUT):
            look_again(full)
        assert not [machine for machine in (victim, *others) if ended(machine)]
        assert records(full).keys() - accounted.keys() == {beside.uuid}
        assert len(full.lives("docked")) == lives
    wait_for_replacement(full, victim)
    assert kept <= uuids(full, "docked")
    assert message(victim) == "200 told to end"
    full.wait_for(lambda: "is the engine" not in why(full, "docked"), "`vac why` has nothing to say of it")


@contextlib.contextmanager
def killed(engine: PrivateDocker) -> Iterator[None]:
    """Within it dockerd doesn't run."""
    engine.kill()
    try:
        yield
    finally:
        engine.start()


def test_an_engine_that_hangs_holds_up_nobody_elses_machines(
    engine: PrivateDocker, full: FactorySite
) -> None:
    victim, *others = full.running("docked")
    kept = {machine.uuid for machine in others}
    first, second, *_ = full.running("beside")
    with engine.hanging():
        end(victim)
        full.wake()
        full.wait_for(lambda: "no answer for" in why(full, "docked"), "`vac why` says it hangs")
        for machine in (first, second):
            end(machine)
            wait_for_replacement(full, machine, but=[victim])
        look_again(full)
        assert not [machine for machine in (victim, *others) if ended(machine)]
    wait_for_replacement(full, victim)
    assert kept <= uuids(full, "docked")
    assert message(victim) == "200 told to end"
    full.wait_for(lambda: "no answer" not in why(full, "docked"), "`vac why` has nothing to say of it")


def test_machines_that_end_with_their_engine_are_replaced() -> None:
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(contextlib.closing(PrivateDocker()))
        site = stack.enter_context(half_and_half(engine, {"docked": in_docker(), "beside": BESIDE}, 6))
        for stop in (engine.stop, engine.kill):
            wait_until_full(site)
            docked, beside = site.running("docked"), uuids(site, "beside")
            assert len(docked) == len(beside) == 3
            stop()
            engine.start()
            wait_for_replacement(site, *docked)
            assert uuids(site, "beside") >= beside
            assert "Zombie" not in site.status().slot_states.values()


def test_an_end_with_the_engine_is_nobodys_abort() -> None:
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(contextlib.closing(PrivateDocker()))
        kinds = {"docked": in_docker(fizzle_seconds=600, backoff_seconds=600), "beside": BESIDE}
        site = stack.enter_context(half_and_half(engine, kinds, 2))
        for stop in (engine.stop, engine.kill):
            site.wait_for(lambda: len(site.running()) == 2, "two machines run")
            (docked,) = site.running("docked")
            stop()
            engine.start()
            site.wait_for((docked.directory / "finished").exists, "it has ended with its engine")
            site.wait_for(lambda: site.running("docked"), "another one is in its place")
            assert site.status().held_here == {}


def test_a_type_that_cannot_be_made_has_a_reason_and_harms_none(
    engine: PrivateDocker, registry: Registry, stalling: Registry
) -> None:
    kinds = {
        "docked": in_docker(),
        "beside": BESIDE,
        "absent": in_docker(root_image=f"docker://{registry.address}/no/such:1"),
        "unreachable": in_docker(root_image="docker://127.0.0.1:9/site/pilot:1"),
        "command": in_docker(container_command="/no/such/program"),
        "stalled": in_docker(root_image=f"docker://{stalling.image}"),
    }
    reasons = {
        "stalled": f"/slow:1: the registry stalls: no progress for {STALL_SECONDS:g} s",
        "absent": "/no/such:1: the registry has no such image, or not for us",
        "unreachable": "127.0.0.1:9/site/pilot:1: the registry can't be reached",
        "command": "the image has no /no/such/program, which is the container_command",
    }
    with half_and_half(engine, kinds, 6) as site:
        wait_until_full(site)
        for name, reason in reasons.items():
            site.wait_for(partial(_says, site, name, reason), f"{name}: {reason}")
            assert why(site, name).count(reason) == 1
        assert not [life for name in ("absent", "unreachable", "stalled") for life in site.lives(name)]
        assert not [line for line in site.log().splitlines() if "Traceback" in line]
        both = site.running("docked")[0], site.running("beside")[0]
        for machine in both:
            end(machine)
        wait_for_replacement(site, *both)
        stalling.release()
        end(site.running("docked")[0])
        site.wait_for(lambda: site.running("stalled"), "what stalled is made once its image has come", 1000)


def test_a_memory_eater_is_accounted_with_its_peak(engine: PrivateDocker) -> None:
    limit_kb = 2 * 64 * 1024
    eater = in_docker(
        f"sleep {FIZZLE_SECONDS + 1}\nexec dd if=/dev/zero of=/dev/null bs=400M", target_share=0.5
    )
    with half_and_half(engine, {"docked": in_docker(), "beside": BESIDE, "eater": eater}, 5) as site:
        wait_until_full(site)
        neighbours = uuids(site, "docked") | uuids(site, "beside")
        site.wait_for(lambda: any(life.finished for life in site.lives("eater")), "the eater has ended")
        eaten = [fields for fields in records(site).values() if fields["Queue"] == "eater"]
        assert limit_kb * 0.9 <= int(eaten[0]["MemoryReal"]) <= limit_kb
        assert neighbours <= uuids(site)


def why(site: FactorySite, machinetype: str) -> str:
    """Return the output of `vac why MACHINETYPE`."""
    return site.vac("why", machinetype).stdout


def look_again(site: FactorySite) -> None:
    """Let the factory have one more cycle."""
    begun = time.time()
    site.wake()
    site.wait_for(lambda: site.status().time > begun, "it has reported anew")


def _says(site: FactorySite, machinetype: str, reason: str) -> bool:
    site.wake()  # what it says is as of its last cycle
    return reason in why(site, machinetype)
