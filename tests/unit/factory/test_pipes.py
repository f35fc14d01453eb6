"""Vacuum Pipes in a factory: fetched in the background, kept through outages and restarts, followed at expiry."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake_driver import Script
from tests.hostile_pipes import CORPUS, GOOD
from tests.simulated import FACTORY, World
from tests.unit.factory.conftest import MakeWorld
from vac.config.load import Loader
from vac.config.pipe_types import document_path, record_path
from vac.context.downloads import DownloadFailed
from vac.factory.pipes import RETRY_SECONDS, Pipes
from vac.host.facts import HostFacts
from vac.machines import files

URL = "https://vo.example.org/pipe"
DOWN = DownloadFailed("the server can't be connected to", passing=True)


def document(*suffixes: str, cache_seconds: int = 600, **options: object) -> bytes:
    usual = {**GOOD, "user_data": "", "container_command": "/init", "fizzle_seconds": 0}
    entries = [{**usual, "suffix": suffix, **options} for suffix in suffixes]
    return json.dumps({"cache_seconds": cache_seconds, "machinetypes": entries}).encode()


class Site:
    """A factory in virtual time, with a configuration file and a web server of words."""

    def __init__(self, world: World, home: Path) -> None:
        self.world = world
        self.file = home / "vac.conf"
        self.answer: bytes | OSError = DOWN
        self.answers: dict[str, bytes | OSError] = {}
        """By URL, if they are not all the same."""
        self.asked: list[tuple[float, str]] = []
        self.spawn: Callable[[Callable[[], None]], object] = lambda work: work()
        host = HostFacts(FACTORY, 2, lambda name: None, lambda name: False)
        self.loader = Loader([self.file], lambda: host)
        world.configuration = lambda: self.loader.load(world.clock.now)
        self.configure(vo=URL)

    def configure(self, **urls: str) -> None:
        lines = [
            f"[settings]\nvac_space = space.example.org\nfactory_name = {FACTORY}",
            f"state_dir = {self.world.state.root}\noverload_per_processor = 1000000",
        ]
        lines += [
            f"[vacuum_pipe {name}]\nvacuum_pipe_url = {url}\ntarget_share = 1" for name, url in urls.items()
        ]
        self.file.write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        factory = self.world.start()
        factory.state.spawn = self.do
        factory.pipes = Pipes(factory.state, self.fetch)

    def do(self, work: Callable[[], None], name: str) -> None:
        self.spawn(work)

    def fetch(self, url: str) -> bytes:
        self.asked.append((self.world.clock.now, url))
        answer = self.answers.get(url, self.answer)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def types(self) -> list[str]:
        return list(self.world.factory.state.configuration.machinetypes)

    def trouble(self) -> str | None:
        self.world.run(5)
        return self.world.status().pipes["vo"]


@pytest.fixture
def site(make_world: MakeWorld, tmp_path: Path) -> Site:
    return Site(make_world(), tmp_path)


def test_types_appear_and_machines_run(site: Site) -> None:
    site.answer = document("prod", "mc")
    site.start()
    site.world.run(120)
    assert site.types() == ["vo-mc", "vo-prod"]
    assert len(site.world.running()) == 2
    assert site.trouble() is None
    assert {spec.machinetype.pipe for spec in site.world.made} == {"vo"}
    assert {spec.files for spec in site.world.made} == {site.world.state.machinetype_files("vo")}


def test_a_mistake_in_a_machinetype_stops_no_pipe(site: Site) -> None:
    right = site.file.read_text()
    site.file.write_text(right + "[machinetype own]\nmachine_model = odd\n")
    site.answer = document("a")
    site.start()
    site.world.run(120)
    assert [url for _, url in site.asked] == [URL]
    assert site.types() == ["own", "vo-a"]
    assert len(site.world.running()) == 2
    assert "machine_model" in site.world.state.factory_error.read_text()
    assert "machine_model" in site.world.status().problems[0]
    site.file.write_text(right)
    site.world.run(120)
    assert site.types() == ["vo-a"]
    assert len(site.asked) == 1
    assert not site.world.state.factory_error.exists()


def test_an_override_affects_no_other_type(site: Site) -> None:
    override = "[machinetype vo-multi]\nmin_processors = 2\n[settings]\nprocessors_per_superslot = 2\n"
    site.file.write_text(site.file.read_text() + override)
    site.answer = document("multi", max_processors=2)
    site.start()
    site.world.run(120)
    assert site.types() == ["vo-multi"]
    assert len(site.world.running()) == 1
    site.answer = document("renamed")
    site.world.run(1200)
    assert site.types() == ["vo-renamed"]
    assert site.world.status().problems == ()


def test_a_changed_document_is_followed_when_its_copy_expires(site: Site) -> None:
    site.answer = document("a")
    site.start()
    site.world.run(60)
    site.answer = document("b")
    site.world.run(500)
    assert site.types() == ["vo-a"]
    site.world.run(60)
    assert site.types() == ["vo-b"]
    assert len(site.asked) == 2


def test_machines_of_a_type_that_has_gone_live_on(site: Site) -> None:
    site.answer = document("a")
    site.start()
    site.world.run(120)
    running = site.world.running()
    site.answer = document()
    site.world.run(1200)
    assert site.types() == []
    assert site.world.running() == running


def test_the_same_document_again_is_no_news(site: Site) -> None:
    site.answer = document("a")
    site.start()
    site.world.run(120)
    before = site.world.factory.state.configuration
    path = document_path(site.world.state.pipescache, "vo")
    first_time = path.stat().st_mtime
    site.world.run(1200)
    assert site.world.factory.state.configuration is before
    assert path.stat().st_mtime > first_time
    assert len(site.asked) == 3


def test_nothing_changes_while_the_server_is_down(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.world.scripts = lambda spec: Script(300.0, "200 Success")
    site.answer = document("a")
    site.start()
    site.world.run(300)
    site.answer = DOWN
    made = len(site.world.made)
    site.world.run(7200)
    assert site.types() == ["vo-a"]
    assert len(site.world.made) > made + 20
    assert site.trouble() == "the server can't be connected to; the copy in the cache serves"
    said = [record.message for record in caplog.records if "pipe vo" in record.message]
    assert said.count(f"pipe vo: {URL}: {site.trouble()}") == 1
    site.answer = document("b")
    site.world.run(900)
    assert (site.types(), site.trouble()) == (["vo-b"], None)


def test_a_server_that_is_down_is_asked_less_and_less_often(site: Site) -> None:
    site.start()
    site.world.run(7200)
    times = [time for time, _ in site.asked]
    pauses = [later - earlier for earlier, later in zip(times, times[1:])]
    assert pauses[:4] == [RETRY_SECONDS, 2 * RETRY_SECONDS, 4 * RETRY_SECONDS, 8 * RETRY_SECONDS]
    assert set(pauses[4:]) == {900.0}


def test_a_restart_during_an_outage_loses_nothing(site: Site) -> None:
    site.answer = document("a")
    site.start()
    site.world.run(120)
    site.answer = DOWN
    site.world.run(930)  # the last of four attempts was 30 s ago
    asked = len(site.asked)
    site.start()
    assert site.types() == ["vo-a"]
    site.world.run(2)
    assert len(site.asked) == asked, "a failure of a moment ago is remembered too"
    assert site.trouble() == "the server can't be connected to; the copy in the cache serves"


def test_a_restart_does_not_ask_before_the_copy_expires(site: Site) -> None:
    site.answer = document("a")
    site.start()
    site.world.run(120)
    site.start()
    site.world.run(300)
    assert len(site.asked) == 1
    site.world.run(300)
    assert len(site.asked) == 2


@pytest.mark.parametrize("name", ["nothing", "HTML", "cut off", "NaN", "10 MB of blanks", "101 machinetypes"])
def test_a_bad_answer_never_replaces_a_good_copy(site: Site, name: str) -> None:
    site.answer = document("a")
    site.start()
    site.world.run(10)
    site.answer = CORPUS[name].content
    site.world.run(610, step=610)
    assert site.types() == ["vo-a"]
    trouble = site.trouble() or ""
    assert trouble.startswith("the document can't be used: $")
    assert trouble.endswith("; the copy in the cache serves")


def test_the_old_flat_format_gives_one_warning(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.answer = json.dumps({"target_share": 1.0, "user_data": "x", "machine_model": "docker"}).encode()
    site.start()
    site.world.run(3600)
    assert site.types() == []
    (said,) = [one.message for one in caplog.records if one.levelno >= logging.WARNING]
    assert said == (
        f"pipe vo: {URL}: the document can't be used: "
        '$: there is no list "machinetypes": the old flat format, or no pipe at all; it has no types; '
        "there is no copy in the cache"
    )


def test_a_server_that_never_answers_holds_up_nothing(site: Site) -> None:
    work: list[Callable[[], None]] = []
    site.spawn = work.append
    site.start()
    site.world.run(3600)
    assert len(work) == 1
    assert site.trouble() == "has not been fetched yet"
    site.answer = document("a")
    work.pop()()
    site.world.run(60)
    assert site.types() == ["vo-a"]


def test_another_url_is_another_pipe(site: Site) -> None:
    site.answer = document("a")
    site.start()
    site.world.run(60)
    site.answer = DOWN
    site.configure(vo=f"{URL}/v2")
    site.world.run(60)
    assert site.types() == []
    assert site.trouble() == "the server can't be connected to; there is no copy in the cache"
    site.start()
    assert site.types() == []
    site.answer = document("b")
    site.world.run(120)
    assert site.types() == ["vo-b"]
    assert site.asked[-1][1] == f"{URL}/v2"


def test_an_answer_from_an_earlier_url_is_not_used(site: Site) -> None:
    work: list[Callable[[], None]] = []
    site.spawn = work.append
    site.configure(vo=URL, nobody=URL)
    site.start()
    site.world.run(10)
    site.configure(vo=f"{URL}/v2")
    site.world.run(60)
    site.answer, site.answers[f"{URL}/v2"] = document("old"), DOWN
    for late in work:
        late()
    assert [url for _, url in site.asked] == [URL, URL, f"{URL}/v2"]
    site.world.run(10)
    assert site.types() == []


def test_a_pipe_that_is_configured_no_more_takes_its_types_along(site: Site) -> None:
    site.answer = document("a")
    site.start()
    site.world.run(120)
    site.configure()
    site.world.run(120)
    assert (site.types(), site.world.status().pipes) == ([], {})
    assert len(site.world.running()) == 2


def test_pipes_are_fetched_one_by_one(site: Site) -> None:
    site.configure(vo=URL, other=f"{URL}/other")
    site.answer = document("a")
    site.start()
    site.world.run(60)
    assert site.types() == ["other-a", "vo-a"]


def test_a_copy_can_be_read_by_root_only(site: Site) -> None:
    site.answer = document("a", user_data_option_secret="hunter2")
    site.start()
    site.world.run(10)
    cache = site.world.state.pipescache
    assert document_path(cache, "vo").read_bytes() == site.answer
    paths = (document_path(cache, "vo"), record_path(cache, "vo"))
    modes = [path.stat().st_mode & 0o777 for path in paths]
    assert modes == [0o600, 0o600]


def test_on_a_full_disk_the_old_copy_serves_and_it_is_said(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.answer = document("a")
    site.start()
    site.world.run(60)
    write = files.write_atomic

    def full(target: Path, content: bytes, **details: Any) -> None:
        if target.parent == site.world.state.pipescache:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        write(target, content, **details)

    monkeypatch.setattr(files, "write_atomic", full)
    site.answer = document("b")
    site.world.run(900)
    assert site.types() == ["vo-a"]
    assert "its copy can't be written: No space left on device" in (site.trouble() or "")
    site.answer = DOWN
    site.world.run(1200)
    assert "the server can't be connected to; its copy can't be written" in (site.trouble() or "")


def test_an_administrator_can_throw_a_copy_away(site: Site) -> None:
    site.answer = document("a", cache_seconds=100_000)
    site.start()
    site.world.run(60)
    site.answer = document("b")
    document_path(site.world.state.pipescache, "vo").unlink()
    site.start()
    site.world.run(60)
    assert site.types() == ["vo-b"]


def test_a_clock_that_is_set_back_does_not_keep_a_copy_for_years(site: Site) -> None:
    site.answer = document("a")
    site.start()
    site.world.run(60)
    site.world.clock.now -= 10_000_000
    site.answer = document("b")
    site.world.run(60)
    assert site.types() == ["vo-b"]
