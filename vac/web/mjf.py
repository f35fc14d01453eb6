"""vacd-mjf: http://169.254.169.253 with a VM's machinefeatures, jobfeatures and joboutputs (HSF-TN-2016-02)."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from xml.etree import ElementTree

from vac.config.machinetype import VM_MODELS
from vac.host.privileges import unprivileged_user
from vac.machines import files, outputs
from vac.machines.layout import StateDir
from vac.machines.slots import read_slots
from vac.roles import RoleOptions
from vac.web.http_server import (
    BYTES,
    HTML,
    NOT_FOUND,
    READ_ONLY,
    READING,
    Answer,
    Guest,
    Request,
    Service,
    refusal,
    run,
    text,
)

log = logging.getLogger(__name__)

ADDRESS = "169.254.169.253"
FEATURES = ("machinefeatures", "jobfeatures")
OUTPUTS = "joboutputs"
LOG_SECONDS = 600.0
_logged: dict[str, float] = {}
"""Times of the last log lines by machine."""


def respond(tmp: Path, request: Request) -> Answer:
    """Return the answer to a request. tmp: directory for new files."""
    if request.method == "PUT":
        return _put(tmp, request)
    answer = None if request.guest is None else _find(request.guest, request.parts)
    if answer is None:
        return NOT_FOUND
    return answer if request.method in READING else READ_ONLY


def _find(guest: Guest, parts: tuple[str, ...]) -> Answer | None:
    if not parts:
        return listing("", (*FEATURES, OUTPUTS))
    if parts == (OUTPUTS,):
        return listing(OUTPUTS, ())
    if len(parts) == 1 and parts[0] in FEATURES:
        return listing(parts[0], guest.names(parts[0]))
    content = guest.read(parts[1], parts[0]) if len(parts) == 2 and parts[0] in (*FEATURES, OUTPUTS) else None
    if content is None:
        return None
    return text(content) if parts[0] in FEATURES else Answer(HTTPStatus.OK, content, BYTES)


def listing(directory: str, names: Iterable[str]) -> Answer:
    """Return a page of links to the files of a directory."""
    page = ElementTree.Element("html")
    ElementTree.SubElement(ElementTree.SubElement(page, "head"), "title").text = f"/{directory}"
    items = ElementTree.SubElement(ElementTree.SubElement(page, "body"), "ul")
    for name in sorted(names):
        link = f"/{directory}/{name}" if directory else f"/{name}"
        anchor = ElementTree.SubElement(ElementTree.SubElement(items, "li"), "a", href=link)
        anchor.text = name
    return Answer(HTTPStatus.OK, ElementTree.tostring(page, encoding="utf-8", method="html"), HTML)


def _put(tmp: Path, request: Request) -> Answer:
    """Store a file in joboutputs; refuse anything else."""
    guest = request.guest
    if guest is None or len(request.parts) != 2 or request.parts[0] != OUTPUTS:
        return refusal(HTTPStatus.FORBIDDEN)
    try:
        outputs.store(guest.directory / OUTPUTS, request.parts[1], request.body(), tmp=tmp)
    except outputs.Refused as refused:
        _log_refusal(guest.name, f"{request.parts[1]} refused: {refused}")
        return refusal(HTTPStatus.FORBIDDEN, str(refused))
    return refusal(HTTPStatus.CREATED)


def _log_refusal(machine: str, text: str) -> None:
    """Log a machine's refused file at most every ten minutes."""
    now = time.monotonic()
    if now - _logged.get(machine, -math.inf) >= LOG_SECONDS:
        _logged[machine] = now
        log.info("%s: %s", machine, text)


def prepare(state: StateDir) -> Path:
    """Prepare what the unprivileged process writes to, while still root. Return its directory for new files.

    joboutputs of machines made by an older Vac belong to root and are handed over.
    """
    tmp = state.root / "mjf"
    user = unprivileged_user()
    owner = None if user is None else (user.pw_uid, user.pw_gid)
    files.remove_tree(tmp)
    files.make_directory(tmp, mode=0o700, owner=owner)
    if owner is not None:
        for machine in read_slots(state).values():
            outputs = machine.directory / OUTPUTS
            if machine.model in VM_MODELS and not machine.finished and outputs.is_dir():
                os.chown(outputs, *owner, follow_symlinks=False)
    return tmp


def _keep_all_in(tmp: Path) -> Path:
    """Use this directory for the server's temporary files, too: incomplete bodies."""
    tempfile.tempdir = str(tmp)
    return tmp


def main(options: RoleOptions) -> int:
    """Run the role `mjf`: 0 when told to end, 1 if it can't work as configured."""
    service = Service(
        "mjf",
        ADDRESS,
        lambda state: partial(respond, _keep_all_in(prepare(state))),
        outputs.FILE_LIMIT_BYTES,
    )
    return run(lambda _settings: service, options)
