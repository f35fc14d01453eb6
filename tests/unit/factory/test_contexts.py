"""Machines whose user_data takes its time, or can't be had."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fake_driver import Script
from tests.https_server import HTML, Page, Web, circle, closed_port
from tests.simulated import World, broken, one_type
from tests.unit.factory.conftest import MakeWorld
from vac.background import in_thread
from vac.cli import common
from vac.cli.factory_commands import reasons
from vac.context import downloads, user_data
from vac.context.downloads import Limits
from vac.factory import effects
from vac.machines.requests import Drain, drain

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


def test_a_slot_is_taken_while_the_context_is_made_and_nothing_is_on_disk(make_world: MakeWorld) -> None:
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


@pytest.mark.parametrize("change", ["drain", "draining", "other type", "no type", "broken"])
def test_a_machine_that_is_no_longer_wanted_when_its_context_comes_is_not_made(
    make_world: MakeWorld, change: str
) -> None:
    world, waiting = slow_world(make_world)
    world.run(200)
    if change == "drain":
        drain(world.state, Drain(world.clock.now, None, ""))
    elif change == "draining":
        world.settings = type(world.settings)(**{**vars(world.settings), "draining": True})
    elif change == "broken":
        world.configuration_error = broken()
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
def test_a_template_that_cannot_be_had_fails_the_creation_with_its_own_reason(
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
