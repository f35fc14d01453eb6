"""Signatures of VacQuery messages in spaces that share a key (vacquery_key_file).

`hmac` is the hex HMAC-SHA256 under the key of the message without that field, as canonical JSON; `time_sent`
must be within 300 seconds of the receiver's clock.
"""

from __future__ import annotations

import errno
import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SIGNATURE_SECONDS = 300
"""How far time_sent of a signed message may be from now."""
LEAST_KEY_BYTES = 16


def read_key(path: Path | None) -> bytes | None:
    """The key in this file, blanks around it removed; None if no file is configured.

    Raises OSError if it can't be read or is too short to be a secret.
    """
    if path is None:
        return None
    key = path.read_bytes().strip()
    if len(key) < LEAST_KEY_BYTES:
        reason = f"the key has {len(key)} bytes, it needs {LEAST_KEY_BYTES} at least"
        raise OSError(errno.EINVAL, reason, str(path))
    return key


def identity(port: int, key_file: Path | None) -> str:
    """What a responder works by, in words that tell nothing of the key but whether it may be another one."""
    if key_file is None:
        return f"port {port}"
    try:
        found = key_file.stat()
    except OSError as error:
        return f"port {port}, key {key_file}: {error.strerror}"
    return f"port {port}, key {key_file} ({found.st_ino}, {found.st_mtime_ns})"


def canonical(message: Mapping[str, Any]) -> bytes:
    """The JSON text that is signed: keys sorted, no blanks, ASCII. ValueError if it holds NaN or infinity."""
    return json.dumps(message, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def signature(text: bytes, key: bytes) -> str:
    """Of a message's canonical text without `hmac`."""
    return hmac.digest(key, text, "sha256").hex()


def is_signed(message: Mapping[str, Any], key: bytes) -> bool:
    """Whether the message carries the signature that this key gives."""
    found = message.get("hmac")
    unsigned = {name: value for name, value in message.items() if name != "hmac"}
    expected = signature(canonical(unsigned), key)
    return type(found) is str and hmac.compare_digest(found.encode("utf-8", "replace"), expected.encode())


def is_fresh(message: Mapping[str, Any], now: float) -> bool:
    """Whether the message was sent about now."""
    sent = message.get("time_sent")
    return isinstance(sent, (int, float)) and abs(int(sent) - int(now)) <= SIGNATURE_SECONDS
