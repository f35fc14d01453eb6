"""A stand-in for a factory of Vac 3: it answers as one was recorded to (tests/data/wire), from its state directory.

It reads the files that Vac 3 reads, in the forms that Vac 3 wrote them, and is strict about them: a file that it can't
read so is an error, and then it doesn't answer. `ask` is Vac 3's `vac` command: the recorded query, and all answers.
Nothing of Vac is imported.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

WIRE = Path(__file__).parents[1] / "data" / "wire"
PORT = 995
RECORDED_TIME = 1795227161
RECORDED_FACTORY, RECORDED_DOMAIN, RECORDED_SPACE = "vac-85", "example.org", "vac01.example.org"
KINDS = ("machines_query", "machinetypes_query", "factory_query")
METHODS = {"machines": "machines_query", "machinetypes": "machinetypes_query", "factories": "factory_query"}
SILENCE_SECONDS = 2.0
STALE_SECONDS = 3600
Message = dict[str, Any]


def recorded(kind: str, direction: str) -> list[Message]:
    """The recorded messages of this kind: `query` or `response`."""
    lines = map(json.loads, (WIRE / f"{kind}.jsonl").read_text().splitlines())
    return [json.loads(line["data"]) for line in lines if line["dir"] == direction]


def plant(state_dir: Path, factory: str, slots: Mapping[int, int], machinetype: str) -> None:
    """Leave what Vac 3 has on disk. slots: recorded slots by our number; all become Singularity's, of one type.

    Times are moved from the recording's to now.
    """
    shift = int(time.time()) - RECORDED_TIME
    short, _, domain = factory.partition(".")
    lines = [
        line.partition("\t") for line in (WIRE / "fixture-state.txt").read_text().split("\n") if "\t" in line
    ]
    for number, old in slots.items():
        name = f"{RECORDED_FACTORY}-{old:02}.{RECORDED_DOMAIN}"
        created = next(text for path, _, text in lines if path == f"slots/{name}").split()[0]
        for path, _, text in lines:
            if path == f"slots/{name}" or (path.startswith(f"machines/{created}_") and name in path):
                new = [
                    re.sub(r"\b1795\d{6}", lambda found: str(int(found[0]) + shift), each)
                    for each in (path, text)
                ]
                new = [each.replace(name, f"{short}-{number:02}.{domain}") for each in new]
                new = [re.sub(r"type-\d\d", machinetype, each) for each in new]
                new[1] = re.sub("docker$|cernvm4$", "singularity", new[1])
                target = state_dir / new[0]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(new[1])


class State:
    """A state directory as Vac 3 reads it."""

    def __init__(self, root: Path, factory: str, slots: int) -> None:
        self.root = root
        self.slots = slots
        self.short, _, self.domain = factory.partition(".")

    def machines(self) -> Iterator[Message]:
        """Yield what a machine_status says of each slot."""
        for number in range(self.slots):
            yield self._machine(f"{self.short}-{number:02}.{self.domain}")

    def _machine(self, name: str) -> Message:
        found: Message = {"machine": name, "state": "Shut down", "num_processors": 0, "cpu_seconds": 0}
        slot = self.root / "slots" / name
        if not slot.exists():
            return found
        created, machinetype, model = slot.read_text().split()
        directory = self.root / "machines" / f"{created}_{machinetype}_{name}"
        found |= {"created_time": int(created), "machinetype": machinetype, "machine_model": model}
        if not directory.exists():
            return found
        started, finished = directory / "started", directory / "finished"
        state = "Starting" if not started.exists() else "Shut down" if finished.exists() else "Running"
        found["state"] = state
        found["num_processors"] = int((directory / "jobfeatures/allocated_cpu").read_text())
        found["uuid"] = (directory / "jobfeatures/job_id").read_text().strip()
        found["fqan"] = (directory / "accounting_fqan").read_text().strip()
        if (directory / "jobfeatures/hs06_job").exists():
            found["hs06"] = float((directory / "jobfeatures/hs06_job").read_text())
        if started.exists():
            text = started.read_text().strip()
            found["started_time"] = int(text) if text else int(started.stat().st_mtime)
        if (directory / "heartbeat").exists():
            seconds, percent = (directory / "heartbeat").read_text().split()
            found |= {"cpu_seconds": int(float(seconds)), "cpu_percentage": float(percent)}
            found["heartbeat_time"] = int((directory / "heartbeat").stat().st_mtime)
        return found | self._end(directory)

    @staticmethod
    def _end(directory: Path) -> Message:
        said = directory / "joboutputs" / "shutdown_message"
        if not (directory / "finished").exists() or not said.exists():
            return {}
        return {
            "shutdown_message": said.read_text().split("\n")[0],
            "shutdown_time": int(said.stat().st_mtime),
        }

    def machinetypes(self) -> Iterator[Message]:
        """Yield what a machinetype_status says of each type that has a machine or had one."""
        now, running = time.time(), list(self.machines())
        finishes = self.root / "finishes"
        ended = (
            {path.name: path.read_text().split() for path in finishes.iterdir()} if finishes.exists() else {}
        )
        for name in {one["machinetype"] for one in running if one.get("machinetype")} | set(ended):
            mine = [one for one in running if one.get("machinetype") == name]
            alive = [
                one
                for one in mine
                if (one["state"] == "Running" and one["heartbeat_time"] > now - STALE_SECONDS)
                or (one["state"] == "Starting" and one["created_time"] > now - STALE_SECONDS)
            ]
            processors = sum(one["num_processors"] for one in alive)
            found: Message = {
                "machinetype": name,
                "num_machinetypes": len(
                    {one.get("machinetype") for one in running if one.get("machinetype")}
                ),
                "running_machines": len(alive),
                "running_cpus": processors,
                "running_processors": processors,
                "running_hs06": sum(one.get("hs06", 1.0) for one in alive),
                "num_before_fizzle": 0,
            }
            if name in ended:
                created, kind, machine = ended[name]
                directory = self.root / "machines" / f"{created}_{kind}_{machine}"
                found |= {"shutdown_machine": machine, **self._end(directory)}
            yield found


def answers(state: State, kind: str, factory: str, space: str, cookie: str) -> Iterator[Message]:
    """Yield all answers to a query: recorded ones, with what this factory has in the place of the recorded values."""
    samples = recorded(kind, "response")
    pattern = samples[0]
    common: Message = {"factory": factory, "space": space, "cookie": cookie, "site": space.partition(".")[2]}
    common["time_sent"] = int(time.time())
    if kind == "factory_query":
        running = [one for one in state.machines() if one["state"] == "Running"]
        processors = sum(one["num_processors"] for one in running)
        counts = {f"running_{name}": processors for name in ("cpus", "processors")}
        sizes = {f"{word}_{name}": state.slots for word in ("max", "total") for name in ("cpus", "machines")}
        yield {
            **pattern,
            **common,
            **counts,
            **sizes,
            "max_processors": state.slots,
            "running_machines": len(running),
        }
        return
    unknown = next((one for one in samples if one.get("uuid", "") is None), samples[1])
    bodies = list(state.machines() if kind == "machines_query" else state.machinetypes())
    number = {"num_machines": state.slots} if kind == "machines_query" else {"num_machinetypes": len(bodies)}
    for body in bodies:
        message = {**unknown, **common, **body, **number}
        if kind == "machines_query":
            message["num_cpus"] = message["num_processors"]
        yield message


def serve(state: State, factory: str, space: str) -> None:
    """Answer until killed."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", PORT))
    print("ready", flush=True)
    while True:
        data, source = sock.recvfrom(1024)
        query = json.loads(data)
        kind = query.get("message_type") or METHODS.get(query.get("method", ""), "")
        if kind in KINDS and query.get("space") == space and "cookie" in query:
            for message in answers(state, kind, factory, space, query["cookie"]):
                sock.sendto(json.dumps(message).encode(), source)


def ask(kind: str, space: str, factories: list[str]) -> list[Message]:
    """Ask these factories as Vac 3's `vac` does; return what comes until all has been silent for two seconds."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    salt = os.urandom(16).hex()
    cookies = {factory: hashlib.sha256(f"{salt}{factory}".encode()).hexdigest() for factory in factories}
    for factory, cookie in cookies.items():
        query = {**recorded(kind, "query")[0], "space": space, "cookie": cookie}
        sock.sendto(json.dumps(query).encode(), (factory, PORT))
    found: list[Message] = []
    end = time.monotonic() + 60
    while time.monotonic() < end:
        sock.settimeout(SILENCE_SECONDS if found else 60)
        try:
            message = json.loads(sock.recv(9000))
        except TimeoutError:
            break
        assert cookies[message["factory"]] == message["cookie"]
        found.append(message)
    return found


def main() -> None:
    """Run `serve FACTORY SPACE STATE_DIR SLOTS` or `ask KIND SPACE FACTORY...`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("serve", "ask"))
    parser.add_argument("words", nargs="+")
    arguments = parser.parse_args()
    words = arguments.words
    if arguments.action == "serve":
        serve(State(Path(words[2]), words[0], int(words[3])), words[0], words[1])
    else:
        json.dump(ask(words[0], words[1], words[2:]), sys.stdout)


if __name__ == "__main__":
    main()
