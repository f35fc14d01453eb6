"""Certificates for tests: CAs, sub-CAs, servers and people, made in the test and trusted nowhere else."""

from __future__ import annotations

import datetime
import functools
import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

DAY = 86400.0
NAMES = {
    "DC": NameOID.DOMAIN_COMPONENT,
    "CN": NameOID.COMMON_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "C": NameOID.COUNTRY_NAME,
}
USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@functools.cache
def key(number: int = 0) -> rsa.RSAPrivateKey:
    """One of few keys, since making one takes time."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass(frozen=True)
class Certified:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """Files NAMEcert.pem and NAMEkey.pem."""
        certificate, private = directory / f"{name}cert.pem", directory / f"{name}key.pem"
        certificate.write_bytes(self.certificate_pem)
        private.write_bytes(self.key_pem)
        private.chmod(0o600)
        return certificate, private


def certify(
    subject: str | x509.Name,
    issuer: Certified | None = None,
    *,
    own_key: rsa.RSAPrivateKey | None = None,
    public_key: ec.EllipticCurvePublicKey | None = None,
    ca: bool = False,
    path_length: int | None = None,
    start: float | None = None,
    end: float | None = None,
    usage: Sequence[str] | None = None,
    hosts: Sequence[str] = (),
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    algorithm: hashes.SHA256 | hashes.SHA512 | None = None,
) -> Certified:
    """A certificate for /DC=…/CN=…, of itself if there is no issuer; by default valid from yesterday for ten days.

    start and end in Unix seconds. public_key: certify this one, whose key somebody else has.
    """
    own_key = own_key or key(1 if issuer is None else 2 if ca else 3)
    now = time.time()
    name = named(subject) if isinstance(subject, str) else subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.certificate.subject if issuer else name)
        .public_key(public_key or own_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(now - DAY if start is None else start))
        .not_valid_after(_time(now + 10 * DAY if end is None else end))
    )
    if ca:
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=path_length), critical=True
        )
        usage = ("key_cert_sign", "crl_sign") if usage is None else usage
    if usage:
        builder = builder.add_extension(
            x509.KeyUsage(**{each: each in usage for each in USAGES}), critical=True
        )
    if hosts:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False
        )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    signing_key = issuer.key if issuer else own_key
    return Certified(builder.sign(signing_key, algorithm or hashes.SHA256()), own_key)


def named(subject: str) -> x509.Name:
    """The name that is written /DC=org/CN=somebody."""
    parts = (part.partition("=") for part in subject.strip("/").split("/"))
    return x509.Name([x509.NameAttribute(NAMES[name], value) for name, _, value in parts])


def _time(unix_seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(unix_seconds), datetime.timezone.utc).replace(tzinfo=None)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def check_signature(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Raise InvalidSignature unless the issuer's key has signed the certificate."""
    key, signed = issuer.public_key(), certificate.tbs_certificate_bytes
    assert certificate.signature_hash_algorithm is not None
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(certificate.signature, signed, ec.ECDSA(certificate.signature_hash_algorithm))
    else:
        assert isinstance(key, rsa.RSAPublicKey)
        key.verify(certificate.signature, signed, padding.PKCS1v15(), certificate.signature_hash_algorithm)
