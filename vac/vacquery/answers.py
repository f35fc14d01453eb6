"""Answers as datagrams, made ready when the snapshot is, so that a query costs a join of bytes per answer.

What differs from query to query (cookie, time_sent and the signature) goes into the gaps of a message's
canonical JSON. An answer stays under 1500 bytes with its headers; long texts are cut for that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from vac.vacquery.messages import ANSWER_LIMIT, AnyStatus, Kind, least_of, message_of, part, shortened
from vac.vacquery.signing import canonical, signature
from vac.vacquery.snapshot import Snapshot

log = logging.getLogger(__name__)

ORDINARY_COOKIE_BYTES = 66
"""A sha256 in hex, in quotes."""
_TIME_BYTES = 10
_SIGNATURE_BYTES = len(',"hmac":""') + 64


class Template:
    """One answer with gaps for cookie and time_sent."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        fitting = {**message, "cookie": 0, "time_sent": 0}
        names = sorted(fitting)
        cookie, time_sent = names.index("cookie"), names.index("time_sent")
        before, between, after = names[:cookie], names[cookie + 1 : time_sent], names[time_sent + 1 :]
        self.before = b"".join((b"{", _inside(fitting, before, b"", b","), b'"cookie":'))
        self.between = b"".join((b",", _inside(fitting, between, b"", b","), b'"time_sent":'))
        self.after = b"".join((_inside(fitting, after, b",", b""), b"}"))
        self.size = len(self.before) + len(self.between) + len(self.after)


class Answers:
    """All answers of a snapshot, ready to be sent."""

    def __init__(self, snapshot: Snapshot, key: bytes | None = None, previous: Answers | None = None) -> None:
        """previous: answers of the snapshot before; those that haven't changed are taken over."""
        self.snapshot = snapshot
        self._key = key
        self._overhead = _TIME_BYTES + (_SIGNATURE_BYTES if key else 0)
        self._room = ANSWER_LIMIT - self._overhead
        self._known: dict[AnyStatus, Template] = {}
        older = previous._known if previous else {}
        self._templates = {kind: self._prepare(snapshot.answers(kind), older) for kind in Kind}
        self._least: dict[Kind, Sequence[Template]] = {}
        """Made when first needed, and with only what an answer must have."""

    def datagrams(self, kind: Kind, cookie: bytes, now: float) -> list[bytes]:
        """The answers to a query.

        cookie: its JSON text. Beside an uncommonly long one answers have only what they must, where the whole
        doesn't fit, and those that then still don't are left out.
        """
        templates: Sequence[Template] = self._templates[kind]
        if len(cookie) > ORDINARY_COOKIE_BYTES:
            templates = self._fitting(kind, self._room - len(cookie))
        time_sent = b"%d" % now
        texts = [b"".join((t.before, cookie, t.between, time_sent, t.after)) for t in templates]
        if self._key is None:
            return texts
        return [b'%b,"hmac":"%b"}' % (text[:-1], signature(text, self._key).encode()) for text in texts]

    def _prepare(self, statuses: Sequence[AnyStatus], older: Mapping[AnyStatus, Template]) -> list[Template]:
        templates = []
        for status in statuses:
            template = older.get(status)
            if template is None:
                room = self._room - ORDINARY_COOKIE_BYTES
                message = shortened({**message_of(status), "cookie": 0, "time_sent": 0}, room + len("00"))
                if message is None:
                    log.error("No answer about %s is given: too long for a datagram", part(status))
                    continue
                template = Template(message)
            self._known[status] = template
            templates.append(template)
        return templates

    def _fitting(self, kind: Kind, room: int) -> list[Template]:
        full = self._templates[kind]
        if kind not in self._least:
            answered = (status for status in self.snapshot.answers(kind) if status in self._known)
            self._least[kind] = [Template(least_of(status)) for status in answered]
        found = (whole if whole.size <= room else least for whole, least in zip(full, self._least[kind]))
        return [template for template in found if template.size <= room]


def _inside(message: Mapping[str, Any], names: Sequence[str], start: bytes, end: bytes) -> bytes:
    """The canonical text of some of a message's fields, without braces; nothing if there are none."""
    text = canonical({name: message[name] for name in names})[1:-1]
    return b"".join((start, text, end)) if text else b""
