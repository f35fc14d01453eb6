"""Vacuum Pipes served over HTTPS to a factory with real machines: what it takes up, and what it survives."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.engines.docker_fixture import IMAGE, PrivateDocker
from tests.engines.factory_fixture import AT_ONCE, Kind
from tests.engines.libvirt_fixture import PrivateLibvirt
from tests.engines.pipe_fixture import PATIENCE, piped
from tests.engines.process_site import make_tree
from tests.hostile_pipes import CORPUS, REFUSED
from tests.https_server import HTML, Page, circle, closed_port

pytestmark = pytest.mark.engine

LASTING = """#!/bin/sh
features='##user_data_jobfeatures_url##' outputs='##user_data_joboutputs_url##'
case $features in
http://*) until wget -q -O /dev/null "$features/end"; do sleep 1; done; put shutdown_message '200 told to end' ;;
*) until [ -e "$features/end" ]; do sleep 0.2; done; echo '200 told to end' > "$outputs/shutdown_message" ;;
esac
"""
CACHE_SECONDS = 5


def document(*entries: Mapping[str, object]) -> bytes:
    return json.dumps({"cache_seconds": str(CACHE_SECONDS), "machinetypes": entries}).encode()


def entry(suffix: str, model: str, **options: object) -> dict[str, object]:
    """A machinetype whose numbers are texts, as some generators write them."""
    return {
        "suffix": suffix,
        "machine_model": model,
        "target_share": "1",
        "user_data": "lasting",
        "backoff_seconds": "5",
        "fizzle_seconds": "3",
        "max_wallclock_seconds": "3600",
        **options,
    }


DOCKED = entry("docked", "docker", root_image=f"docker://{IMAGE}")
BOXED = entry("boxed", "singularity", root_image="busybox")
VM = entry("vm", "cernvm4", root_image="boot.iso", disk_gb_per_processor="1")
BUBBLE = entry("bubble", "bubblewrap")
EXTRA = entry("extra", "docker", root_image=f"docker://{IMAGE}")


def test_a_pipe_over_its_life(tmp_path: Path) -> None:
    """Types appear, machines run, the pipe changes, types follow; the server goes, and nothing changes."""
    own = "[machinetype vo-docked]\nmax_wallclock_seconds = 1800\n"
    pages = {"/pipe": Page(document(DOCKED, BOXED, VM))}
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(contextlib.closing(PrivateDocker()))
        hypervisor = stack.enter_context(contextlib.closing(PrivateLibvirt()))
        site = stack.enter_context(piped(tmp_path, pages, 6, hypervisor))
        make_tree(site.factory.state.machinetype_files("vo") / "busybox")
        site.add_file("lasting", LASTING)
        site.configure(
            {"vo": site.server.url("/pipe")}, own, docker_host=engine.url, singularity_user="nobody"
        )
        site.start_ready("vo-boxed", "vo-docked", "vo-vm")
        assert site.types() == ["vo-boxed", "vo-docked", "vo-vm"]
        site.wait_for_machines(boxed=2, docked=2, vm=2)
        facts = site.factory.status().machinetype("vo-docked")
        assert facts is not None
        assert facts.target_share == pytest.approx(1 / 3)
        assert (facts.fizzle_seconds, facts.max_wallclock_seconds) == (3, 1800)

        before = {machine.uuid for machine in site.factory.running()}
        site.server.pages["/pipe"] = Page(document(DOCKED, BOXED, EXTRA))
        site.wait_for_types("vo-boxed", "vo-docked", "vo-extra")
        assert {machine.uuid for machine in site.factory.running()} == before, "machines live on"
        for machine in site.factory.running("vo-vm"):
            site.end(machine)
        site.wait_for_machines(boxed=2, docked=2, extra=2, vm=0)

        site.server.pages["/pipe"] = Page(HTML)
        site.wait_for_trouble("vo", "is HTML or XML instead of JSON")
        types = ["vo-boxed", "vo-docked", "vo-extra"]
        assert site.types() == types

        site.server.close()
        site.factory.stop()
        site.start()
        site.wait_for_types(*types)
        (machine, *_) = site.factory.running("vo-extra")
        site.end(machine)
        site.wait_for_machines(boxed=2, docked=2, extra=2)
        assert "; the copy in the cache serves" in site.trouble("vo")
        shown = site.factory.vac("pipe", "show")
        assert "last attempt failed" in shown.stdout
        assert "vo-docked  share 0.333333  docker" in shown.stdout
        assert f"pipe vo: {site.trouble('vo')}" in site.factory.vac("machinetypes", "-t", "1").stderr
        assert not [life for life in site.factory.lives() if life.finished and life.message[:3] != "200"]


def test_each_failure_has_its_own_words_and_holds_up_nothing(tmp_path: Path) -> None:
    gate = threading.Event()
    pages = {
        **circle(),
        "/html": Page(HTML),
        "/flat": Page(json.dumps({"target_share": 1, "user_data": "x"}).encode()),
        "/slow": Page(document(BUBBLE), gate=gate),
        "/good": Page(document({**BUBBLE, "root_image": "tree"})),
        "/file": Page(status=302, location="file:///etc/passwd"),
    }
    expected = {
        "circle": "redirected more than",
        "html": "is HTML or XML instead of JSON",
        "flat": 'there is no list "machinetypes": the old flat format',
        "missing": "the server answers with status 404",
        "file": "neither http nor https",
        "closed": "connection refused or host unreachable",
        "expired": "the server's certificate has expired",
        "stranger": "its CA is unknown here",
        "name": "the server's certificate isn't trusted for this host",
        "nohost": "unknown host",
    }
    with piped(tmp_path, pages, 2) as site, closed_port() as port:
        server = site.server
        site.add_file("lasting", LASTING)
        urls = {name: server.url(f"/{name}") for name in ("html", "flat", "missing", "slow", "file")}
        urls.update(
            circle=server.url("/circle/0"),
            vo=server.url("/good"),
            closed=f"https://127.0.0.1:{port}/",
            nohost="https://nowhere.invalid/",
            expired=site.web.serve(pages, "expired").url("/good"),
            stranger=site.web.serve(pages, "stranger").url("/good"),
            name=site.web.serve(pages, "wrong name").url("/good"),
        )
        site.configure(urls, "[machinetype vo-bubble]\nroot_image = /\n")
        site.start()
        for name, words in expected.items():
            site.wait_for_trouble(name, words)
            assert site.trouble(name).endswith("; there is no copy in the cache")
            assert f"pipe {name}: {urls[name]}: " in site.factory.log()
        site.wait_for_machines(bubble=2)
        assert site.types() == ["vo-bubble"]
        assert site.trouble("slow") == "has not been fetched yet"
        gate.set()
        site.wait_for_types("slow-bubble", "vo-bubble")
        checked = site.factory.vac("config", "check")
        assert checked.returncode == 0
        assert f"note: [vacuum_pipe expired]: {site.trouble('expired')}" in checked.stdout


def test_hostile_pipes_hurt_no_other_type(tmp_path: Path) -> None:
    """All of the corpus at once, a pipe each, beside a machinetype of the site's own."""
    corpus = dict(enumerate(CORPUS.values()))
    pages = {f"/{number}": Page(hostile.content) for number, hostile in corpus.items()}
    local = Kind('echo "200 fine" > "$JOBOUTPUTS/shutdown_message"; sleep 5\n', {"backoff_seconds": 0})
    with piped(tmp_path, pages, 2) as site:
        site.factory.configure(
            {"local": local}, machines_per_cycle=AT_ONCE, user_data_option_secret="hunter2"
        )
        with site.factory.config.open("a") as file:
            for number in corpus:
                file.write(f"[vacuum_pipe p{number}]\nvacuum_pipe_url = {site.server.url(f'/{number}')}\n")
        site.start()
        waiting = "has not been fetched yet"
        site.factory.wait_for(
            lambda: (
                len(found := site.factory.status().pipes) == len(corpus) and waiting not in found.values()
            ),
            "all have been fetched",
            PATIENCE,
        )
        usable = [number for number, hostile in corpus.items() if hostile.fate != REFUSED]
        site.factory.wait_for(lambda: len(site.types()) > len(usable), "types are there", PATIENCE)
        names = set(site.types())
        assert {"local", *(f"p{number}-good" for number in usable)} <= names
        assert names <= {
            "local",
            *(f"p{number}-{kind}" for number in usable for kind in ("good", "bad", "sub-x")),
        } | {name for name in names if "xxxxxxxx" in name}
        ended = len([life for life in site.factory.lives("local") if life.finished])
        site.factory.wait_for(
            lambda: len([life for life in site.factory.lives("local") if life.finished]) > ended + 2,
            "machines of the site's own type come and go",
            PATIENCE,
        )
        assert {life.machinetype for life in site.factory.lives()} == {"local"}
        assert {path.name for path in site.factory.home.iterdir()} == {"config", "log", "state"}
        assert {path.suffix for path in site.factory.state.pipescache.iterdir()} == {".pipe", ".fetch"}
        assert list(site.factory.state.machinetypes.iterdir()) == [
            path for path in site.factory.state.machinetypes.iterdir() if path.name in ("local", "vo")
        ]
        assert "hunter2" not in site.factory.log()
        assert "Traceback" not in site.factory.log()
