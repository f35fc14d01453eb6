"""docs/upgrade.md step by step: a node of a space of Vac 3 moves to Vac 4, is watched from both sides, moves back."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import require_tool
from tests.engines.factory_fixture import ROOT, Kind, Option, records
from tests.engines.process_site import make_tree
from tests.space import classic_factory
from tests.space.classic_factory import KINDS, Message, plant, recorded
from tests.space.space_fixture import Space, SpaceFactory, space_of
from tests.unit.state_dirs import contents
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.engine
UPGRADE = (ROOT / "docs" / "upgrade.md").read_text().partition("## What differs")[0]
COMMANDS = {*re.findall(r"`((?:vac|check-vacd|systemctl|service) [^`]+)`", UPGRADE)}
TYPE = "old"
OPTIONS: dict[str, Option] = {
    "machine_model": "singularity",
    "root_image": "busybox",
    "accounting_fqan": "/vo.example.org/Role=NULL/Capability=NULL",
    "heartbeat_file": "vm-heartbeat",
    "heartbeat_seconds": 600,
    "target_share": 1,
}
WORK = "touch /tmp/joboutputs/vm-heartbeat; sleep 20; echo '200 all done' >/tmp/joboutputs/shutdown_message"
RUNTIME = """
exec -a 'Singularity runtime parent' sh -c '
cd "$0"; touch vm-heartbeat; echo; until [ -e end ]; do sleep 0.1; done; echo "200 Success" >shutdown_message' "$1"
"""


class Node:
    """A host of the space, which runs Vac 3 (the stand-in) or Vac 4."""

    def __init__(self, space: Space, factory: SpaceFactory) -> None:
        self.space = f"space.{space.domain}"
        self.factory = factory
        self.names = [one.name for one in space.factories]
        self.ran: set[str] = set()
        self._classic: subprocess.Popen[bytes] | None = None

    def start_classic(self) -> None:
        """Vac 3's daemon starts."""
        words = [
            "serve",
            self.factory.name,
            self.space,
            str(self.factory.state.root),
            str(self.factory.processors),
        ]
        command = self.factory.host.inside(sys.executable, classic_factory.__file__, *words)
        self._classic = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._classic.stdout is not None
        assert self._classic.stdout.readline() == b"ready\n"

    def stop_classic(self) -> None:
        """It ends, by itself or not."""
        if self._classic is not None:
            self._classic.kill()
            self._classic.communicate()
        self._classic = None

    def classic_vac(self, kind: str) -> list[Message]:
        """Return the answers of all factories to Vac 3's `vac` on this host."""
        command = [sys.executable, classic_factory.__file__, "ask", kind, self.space, *self.names]
        done = subprocess.run(
            self.factory.host.inside(*command),
            stdout=subprocess.PIPE,
            timeout=PATIENCE_SECONDS,
            check=True,
        )
        found: list[Message] = json.loads(done.stdout)
        return found

    def run(self, command: str, codes: tuple[int, ...] = (0,), **places: str) -> str:
        """Run a command of the document here, with these words replaced; what it printed."""
        assert command in COMMANDS, f"{command} isn't in docs/upgrade.md"
        self.ran.add(command)
        program, *words = [places.get(word, word) for word in command.split()]
        if program == "check-vacd":
            words += ["--state-dir", str(self.factory.state.root)]
        else:
            words = ["--config", str(self.factory.config), *words]
        done = subprocess.run(
            self.factory.host.inside(str(ROOT / "bin" / program), *words),
            env=self.factory.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode in codes, f"{command}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def service(self, command: str, carry_out: Callable[[], object]) -> None:
        """A command of the document that systemd carries out: tests with a systemd have it, here it is done by hand."""
        assert command in COMMANDS
        self.ran.add(command)
        carry_out()


@contextlib.contextmanager
def classic_machine(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process as Singularity has it, of the machine that Vac 3 left in this directory."""
    user = pwd.getpwnam("nobody")
    outputs = directory / "joboutputs"
    for path in (outputs, *outputs.iterdir()):
        os.chown(path, user.pw_uid, user.pw_gid)
    command = ["bash", "-c", RUNTIME, "bash", str(outputs)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, user=user.pw_uid, group=user.pw_gid, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    (directory / "pid").write_text(str(process.pid))
    (directory / "heartbeat").touch()
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes of Vac 3: f1 stays as it is, f2 moves. f2 has a running, a prepared and a finished machine."""
    require_tool("apptainer")
    with space_of(2, 3) as space, contextlib.ExitStack() as stack:
        settings: dict[str, Option] = {"singularity_user": "nobody", "udp_timeout_seconds": 5}
        settings |= {"hs06_per_processor": 12.5, "gocdb_sitename": "EXAMPLE-SITE"}
        space.configure({TYPE: Kind(WORK, OPTIONS)}, {}, **settings)
        stays, moves = (Node(space, factory) for factory in space.factories)
        plant(stays.factory.state.root, stays.factory.name, {0: 1, 1: 4}, TYPE)
        plant(moves.factory.state.root, moves.factory.name, {0: 1, 1: 5, 2: 6}, TYPE)
        for node in (stays, moves):
            for heartbeat in node.factory.state.root.glob("machines/*/heartbeat"):
                heartbeat.touch()
            stack.callback(node.stop_classic)
            node.start_classic()
        make_tree(moves.factory.state.machinetype_files(TYPE) / "busybox")
        yield stays, moves


def slots(messages: list[Message], node: Node) -> list[tuple[str, str | None]]:
    """State and uuid of a factory's slots, as a machines query tells."""
    mine = [one for one in messages if one["factory"] == node.factory.name]
    return [(one["state"], one["uuid"]) for one in sorted(mine, key=lambda one: str(one["machine"]))]


def kind_of(value: object) -> type:
    return float if isinstance(value, int) else type(value)


def assert_as_recorded(kind: str, messages: list[Message]) -> None:
    """All fields of the recorded answers are there, with values of the kinds that they had."""
    samples = recorded(kind, "response")
    always = set.intersection(*(set(sample) for sample in samples))
    for message in messages:
        assert always <= set(message), f"{kind}: {always - set(message)} missing"
        for field in {*samples[0], *always} & set(message):
            kinds = {kind_of(sample[field]) for sample in samples if field in sample}
            assert kind_of(message[field]) in kinds, f"{kind}: {field} = {message[field]!r}"


def test_a_node_moves_to_vac_4_and_back(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    stays, moves = nodes
    factory, state = moves.factory, moves.factory.state
    (left,) = state.root.glob(f"machines/*_{TYPE}_{factory.short}-00.*")
    (prepared,) = state.root.glob(f"machines/*_{TYPE}_{factory.short}-01.*")
    (ended,) = state.root.glob(f"machines/*_{TYPE}_{factory.short}-02.*")
    queued = state.apel_outgoing / "20261120" / "20261120000000000"
    queued.parent.mkdir(parents=True)
    queued.write_text("APEL-individual-job-message: v0.3\n%%\n")
    uuid = (left / "jobfeatures/job_id").read_text()
    prepared_uuid = (prepared / "jobfeatures/job_id").read_text()
    ended_uuid = (ended / "jobfeatures/job_id").read_text()
    with classic_machine(left) as machine:
        for node in nodes:
            assert [one for one, _ in slots(stays.classic_vac("machines_query"), node)] == [
                "Running",
                *(("Running", "Shut down") if node is stays else ("Starting", "Shut down")),
            ]

        # Before
        before = contents(state.root)
        assert "The configuration can be used" in moves.run("vac config check")
        moves.run("vac doctor", (0, 1))
        assert contents(state.root) == before, "checks change nothing"

        # One node
        moves.service("systemctl stop vacd", moves.stop_classic)
        moves.service("service vacd stop", moves.stop_classic)
        assert machine.poll() is None
        moves.service("systemctl enable --now vacd", factory.start_vacd)
        factory.wait_for(lambda: factory.status().decision_time is not None, "it has decided")
        factory.wait_for(lambda: not prepared.exists(), "the prepared machine is cleaned up")
        rows = {line.split()[0]: line.split() for line in moves.run("vac machines").splitlines()}
        assert set(rows) >= {f"{name}-{number:02}" for name in ("f1", "f2") for number in range(3)}
        assert rows["f2-00"][1:3] == rows["f1-00"][1:3] == [TYPE, "Running"]
        assert "As decided" in moves.run("vac why")
        assert moves.run("check-vacd 600").startswith("Factory + responder ok")
        factory.wait_for(lambda: uuid in {one.uuid for one in factory.running()}, "it is watched")
        assert machine.poll() is None

        # Watched from both sides
        for kind in KINDS:
            found = stays.classic_vac(kind)
            assert {one["factory"] for one in found} == set(moves.names)
            assert_as_recorded(kind, [one for one in found if one["factory"] == factory.name])
        assert slots(stays.classic_vac("machines_query"), moves)[0] == ("Running", uuid)
        assert not factory.status().silent
        told = json.loads(moves.run("vac -HJt 3 machines"))
        assert len(told) == len(json.loads(moves.run("vac machines -t 3 --json"))) == 6
        assert len(factory.vac("factories").stdout.splitlines()) == 2
        here = json.loads(factory.vac("machinetypes", "-J").stdout)
        assert sum(one["running_machines"] for one in here if one["factory"] == stays.factory.name) == 2
        (tmp_path / "IN").write_text("http_port 3128\n")
        places = {word: str(tmp_path / word) for word in ("IN", "OUT")}
        moves.run("vac squid-conf IN OUT", (0,), **places)
        moves.run("vac squid-conf IN OUT", (1,), **places)
        moves.run("vac squid-conf IN OUT", (2,), IN=places["OUT"], OUT=places["OUT"])

        # Vac 3's machine ends
        (left / "joboutputs" / "end").touch()
        factory.wait_for((left / "finished").exists, "its end is written")
        machine.wait()
    factory.wait_for(lambda: [one for one in factory.running() if one.uuid != uuid], "others take its place")
    name = next(one.name for one in factory.running())

    # Back
    moves.run("vac destroy NAME", NAME=name)
    assert "drains" in moves.run("vac drain --wait")
    assert factory.running() == []
    moves.service("systemctl disable --now vacd", factory.stop)
    assert "no longer drains" in moves.run("vac undrain")
    factory.process = None
    wrote = records(factory)
    assert prepared_uuid not in wrote
    assert ended_uuid not in wrote, "Vac 3 has accounted for it"
    assert wrote[uuid]["Site"] == "EXAMPLE-SITE"
    assert queued.read_text() == "APEL-individual-job-message: v0.3\n%%\n"
    after = contents(state.root)
    kept = {path for path in before if path.startswith(str(ended.relative_to(state.root)))}
    assert kept
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
    moves.start_classic()
    found = stays.classic_vac("machines_query")
    assert_as_recorded("machines_query", found)
    mine = sorted(
        (one for one in found if one["factory"] == factory.name), key=lambda one: str(one["machine"])
    )
    assert {one["state"] for one in mine} == {"Shut down"}
    assert all(one["uuid"] in (*wrote, ended_uuid) for one in mine)
    (told_type,) = (one for one in stays.classic_vac("machinetypes_query") if one["factory"] == factory.name)
    last = max(int(path.name.partition("_")[0]) for path in state.root.glob("machines/*_*_*"))
    assert told_type["shutdown_machine"]
    assert told_type["running_machines"] == 0
    assert (state.root / "finishes" / TYPE).read_text().split()[0] == str(last)
    assert moves.ran == COMMANDS, "every command of the document is run here"
