"""X.509 certificates: reading them, their names and dates, and whether a CA of this host vouches for one.

Rules are RFC 5280's (section 6.1), as far as the certificates of grid CAs use them; a critical extension that isn't
known here refuses the certificate. CAs are a directory's files, as /etc/grid-security/certificates has them: PEM
under any name that ends in .pem, .crt or .0 to .9 (OpenSSL's hashes).
"""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtensionOID

CA_FILE = re.compile(r".*\.(pem|crt|[0-9])")
LONGEST_CHAIN = 10
LARGEST_FILE = 1024 * 1024
LEAST_RSA_BITS = 2048
_Kind = TypeVar("_Kind", bound=x509.ExtensionType)
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_HASHES = (hashes.SHA224, hashes.SHA256, hashes.SHA384, hashes.SHA512)
_SHORT_NAMES = {
    "2.5.4.3": "CN",
    "2.5.4.4": "SN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "street",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.12": "title",
    "2.5.4.42": "GN",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
}
"""As OpenSSL's one-line names have them, which is what sites write."""
_UNDERSTOOD = frozenset(
    [
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.CERTIFICATE_POLICIES,
    ]
)


_UNREADABLE = (
    ArithmeticError,
    LookupError,
    TypeError,
    UnsupportedAlgorithm,
    ValueError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for certificates that aren't well formed."""


class CertificateError(ValueError):
    """Why a certificate can't be used, for people."""


def read_certificates(content: bytes) -> list[x509.Certificate]:
    """All certificates of a PEM file, in its order. Raises CertificateError if one of them is none."""
    try:
        encoded = [base64.b64decode(match[1]) for match in _PEM.finditer(content)]
        return [_load(each) for each in encoded]
    except _UNREADABLE as error:
        raise CertificateError("holds a certificate that can't be read") from error


def _load(encoded: bytes) -> x509.Certificate:
    """A certificate all of which can be read: the library looks at most parts only when asked for them."""
    certificate = x509.load_der_x509_certificate(encoded)
    for name in (certificate.subject, certificate.issuer):
        name.rfc4514_string()
    _ = certificate.public_key(), certificate.signature_hash_algorithm, list(certificate.extensions)
    validity(certificate)
    return certificate


def dn(name: x509.Name) -> str:
    """A name as `/DC=org/DC=example/CN=somebody`.

    Raises CertificateError if a part of it looks like several, which a pattern could be deceived by.
    """
    parts = []
    for attribute in (attribute for rdn in name.rdns for attribute in rdn):
        key = _SHORT_NAMES.get(attribute.oid.dotted_string, attribute.oid.dotted_string)
        value = attribute.value if isinstance(attribute.value, str) else attribute.value.hex()
        if re.search(r"/[A-Za-z0-9.]+=", value) or not value.isprintable():
            raise CertificateError(f"its name is ambiguous: {key} is {value!r}")
        parts.append(f"/{key}={value}")
    return "".join(parts)


def shown_name(certificate: x509.Certificate) -> str:
    """Its subject for people, whatever it is: as dn(), or where that would be ambiguous as RFC 4514 has it."""
    try:
        return dn(certificate.subject)
    except CertificateError:
        return certificate.subject.rfc4514_string()


def validity(certificate: x509.Certificate) -> tuple[float, float]:
    """From when until when it is valid, Unix seconds."""
    start, end = (
        getattr(certificate, f"{name}_utc", None) or _utc(getattr(certificate, name))
        for name in ("not_valid_before", "not_valid_after")
    )
    return start.timestamp(), end.timestamp()


def check_dates(certificate: x509.Certificate, now: float) -> None:
    """Raises CertificateError if the certificate isn't valid yet or any more; now in Unix seconds."""
    start, end = validity(certificate)
    if now < start:
        raise CertificateError(f"is valid only from {moment(start)}")
    if now > end:
        raise CertificateError(f"has expired on {moment(end)}")


def moment(time: float) -> str:
    """Unix seconds as people write them, in UTC."""
    return f"{datetime.datetime.fromtimestamp(time, datetime.timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def read_directory(directory: Path) -> list[x509.Certificate]:
    """The CAs of a directory, each once. What isn't readable as a certificate is left out. Raises OSError."""
    paths = {path.resolve() for path in directory.iterdir() if CA_FILE.fullmatch(path.name)}
    found: dict[bytes, x509.Certificate] = {}
    for path in sorted(paths):
        if not path.is_file() or path.stat().st_size > LARGEST_FILE:
            continue
        try:
            certificates = read_certificates(path.read_bytes())
        except CertificateError:
            continue
        found.update((each.fingerprint(hashes.SHA256()), each) for each in certificates)
    return list(found.values())


def check_chain(certificate: x509.Certificate, authorities: Sequence[x509.Certificate], now: float) -> None:
    """Is there a path to a self-signed certificate among the authorities, all of it valid now (Unix seconds)?

    Raises CertificateError with a reason. Revocation lists are not looked at.
    """
    check_dates(certificate, now)
    _check_extensions(certificate)
    reason = _missing_link(certificate, authorities, now, below=0)
    if reason is not None:
        raise CertificateError(reason)


def _missing_link(
    certificate: x509.Certificate, authorities: Sequence[x509.Certificate], now: float, below: int
) -> str | None:
    """None if a path leads on from this certificate to a root; else why none does. below: CAs already in the path."""
    if below > LONGEST_CHAIN:
        return f"its chain is longer than {LONGEST_CHAIN} certificates"
    issuer = certificate.issuer.rfc4514_string()
    reason = f"its issuer {issuer} is not among the trusted CAs"
    for authority in (each for each in authorities if each.subject == certificate.issuer):
        try:
            _check_authority(authority, now, below)
            check_signature(certificate, authority)
        except CertificateError as error:
            reason = f"its issuer {issuer}: {error}"
            continue
        if authority.subject == authority.issuer:
            return None
        further = _missing_link(authority, authorities, now, below + 1)
        if further is None:
            return None
        reason = f"its issuer {issuer}: {further}"
    return reason


def _check_authority(authority: x509.Certificate, now: float, below: int) -> None:
    """May it issue certificates, with so many CAs between it and the last one?"""
    check_dates(authority, now)
    _check_extensions(authority)
    constraints = _extension(authority, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise CertificateError("is not the certificate of a CA")
    if constraints.path_length is not None and below > constraints.path_length:
        raise CertificateError(f"may have no more than {constraints.path_length} CAs below it")
    usage = _extension(authority, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        raise CertificateError("may not sign certificates")


def _check_extensions(certificate: x509.Certificate) -> None:
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise CertificateError(
                f"has a critical extension that isn't understood: {extension.oid.dotted_string}"
            )


def may_sign(certificate: x509.Certificate) -> bool:
    """Is its key meant for signatures?"""
    usage = _extension(certificate, x509.KeyUsage)
    return usage is None or usage.digital_signature or usage.content_commitment


def _extension(certificate: x509.Certificate, kind: type[_Kind]) -> _Kind | None:
    return next((each.value for each in certificate.extensions if isinstance(each.value, kind)), None)


def check_signature(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Has the issuer's key signed the certificate? Raises CertificateError if not."""
    algorithm, key = certificate.signature_hash_algorithm, issuer.public_key()
    if not isinstance(algorithm, _HASHES):
        raise CertificateError(
            f"signs by {algorithm.name if algorithm else 'an unknown hash'}, which is too weak"
        )
    signed, signature = certificate.tbs_certificate_bytes, certificate.signature
    try:
        if isinstance(key, rsa.RSAPublicKey) and key.key_size >= LEAST_RSA_BITS:
            key.verify(signature, signed, padding.PKCS1v15(), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, signed, ec.ECDSA(algorithm))
        else:
            raise CertificateError("has a key of a kind that isn't accepted")
    except InvalidSignature as error:
        raise CertificateError("has not signed it") from error


def _utc(time: datetime.datetime) -> datetime.datetime:
    return time.replace(tzinfo=datetime.timezone.utc)
