"""Limited X.509 proxies, judged by openssl itself."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.certificates import DAY, Certified, certify, check_signature, key
from tests.conftest import require_tool
from vac.cli.main import main
from vac.context.certificates import (
    PROXY_CERT_INFO,
    CertificateError,
    dn,
    make_proxy,
    read_certificates,
    validity,
)

NOW = time.time()
END = NOW + DAY
ROBOT_DN = "/DC=org/DC=example/CN=Robot: pilot factory"
SIGNING = ("digital_signature", "key_encipherment")


@dataclass(frozen=True)
class Source:
    """A robot certificate and whose CA vouches for it."""

    ca: Certified
    robot: Certified
    chain_pem: bytes = b""

    @property
    def certificate_pem(self) -> bytes:
        return self.chain_pem or self.robot.certificate_pem

    def proxy(self, name: str = "vo-prod", end: float = END, legacy: bool = False) -> bytes:
        return make_proxy(self.certificate_pem, self.robot.key_pem, name, now=NOW, end=end, legacy=legacy)


@pytest.fixture(scope="module")
def source() -> Source:
    ca = certify("/DC=org/DC=example/CN=Grid CA", ca=True)
    return Source(ca, certify(ROBOT_DN, ca, usage=SIGNING))


def further(source: Source) -> Source:
    """A proxy of the source as the source of others."""
    pem = source.proxy("first")
    private = serialization.load_pem_private_key(pem, None)
    assert isinstance(private, rsa.RSAPrivateKey)
    return Source(source.ca, Certified(read_certificates(pem)[0], private), pem)


def judged_by_openssl(source: Source, pem: bytes, directory: Path) -> str:
    """Return the output of `openssl verify` for a proxy."""
    for name, content in (("ca", source.ca.certificate_pem), ("proxy", pem)):
        (directory / name).write_bytes(content)
    ca, proxy = str(directory / "ca"), str(directory / "proxy")
    options = ["-allow_proxy_certs", "-auth_level", "2", "-CAfile", ca, "-untrusted", proxy]
    command = [require_tool("openssl"), "verify", *options, proxy]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.allow_subprocess
def test_openssl_accepts_a_proxy(source: Source, tmp_path: Path) -> None:
    assert judged_by_openssl(source, source.proxy(), tmp_path) == f"{tmp_path / 'proxy'}: OK\n"


@pytest.mark.allow_subprocess
def test_openssl_accepts_a_proxy_of_a_proxy(source: Source, tmp_path: Path) -> None:
    pem = further(source).proxy("second")
    assert dn(read_certificates(pem)[0].subject) == f"{ROBOT_DN}/CN=first/CN=second"
    assert judged_by_openssl(source, pem, tmp_path) == f"{tmp_path / 'proxy'}: OK\n"


@pytest.mark.allow_subprocess
def test_openssl_notices_a_proxy_that_is_forged(source: Source, tmp_path: Path) -> None:
    stranger = Source(source.ca, certify(ROBOT_DN, source.ca, usage=SIGNING, own_key=key(7)))
    pem = stranger.proxy().replace(stranger.robot.certificate_pem, source.robot.certificate_pem)
    assert "error" in judged_by_openssl(source, pem, tmp_path)


def test_a_proxy_is_what_grids_expect(source: Source) -> None:
    pem = source.proxy()
    proxy, robot = read_certificates(pem)
    assert robot == source.robot.certificate
    assert (dn(proxy.issuer), dn(proxy.subject)) == (ROBOT_DN, f"{ROBOT_DN}/CN=vo-prod")
    assert validity(proxy) == (int(NOW - 300), int(END))
    check_signature(proxy, robot)
    info = proxy.extensions.get_extension_for_oid(PROXY_CERT_INFO)
    assert info.critical
    assert isinstance(info.value, x509.UnrecognizedExtension)
    assert info.value.value.hex() == "300f300d060b2b060104019b5001010109"
    usage = proxy.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    named = (
        "digital_signature",
        "key_encipherment",
        "key_agreement",
        "content_commitment",
        "data_encipherment",
    )
    assert [getattr(usage.value, name) for name in named] == [True, True, True, False, False]
    assert len(list(proxy.extensions)) == 2


def test_a_proxys_file_holds_proxy_key_and_chain_in_this_order(source: Source) -> None:
    pem = further(source).proxy()
    begins = [line for line in pem.decode().splitlines() if line.startswith("-----BEGIN")]
    assert begins == [
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN RSA PRIVATE KEY-----",
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----",
    ]
    private = serialization.load_pem_private_key(pem, None)
    assert isinstance(private, rsa.RSAPrivateKey)
    assert private.key_size == 2048
    proxy = read_certificates(pem)[0]
    assert private.public_key().public_numbers() == _numbers(proxy)
    assert source.robot.key_pem not in pem


def _numbers(certificate: x509.Certificate) -> rsa.RSAPublicNumbers:
    public = certificate.public_key()
    assert isinstance(public, rsa.RSAPublicKey)
    return public.public_numbers()


def test_each_proxy_has_a_key_and_a_number_of_its_own(source: Source) -> None:
    first, second = (read_certificates(source.proxy())[0] for _ in range(2))
    assert _numbers(first) != _numbers(second)
    assert first.serial_number != second.serial_number


def test_a_legacy_proxy_is_one_by_its_name_alone(source: Source) -> None:
    proxy = read_certificates(source.proxy(legacy=True))[0]
    assert dn(proxy.subject) == f"{ROBOT_DN}/CN=limited proxy"
    assert [each.oid.dotted_string for each in proxy.extensions] == ["2.5.29.15"]
    check_signature(proxy, source.robot.certificate)


def test_a_key_may_be_of_an_elliptic_curve(source: Source) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    public_only = certify(ROBOT_DN, source.ca, usage=SIGNING, public_key=private.public_key())
    key_pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    proxy = read_certificates(make_proxy(public_only.certificate_pem, key_pem, "a", now=NOW, end=END))[0]
    check_signature(proxy, public_only.certificate)


def test_a_long_name_is_cut_to_what_certificates_may_hold(source: Source) -> None:
    assert dn(read_certificates(source.proxy("v" * 100))[0].subject) == f"{ROBOT_DN}/CN={'v' * 64}"


def test_a_source_that_expires_before_the_machine_is_refused(source: Source) -> None:
    with pytest.raises(CertificateError, match=r"pilot factory expires on 20.* must last until 20"):
        source.proxy(end=NOW + 11 * DAY)
    first = further(source)
    with pytest.raises(CertificateError, match=r"CN=first expires on"):
        first.proxy(end=END + 1)
    assert first.proxy(end=END)


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [(NOW - 2 * DAY, NOW - DAY, "has expired on"), (NOW + 60, NOW + 9 * DAY, "is valid only from")],
    ids=["expired", "not yet valid"],
)
def test_a_source_that_is_not_valid_now_is_refused(
    source: Source, start: float, end: float, reason: str
) -> None:
    robot = certify(ROBOT_DN, source.ca, start=start, end=end)
    with pytest.raises(CertificateError, match=reason):
        Source(source.ca, robot).proxy()


ENCRYPTED = serialization.BestAvailableEncryption(b"secret")
PKCS8 = serialization.PrivateFormat.PKCS8


@pytest.mark.parametrize(
    ("certificate_pem", "key_pem", "reason"),
    [
        (b"", None, "no PEM certificate in it"),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            None,
            "certificate that can't be read",
        ),
        (None, b"", "the key can't be read"),
        (None, key(9).private_bytes(serialization.Encoding.PEM, PKCS8, ENCRYPTED), "the key is encrypted"),
        (
            None,
            Certified(certify("/CN=a").certificate, key(9)).key_pem,
            "doesn't belong to the first certificate",
        ),
    ],
    ids=["no certificate", "broken certificate", "no key", "encrypted key", "another key"],
)
def test_sources_that_are_no_use_are_refused(
    source: Source, certificate_pem: bytes | None, key_pem: bytes | None, reason: str
) -> None:
    certificate_pem = source.robot.certificate_pem if certificate_pem is None else certificate_pem
    key_pem = source.robot.key_pem if key_pem is None else key_pem
    with pytest.raises(CertificateError, match=reason):
        make_proxy(certificate_pem, key_pem, "a", now=NOW, end=END)


@pytest.mark.parametrize("legacy", [False, True])
def test_vac_proxy_init_prints_a_proxy_for_twelve_hours(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str], legacy: bool
) -> None:
    certificate, private = source.robot.write(tmp_path, "x509")
    before = int(time.time())
    assert main(["proxy-init", "-c", str(certificate), "-k", str(private), *(["-l"] if legacy else [])]) == 0
    told = capsys.readouterr()
    proxy, _ = read_certificates(told.out.encode())
    assert 0 <= validity(proxy)[1] - before - 12 * 3600 <= 600
    assert (dn(proxy.subject).rpartition("=")[2] == "limited proxy") == legacy
    assert told.err == ""


def test_vac_proxy_init_says_what_is_wrong(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate, private = source.robot.write(tmp_path, "x509")
    private.chmod(0o644)
    assert main(["proxy-init", "-c", str(certificate), "-k", str(private)]) == 0
    assert f"others can read {private}: chmod 600 it" in capsys.readouterr().err
    private.unlink()
    assert main(["proxy-init", "-c", str(certificate), "-k", str(private)]) == 1
    told = capsys.readouterr()
    assert (told.out, f"{private} can't be read: No such file or directory" in told.err) == ("", True)
    with pytest.raises(SystemExit):
        main(["proxy-init", "-c", str(certificate)])
