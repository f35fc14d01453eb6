"""JSON of VacQuery messages: canonical text, and signatures in spaces that share a key.

`hmac` is the hex HMAC-SHA256 under the key (vacquery_key_file) of the message without that field, as canonical JSON;
`time_sent` must be within 300 seconds of the receiver's clock.
"""

from __future__ import annotations

import errno
import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SIGNATURE_SECONDS = 300
"""Greatest difference between a signed message's time_sent and now."""
LEAST_KEY_BYTES = 16


def read_key(path: Path | None) -> bytes | None:
    """Return the key in this file without surrounding blanks; None if no file is configured.

    Raises OSError if it can't be read or is too short.
    """
    if path is None:
        return None
    key = path.read_bytes().strip()
    if len(key) < LEAST_KEY_BYTES:
        reason = f"the key has {len(key)} bytes but needs at least {LEAST_KEY_BYTES}"
        raise OSError(errno.EINVAL, reason, str(path))
    return key


def identity(port: int, key_file: Path | None) -> str:
    """Return a text that changes with the port or the key and reveals nothing of the key."""
    if key_file is None:
        return f"port {port}"
    try:
        found = key_file.stat()
    except OSError as error:
        return f"port {port}, key {key_file}: {error.strerror}"
    return f"port {port}, key {key_file} ({found.st_ino}, {found.st_mtime_ns})"


def canonical(message: Mapping[str, Any]) -> bytes:
    """Return the JSON text to be signed: sorted keys, no blanks, ASCII. ValueError for NaN or infinity."""
    return json.dumps(message, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def signature(text: bytes, key: bytes) -> str:
    """Return the signature of a message's canonical text without `hmac`."""
    return hmac.digest(key, text, "sha256").hex()


def is_signed(message: Mapping[str, Any], key: bytes) -> bool:
    """Return True if the message carries the right signature."""
    found = message.get("hmac")
    unsigned = {name: value for name, value in message.items() if name != "hmac"}
    expected = signature(canonical(unsigned), key)
    return type(found) is str and hmac.compare_digest(found.encode("utf-8", "replace"), expected.encode())


def is_fresh(message: Mapping[str, Any], now: float) -> bool:
    """Return True if the message was sent within SIGNATURE_SECONDS of now."""
    sent = message.get("time_sent")
    return isinstance(sent, (int, float)) and abs(int(sent) - int(now)) <= SIGNATURE_SECONDS
