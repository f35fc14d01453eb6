"""Machinetypes from the configured pipes' copies in the cache; the site's options override the document's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.hostile_pipes import CORPUS, GOOD, REFUSED, Hostile
from vac.config.load import Configuration, Loader, load
from vac.config.machinetype import Machinetype, VacuumPipe
from vac.config.pipe_document import parse_pipe
from vac.config.pipe_types import (
    DIRECTORY,
    LEAST_CACHE_SECONDS,
    MOST_REPOSITORIES,
    PipeCopy,
    document_path,
    read_copy,
    record,
    record_path,
    review,
)
from vac.host.facts import HostFacts
from vac.machines.layout import StateDir

URL = "https://vo.example.org/pipe"
PIPE = f"[vacuum_pipe vo]\nvacuum_pipe_url = {URL}\ntarget_share = 6\n"
WORKING = {"machine_model": "docker", "root_image": "docker://vo/pilot", "user_data": "user_data"}


class Site:
    """A factory's configuration file and its cache of pipes."""

    def __init__(self, home: Path, host: HostFacts) -> None:
        self.host = host
        self.file = home / "vac.conf"
        self.state = home / "state"
        self.cache = self.state / DIRECTORY
        self.cache.mkdir(parents=True)

    def cached(self, content: bytes | dict[str, Any], prefix: str = "vo", url: str = URL) -> None:
        """Put a document into the cache, as the factory does."""
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        record_path(self.cache, prefix).write_bytes(record(url))
        document_path(self.cache, prefix).write_bytes(text)

    def write(self, sections: str, settings: str = "") -> None:
        head = f"[settings]\nvac_space = vac01.example.org\nstate_dir = {self.state}\n{settings}\n"
        self.file.write_text(head + sections)

    def load(self, sections: str, settings: str = "") -> Configuration:
        self.write(sections, settings)
        return load([self.file], self.host)

    def types(self, sections: str, settings: str = "") -> dict[str, Machinetype]:
        return dict(self.load(sections, settings).machinetypes)


@pytest.fixture
def site(tmp_path: Path, host: HostFacts) -> Site:
    return Site(tmp_path, host)


def entries(*found: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"machinetypes": [{**WORKING, **one} for one in found], **more}


def test_each_entry_becomes_a_machinetype(site: Site) -> None:
    site.cached(entries({"suffix": "prod", "target_share": 1, "accounting_fqan": "/vo"}, {"suffix": "mc"}))
    types = site.types(PIPE)
    assert list(types) == ["vo-mc", "vo-prod"]
    prod = types["vo-prod"]
    assert (prod.name, prod.pipe, prod.machinegroup, prod.accounting_fqan) == ("vo-prod", "vo", "/vo", "/vo")
    assert (prod.machine_model, prod.root_image, prod.user_data) == (
        "docker",
        "docker://vo/pilot",
        "user_data",
    )
    assert (prod.max_wallclock_seconds, prod.min_wallclock_seconds) == (86400, 86400)
    assert types["vo-mc"].machinegroup == "vo-mc"


@pytest.mark.parametrize(
    ("shares", "more", "expected"),
    [
        ((1, 2), "", (2, 4)),
        ((1, None), "", (6, 0)),
        ((None, None), "", (0, 0)),
        ((1e-300, 1e-300), "", (3, 3)),
        ((1e9, 1e9), "", (3, 3)),
        ((1, 2), "[machinetype vo-b]\ntarget_share = 100\n", (2, 100)),
        ((1, 2), "[machinetype vo-b]\ntarget_share = 0\n", (2, 0)),
        ((1, 2), "[machinetype vo-b]\nmax_processors = 2\n", (2, 4)),
        (("0.5", "0.5"), "", (3, 3)),
    ],
)
def test_shares_divide_that_of_the_pipe(
    site: Site, shares: tuple[object, object], more: str, expected: tuple[float, float]
) -> None:
    given = [{} if share is None else {"target_share": share} for share in shares]
    site.cached(entries({"suffix": "a", **given[0]}, {"suffix": "b", **given[1]}))
    types = site.types(PIPE + more)
    assert (types["vo-a"].target_share, types["vo-b"].target_share) == pytest.approx(expected)


def test_what_is_left_out_has_no_share(site: Site) -> None:
    bad = {"suffix": "bad", "target_share": 3, "user_data": "/etc/shadow"}
    unfit = {"suffix": "unfit", "target_share": 2, "min_processors": 4}
    site.cached(entries({"suffix": "a", "target_share": 1}, bad, unfit))
    assert {name: one.target_share for name, one in site.types(PIPE).items()} == {"vo-a": 6}


def test_a_pipe_without_a_share_has_types_of_which_none_are_made(site: Site) -> None:
    site.cached(entries({"suffix": "a", "target_share": 1}))
    assert site.types(PIPE.replace("target_share = 6\n", ""))["vo-a"].target_share == 0


MULTI = "[machinetype vo-multi]\ntarget_share = 2\nmin_processors = 2\n"
OWN = "[machinetype own]\ntarget_share = 1\nmachine_model = docker\nroot_image = docker://x\nuser_data = u\n"
FLAWED = {"suffix": "multi", "max_processors": 2, "user_data": "/etc/shadow"}


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(None, id="not fetched yet"),
        pytest.param(entries({"suffix": "renamed", "max_processors": 2}), id="suffix gone"),
        pytest.param(entries(FLAWED), id="entry flawed"),
        pytest.param(entries({"suffix": "multi", "disk_gb_per_processor": 99}), id="doesn't fit the site"),
    ],
)
def test_an_override_that_needs_its_entry_is_left_out_without_it(
    site: Site, document: dict[str, Any] | None
) -> None:
    if document is not None:
        site.cached(document)
    configuration = site.load(PIPE + MULTI + OWN, "disk_gb_per_processor = 20")
    assert [name for name in configuration.machinetypes if name != "vo-renamed"] == ["own"]
    text = "[machinetype vo-multi] min_processors: the machinetype is left out, since pipe vo doesn't give it now, "
    (warning,) = [str(each) for each in configuration.warnings if "doesn't give it" in str(each)]
    assert warning.startswith(f"{site.file}: {text}and by itself max_processors (1), its default, is below")
    site.cached(entries({"suffix": "multi", "max_processors": 2}))
    assert site.types(PIPE + MULTI)["vo-multi"].min_processors == 2


def test_a_sites_own_mistakes_stay_errors(site: Site) -> None:
    for section in (MULTI.replace("vo-", "other-"), MULTI.replace("= 2\n", "= two\n")):
        configuration = site.load(PIPE + section)
        assert "min_processors" in [error.option for error in configuration.errors]
        assert any("-multi" in name for name in configuration.unusable)


def test_a_complete_machinetype_below_a_prefix_needs_no_entry(site: Site) -> None:
    types = site.types(PIPE + OWN.replace("own", "vo-own"))
    assert (list(types), types["vo-own"].pipe) == (["vo-own"], None)


def test_a_mistake_in_a_machinetype_or_pipe_leaves_other_pipes(site: Site) -> None:
    site.cached(entries({"suffix": "prod"}))
    broken = "[machinetype a]\nmachine_model = odd\n[vacuum_pipe b]\nvacuum_pipe_url = odd\n"
    configuration = site.load(PIPE + broken)
    assert list(configuration.pipes) == ["vo"]
    assert list(configuration.machinetypes) == ["a", "vo-prod"]
    assert len(configuration.errors) == 2


@pytest.mark.parametrize(
    ("pipe", "local", "expected"),
    [
        ("", "", 100),
        ("backoff_seconds = 200", "", 200),
        ("", "backoff_seconds = 300", 300),
        ("backoff_seconds = 200", "backoff_seconds = 300", 300),
    ],
)
def test_the_sites_word_is_last(site: Site, pipe: str, local: str, expected: int) -> None:
    site.cached(entries({"suffix": "a", "backoff_seconds": 100}))
    sections = f"{PIPE}{pipe}\n" + (f"[machinetype vo-a]\n{local}\n" if local else "")
    assert site.types(sections)["vo-a"].backoff_seconds == expected


def test_a_machinetype_of_the_site_alone_stays_one(site: Site) -> None:
    site.cached(entries({"suffix": "a"}))
    types = site.types(PIPE + "[machinetype vo-own]\nmachine_model = docker\n[machinetype other]\n")
    assert {name: one.pipe for name, one in types.items()} == {"vo-a": "vo", "vo-own": None, "other": None}


@pytest.mark.parametrize(
    ("settings", "document", "pipe", "local", "option", "file"),
    [
        ("option_x = s", {}, "", "", "s", None),
        ("option_x = s", {"user_data_option_x": "d"}, "", "", "d", None),
        ("option_x = s", {"user_data_file_x": "d"}, "", "", None, "d"),
        ("file_x = /s", {"user_data_option_x": "d"}, "", "", "d", "/s"),
        ("", {"user_data_option_x": "d"}, "option_x = p", "", "p", None),
        ("", {"user_data_option_x": "d"}, "file_x = /p", "", None, "/p"),
        ("", {"user_data_file_x": "d"}, "option_x = p", "", "p", "d"),
        ("", {"user_data_option_x": "d"}, "option_x = p", "file_x = /l", None, "/l"),
        ("", {"user_data_file_x": "d"}, "file_x = /p", "option_x = l", "l", "/p"),
    ],
)
def test_texts_and_files_for_user_data_follow_the_same_order(
    site: Site,
    settings: str,
    document: dict[str, str],
    pipe: str,
    local: str,
    option: str | None,
    file: str | None,
) -> None:
    """An option wins over a file of the same name in user_data, so a lower option must not stay under a file."""
    site.cached(entries({"suffix": "a", **document}))
    line = {text: f"user_data_{text}\n" if text else "" for text in (settings, pipe, local)}
    kind = site.types(f"{PIPE}{line[pipe]}[machinetype vo-a]\n{line[local]}", line[settings])["vo-a"]
    assert (kind.user_data_options.get("x"), kind.user_data_files.get("x")) == (option, file)


def test_the_site_may_widen_what_a_pipe_may_not(site: Site) -> None:
    site.cached(entries({"suffix": "a", "container_network": "host", "root_image": "docker://vo/x"}))
    assert site.types(PIPE)["vo-a"].container_network == "bridge"
    widened = f"{PIPE}container_network = host\n[machinetype vo-a]\nroot_image = /\n"
    kind = site.types(widened)["vo-a"]
    assert (kind.container_network, kind.root_image) == ("host", "/")


def test_a_pipe_can_lower_the_disk_but_not_exceed_it(site: Site) -> None:
    site.cached(
        entries({"suffix": "a", "disk_gb_per_processor": 10}, {"suffix": "b", "disk_gb_per_processor": 30})
    )
    configuration = site.load(PIPE, "disk_gb_per_processor = 20")
    assert {name: one.disk_gb_per_processor for name, one in configuration.machinetypes.items()} == {
        "vo-a": 10
    }
    assert any("30 is more than the 20 of [settings]" in str(each) for each in configuration.warnings)


def test_a_pipe_has_no_say_in_another_pipes_name_space(site: Site) -> None:
    inner = f"[vacuum_pipe vo-sub]\nvacuum_pipe_url = {URL}2\ntarget_share = 1\n"
    site.cached(entries({"suffix": "sub-a", "backoff_seconds": 1}, {"suffix": "b"}))
    site.cached(entries({"suffix": "a", "backoff_seconds": 2}), "vo-sub", f"{URL}2")
    configuration = site.load(PIPE + inner)
    assert {name: one.pipe for name, one in configuration.machinetypes.items()} == {
        "vo-b": "vo",
        "vo-sub-a": "vo-sub",
    }
    assert configuration.machinetypes["vo-sub-a"].backoff_seconds == 2
    (warning,) = configuration.warnings
    assert str(warning) == (
        f"{URL}: [vacuum_pipe vo] $.machinetypes[0].suffix: "
        "the machinetype is left out: vo-sub-a belongs to [vacuum_pipe vo-sub]"
    )


def test_what_no_machine_can_be_made_of_is_said(site: Site) -> None:
    site.cached({"machinetypes": [{"suffix": "a", "target_share": 1, "machine_model": "docker"}]})
    configuration = site.load(PIPE)
    assert configuration.unusable == {"vo-a": "machine_model = docker needs a root_image"}


def test_many_flaws_are_not_all_said(site: Site) -> None:
    site.cached(entries({"suffix": "a", **{f"k{number}": 1 for number in range(1000)}}))
    warnings = site.load(PIPE).warnings
    assert len(warnings) == 21
    assert "and 81 more warnings; `vac pipe check` on its URL tells them all" in str(warnings[-1])


def test_a_password_in_the_url_is_not_said(site: Site) -> None:
    url = "https://me:hunter2@vo.example.org/pipe"
    site.cached(entries({"suffix": "a", "odd": 1}, {"suffix": 1}), url=url)
    configuration = site.load(PIPE.replace(URL, url))
    assert list(configuration.machinetypes) == ["vo-a"]
    assert "hunter2" not in str(configuration.warnings)
    assert b"hunter2" not in record_path(site.cache, "vo").read_bytes()


LOCAL = (
    "[machinetype local]\ntarget_share = 1\nmachine_model = docker\nroot_image = docker://x\nuser_data = u\n"
)
OTHER = "[vacuum_pipe evil-sub]\nvacuum_pipe_url = https://example.org/other\ntarget_share = 2\n"
EVIL = "[vacuum_pipe evil]\nvacuum_pipe_url = https://example.org/evil\ntarget_share = 3\n"


@pytest.mark.parametrize("hostile", [pytest.param(hostile, id=name) for name, hostile in CORPUS.items()])
def test_a_hostile_document_hurts_nobody_else(site: Site, hostile: Hostile) -> None:
    """Local types and other pipes' are what they were without it; its own are in its name space and tame."""
    settings = "user_data_option_secret = hunter2\ndisk_gb_per_processor = 20"
    other = entries({"suffix": "x", "target_share": 1})
    site.cached(other, "evil-sub", "https://example.org/other")
    before = site.load(LOCAL + OTHER, settings)
    files = sorted(path for path in site.state.rglob("*"))
    site.cached(hostile.content, "evil", "https://example.org/evil")
    configuration = site.load(LOCAL + OTHER + EVIL, settings)
    mine = {name: one for name, one in configuration.machinetypes.items() if one.pipe == "evil"}
    others = {name: one for name, one in configuration.machinetypes.items() if one.pipe != "evil"}
    assert others == before.machinetypes
    assert set(mine) <= ({"evil-good", "evil-bad"} if hostile.fate != REFUSED else set())
    assert ("evil-good" in mine) == (hostile.fate != REFUSED)
    for one in mine.values():
        assert (one.container_network, one.container_user, one.container_nested, one.token_dir) == (
            "bridge",
            None,
            False,
            None,
        )
        assert one.container_capabilities == Machinetype.container_capabilities
        assert sum(each.target_share for each in mine.values()) <= 3 * (1 + 1e-9)
    assert configuration.warnings
    assert all(str(warning).isprintable() for warning in configuration.warnings)
    assert set(site.state.rglob("*")) - set(files) == {
        document_path(site.cache, "evil"),
        record_path(site.cache, "evil"),
    }


def test_the_corpus_s_good_type_is_good(site: Site) -> None:
    site.cached({"machinetypes": [GOOD]})
    configuration = site.load(PIPE)
    assert (configuration.warnings, configuration.unusable) == ((), {})


class TestCopies:
    """Copies of pipes in the cache, and their states."""

    def read(self, site: Site, url: str = URL) -> PipeCopy:
        return read_copy(site.cache, VacuumPipe("vo", url))

    def test_there_is_nothing_before_the_first_fetch(self, site: Site) -> None:
        copy = self.read(site)
        assert (copy.document, copy.fetched_time, copy.trouble()) == (None, None, "has not been fetched yet")
        assert copy.due(0)

    def test_a_copy_serves_for_its_time(self, site: Site) -> None:
        site.cached({"machinetypes": [], "cache_seconds": 100})
        os.utime(document_path(site.cache, "vo"), (1000, 1000))
        copy = self.read(site)
        assert (copy.fetched_time, copy.trouble()) == (1000, None)
        assert [copy.due(now) for now in (999, 1000, 1099, 1100)] == [True, False, False, True]

    def test_no_document_is_asked_for_all_the_time(self, site: Site) -> None:
        site.cached({"machinetypes": [], "cache_seconds": 0})
        assert self.read(site).cache_seconds == LEAST_CACHE_SECONDS

    def test_a_copy_of_another_url_does_not_serve(self, site: Site) -> None:
        site.cached({"machinetypes": [GOOD]})
        assert self.read(site, "https://example.org/").document is None
        assert site.types(PIPE.replace("vo.example.org", "example.org")) == {}

    def test_a_url_may_hold_bytes_that_are_no_text(self, site: Site) -> None:
        url = "https://vo.example.org/\udce9"
        site.cached({"machinetypes": [GOOD]}, url=url)
        assert self.read(site, url).document is not None

    def test_a_copy_that_a_classic_factory_has_left_serves(self, site: Site) -> None:
        site.cached({"machinetypes": [GOOD]})
        record_path(site.cache, "vo").unlink()
        assert list(site.types(PIPE)) == ["vo-good"]

    def test_a_failure_is_told_with_what_serves(self, site: Site) -> None:
        record_path(site.cache, "vo").write_bytes(record(URL, "the server is on fire", 123.0))
        assert self.read(site).trouble() == "the server is on fire; there is no copy in the cache"
        document_path(site.cache, "vo").write_bytes(b'{"machinetypes": []}')
        copy = self.read(site)
        assert copy.trouble() == "the server is on fire; the copy in the cache serves"
        assert copy.failure_time == 123.0

    @pytest.mark.parametrize(
        "damage",
        [
            b"",
            b"{",
            b"[]",
            b"\xff",
            b'{"failure": 3, "failure_time": "x"}',
            b'{"failure": "x", "failure_time": NaN}',
        ],
    )
    def test_a_damaged_record_costs_nothing(self, site: Site, damage: bytes) -> None:
        site.cached({"machinetypes": [GOOD]})
        record_path(site.cache, "vo").write_bytes(damage)
        copy = self.read(site)
        assert copy.document is not None
        assert copy.failure is None

    def test_a_damaged_copy_counts_as_none_and_is_said(self, site: Site) -> None:
        site.cached(b'{"machinetypes": [')
        configuration = site.load(PIPE)
        assert configuration.machinetypes == {}
        (warning,) = configuration.warnings
        assert "can't be used: $: is not JSON" in str(warning)
        assert configuration.copies["vo"].due(0)

    def test_a_copy_that_can_not_be_read_is_said(self, site: Site) -> None:
        document_path(site.cache, "vo").mkdir()
        (warning,) = site.load(PIPE).warnings
        assert "can't be read: Is a directory" in str(warning)

    def test_the_layout_knows_the_same_directory(self, site: Site) -> None:
        assert StateDir(site.state).pipescache == site.cache


def test_a_pipe_has_only_so_many_repositories(site: Site) -> None:
    most = [f"r{number}.example.org" for number in range(MOST_REPOSITORIES)]
    found: list[dict[str, Any]] = [
        {"suffix": "a", "cvmfs_repositories": most[:-1]},
        {"suffix": "b", "cvmfs_repositories": [most[0], "x.example.org", "y.example.org"]},
        {"suffix": "c", "root_image": "/cvmfs/x.example.org/image"},
        {"suffix": "d", "root_image": "/cvmfs/y.example.org/image"},
        {"suffix": "e", "cvmfs_repositories": most[:2]},
    ]
    site.cached(entries(*found))
    configuration = site.load(PIPE)
    assert sorted(configuration.machinetypes) == ["vo-a", "vo-c", "vo-e"]
    warned = [str(each) for each in configuration.warnings if "CernVM-FS repositories" in str(each)]
    assert len(warned) == 2
    assert "[machinetype vo-b] cvmfs_repositories: the machinetype is left out: with it" in warned[0]
    flaws = [flaw for flaw in review(parse_pipe(json.dumps(entries(*found)).encode())) if flaw.serious]
    assert [flaw.path for flaw in flaws] == [
        "$.machinetypes[1].cvmfs_repositories",
        "$.machinetypes[3].cvmfs_repositories",
    ]


def test_a_new_copy_is_noticed_and_one_that_says_the_same_is_no_news(site: Site) -> None:
    site.write(PIPE)
    loader = Loader([site.file], lambda: site.host)
    first = loader.load(0)
    assert first.machinetypes == {}
    site.cached(entries({"suffix": "a"}))
    second = loader.load(1)
    assert list(second.machinetypes) == ["vo-a"]
    assert second.digest != first.digest
    os.utime(document_path(site.cache, "vo"), (1, 1))
    assert loader.load(2) is second
    site.cached(entries({"suffix": "b"}))
    assert list(loader.load(3).machinetypes) == ["vo-b"]
    document_path(site.cache, "vo").unlink()
    assert loader.load(4).machinetypes == {}
