"""vacd-metadata: http://169.254.169.254 for VMs, in the style of EC2 and OpenStack.

The paths are those that cloud-init, CernVM's amiconfig and experiments' images request.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from http import HTTPStatus

from vac.config.machinetype import MODELS
from vac.host.privileges import READ_ANY_FILE
from vac.roles import RoleOptions
from vac.web.http_server import (
    BYTES,
    JSON,
    NOT_FOUND,
    READ_ONLY,
    READING,
    TEXT,
    Answer,
    Guest,
    Request,
    Service,
    run,
    text,
)

ADDRESS = "169.254.169.254"
EC2_DATES = ("2007-12-15", "2009-04-04", "latest")
OPENSTACK_DATES = ("2012-08-10", "latest")
_DATE = re.compile(r"latest|[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TOKEN_PATH = ("latest", "api", "token")
"""IMDSv2: clients may get a token and send it; none is required or checked, as each VM has its own address."""
_TOKEN_HEADERS = (("X-aws-ec2-metadata-token-ttl-seconds", "21600"),)
_BODY_LIMIT_BYTES = 4096
"""No request needs a body."""


def respond(request: Request) -> Answer:
    """Return the answer to a request."""
    if request.guest is None:
        return NOT_FOUND
    if (request.method, request.parts) == ("PUT", _TOKEN_PATH):
        return Answer(HTTPStatus.OK, secrets.token_urlsafe(32).encode(), TEXT, _TOKEN_HEADERS)
    answer = _find(request.guest, request.parts)
    if answer is None:
        return NOT_FOUND
    return answer if request.method in READING else READ_ONLY


def _find(guest: Guest, parts: tuple[str, ...]) -> Answer | None:
    openstack = parts[:1] == ("openstack",)
    date, rest = parts[openstack : openstack + 1], parts[openstack + 1 :]
    if not date:
        return text("\n".join(OPENSTACK_DATES if openstack else EC2_DATES))
    if not _DATE.fullmatch(date[0]):
        return None
    if not rest:
        return text("meta_data.json\nuser_data" if openstack else "meta-data\nuser-data")
    if rest in (("user-data",), ("user_data",)):
        content = guest.read("user_data")
        return None if content is None else Answer(HTTPStatus.OK, content, BYTES)
    if rest in (("meta-data.json",), ("meta_data.json",)):
        return Answer(HTTPStatus.OK, json.dumps(_openstack(guest), indent=1).encode(), JSON)
    return _ec2(guest, rest[1:]) if rest[0] == "meta-data" else None


def _openstack(guest: Guest) -> dict[str, object]:
    key = _public_key(guest)
    locations = zip(("machinefeatures", "jobfeatures", "joboutputs"), MODELS[guest.model].places)
    return {
        "uuid": _uuid(guest),
        "hostname": guest.name,
        "name": guest.name,
        "availability_zone": guest.factory_name,
        "public_keys": {} if key is None else {guest.name: key.decode("utf-8", "replace")},
        "meta": {**dict(locations), "machinetype": guest.machinetype},
    }


def _ec2(guest: Guest, rest: tuple[str, ...]) -> Answer | None:
    if rest[:1] == ("public-keys",):
        return _ec2_key(guest, rest[1:])
    if not rest:
        keys = [*_VALUES, *(["public-keys/"] if _public_key(guest) is not None else [])]
        return text("\n".join(sorted(keys)))
    value = _VALUES.get(rest[0]) if len(rest) == 1 else None
    return None if value is None else text(value(guest))


def _ec2_key(guest: Guest, rest: tuple[str, ...]) -> Answer | None:
    key = _public_key(guest)
    if key is None:
        return None
    if rest == ("0", "openssh-key"):
        return text(key)
    lists = {(): f"0={guest.name}", ("0",): "openssh-key"}
    return text(lists[rest]) if rest in lists else None


def _uuid(guest: Guest) -> str:
    return (guest.read("job_id", "jobfeatures") or b"").decode("ascii", "replace").strip()


def _public_key(guest: Guest) -> bytes | None:
    return guest.read("root_public_key")


_VALUES: dict[str, Callable[[Guest], str]] = {
    "ami-id": _uuid,
    "instance-id": _uuid,
    "hostname": lambda guest: guest.name,
    "local-hostname": lambda guest: guest.name,
    "local-ipv4": lambda guest: guest.address,
}


def main(options: RoleOptions) -> int:
    """Run the role `metadata`: 0 when told to end, 1 if it can't work as configured."""
    service = Service("metadata", ADDRESS, lambda _state: respond, _BODY_LIMIT_BYTES)
    return run(lambda _settings: service, options, keep=READ_ANY_FILE)
