"""Signatures of CernVM images, which are part of the image.

The last 64 KiB are two blocks of JSON, padded with NUL bytes: metadata, then `certificate` (PEM) and `signature`,
both in base64. The signature is RSA PKCS#1 v1.5 with SHA-256 over everything before the second block.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from vac.context.certificates import CertificateError, check_chain, dn, may_sign, read_certificates
from vac.host.filesystems import FileStamp, stamp_from, stamp_of

BLOCK_BYTES = 32 * 1024
PIECE_BYTES = 1024 * 1024
LONGEST_DN = 256
"""Patterns may come from pipes, and a failing match can take a time exponential in the name's length."""
_SLIPS = (
    (re.compile(r'(HEAD"),(\s*\})'), r"\1\2"),
    (re.compile(r'(signature>")(\s*\n\s*")'), r"\1,\2"),
    (re.compile(r'(cvm-sign01\.cern\.ch")(\s*\n\s*")'), r"\1,\2"),
)
"""Errors in the JSON of published images, and their corrections."""

_log = logging.getLogger(__name__)


class SignatureRefused(OSError):
    """Reason why an image doesn't count as signed."""


@dataclass(frozen=True)
class Signer:
    """Signer of an image with a valid signature, not checked yet."""

    certificate: x509.Certificate
    stamp: FileStamp
    """Of the file that was read."""
    metadata_problem: str | None = None
    """Problem of the image's metadata; its signature is valid nevertheless."""


def read_signature(path: Path) -> Signer:
    """Read the whole image once and return its signer.

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
        if len(block) != BLOCK_BYTES or stamp_of(file.fileno()) != stamp_from(before):
            raise SignatureRefused("the image changes while it is read")
    certificate, signature = _signature_block(block)
    _check(certificate, signature, digest)
    try:
        _parse(metadata)
    except ValueError as error:
        return Signer(certificate, stamp_from(before), str(error))
    return Signer(certificate, stamp_from(before))


def judge(signer: Signer, dn_pattern: str, ca_directory: Path, now: float) -> None:
    """Raise SignatureRefused unless a CA vouches for the signer and its DN has the pattern; now in Unix seconds."""
    try:
        check_chain(signer.certificate, ca_directory, now)
        name = dn(signer.certificate.subject)
    except CertificateError as error:
        raise SignatureRefused(f"the signer's certificate: {error}") from error
    except OSError as error:
        raise SignatureRefused(
            f"the trusted CAs in {ca_directory} can't be read: {error.strerror}"
        ) from error
    if not may_sign(signer.certificate):
        raise SignatureRefused("the signer's certificate: its key isn't meant for signatures")
    if len(name) > LONGEST_DN:
        raise SignatureRefused(f"the signer's certificate: its name is longer than {LONGEST_DN} characters")
    if not re.search(dn_pattern, name):
        raise SignatureRefused(f"signed by {name}, in which image_signing_dn {dn_pattern} isn't found")


class SignedImages:
    """Images, some of which must be signed. Callable from any thread.

    fetch returns the path of a URL's copy. An image is read again only after its file has changed; dates, CAs and DN
    are checked each time. clock returns Unix seconds.
    """

    def __init__(self, fetch: Callable[[str], Path], ca_directory: Path, clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._ca_directory = ca_directory
        self._clock = clock
        self._read: dict[Path, tuple[FileStamp, Signer | SignatureRefused]] = {}

    def fetch(self, source: str, signing_dn: str | None = None) -> tuple[Path, FileStamp]:
        """Return the local path of the image with this URL or path, and the stamp of the file that it was then.

        That file must be signed by signing_dn if given. Blocks while the image is downloaded and read. Raises OSError
        with a reason.
        """
        path = self._fetch(source) if "://" in source else Path(source)
        if signing_dn is None:
            return path, stamp_of(path)
        signer = self._signer(path)
        judge(signer, signing_dn, self._ca_directory, self._clock())
        return path, signer.stamp

    def _signer(self, path: Path) -> Signer:
        identity = stamp_of(path)
        known, found = self._read.get(path, (None, None))
        if found is None or known != identity:
            try:
                found = read_signature(path)
            except SignatureRefused as refusal:
                found = refusal
            else:
                identity = found.stamp
                if found.metadata_problem:
                    _log.warning("image %s: its metadata can't be read: %s", path, found.metadata_problem)
            self._read[path] = identity, found
        if isinstance(found, SignatureRefused):
            raise SignatureRefused(*found.args)
        return found


def _hash(file: BinaryIO, size: int) -> tuple[bytes, bytes]:
    """Return the SHA-256 of this many bytes, and their last block, the metadata."""
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
    """Return the signer's certificate and the signature."""
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
        raise SignatureRefused("the signer's key isn't an RSA key")
    try:
        key.verify(signature, digest, padding.PKCS1v15(), Prehashed(hashes.SHA256()))
    except InvalidSignature as error:
        raise SignatureRefused("the signature doesn't match the image: it has been changed since") from error


def _parse(block: bytes) -> dict[str, Any]:
    """Return a block's JSON object, with known errors corrected. Raises ValueError."""
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
