"""X.509 certificates: reading, names, dates, chains to the CAs of a directory, and limited proxies.

`openssl verify` checks chains and revocation lists. A CA directory is one like /etc/grid-security/certificates: PEM
files whose names end in .pem, .crt or OpenSSL's .0 to .9, and revocation lists under OpenSSL's .r0 to .r9.

Limited proxies are short-lived certificates in the name of a site or experiment, each with its own key: RFC 3820 with
Globus's policy language for limited proxies, or the legacy kind, marked by its name alone. The source certificate may
itself be a proxy, followed by its chain.
"""

from __future__ import annotations

import base64
import datetime
import re
import tempfile
from pathlib import Path
from typing import Union

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from vac.host.child_processes import run
from vac.text import utc_time

CA_FILE = re.compile(r".*\.(pem|crt|[0-9])")
LARGEST_FILE = 1024 * 1024
DEADLINE_SECONDS = 60
CERTIFICATE_FILE, KEY_FILE = "x509cert.pem", "x509key.pem"
"""In a machinetype's directory."""
KEY_BITS = 2048
BEFORE_SECONDS = 300
"""Age of a new proxy, for hosts whose clocks are slow."""
LONGEST_NAME = 64
"""X.520's upper bound of a common name."""
PROXY_CERT_INFO = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
_LIMITED_POLICY = bytes.fromhex("300f300d060b2b060104019b5001010109")
"""ProxyCertInfo in DER: no path length, policy language 1.3.6.1.4.1.3536.1.1.1.9, no policy."""
_LEGACY_NAME = "limited proxy"
_NO_LIST = 3
"""X509_V_ERR_UNABLE_TO_GET_CRL."""
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_REFUSED = re.compile(r"([^\n]*)\nerror (\d+) at \d+ depth lookup: ([^\n]*)")
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
"""Short names of OpenSSL's one-line form, which sites write."""
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
"""Exceptions of the library for malformed certificates."""

_Key = Union[rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey]


class CertificateError(ValueError):
    """Reason why a certificate can't be used."""


def read_limited(path: Path, most_bytes: int) -> bytes:
    """Return the content of a file; ValueError with a reason if it is larger or can't be read."""
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > most_bytes:
        raise ValueError(f"{path} is larger than {most_bytes} bytes")
    return content


def read_certificates(content: bytes) -> list[x509.Certificate]:
    """Return all certificates of a PEM file, in its order. Raises CertificateError if one can't be parsed."""
    try:
        return [_load(base64.b64decode(match[1])) for match in _PEM.finditer(content)]
    except _UNREADABLE as error:
        raise CertificateError("holds a certificate that can't be read") from error


def _load(encoded: bytes) -> x509.Certificate:
    """Parse all parts of a certificate: the library itself parses most of them on access."""
    certificate = x509.load_der_x509_certificate(encoded)
    for name in (certificate.subject, certificate.issuer):
        name.rfc4514_string()
    _ = certificate.public_key(), certificate.signature_hash_algorithm, list(certificate.extensions)
    validity(certificate)
    return certificate


def dn(name: x509.Name) -> str:
    """Return a name as `/DC=org/DC=example/CN=somebody`.

    Raises CertificateError if a part looks like several parts, which could deceive a pattern.
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
    """Return the subject for people: as dn(), or as in RFC 4514 if that would be ambiguous."""
    try:
        return dn(certificate.subject)
    except CertificateError:
        return certificate.subject.rfc4514_string()


def validity(certificate: x509.Certificate) -> tuple[float, float]:
    """Return the first and the last moment of validity, Unix seconds."""
    start, end = (
        getattr(certificate, f"{name}_utc", None)
        or getattr(certificate, name).replace(tzinfo=datetime.timezone.utc)
        for name in ("not_valid_before", "not_valid_after")
    )
    return start.timestamp(), end.timestamp()


def check_dates(certificate: x509.Certificate, now: float) -> None:
    """Raise CertificateError if the certificate isn't valid at this time (Unix seconds)."""
    start, end = validity(certificate)
    if now < start:
        raise CertificateError(f"is valid only from {utc_time(start)}")
    if now > end:
        raise CertificateError(f"has expired on {utc_time(end)}")


def read_directory(directory: Path) -> list[x509.Certificate]:
    """Return the CAs of a directory. Files without readable certificates are left out. Raises OSError."""
    found = []
    for path in sorted({path.resolve() for path in directory.iterdir() if CA_FILE.fullmatch(path.name)}):
        if path.is_file() and path.stat().st_size <= LARGEST_FILE:
            try:
                found += read_certificates(path.read_bytes())
            except CertificateError:
                continue
    return found


def check_chain(certificate: x509.Certificate, ca_directory: Path, now: float) -> None:
    """Raise CertificateError unless a valid chain leads to a self-signed CA of the directory, now in Unix seconds.

    A certificate in a revocation list is refused, and so is a list that has expired. If a CA of the chain has no
    list in the directory, the chain is checked without lists. Raises OSError if the directory can't be read.
    """
    check_dates(certificate, now)
    with tempfile.TemporaryDirectory(prefix="vac-chain-") as scratch:
        bundle, leaf = Path(scratch) / "authorities.pem", Path(scratch) / "certificate.pem"
        bundle.write_bytes(b"".join(map(_pem, read_directory(ca_directory))))
        leaf.write_bytes(_pem(certificate))
        chosen = ["-CAfile", str(bundle), "-CApath", str(ca_directory), "-attime", str(int(now))]
        code, reason = _verify([*chosen, "-crl_check_all", str(leaf)])
        if code == _NO_LIST:
            code, reason = _verify([*chosen, str(leaf)])
    if code:
        raise CertificateError(reason)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _verify(arguments: list[str]) -> tuple[int, str]:
    """Return the error code and reason of `openssl verify`, 0 if valid. Level 2 refuses SHA-1 and weak keys."""
    options = ["-auth_level", "2", "-nameopt", "RFC2253", "-no-CAstore"]
    done = run(["openssl", "verify", *options, *arguments], time_limit_seconds=DEADLINE_SECONDS)
    if not done.failure:
        return 0, ""
    found = _REFUSED.search(done.errors.decode("utf-8", "replace"))
    if found is None:
        return -1, f"its chain can't be checked: {done.failure}"
    return int(found[2]), f"its chain is refused: {found[3]} ({found[1]})"


def may_sign(certificate: x509.Certificate) -> bool:
    """Return whether the key is meant for signatures."""
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.KeyUsage):
            return extension.value.digital_signature or extension.value.content_commitment
    return True


def proxy_from_files(
    certificate_file: Path, key_file: Path, name: str, *, now: float, end: float, legacy: bool = False
) -> bytes:
    """Return make_proxy() of a PEM certificate, perhaps with its chain, and its key. Raises CertificateError."""
    try:
        certificate, key = (read_limited(file, LARGEST_FILE) for file in (certificate_file, key_file))
        return make_proxy(certificate, key, name, now=now, end=end, legacy=legacy)
    except ValueError as error:
        raise CertificateError(f"no X.509 proxy from {certificate_file}: {error}") from error


def make_proxy(
    certificate_pem: bytes, key_pem: bytes, name: str, *, now: float, end: float, legacy: bool = False
) -> bytes:
    """Return a new limited proxy, its key, and the source certificate with its chain, in PEM and this order.

    name: last part of the proxy's subject, ignored for a legacy one. end: Unix seconds. Raises CertificateError, for
    example if the source certificate expires before then.
    """
    try:
        chain = read_certificates(certificate_pem)
    except CertificateError as error:
        raise CertificateError(f"it {error}") from error
    if not chain:
        raise CertificateError("no PEM certificate in it")
    for each in chain:
        _check_lifetime(each, now, end)
    issuer_key = _load_key(key_pem)
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if issuer_key.public_key().public_bytes(*form) != chain[0].public_key().public_bytes(*form):
        raise CertificateError(f"the key doesn't belong to the first certificate, {shown_name(chain[0])}")
    own_key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    common_name = _LEGACY_NAME if legacy else name[:LONGEST_NAME]
    builder = _builder(chain[0], common_name, own_key.public_key(), now, end)
    if not legacy:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(PROXY_CERT_INFO, _LIMITED_POLICY), critical=True
        )
    proxy = builder.sign(issuer_key, hashes.SHA256())
    private = own_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    encoded = [each.public_bytes(serialization.Encoding.PEM) for each in (proxy, *chain)]
    return b"".join([encoded[0], private, *encoded[1:]])


def _builder(
    issuer: x509.Certificate, common_name: str, key: rsa.RSAPublicKey, now: float, end: float
) -> x509.CertificateBuilder:
    """Return the fields of both kinds: the issuer's name and one more part, dates, key usage."""
    last = x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=True,
        data_encipherment=False,
        key_agreement=True,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer.subject)
        .subject_name(x509.Name([*issuer.subject.rdns, last]))
        .serial_number(x509.random_serial_number())
        .public_key(key)
        .not_valid_before(_time(now - BEFORE_SECONDS))
        .not_valid_after(_time(end))
        .add_extension(usage, critical=True)
    )


def _check_lifetime(certificate: x509.Certificate, now: float, end: float) -> None:
    shown = shown_name(certificate)
    try:
        check_dates(certificate, now)
    except CertificateError as error:
        raise CertificateError(f"{shown} {error}") from error
    last = validity(certificate)[1]
    if last < int(end):
        raise CertificateError(
            f"{shown} expires on {utc_time(last)}, but the proxy must last until {utc_time(end)}"
        )


def _load_key(content: bytes) -> _Key:
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except TypeError as error:
        raise CertificateError("the key is encrypted; a key without password is needed") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError("the key can't be read; a private key in PEM is needed") from error
    if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
        raise CertificateError("the key is neither an RSA nor an EC key")
    return key


def _time(unix_seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(unix_seconds), datetime.timezone.utc)
