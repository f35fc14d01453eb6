"""Signed images: what counts as signed, and by whom."""

from __future__ import annotations

import base64
import datetime
import json
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given
from hypothesis import strategies as st

from tests.certificates import DAY, Certified, certify, key
from tests.signed_images import BLOCK_BYTES, METADATA, signed_image
from vac.cli.main import main
from vac.context import signatures
from vac.context.signatures import SignatureRefused, SignedImages, judge, read_signature
from vac.host.filesystems import stamp_of

NOW = time.time()
pytestmark = pytest.mark.allow_subprocess
"""OpenSSL's command checks chains."""
CONTENT = bytes(range(256)) * 300
SIGNER_DN = "/DC=org/DC=example/OU=computers/CN=cvm-sign01.example.org"
PATTERN = r"/CN=cvm-sign01\.example\.org$"
SIGNING = ("digital_signature", "key_encipherment")


@dataclass(frozen=True)
class Trust:
    """A CA directory as grids have them, and CAs in it."""

    directory: Path
    root: Certified
    sub: Certified

    def signer(self, **options: Any) -> Certified:
        """Somebody to sign images, certified by the sub-CA unless the options say otherwise."""
        return certify(**{"subject": SIGNER_DN, "issuer": self.sub, "usage": SIGNING, **options})


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    directory = tmp_path_factory.mktemp("certificates")
    root = certify("/DC=org/DC=example/CN=Root CA", ca=True)
    sub = certify("/DC=org/DC=example/CN=Grid CA", root, ca=True, path_length=0)
    (directory / "example-root.pem").write_bytes(root.certificate_pem)
    (directory / "01234567.0").symlink_to("example-root.pem")
    (directory / "89abcdef.0").write_bytes(b"Some words before it\n" + sub.certificate_pem)
    (directory / "89abcdef.r0").write_bytes(b"-----BEGIN X509 CRL-----\n")
    (directory / "broken.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (directory / "lost.0").symlink_to("nowhere.pem")
    (directory / "example.signing_policy").write_text("access_id_CA X509 '/DC=org'\n")
    return Trust(directory, root, sub)


@pytest.fixture(scope="module")
def signer(trust: Trust) -> Certified:
    return trust.signer()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image.iso"


def refusal(image: Path, trust: Trust, pattern: str = PATTERN, now: float = NOW) -> str:
    """Return the reason for refusing the image, empty if it is accepted."""
    try:
        judge(read_signature(image), pattern, trust.directory, now)
    except SignatureRefused as refused:
        return str(refused)
    return ""


def test_a_signed_image_is_accepted(image: Path, trust: Trust, signer: Certified) -> None:
    image.write_bytes(signed_image(CONTENT, signer))
    assert refusal(image, trust) == ""


@pytest.mark.parametrize("extra", [0, 1, 2 * BLOCK_BYTES - 1, 2 * BLOCK_BYTES])
def test_an_image_larger_than_a_piece_is_hashed_as_a_whole(
    image: Path, trust: Trust, signer: Certified, monkeypatch: pytest.MonkeyPatch, extra: int
) -> None:
    monkeypatch.setattr(signatures, "PIECE_BYTES", BLOCK_BYTES)
    image.write_bytes(signed_image(CONTENT + b"x" * extra, signer))
    assert refusal(image, trust) == ""


@given(st.integers(0, (len(CONTENT) + BLOCK_BYTES) * 8 - 1))
def test_one_bit_flipped_anywhere_in_the_signed_part_is_noticed(bit: int) -> None:
    place = FLIPPED["path"]
    changed = bytearray(FLIPPED["content"])
    changed[bit // 8] ^= 1 << bit % 8
    place.write_bytes(changed)
    assert "it has been changed" in refusal(place, FLIPPED["trust"])


FLIPPED: dict[str, Any] = {}


@pytest.fixture(autouse=True, scope="module")
def _flipped(tmp_path_factory: pytest.TempPathFactory, trust: Trust, signer: Certified) -> None:
    path = tmp_path_factory.mktemp("flipped") / "image"
    FLIPPED.update(path=path, signer=signer, content=signed_image(CONTENT, signer), trust=trust)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=3))
@example([(582, 1)])
def test_a_broken_certificate_is_refused_and_harms_nothing(changes: list[tuple[int, int]]) -> None:
    """Unless all that the CA has signed, and its signature, are what they were: what encodes them may differ."""
    good: Certified = FLIPPED["signer"]
    der = bytearray(good.certificate.public_bytes(Encoding.DER))
    for place, value in changes:
        der[place % len(der)] = value
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(der) + b"\n-----END CERTIFICATE-----\n"
    FLIPPED["path"].write_bytes(signed_image(CONTENT, good, certificate_pem=pem))
    if refusal(FLIPPED["path"], FLIPPED["trust"]) == "":
        taken = x509.load_der_x509_certificate(bytes(der))
        assert taken.tbs_certificate_bytes == good.certificate.tbs_certificate_bytes
        assert taken.signature == good.certificate.signature


@pytest.mark.parametrize(
    ("metadata", "howto"),
    [
        (b'{\n"tag" : "HEAD",\n}\n', ""),
        (METADATA, '"howto-verify" : "openssl dgst -signature <signature>"\n'),
        (METADATA, '"signed-by" : "/CN=cvm-sign01.cern.ch"\n"other" : "HEAD",\n'),
    ],
)
def test_published_slips_are_tolerated(
    image: Path, trust: Trust, signer: Certified, metadata: bytes, howto: str
) -> None:
    image.write_bytes(signed_image(CONTENT, signer, metadata, howto))
    found = signatures.read_signature(image)
    assert found.certificate == signer.certificate
    assert found.metadata_problem is None
    assert refusal(image, trust) == ""


@pytest.mark.parametrize("metadata", [b"", b'{"a" : }', b"[]", b"\xff", b"[" * BLOCK_BYTES])
def test_broken_metadata_is_only_warned_about(
    image: Path, trust: Trust, signer: Certified, caplog: pytest.LogCaptureFixture, metadata: bytes
) -> None:
    image.write_bytes(signed_image(CONTENT, signer, metadata))
    images = SignedImages(Path, trust.directory, lambda: NOW)
    assert images.fetch(str(image), PATTERN) == images.fetch(str(image), PATTERN) == (image, stamp_of(image))
    assert len([text for text in caplog.messages if "metadata can't be read" in text]) == 1


@pytest.mark.parametrize("size", [0, 1, 2 * BLOCK_BYTES])
def test_an_image_too_small_to_be_signed_is_refused(
    image: Path, trust: Trust, signer: Certified, size: int
) -> None:
    image.write_bytes(signed_image(b"", signer)[:size])
    assert f"{size} bytes; a signed image has more than 65536" in refusal(image, trust)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b"", "hold no signature"),
        (b"{}", "no base64 'certificate'"),
        (b"\xff\xfe", "hold no signature"),
        (b"[" * BLOCK_BYTES, "hold no signature"),
        (b'{"certificate": 5, "signature": ""}', "no base64 'certificate'"),
        (b'{"certificate": "a", "signature": ""}', "no base64 'certificate'"),
        (b'{"certificate": "", "signature": ""}', "no certificate in PEM"),
        (
            json.dumps(
                {
                    "certificate": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCkFBQUEKLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=",
                    "signature": "",
                }
            ).encode(),
            "certificate that can't be read",
        ),
    ],
)
def test_an_image_without_a_readable_signature_is_refused(
    image: Path, trust: Trust, block: bytes, reason: str
) -> None:
    image.write_bytes(CONTENT + bytes(BLOCK_BYTES) + block.ljust(BLOCK_BYTES, b"\0"))
    assert reason in refusal(image, trust)


def test_a_signature_of_another_key_is_refused(image: Path, trust: Trust, signer: Certified) -> None:
    image.write_bytes(signed_image(CONTENT, Certified(signer.certificate, key(9))))
    assert "it has been changed" in refusal(image, trust)


@pytest.mark.parametrize(
    ("pattern", "accepted"),
    [
        ("", True),
        ("cvm-sign", True),
        ("^/DC=org/DC=example/", True),
        ("/CN=cvm-sign01$", False),
        ("^/CN=", False),
        (r"/CN=cvm-sign02\.example\.org$", False),
    ],
)
def test_the_dn_has_to_match(
    image: Path, trust: Trust, signer: Certified, pattern: str, accepted: bool
) -> None:
    image.write_bytes(signed_image(CONTENT, signer))
    reason = refusal(image, trust, pattern)
    assert reason == (
        "" if accepted else f"signed by {SIGNER_DN}, in which image_signing_dn {pattern} isn't found"
    )


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.9.9.9"), b"\x05\x00")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"end": NOW - 60}, "has expired on 20"),
        ({"start": NOW + 60}, "is valid only from 20"),
        (
            {"issuer": None},
            "self-signed certificate (CN=cvm-sign01.example.org,OU=computers,DC=example,DC=org)",
        ),
        ({"usage": ("key_encipherment",)}, "isn't meant for signatures"),
        ({"extensions": [(UNKNOWN, True)]}, "unhandled critical extension"),
        ({"extensions": [(UNKNOWN, False)]}, ""),
        ({"usage": None}, ""),
        ({"algorithm": hashes.SHA512()}, ""),
    ],
)
def test_what_the_signers_certificate_has_to_be(
    image: Path, trust: Trust, options: dict[str, Any], reason: str
) -> None:
    image.write_bytes(signed_image(CONTENT, trust.signer(**options)))
    found = refusal(image, trust)
    assert reason in found
    assert bool(reason) == bool(found)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, ""),
        ({"end": NOW - 60}, "certificate has expired (CN=Another CA)"),
        ({"ca": False}, "invalid CA certificate (CN=Another CA)"),
        ({"usage": ("crl_sign",)}, "(CN=Another CA)"),
        ({"issuer": "stranger"}, "signature failure (CN=Another CA)"),
        ({"issuer": "sub"}, "path length constraint exceeded"),
        ({"extensions": [(UNKNOWN, True)]}, "unhandled critical extension (CN=Another CA)"),
        ({"own_key": key(8)}, "signature failure"),
    ],
)
def test_what_the_issuers_certificate_has_to_be(
    tmp_path: Path, image: Path, trust: Trust, options: dict[str, Any], reason: str
) -> None:
    stranger = certify("/DC=org/DC=example/CN=Root CA", ca=True, own_key=key(7))
    issuers = {"stranger": stranger, "sub": trust.sub, "root": trust.root}
    options = {"ca": True, **options, "issuer": issuers[options.get("issuer", "root")]}
    ours = certify("/CN=Another CA", **options)
    image.write_bytes(signed_image(CONTENT, trust.signer(issuer=Certified(ours.certificate, key(2)))))
    for name, one in (("root", trust.root), ("sub", trust.sub), ("ours", ours)):
        (tmp_path / f"{name}.pem").write_bytes(one.certificate_pem)
    found = refusal(image, Trust(tmp_path, trust.root, trust.sub))
    assert reason in found
    assert bool(reason) == bool(found)


def test_a_ca_renewed_under_its_name_counts_beside_the_old(tmp_path: Path, image: Path, trust: Trust) -> None:
    def renewed(number: int) -> Certified:
        identifier = x509.SubjectKeyIdentifier.from_public_key(key(number).public_key())
        name = "/DC=org/DC=example/CN=Grid CA"
        extensions = [(identifier, False)]
        return certify(name, trust.root, ca=True, own_key=key(number), extensions=extensions)

    old, new = renewed(7), renewed(8)
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(key(8).public_key())
    image.write_bytes(signed_image(CONTENT, trust.signer(issuer=new, extensions=[(issued_by, False)])))
    content = old.certificate_pem + trust.root.certificate_pem + new.certificate_pem
    (tmp_path / "all.pem").write_bytes(content)
    assert refusal(image, Trust(tmp_path, trust.root, trust.sub)) == ""


def revocations(issuer: Certified, *revoked: Certified, end: float = NOW + DAY) -> bytes:
    """A CA's revocation list."""

    def moment(time: float) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(int(time), datetime.timezone.utc).replace(tzinfo=None)

    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject)
    builder = builder.last_update(moment(NOW - 2 * DAY)).next_update(moment(end))
    for one in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(one.certificate.serial_number)
        builder = builder.add_revoked_certificate(entry.revocation_date(moment(NOW - DAY)).build())
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ("", ""),
        ("signer", "certificate revoked (CN=cvm-sign01.example.org"),
        ("sub", "certificate revoked (CN=Grid CA"),
        ("old list", "CRL has expired"),
        ("no list of the root", ""),
    ],
)
def test_revoked_certificates_are_refused(
    tmp_path: Path, image: Path, trust: Trust, signer: Certified, listed: str, reason: str
) -> None:
    image.write_bytes(signed_image(CONTENT, signer))
    of_root = revocations(trust.root, *([trust.sub] if listed == "sub" else []))
    end = NOW - 60 if listed == "old list" else NOW + DAY
    of_sub = revocations(trust.sub, *([signer] if listed == "signer" else []), end=end)
    for name, authority, text in (("root", trust.root, of_root), ("sub", trust.sub, of_sub)):
        (tmp_path / f"{name}.pem").write_bytes(authority.certificate_pem)
        hashed = ["openssl", "x509", "-noout", "-hash", "-in", str(tmp_path / f"{name}.pem")]
        number = subprocess.run(hashed, check=True, capture_output=True, text=True).stdout.strip()
        if (name, listed) != ("root", "no list of the root"):
            (tmp_path / f"{number}.r0").write_bytes(text)
    found = refusal(image, Trust(tmp_path, trust.root, trust.sub))
    assert reason in found
    assert bool(reason) == bool(found)


def test_a_sub_ca_counts_only_with_its_root(
    tmp_path: Path, image: Path, trust: Trust, signer: Certified
) -> None:
    image.write_bytes(signed_image(CONTENT, signer))
    (tmp_path / "sub.pem").write_bytes(trust.sub.certificate_pem)
    assert "unable to get issuer certificate (CN=Grid CA,DC=example,DC=org)" in refusal(
        image, Trust(tmp_path, trust.root, trust.sub)
    )


def test_cas_that_certify_each_other_lead_nowhere(tmp_path: Path, image: Path, trust: Trust) -> None:
    first = certify("/CN=First", ca=True, own_key=key(4))
    second = certify("/CN=Second", first, ca=True, own_key=key(5))
    crossed = certify("/CN=First", second, ca=True, own_key=key(4))
    for name, one in (("crossed", crossed), ("second", second)):
        (tmp_path / f"{name}.pem").write_bytes(one.certificate_pem)
    image.write_bytes(signed_image(CONTENT, trust.signer(issuer=first)))
    assert "certificate chain too long" in refusal(image, Trust(tmp_path, trust.root, trust.sub))


def test_weak_signatures_of_cas_do_not_count(image: Path, trust: Trust) -> None:
    sha256, sha1 = (bytes.fromhex(f"06092a864886f70d0101{number}") for number in ("0b", "05"))
    strong = trust.signer()
    weak = strong.certificate.public_bytes(Encoding.DER).replace(sha256, sha1)
    image.write_bytes(signed_image(CONTENT, Certified(x509.load_der_x509_certificate(weak), strong.key)))
    assert "its chain is refused" in refusal(image, trust)


def test_a_name_that_looks_like_another_is_refused(image: Path, trust: Trust) -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x/CN=cvm-sign01.example.org")])
    image.write_bytes(signed_image(CONTENT, trust.signer(subject=name)))
    assert "ambiguous" in refusal(image, trust)


def test_a_long_name_is_refused_before_any_pattern_is_tried(image: Path, trust: Trust) -> None:
    name = "/DC=org" + "/OU=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 5
    image.write_bytes(signed_image(CONTENT, trust.signer(subject=name)))
    assert "longer than 256 characters" in refusal(image, trust, "(a+)+$")


def test_a_pattern_is_tried_only_on_names_that_a_ca_vouches_for(image: Path, trust: Trust) -> None:
    image.write_bytes(signed_image(CONTENT, trust.signer(subject="/CN=" + "a" * 60 + "!", issuer=None)))
    assert "self-signed certificate" in refusal(image, trust, "(a+)+$")


def test_without_cas_nothing_is_trusted(image: Path, tmp_path: Path, trust: Trust, signer: Certified) -> None:
    image.write_bytes(signed_image(CONTENT, signer))
    nowhere = tmp_path / "nowhere"
    reason = refusal(image, Trust(nowhere, trust.root, trust.sub))
    assert reason == f"the trusted CAs in {nowhere} can't be read: No such file or directory"


def test_an_image_is_read_once_as_long_as_it_stays_the_same(
    image: Path, trust: Trust, signer: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    really = signatures.read_signature

    def noted(path: Path) -> signatures.Signer:
        read.append(path)
        return really(path)

    monkeypatch.setattr(signatures, "read_signature", noted)
    good = signed_image(CONTENT, signer)
    image.write_bytes(good)
    times = iter([NOW, NOW, NOW, NOW + 11 * DAY])
    images = SignedImages(lambda url: image, trust.directory, lambda: next(times))
    assert images.fetch("https://example.org/image.iso", PATTERN) == (image, stamp_of(image))
    assert images.fetch(str(image), PATTERN)[0] == image
    with pytest.raises(SignatureRefused, match="in which image_signing_dn"):
        images.fetch(str(image), "somebody else")
    with pytest.raises(SignatureRefused, match="has expired"):
        images.fetch(str(image), PATTERN)
    assert len(read) == 1
    image.write_bytes(b"\1" + good[1:])
    os.utime(image, (NOW, NOW + 1))
    for _ in range(2):
        with pytest.raises(SignatureRefused, match="has been changed"):
            images.fetch(str(image), PATTERN)
    assert len(read) == 2


def test_an_image_does_not_wait_until_another_one_is_read(
    image: Path, trust: Trust, signer: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    image.write_bytes(signed_image(CONTENT, signer))
    other = image.with_name("other.iso")
    other.write_bytes(image.read_bytes())
    begun, go_on = threading.Event(), threading.Event()
    really = signatures.read_signature

    def slow(path: Path) -> signatures.Signer:
        if path == other:
            begun.set()
            assert go_on.wait(60)
        return really(path)

    monkeypatch.setattr(signatures, "read_signature", slow)
    images = SignedImages(Path, trust.directory, lambda: NOW)
    with ThreadPoolExecutor() as threads:
        try:
            slowly = threads.submit(images.fetch, str(other), PATTERN)
            assert begun.wait(60)
            assert threads.submit(images.fetch, str(image), PATTERN).result(timeout=60)[0] == image
            assert not slowly.done()
        finally:
            go_on.set()
        assert slowly.result(timeout=60)[0] == other


def test_an_image_that_need_not_be_signed_is_not_read(tmp_path: Path) -> None:
    images = SignedImages(Path, tmp_path, lambda: NOW)
    image = tmp_path / "image.iso"
    image.write_bytes(b"unsigned")
    assert images.fetch(str(image)) == (image, stamp_of(image))


def test_a_judgement_is_of_the_file_that_was_read(
    image: Path, trust: Trust, signer: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, unsigned = image.with_name("good"), image.with_name("unsigned")
    good.write_bytes(signed_image(CONTENT, signer))
    unsigned.write_bytes(b"unsigned")
    os.link(unsigned, image)
    judged = stamp_of(good)
    really = signatures.read_signature

    def exchanged(path: Path) -> signatures.Signer:
        good.replace(path)
        try:
            return really(path)
        finally:
            unsigned.replace(path)

    monkeypatch.setattr(signatures, "read_signature", exchanged)
    images = SignedImages(Path, trust.directory, lambda: NOW)
    assert images.fetch(str(image), PATTERN) == (image, judged)
    assert stamp_of(image) != judged
    monkeypatch.undo()
    with pytest.raises(SignatureRefused, match="8 bytes; a signed image has more than"):
        images.fetch(str(image), PATTERN)


def test_vac_cernvm_signature_tells_who_and_when_and_whether(
    image: Path, trust: Trust, signer: Certified, capsys: pytest.CaptureFixture[str]
) -> None:
    good = signed_image(CONTENT, signer)
    words = ["cernvm-signature", str(image), "--ca-directory", str(trust.directory)]
    image.write_bytes(good)
    assert main([*words, "--dn", PATTERN]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"signed by:  {SIGNER_DN}"
    assert told[1].startswith("valid:      20")
    assert told[2] == "verdict:    good"
    assert main([*words, "--dn", "nobody"]) == 1
    assert "verdict:    refused: signed by" in capsys.readouterr().out
    image.write_bytes(b"\1" + good[1:])
    assert main(words) == 1
    assert "verdict:    refused: the signature doesn't match" in capsys.readouterr().out
    image.unlink()
    assert main(words) == 1
    assert "can't be read: No such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--dn", "("])
    assert "'(' is not a regular expression" in capsys.readouterr().err
