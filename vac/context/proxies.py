"""Limited X.509 proxies: short-lived certificates in the name of a site or experiment, each with its own key.

RFC 3820 with Globus's policy language for limited proxies, or the legacy kind, marked by its name alone. The source
certificate may itself be a proxy, followed by its chain.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Union

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from vac.context.certificates import (
    LARGEST_FILE,
    CertificateError,
    check_dates,
    read_certificates,
    read_limited,
    shown_name,
    validity,
)
from vac.text import utc_time

CERTIFICATE_FILE, KEY_FILE = "x509cert.pem", "x509key.pem"
"""In a machinetype's directory."""
KEY_BITS = 2048
BEFORE_SECONDS = 300
"""Age of a new proxy, for hosts whose clocks are slow."""
LONGEST_NAME = 64
"""X.520's upper bound of a common name."""
PROXY_CERT_INFO = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
_LIMITED = bytes.fromhex("300f300d060b2b060104019b5001010109")
"""ProxyCertInfo in DER: no path length, policy language 1.3.6.1.4.1.3536.1.1.1.9, no policy."""
_LEGACY_NAME = "limited proxy"

_Key = Union[rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey]


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
        builder = builder.add_extension(x509.UnrecognizedExtension(PROXY_CERT_INFO, _LIMITED), critical=True)
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
