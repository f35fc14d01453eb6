"""Signatures of images, as CernVM publishes them: the image carries its own at its end.

The last 64 KiB are two blocks of JSON, padded with NUL bytes: metadata, then `certificate` (PEM) and `signature`,
both in base64. The signature is RSA PKCS#1 v1.5 with SHA-256 over everything but the second block.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from vac.context.certificates import (
    CertificateError,
    check_chain,
    dn,
    may_sign,
    read_certificates,
    read_directory,
)

BLOCK_BYTES = 32 * 1024
PIECE_BYTES = 1024 * 1024
LONGEST_DN = 256
"""Patterns may come from others, and one that doesn't match can take a time that grows fast with the name's length."""
_SLIPS = (
    (re.compile(r'(HEAD"),(\s*\})'), r"\1\2"),
    (re.compile(r'(signature>")(\s*\n\s*")'), r"\1,\2"),
    (re.compile(r'(cvm-sign01\.cern\.ch")(\s*\n\s*")'), r"\1,\2"),
)
"""What is wrong in published images' JSON, and how it is meant."""

_log = logging.getLogger(__name__)


class SignatureRefused(OSError):
    """Why an image doesn't count as signed, for people."""


@dataclass(frozen=True)
class Signer:
    """Whose signature an image bears: the signature is right, but who this is has yet to be judged."""

    certificate: x509.Certificate
    metadata_problem: str | None = None
    """What is wrong with the image's metadata, which says nothing against its signature."""


def read_signature(path: Path) -> Signer:
    """Whose key has signed the image. Reads all of it once, piece by piece.

    Raises SignatureRefused, and OSError if the file can't be read.
    """
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        if before.st_size <= 2 * BLOCK_BYTES:
            raise SignatureRefused(
                f"{before.st_size} bytes; a signed image has more than {2 * BLOCK_BYTES}, its last two blocks"
            )
        digest, metadata = _hash(file, before.st_size - BLOCK_BYTES)
        block = file.read(BLOCK_BYTES + 1)
        if len(block) != BLOCK_BYTES or _identity(os.fstat(file.fileno())) != _identity(before):
            raise SignatureRefused("the image changes while it is read")
    certificate, signature = _signature_block(block)
    _check(certificate, signature, digest)
    try:
        _parse(metadata)
    except ValueError as error:
        return Signer(certificate, str(error))
    return Signer(certificate)


def judge(signer: Signer, dn_pattern: str, ca_directory: Path, now: float) -> None:
    """Is this signer one whose images are wanted: trusted by a CA, in date, of a DN in which the pattern is found?

    now in Unix seconds. Raises SignatureRefused.
    """
    try:
        authorities = read_directory(ca_directory)
    except OSError as error:
        raise SignatureRefused(
            f"the trusted CAs in {ca_directory} can't be read: {error.strerror}"
        ) from error
    try:
        check_chain(signer.certificate, authorities, now)
        name = dn(signer.certificate.subject)
    except CertificateError as error:
        raise SignatureRefused(f"the signer's certificate: {error}") from error
    if not may_sign(signer.certificate):
        raise SignatureRefused("the signer's certificate: its key isn't meant for signatures")
    if len(name) > LONGEST_DN:
        raise SignatureRefused(f"the signer's certificate: its name is longer than {LONGEST_DN} characters")
    if not re.search(dn_pattern, name):
        raise SignatureRefused(f"signed by {name}, in which image_signing_dn {dn_pattern} isn't found")


def verify_image(path: Path, dn_pattern: str, ca_directory: Path, now: float) -> None:
    """Is the image signed by a key whose certificate is trusted, in date, and of a DN that the pattern finds?

    now in Unix seconds. Raises SignatureRefused with a reason, and OSError if the file can't be read.
    """
    judge(read_signature(path), dn_pattern, ca_directory, now)


class SignedImages:
    """Images of which some have to be signed. Callable from any thread.

    fetch gives the path of a URL's copy. An image is read through once as long as its file stays the same; dates,
    CAs and DN are looked at each time. clock gives Unix seconds.
    """

    def __init__(self, fetch: Callable[[str], Path], ca_directory: Path, clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._ca_directory = ca_directory
        self._clock = clock
        self._lock = threading.Lock()
        self._locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
        self._read: dict[Path, tuple[tuple[int, ...], Signer | SignatureRefused]] = {}

    def fetch(self, source: str, signing_dn: str | None = None) -> Path:
        """The local path of the image with this URL or path, signed by that DN if one is given.

        Blocks as long as downloading and reading it take. Raises OSError with a reason.
        """
        path = self._fetch(source) if "://" in source else Path(source)
        if signing_dn is not None:
            judge(self._signer(path), signing_dn, self._ca_directory, self._clock())
        return path

    def _signer(self, path: Path) -> Signer:
        with self._lock:
            lock = self._locks[path]
        with lock:
            identity = _identity(path.stat())
            known, found = self._read.get(path, (None, None))
            if found is None or known != identity:
                found = self._first_reading(path)
                self._read[path] = identity, found
        if isinstance(found, SignatureRefused):
            raise SignatureRefused(*found.args)
        return found

    def _first_reading(self, path: Path) -> Signer | SignatureRefused:
        try:
            signer = read_signature(path)
        except SignatureRefused as refusal:
            return refusal
        if signer.metadata_problem:
            _log.warning("image %s: its metadata can't be read: %s", path, signer.metadata_problem)
        return signer


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """What changes with a file's content. Not its ctime: looking after the cache changes that."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _hash(file: BinaryIO, size: int) -> tuple[bytes, bytes]:
    """SHA-256 of so many bytes, of which the last block is the metadata, which comes with it."""
    digest, left, piece = hashlib.sha256(), size, b""
    while left > 0:
        wanted = PIECE_BYTES if left >= PIECE_BYTES + BLOCK_BYTES else left
        piece = file.read(wanted)
        if len(piece) != wanted:
            raise SignatureRefused("the image changes while it is read")
        digest.update(piece)
        left -= wanted
    return digest.digest(), piece[-BLOCK_BYTES:]


def _signature_block(block: bytes) -> tuple[x509.Certificate, bytes]:
    """The signer's certificate and the signature."""
    try:
        found = _parse(block)
    except ValueError as error:
        raise SignatureRefused(
            f"not signed: the last {BLOCK_BYTES} bytes hold no signature: {error}"
        ) from error
    values = {}
    for key in ("certificate", "signature"):
        try:
            values[key] = base64.b64decode(found[key], validate=False)
        except (KeyError, TypeError, ValueError) as error:
            raise SignatureRefused(f"not signed: its signature block has no base64 {key!r}") from error
    try:
        certificates = read_certificates(values["certificate"])
    except CertificateError as error:
        raise SignatureRefused(f"the signature block {error}") from error
    if not certificates:
        raise SignatureRefused("the signature block holds no certificate in PEM")
    return certificates[0], values["signature"]


def _check(certificate: x509.Certificate, signature: bytes, digest: bytes) -> None:
    key = certificate.public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        raise SignatureRefused("the signer's key is no RSA key")
    try:
        key.verify(signature, digest, padding.PKCS1v15(), Prehashed(hashes.SHA256()))
    except InvalidSignature as error:
        raise SignatureRefused("the signature isn't that of this image: it has been changed since") from error


def _parse(block: bytes) -> dict[str, Any]:
    """A block's JSON object, its known slips mended. Raises ValueError."""
    text = block.rstrip(b"\0").decode("utf-8")
    mended = text
    for slip, meant in _SLIPS:
        mended = slip.sub(meant, mended)
    try:
        found = json.loads(mended)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found
