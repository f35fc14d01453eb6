"""`vac pipe`: what an experiment is told of its document, and a site of its pipes."""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from tests.hostile_pipes import CORPUS, GOOD, IGNORED, REFUSED, UNFIT, Hostile
from tests.https_server import HTML, Page, Web
from vac.cli import config_commands, doctor
from vac.cli import main as command
from vac.cli.doctor_engines import Finding
from vac.config.pipe_types import DIRECTORY, document_path, record, record_path
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.machines.status import Status

URL = "https://me:hunter2@vo.example.org/pipe"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with two pipes, of which one has a copy."""
    path = tmp_path / "vac.conf"
    path.write_text(
        "[settings]\nvac_space = vac01.example.org\nfactory_name = vac-01.example.org\nvacquery_port = 9\n"
        f"state_dir = {tmp_path / 'state'}\n"
        f"[vacuum_pipe vo]\nvacuum_pipe_url = {URL}\ntarget_share = 2\n"
        "[vacuum_pipe new]\nvacuum_pipe_url = https://new.example.org/\n"
    )
    cache = tmp_path / "state" / DIRECTORY
    cache.mkdir(parents=True)
    document = {"cache_seconds": 7200, "machinetypes": [GOOD, {"suffix": "bad", "user_data": "/etc/shadow"}]}
    document_path(cache, "vo").write_text(json.dumps(document))
    fetched_time = time.time() - 3600
    os.utime(document_path(cache, "vo"), (fetched_time, fetched_time))
    record_path(cache, "vo").write_bytes(record(URL, "the server can't be connected to", time.time()))
    return path


def run(*words: str) -> int:
    return command.main(words)


def check(tmp_path: Path, content: bytes, *more: str) -> int:
    path = tmp_path / "document"
    path.write_bytes(content)
    return run("pipe", "check", str(path), *more)


def test_a_right_document_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, json.dumps({"machinetypes": [GOOD]}).encode()) == 0
    assert capsys.readouterr().out == (
        "The document can be used: 1 machinetype (good), asked for again after 3600 s: 0 errors, 0 warnings.\n"
    )


def test_every_problem_is_told_with_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [
        GOOD,
        {**GOOD, "suffix": "a b", "fizzle_seconds": "x"},
        {**GOOD, "suffix": "big", "min_processors": 8, "max_processors": 4, "min_wallclock_seconds": 60},
        {"suffix": "odd", "container_network": "host", "machine_model": "docker"},
    ]
    assert check(tmp_path, json.dumps({"machinetypes": entries}).encode()) == 1
    assert capsys.readouterr().out.splitlines() == [
        "error: $.machinetypes[1].suffix: 'a b' is not a name of a-z, 0-9 and -",
        "error: $.machinetypes[1].fizzle_seconds: 'x' is not an integer, 0 or more",
        "error: $.machinetypes[2].max_processors: max_processors (4) is below min_processors (8)",
        (
            "warning: $.machinetypes[3].container_network: can't be set by a pipe, only by the site; "
            "it is ignored"
        ),
        "warning: $.machinetypes[3]: machine_model = docker needs a root_image; sites would have to add it",
        (
            "The document can be used: 2 machinetypes (good, odd), asked for again after 3600 s: "
            "3 errors, 2 warnings."
        ),
    ]


NO_MACHINE: list[tuple[dict[str, Any], str]] = [
    (
        {"machine_model": "singularity"},
        "root_image: singularity takes http:// and https:// URLs and paths only as root_image",
    ),
    ({"machine_model": "cernvm4"}, "root_image: cernvm4 takes http:// and https:// URLs and paths only"),
    (
        {"root_image": "docker://A/B:bad:tag"},
        "root_image: 'docker://A/B:bad:tag' is not the name of an image",
    ),
    (
        {"machine_model": "singularity", "root_image": "/cvmfs/x.org/i", "tmp_binds": "/tmp /a /dev"},
        "tmp_binds: /tmp, /dev of tmp_binds can't be fresh directories in a singularity machine; leave them out",
    ),
    (
        {"image_signing_dn": "/CN=x$"},
        "image_signing_dn: signatures of docker images (image_signing_dn) can't be checked, only VMs'; leave it out",
    ),
]


@pytest.mark.parametrize(("options", "words"), NO_MACHINE)
def test_a_type_of_which_no_site_could_make_a_machine_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], words: str
) -> None:
    entries = [GOOD, {**GOOD, **options, "suffix": "odd"}]
    assert check(tmp_path, json.dumps({"machinetypes": entries}).encode()) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"error: $.machinetypes[1].{words}")
    assert "1 machinetype (good)" in last


@pytest.mark.parametrize(
    ("shares", "warning"),
    [
        ([], "$.machinetypes: there is none: sites create nothing"),
        ([0, None], "$.machinetypes: none has a target_share above 0: sites that set none create nothing"),
        ([0, 1], None),
    ],
)
def test_a_document_that_has_nothing_created_is_warned_about(
    shares: list[object], warning: str | None
) -> None:
    entries = [{**GOOD, "suffix": f"x{n}", "target_share": share} for n, share in enumerate(shares)]
    for entry in entries:
        if entry["target_share"] is None:
            del entry["target_share"]
    verdict = config_commands.examine(json.dumps({"machinetypes": entries}).encode())
    assert [str(flaw) for flaw in verdict.flaws] == ([warning] if warning else [])
    assert verdict.right


def test_a_warning_alone_is_no_failure(tmp_path: Path) -> None:
    assert check(tmp_path, json.dumps({"machinetypes": [GOOD], "comment": "hello"}).encode()) == 0


def test_programs_get_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [GOOD, {**GOOD, "suffix": "x", "user_data": "../y"}]
    assert check(tmp_path, json.dumps({"machinetypes": entries}).encode(), "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["valid"], found["suffixes"], found["cache_seconds"]) == (False, ["good"], 3600)
    assert [each["path"] for each in found["errors"]] == ["$.machinetypes[1].user_data"]


@pytest.mark.parametrize("fate", sorted({hostile.fate for hostile in CORPUS.values()}))
def test_hostile_documents_fail_and_keep_the_terminal_tidy(fate: str) -> None:
    for hostile in CORPUS.values():
        if hostile.fate == fate:
            check_tidy(hostile)


def check_tidy(hostile: Hostile) -> None:
    verdict = config_commands.examine(hostile.content)
    lines = [*config_commands.verdict_lines(verdict)]
    assert not verdict.right or hostile.fate in (IGNORED, UNFIT)
    assert all(line.isprintable() for line in lines)
    assert lines[-1].startswith("The document can't be used") == (hostile.fate == REFUSED)
    assert lines[0].startswith(("error: $", "warning: $", "The document can be used"))


def test_a_missing_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pipe", "check", str(tmp_path / "nothing")) == 1
    assert "no such file" in capsys.readouterr().err


def test_a_url_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with Web(tmp_path) as web:
        monkeypatch.setenv("SSL_CERT_FILE", str(web.ca_file))
        pages = {
            "/pipe": Page(json.dumps({"machinetypes": [GOOD]}).encode()),
            "/login": Page(HTML),
            "/large": Page(b" " * 2_000_000),
        }
        site = web.serve(pages)
        assert run("pipe", "check", site.url("/pipe")) == 0
        assert "1 machinetype (good)" in capsys.readouterr().out
        expected = {
            "/login": "error: $: is HTML or XML instead of JSON",
            "/large": "error: $: can't be fetched: larger than 1048576 bytes",
            "/nothing": "error: $: can't be fetched: the server answers with status 404",
        }
        for path, words in expected.items():
            assert run("pipe", "check", site.url(path)) == 1
            assert capsys.readouterr().out.startswith(words)


def test_show_tells_what_a_site_wants_to_know(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", str(config), "pipe", "show") == 0
    out = capsys.readouterr().out
    new, vo = out.split("\n\n")
    assert new.splitlines() == ["[vacuum_pipe new] https://new.example.org/", "  no copy"]
    lines = vo.splitlines()
    assert lines[0] == "[vacuum_pipe vo] https://***@vo.example.org/pipe"
    assert "60 min old, asked for again in 60 min" in lines[1]
    assert lines[2].startswith("  last attempt failed (")
    assert lines[2].endswith("): the server can't be connected to")
    assert lines[3] == "  vo-good  share 2  docker  docker://example.org/pilot:1"
    assert "the machinetype is left out: '/etc/shadow' is not" in lines[4]
    assert "hunter2" not in out


def test_show_keeps_an_image_s_password(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = "https://me:hunter2@vo.example.org/image.tar"
    path = document_path(config.parent / "state" / DIRECTORY, "vo")
    path.write_text(json.dumps({"machinetypes": [{**GOOD, "root_image": image}]}))
    assert run("--config", str(config), "pipe", "show", "vo") == 0
    assert "vo-good  share 2  docker  https://***@vo.example.org/image.tar\n" in capsys.readouterr().out


def test_show_for_programs(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", str(config), "pipe", "show", "--json", "vo") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["vo"]
    assert found["vo"]["machinetypes"] == {"vo-good": {"target_share": 2.0, "machine_model": "docker"}}
    assert found["vo"]["failure"] == "the server can't be connected to"
    assert len(found["vo"]["warnings"]) == 1


def test_a_pipe_that_is_not_configured_is_told(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", str(config), "pipe", "show", "vo", "nobody") == 1
    assert "vac: there is no [vacuum_pipe nobody]" in capsys.readouterr().err


def test_config_check_tells_what_is_the_matter_with_pipes(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--config", str(config), "config", "check") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "note: [vacuum_pipe new]: has not been fetched yet" in lines
    assert "note: [vacuum_pipe vo]: the server can't be connected to; the copy in the cache serves" in lines
    assert lines[-1].startswith("The configuration can be used (1 machinetype, 2 pipes)")
    assert run("--config", str(config), "config", "check", "--json") == 0
    pipes = json.loads(capsys.readouterr().out)["pipes"]
    assert pipes["new"] == "has not been fetched yet"


def test_doctor_tells_it_too(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*arguments: object, **keywords: object) -> tuple[Finding, ...]:
        return ()

    for part in ("_host", "_peers", "_model", "_machinetype"):
        monkeypatch.setattr(doctor, part, nothing)
    found = {finding.what: finding for finding in doctor.examine(Namespace(config=[config]))}
    assert found["pipe new"].problem == "has not been fetched yet"
    assert (found["pipe vo"].problem or "").startswith("the server can't be connected to")
    assert not found["pipe vo"].serious


def test_config_show_says_where_a_type_comes_from(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", str(config), "config", "show") == 0
    assert "# from [vacuum_pipe vo]\n[machinetype vo-good]\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [([], ["odd", "vo"]), (["vo-prod"], ["vo"]), (["local"], [])],
)
def test_machinetypes_tells_what_is_the_matter_with_pipes(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: list[str]
) -> None:
    pipes = {"vo": "the server can't be connected to; the copy in the cache serves", "well": None, "odd": "x"}
    state = StateDir(config.parent / "state")
    state.prepare()
    statuses.write(state, Status(factory="f1", pipes=pipes))
    run("--config", str(config), "machinetypes", "-t", "0.1", *words)
    lines = [line for line in capsys.readouterr().err.splitlines() if "pipe" in line]
    assert lines == [f"On f1, pipe {name}: {pipes[name]}" for name in told]
