"""Recorded datagrams of a classic factory, and a state_dir like its own (tests/data/wire)."""

from __future__ import annotations

import configparser
import json
import os
from pathlib import Path
from typing import Any

from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.machines.status import Status, TypeFacts
from vac.vacquery.messages import Kind

WIRE = Path(__file__).parents[2] / "data" / "wire"
SPACE = "vac01.example.org"
FACTORY = "vac-85.example.org"
NOW = 1795227161.2
STARTED, HEARTBEAT = 1795227155, 1795227158
FILES = {
    Kind.MACHINETYPES: "machinetypes_query.jsonl",
    Kind.MACHINES: "machines_query.jsonl",
    Kind.FACTORIES: "factory_query.jsonl",
}


def datagrams(kind: Kind, direction: str) -> list[bytes]:
    """The recorded queries or responses of this kind."""
    lines = (WIRE / FILES[kind]).read_text().splitlines()
    return [line["data"].encode() for line in map(json.loads, lines) if line["dir"] == direction]


def overridden_datagrams() -> list[bytes]:
    """The recorded queries for another space than the factory's."""
    lines = (WIRE / "space_override.jsonl").read_text().splitlines()
    return [json.loads(line)["data"].encode() for line in lines]


def messages(kind: Kind) -> list[dict[str, Any]]:
    """The recorded responses, as JSON objects."""
    return [json.loads(datagram) for datagram in datagrams(kind, "response")]


def cookies(kind: Kind) -> dict[str, str]:
    """The recorded query's cookie and the factory that it belongs to."""
    return {json.loads(datagrams(kind, "query")[0])["cookie"]: FACTORY}


def factory_status() -> Status:
    """Return the status of the factory of fixture-vac.conf."""
    parser = configparser.ConfigParser()
    parser.read(WIRE / "fixture-vac.conf")
    types = [section for section in parser.sections() if section.startswith("machinetype ")]
    return Status(
        space=SPACE,
        site="example.org",
        factory=FACTORY,
        factories=(FACTORY,),
        slots=8,
        total_processors=8,
        mb_per_processor=2048,
        hs06_per_processor=12.5,
        machinetypes=tuple(
            TypeFacts(
                name=section.split()[1],
                fqan=parser[section]["accounting_fqan"],
                machine_model=parser[section]["machine_model"],
                min_wallclock_seconds=86400,
                max_wallclock_seconds=86400,
                fizzle_seconds=600,
            )
            for section in types
        ),
    )


def make_state(root: Path) -> StateDir:
    """The recorded factory's state_dir, with the times of the recording."""
    state = StateDir(root)
    state.prepare()
    for line in (WIRE / "fixture-state.txt").read_text().split("\n")[:-1]:
        name, _, content = line.partition("\t")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        moment = HEARTBEAT if path.name == "heartbeat" else STARTED
        os.utime(path, (moment, moment))
    for role in ("factory", "mjf", "metadata"):
        path = state.heartbeat(role)
        path.touch()
        os.utime(path, (HEARTBEAT, HEARTBEAT))
    statuses.write(state, factory_status())
    return state
