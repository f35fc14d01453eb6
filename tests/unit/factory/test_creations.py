"""Creation of machines: contexts, directories, what drivers are told, and what is left of failures."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fake_driver import FakeDriver, FakeMachine, Script
from tests.https_server import HTML, Page, Web, circle, closed_port
from tests.simulated import START, World, broken, one_type
from tests.unit.factory.conftest import MakeWorld
from vac.background import in_thread
from vac.cli import common
from vac.cli.factory_commands import reasons
from vac.config.machinetype import Machinetype
from vac.context import downloads, user_data
from vac.context.downloads import Limits
from vac.drivers.base import EngineState, MachineSpec, Observed
from vac.drivers.engine import Action, ActionDone, ActionKind, Observation
from vac.factory import decisions, effects
from vac.machines.requests import Drain, drain

FAILURE = "t: f1-00.example.com: image not found"


def failing_at_first(world: World, failures: int) -> None:
    left = iter(range(failures))

    def script(spec: MachineSpec) -> Script:
        return Script(failure="image not found" if next(left, None) is not None else None)

    world.scripts = script


def test_a_failed_creation_leaves_nothing_but_its_reason(world: World) -> None:
    failing_at_first(world, 1)
    world.start()
    world.run(5)
    assert world.directories() == []
    assert list(world.state.slots.iterdir()) == []
    assert world.error() == FAILURE
    assert world.status().failed["t"].reason == "f1-00.example.com: image not found"
    assert world.status().failed["t"].time == START
    assert "failed here" in world.status().passed_over["t"]
    assert world.status().created == ()
    assert world.records() == []


def test_the_next_success_takes_the_reason_back(world: World) -> None:
    failing_at_first(world, 1)
    world.start()
    world.run(65)
    assert len(world.running()) == 2
    assert world.error() is None
    assert world.status().failed == {}
    assert [one.machine for one in world.status().created] == ["f1-01.example.com", "f1-00.example.com"]


def test_failures_in_a_row_are_tried_again_ever_more_rarely(world: World) -> None:
    times: list[float] = []

    def script(spec: MachineSpec) -> Script:
        times.append(world.clock.now)
        return Script(failure="image not found")

    world.scripts = script
    world.start()
    world.run(500, step=1.0)
    tries = sorted(set(times))
    pauses = [after - before for before, after in zip(tries, tries[1:])]
    assert pauses == [10, 20, 40, 80, 160]


def test_another_type_is_not_affected(make_world: MakeWorld) -> None:
    world = make_world(one_type("bad"), one_type("good"))
    world.scripts = lambda spec: Script(failure="no" if spec.machinetype.name == "bad" else None)
    world.fill()
    assert [spec.machinetype.name for spec in world.made] == ["good"] * len(world.made) != []
    assert "bad" in world.status().failed


def test_a_context_that_cannot_be_made_is_a_failed_creation(make_world: MakeWorld) -> None:
    world = make_world(one_type(user_data="script"))
    world.start()
    world.run(5)
    assert "script can't be read: No such file" in (world.error() or "")
    assert world.made == []
    assert world.directories() == []
    template = world.state.machinetype_files("t") / "script"
    template.parent.mkdir(parents=True)
    template.write_text("#!/bin/sh\n# ##user_data_uuid##\n")
    world.run(65)
    assert (world.machine().directory / "user_data").read_text() == f"#!/bin/sh\n# {world.machine().uuid}\n"


@pytest.mark.parametrize("restart", [False, True])
def test_a_half_made_machine_is_no_machine(
    world: World, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    world.start()
    world.hold = True
    world.turn()
    machine = world.machine()
    half_made = Observed(machine.name, machine.uuid, EngineState.HALF_MADE)
    world.stranger(machine.name, machine.uuid)
    monkeypatch.setattr(FakeMachine, "observed", lambda self, now: half_made)
    world.hold = False
    world.types = (one_type(target_share=0.0),)
    if restart:
        world.clock.now += 5
        world.start()
    else:
        answer = Action(ActionKind.CREATE, machine.name, machine.uuid)
        world.inbox.put(ActionDone("docker", answer, world.clock.boot(), "connection lost", unavailable=True))
        world.wake()
    world.run(120)
    assert world.engine().machines == {}
    assert not machine.directory.exists()
    assert list(world.state.slots.iterdir()) == []
    assert world.records() == []
    assert ("cut short" in (world.error() or "")) is not restart, "what a restart cleans up is no error"


@pytest.mark.parametrize("listed", [False, True])
def test_a_start_nobody_saw_shows_in_what_it_left(
    world: World, monkeypatch: pytest.MonkeyPatch, listed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.types = (one_type(fizzle_seconds=5),)
    world.start()
    world.hold = True
    world.turn()
    machine = world.machine()
    if listed:
        half_made = Observed(machine.name, machine.uuid, EngineState.HALF_MADE)
        world.stranger(machine.name, machine.uuid)
        monkeypatch.setattr(FakeMachine, "observed", lambda self, now: half_made)
    world.hold = False
    world.types = (one_type(target_share=0.0, fizzle_seconds=5),)
    heartbeat = machine.directory / "joboutputs/heartbeat"
    heartbeat.touch()
    os.utime(heartbeat, (START + 8, START + 8))
    world.clock.now += 60
    world.start()
    world.run(120)
    assert [(record["LocalJobId"], record["WallDuration"]) for record in world.records()] == [
        (machine.uuid, "8")
    ]
    assert world.engine().machines == {}
    assert f"creating it, {machine.uuid}: " in caplog.text


def test_an_ended_machine_is_accounted_and_replaced_at_once(world: World) -> None:
    world.scripts = lambda spec: Script(300.0 if spec.name.startswith("f1-00") else None, "200 Success")
    world.fill()
    first = world.machine()
    world.run(START + 300 - world.clock.now)
    assert world.clock.now == START + 300
    assert first.finished
    assert first.uuid not in world.engine().machines
    assert world.machine().uuid != first.uuid
    assert world.machine().created_time == START + 300
    assert world.slot().running
    (record,) = world.records()
    assert (record["LocalJobId"], record["WallDuration"], record["CpuDuration"]) == (first.uuid, "300", "300")
    assert (first.directory / "shutdown_message").read_text() == "200 Success\n"


@pytest.mark.parametrize("dead", [False, True])
def test_a_vanished_machine_ended_when_last_seen_alive(world: World, dead: bool) -> None:
    world.scripts = lambda spec: Script(300.0, "200 Success", vanishes=True)
    world.fill()
    world.run(100)
    seen = world.machine().heartbeat_time
    assert seen == START + 180
    if dead:
        world.clock.now += 1000
        world.start()
    world.types = (one_type(target_share=0.0),)
    world.run(1000)
    ends = {int(record["EndTime"]) for record in world.records()}
    assert (min(ends), len(world.records())) == ((seen, 2) if dead else (START + 300, 2))
    assert world.running() == []


def test_a_machine_that_dies_at_once_has_no_record(world: World) -> None:
    world.scripts = lambda spec: Script(2.0)
    world.start()
    world.run(30, step=1.0)
    assert world.records() == []
    assert len(world.made) == 2
    assert list(world.status().held_here) == ["t"]
    assert (world.state.finishes / "t").read_text().endswith("f1-00.example.com\n")


def test_an_end_listed_before_the_creation_is_told_is_seen(world: World) -> None:
    world.scripts = lambda spec: Script(1.0, "200 Success")

    def end(call: str, moment: str) -> None:
        if (call, moment) == ("create", "after"):
            world.clock.now += 2
            world.engine().wake()
            world.told_of_changes("docker")
            seen, now = tuple(world.engine().driver().list()), world.clock.now
            world.inbox.put(Observation("docker", seen, now))
            world.clock.now += 1

    world.hook = end
    world.start()
    world.turn()
    assert world.made
    assert [(directory / "finished").exists() for directory in world.directories()] == [True] * len(
        world.made
    )


def test_a_paused_machine_is_ended(world: World) -> None:
    world.scripts = lambda spec: Script(None, paused=spec.name.startswith("f1-00"))
    world.start()
    world.turn()
    world.types = (one_type(target_share=0.0),)
    machine = world.machine()
    world.run(60)
    assert machine.finished
    assert (machine.directory / "shutdown_message").read_text() == "700 Paused\n"


def test_a_machine_over_its_time_is_ended(make_world: MakeWorld) -> None:
    world = make_world(one_type(max_wallclock_seconds=500), slots=1)
    world.start()
    world.run(500)
    first = world.directories()[0]
    assert (first / "shutdown_message").read_text() == "100 Shutdown time reached\n"
    assert [record["WallDuration"] for record in world.records()] == ["500"]
    assert len(world.running()) == 1


def test_a_restart_finds_everything_as_it_was(world: World) -> None:
    world.fill()
    before = {slot.name: slot.machine.uuid for slot in world.factory.state.slots if slot.machine}
    for _ in range(3):
        world.start()
        world.run(90)
    assert {slot.name: slot.machine.uuid for slot in world.factory.state.slots if slot.machine} == before
    assert len(world.made) == 2
    assert world.state.counts.read_text() == "2 2 2 2 20.00\n"


@pytest.mark.parametrize(
    ("key", "offered", "warned"),
    [
        (b"ssh-rsa AAAA root@f1\n", True, False),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", False, True),
        (None, False, False),
    ],
)
def test_vms_are_offered_the_sites_public_key(
    make_world: MakeWorld,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    key: bytes | None,
    offered: bool,
    warned: bool,
) -> None:
    path = tmp_path / "id_rsa.pub"
    if key is not None:
        path.write_bytes(key)
    world = make_world(one_type("vm", machine_model="cernvm4"), root_public_key=path)
    world.fill()
    assert len(world.made) == 2
    for number, spec in enumerate(world.made):
        assert (spec.directory / "ip").read_text() == f"169.254.169.{number}"
        assert (spec.directory / "root_public_key").exists() == offered
    assert ("is not offered to VMs: it holds a private key" in caplog.text) == warned


def test_containers_get_no_key_and_no_address(make_world: MakeWorld, tmp_path: Path) -> None:
    path = tmp_path / "id_rsa.pub"
    path.write_bytes(b"ssh-rsa AAAA root@f1\n")
    world = make_world(one_type("c"), root_public_key=path)
    world.fill()
    assert not [
        name for spec in world.made for name in ("ip", "root_public_key") if (spec.directory / name).exists()
    ]


def test_nothing_new_is_fetched_while_no_machine_can_be_made(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    monkeypatch.setattr(
        FakeDriver, "prepare", lambda driver, kind, settings, files: asked.append(kind.root_image)
    )
    world = make_world(one_type(root_image="https://example.org/first.img"))
    world.fill()
    assert len(world.running()) == 2
    world.types = (
        *world.types,
        *(one_type(f"p-{n}", pipe="p", root_image=f"https://p/{n}.img") for n in range(36)),
    )
    world.run(300)
    assert {*asked} == {"https://example.org/first.img"}, "that of a type that has been made stays fresh"
    world.settings = dataclasses.replace(world.settings, draining=True)
    world.run(300)
    assert len({*asked}) == 1
    world.settings = dataclasses.replace(
        world.settings, draining=False, total_processors=3, host_processors=3
    )
    world.run(120)
    assert len({*asked}) == 37


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """By pipe image, how often it was asked for; it is there at the third time."""
    asked: dict[str, int] = {}

    def prepare(driver: FakeDriver, kind: Machinetype, settings: object, files: object) -> str | None:
        if kind.pipe is None:
            return None
        image = kind.root_image or ""
        asked[image] = asked.get(image, 0) + 1
        return None if asked[image] > 2 else "its image is being fetched"

    monkeypatch.setattr(FakeDriver, "prepare", prepare)
    return asked


def of_pipe(number: int = 0, share: float = 1000.0) -> Machinetype:
    return one_type("p-t", pipe="p", root_image=f"https://p/{number}.img", target_share=share)


def test_a_pipes_new_type_has_the_next_slot_but_one_of_a_full_node(
    make_world: MakeWorld, fetched: dict[str, int]
) -> None:
    world = make_world(one_type(), slots=1)
    world.scripts = lambda spec: Script(2000.0, "200 Success")
    world.fill()
    world.types = (*world.types, of_pipe())
    world.run(1000)
    assert fetched == {}, "while the node is full"
    world.run(2000)
    assert fetched["https://p/0.img"] > 2, "once a slot was free, which others took"
    assert [spec.machinetype.name for spec in world.made] == ["t"] * 2
    world.run(2000)
    assert [spec.machinetype.name for spec in world.made[2:]] == ["p-t"]


def test_a_pipes_image_that_changes_all_the_time_has_its_turn(
    make_world: MakeWorld, fetched: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes more often than a slot becomes free."""
    monkeypatch.setattr(decisions, "FETCH_SECONDS", 3600.0)
    world = make_world(one_type(), slots=1)
    world.scripts = lambda spec: Script(5 * 3600.0, "200 Success")
    world.fill()
    for number in range(10):
        world.types = (world.types[0], of_pipe(number))
        world.run(3900, step=300)
    assert 5 < len(fetched) <= 10, "one an hour"
    assert "p-t" in [spec.machinetype.name for spec in world.made]


TEMPLATE = b"#!/bin/sh\n# ##user_data_uuid## ##user_data_url##\r\n\xff"
Work = Callable[[], object]


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "*")
    with Web(tmp_path) as web:
        monkeypatch.setenv("SSL_CERT_FILE", str(web.ca_file))
        yield web


def slow_world(make_world: MakeWorld, *types: str) -> tuple[World, list[Work]]:
    """A factory whose machines' contexts are made when the test calls them, but for the type `quick`."""
    world, waiting = make_world(*(one_type(name) for name in types or ("t",))), list[Work]()
    world.spawn = lambda work, name: waiting.append(work) if name == "context" else work()
    world.start()
    return world, waiting


def nothing_left(world: World) -> bool:
    return [*world.directories(), *world.state.slots.iterdir(), *world.state.tmp.iterdir(), *world.made] == []


def test_a_slot_is_taken_before_anything_is_on_disk(make_world: MakeWorld) -> None:
    world, waiting = slow_world(make_world)
    world.run(200)
    assert len(waiting) == 2, "no more than there are slots"
    assert nothing_left(world)
    for work in waiting:
        work()
    world.turn()
    assert len(world.running()) == 2
    assert {directory.name for directory in world.directories()} == {
        f"{int(world.clock.now)}_t_f1-0{number}.example.com" for number in (0, 1)
    }


def test_a_machine_has_the_uuid_that_its_context_was_made_with(web: Web, make_world: MakeWorld) -> None:
    site = web.serve({"/user_data": Page(TEMPLATE)})
    url = site.url("/user_data")
    world = make_world(one_type(user_data=url))
    world.fill()
    machine = world.machine()
    expected = TEMPLATE.replace(b"##user_data_uuid##", machine.uuid.encode())
    content = (machine.directory / "user_data").read_bytes()
    assert content == expected.replace(b"##user_data_url##", url.encode())
    assert (machine.directory / "jobfeatures/job_id").read_text() == machine.uuid
    assert len(site.asked) == 2, "one download for each machine"


@pytest.mark.parametrize("change", ["drain", "draining", "other type", "no type", "unusable", "broken"])
def test_a_machine_unwanted_when_its_context_comes_is_not_made(make_world: MakeWorld, change: str) -> None:
    world, waiting = slow_world(make_world)
    world.run(200)
    if change == "drain":
        drain(world.state, Drain(world.clock.now, None, ""))
    elif change == "draining":
        world.settings = type(world.settings)(**{**vars(world.settings), "draining": True})
    elif change == "broken":
        world.configuration_error = broken()
    elif change == "unusable":  # by an option of [settings]
        reasons = {"t": "it needs singularity_user"}
        world._configuration = dataclasses.replace(world.configuration(), unusable=reasons)
    else:
        world.types = (one_type(container_command="/other"),) if change == "other type" else ()
    world.wake()
    for work in waiting[:2]:
        work()
    world.turn()
    assert nothing_left(world)
    assert world.status().failed == {}
    assert len(waiting) == (4 if change == "other type" else 2)


def test_a_context_that_never_comes_gives_the_slot_back(make_world: MakeWorld) -> None:
    world, waiting = slow_world(make_world)
    world.run(200)
    world.run(310)
    assert world.status().failed["t"].reason == "its user_data was not there after 300 s"
    late = waiting[:2]
    world.types = ()
    world.wake()
    for work in late:
        work()
    world.turn()
    assert nothing_left(world)


def test_a_restart_forgets_what_was_begun(make_world: MakeWorld) -> None:
    world, waiting = slow_world(make_world)
    world.run(200)
    world.start()
    world.run(30)
    for work in waiting:
        work()
    world.run(30)
    assert len(world.running()) == 2
    assert len(world.directories()) == 2


def test_a_bug_in_making_a_context_is_a_failed_creation(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def buggy(*args: object) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(effects, "make_user_data", buggy)
    world.start()
    world.run(5)
    assert world.status().failed["t"].reason == "unexpected ZeroDivisionError (see the log)"
    assert nothing_left(world)


def test_contexts_are_made_in_the_background(web: Web, make_world: MakeWorld) -> None:
    gate = threading.Event()
    site = web.serve({"/a": Page(b"xyz", gate=gate)})
    world = make_world(one_type(user_data=site.url("/a")), slots=1)
    world.spawn = lambda work, name: in_thread(work, name) if name == "context" else work()
    world.start()
    world.run(10)
    assert site.asked_for.wait(60)
    assert nothing_left(world)
    gate.set()
    world.inbox.put(world.inbox.get(timeout=60))
    world.turn()
    assert len(world.running()) == 1
    assert (world.machine().directory / "user_data").read_bytes() == b"xyz"


def test_mistakes_in_a_template_are_told_once(
    web: Web, make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    site = web.serve({"/a": Page(b"#!/bin/sh\r\n" + b"##user_data_option_tokn##\n" * 1000)})
    url = site.url("/a").replace("://", "://user:secret@")
    world = make_world(one_type(user_data=url, user_data_options={"token": "x"}))
    world.scripts = lambda spec: Script(700.0, "200 Success")
    world.fill()
    told = [text for text in caplog.messages if "line 1: ends in CR LF" in text]
    assert len(told) == 1
    assert told[0].startswith(f"t: user_data {url.replace('user:secret', '***')}: line 1: ")
    assert "line 5: ##user_data_option_tokn## is removed" in told[0]
    assert "the nearest is token" in told[0]
    assert "line 6" not in told[0]
    site.pages["/a"] = Page(TEMPLATE)
    world.run(1000)
    assert f"no longer: {told[0]}" in caplog.messages


FAILURES = {
    "absent": "the server answers with status 404",
    "broken": "the server answers with status 503",
    "slow": "too slow: 1 s at less than 1000 bytes/s",
    "circle": "redirected more than 10 times",
    "html": "the server sends a web page (HTML) instead",
    "empty": "the server sends nothing",
    "large": "larger than 100 bytes",
    "down": "connection refused or host unreachable",
    "wrong name": "the server's certificate isn't trusted for this host: it belongs to another one",
    "expired": "the server's certificate has expired, or one of its CA's has",
    "stranger": "the server's certificate isn't trusted: its CA is unknown here",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_an_unavailable_template_fails_with_its_own_reason(
    web: Web,
    make_world: MakeWorld,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: str,
) -> None:
    caplog.set_level(logging.INFO)
    limits = Limits(largest_bytes=100, slow_seconds=1)
    monkeypatch.setattr(user_data, "document", lambda url, _, local: downloads.document(url, limits))
    pages = {
        "broken": Page(b"x", 503),
        "slow": Page(b"xyz", gate=threading.Event()),
        "circle": Page(status=302, location="/circle/0"),
        "html": Page(HTML),
        "empty": Page(b""),
        "large": Page(b"x" * 101),
        "expired": Page(TEMPLATE),
        "stranger": Page(TEMPLATE),
        "wrong name": Page(TEMPLATE),
    }
    certificate = failure if failure in ("wrong name", "expired", "stranger") else "good"
    site = web.serve(
        {**{f"/{name.replace(' ', '')}": page for name, page in pages.items()}, **circle()}, certificate
    )
    with closed_port() as port:
        url = f"https://user:secret@127.0.0.1:{site.server_port}/{failure.replace(' ', '')}"
        url = url if failure != "down" else f"https://127.0.0.1:{port}/a"
        world = make_world(one_type("bad", user_data=url), one_type("good"))
        world.start()
        world.run(5)
    reason = f"user_data {url.replace('user:secret', '***')}: {FAILURES[failure]}"
    assert f"bad: not created: {reason}" in caplog.messages
    assert [spec.machinetype.name for spec in world.made] == ["good"]
    assert [path.name.split("_")[1] for path in world.directories()] == ["good"]
    assert list(world.state.tmp.iterdir()) == []
    assert world.status().failed["bad"].reason == reason
    told = list(reasons(world.status(), "bad", world.clock.now))
    assert f"bad: the last creation failed 5 s ago: {reason}" in told
    assert list(common.creation_failures(world.status(), None, world.clock.now)) == told[-1:]
    assert "secret" not in caplog.text


def test_a_server_that_answers_again_is_made_use_of(web: Web, make_world: MakeWorld) -> None:
    site = web.serve({"/a": Page(b"x", 500)})
    world = make_world(one_type(user_data=site.url("/a")))
    world.start()
    world.run(30)
    assert nothing_left(world)
    site.pages["/a"] = Page(TEMPLATE)
    world.run(120)
    assert len(world.running()) == 2
    assert world.status().failed == {}
    assert world.error() is None


def test_machines_see_neither_configuration_nor_tokens(
    make_world: MakeWorld,
) -> None:
    others = one_type("b", token_dir=Path("/srv/tokens/b"), target_share=0.0)
    world = make_world(one_type("a"), others)
    world.start()
    state = world.factory.state
    read = dataclasses.replace(world.configuration(), files=("/etc/vac.conf", "site.conf"))
    state.configuration = world._configuration = read
    world.run(60)
    assert world.made
    wanted = {Path("/etc/vac.conf"), Path("site.conf").absolute(), Path("/srv/tokens/b")}
    assert set(world.made[0].hidden) == wanted
