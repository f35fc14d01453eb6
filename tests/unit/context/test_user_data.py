"""Substitution into user_data."""

from __future__ import annotations

import dataclasses
import email
import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.certificates import certify
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.context import user_data
from vac.context.certificates import dn, read_certificates, validity
from vac.context.downloads import DownloadFailed, Limits, Local
from vac.context.user_data import (
    ContextError,
    ContextRequest,
    load_template,
    make_user_data,
    substitute,
)

SETTINGS = Settings(vac_space="vac01.example.org", factory_name="factory1.example.org")


NOW = 1_800_000_000.0


def wanted(directory: Path, **options: Any) -> ContextRequest:
    """A machine whose type's files are in the directory's files/."""
    (directory / "files").mkdir(exist_ok=True)
    machinetype = Machinetype(**{"name": "lhcb-prod", "machine_model": "docker", **options})
    name = "factory1-00.example.org"
    return ContextRequest(machinetype, SETTINGS, name, "4b0a", directory, NOW, NOW + 86400, version="4.0.0")


@dataclasses.dataclass
class Server:
    """The server of URL."""

    answers: list[bytes | DownloadFailed] = dataclasses.field(default_factory=list)
    asked: list[Local] = dataclasses.field(default_factory=list)
    """May the address be a local one, for each request."""

    def document(self, url: str, limits: Limits, *, local: Local) -> bytes:
        assert url == URL
        self.asked.append(local)
        answer = self.answers.pop(0)
        if isinstance(answer, bytes):
            return answer
        raise answer


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(user_data, "document", server.document)
    return server


def made(directory: Path, template: bytes, **options: Any) -> bytes:
    """Return the user_data made of a template."""
    machine = wanted(directory, user_data="template", **options)
    (directory / "files" / "template").write_bytes(template)
    return make_user_data(machine).content


VM = "http://169.254.169.253"


@pytest.mark.parametrize(
    ("pattern", "model", "value"),
    [
        ("uuid", "docker", "4b0a"),
        ("space", "docker", "vac01.example.org"),
        ("url", "docker", ""),
        ("root_image_url", "docker", "docker://vo/image"),
        ("machinetype", "docker", "lhcb-prod"),
        ("vmtype", "docker", "lhcb-prod"),
        ("machine_hostname", "docker", "factory1-00.example.org"),
        ("vm_hostname", "docker", "factory1-00.example.org"),
        ("manager_version", "docker", "Vac 4.0.0"),
        ("vmlm_version", "docker", "Vac 4.0.0"),
        ("manager_hostname", "docker", "factory1.example.org"),
        ("vmlm_hostname", "docker", "factory1.example.org"),
        ("machinefeatures_url", "docker", "/etc/machinefeatures"),
        ("jobfeatures_url", "docker", "/etc/jobfeatures"),
        ("joboutputs_url", "docker", "/var/spool/joboutputs"),
        ("manager_machinefeatures_url", "cernvm4", f"{VM}/machinefeatures"),
        ("manager_jobfeatures_url", "vm-raw", f"{VM}/jobfeatures"),
        ("manager_joboutputs_url", "cernvm3", f"{VM}/joboutputs"),
        ("joboutputs_url", "singularity", "/tmp/joboutputs"),
        ("machinefeatures_url", "bubblewrap", "/tmp/machinefeatures"),
        ("option_queue", "docker", "short"),
        ("option_script", "docker", "from a file\n"),
        ("file_script", "docker", "from a file\n"),
        ("option_both", "docker", "the option's"),
        ("file_both", "docker", "from a file\n"),
        ("option_x509_proxy", "docker", ""),
        ("option_unknown", "docker", ""),
        ("", "docker", ""),
        ("a,b", "docker", ""),
    ],
)
def test_patterns_of_old_and_new_spelling_get_their_values(
    tmp_path: Path, pattern: str, model: str, value: str
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/script").write_bytes(b"from a file\n")
    content = made(
        tmp_path,
        f"# <##user_data_{pattern}##>".encode(),
        machine_model=model,
        root_image="docker://vo/image",
        user_data_options={"queue": "short", "both": "the option's"},
        user_data_files={"script": "script", "both": str(tmp_path / "files/script")},
    )
    assert content == f"# <{value}>".encode()


@pytest.mark.parametrize(
    "text", [b"##user_data_UPPER##", b"##user_data_a b##", b"#user_data_uuid#", b"##other##"]
)
def test_what_is_no_pattern_stays(text: bytes) -> None:
    assert substitute(text, {"user_data_uuid": b"x"}) == text


def test_a_value_that_looks_like_a_pattern_stays(tmp_path: Path) -> None:
    content = made(tmp_path, b"##user_data_option_a##", user_data_options={"a": "##user_data_uuid##"})
    assert content == b"##user_data_uuid##"


def test_bytes_of_a_configuration_that_is_not_utf8_survive(tmp_path: Path) -> None:
    text = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert (
        made(tmp_path, b"\xff##user_data_option_a##\x00", user_data_options={"a": text}) == b"\xffcaf\xe9\x00"
    )


NAMES = st.text("abz09_,", max_size=8).map(lambda text: "user_data_" + text)
LITERALS = st.binary(max_size=12).map(lambda content: content.replace(b"#", b"+"))


@given(
    st.lists(st.one_of(LITERALS, NAMES), max_size=12),
    st.dictionaries(NAMES, st.one_of(st.binary(max_size=12), st.just(b"##user_data_a##"))),
)
def test_any_template_is_its_literals_and_its_patterns_values(
    pieces: list[bytes | str], found: dict[str, bytes]
) -> None:
    template = b"".join(piece if isinstance(piece, bytes) else f"##{piece}##".encode() for piece in pieces)
    expected = b"".join(piece if isinstance(piece, bytes) else found.get(piece, b"") for piece in pieces)
    assert substitute(template, found) == expected


def test_a_template_may_be_anywhere_on_this_host_or_missing(tmp_path: Path) -> None:
    (tmp_path / "script").write_bytes(b"\x7fELF")
    elsewhere = wanted(tmp_path, user_data=str(tmp_path / "script"))
    assert load_template(elsewhere) == (b"\x7fELF", "")
    assert load_template(wanted(tmp_path)) == (b"", "")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"user_data": "absent"}, "user_data: .*files/absent can't be read: No such file"),
        ({"user_data": "."}, "Is a directory"),
        ({"user_data": "large"}, "larger than"),
        ({"user_data": "small", "user_data_files": {"key": "absent"}}, "user_data_file_key: .*No such file"),
        ({"user_data": "small", "user_data_files": {"key": "large"}}, "user_data_file_key: .*larger than"),
        ({"user_data": "growing", "user_data_options": {"a": "x" * 32}}, "has 42 bytes .* more than 40"),
        ({"user_data": "small", "user_data_proxy": True}, "no X.509 proxy from .*x509cert.pem can't be read"),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(user_data, "LIMIT_BYTES", 40)
    machine = wanted(tmp_path, **options)
    files = {"large": b"x" * 41, "small": b"x" * 40, "growing": b"x" * 10 + b"##user_data_option_a##"}
    for name, content in files.items():
        (tmp_path / "files" / name).write_bytes(content)
    with pytest.raises(ContextError, match=reason):
        make_user_data(machine)


DATA = Path(__file__).parents[2] / "data" / "user_data"
CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIIB\r\n-----END CERTIFICATE-----\n"
PROXY = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
SCRIPT = b"echo ##user_data_uuid## \xff\x00\r\n"
URL = "https://user:secret@vo.example.org/user_data"
EXPECTED = {
    b"uuid": b"4b0a",
    b"space": b"vac01.example.org",
    b"url": URL.encode(),
    b"machinetype": b"lhcb-prod",
    b"vmtype": b"lhcb-prod",
    b"machine_hostname": b"factory1-00.example.org",
    b"vm_hostname": b"factory1-00.example.org",
    b"manager_version": b"Vac 4.0.0",
    b"vmlm_version": b"Vac 4.0.0",
    b"manager_hostname": b"factory1.example.org",
    b"vmlm_hostname": b"factory1.example.org",
    b"machinefeatures_url": b"http://169.254.169.253/machinefeatures",
    b"jobfeatures_url": b"http://169.254.169.253/jobfeatures",
    b"joboutputs_url": b"http://169.254.169.253/joboutputs",
    b"manager_joboutputs_url": b"http://169.254.169.253/joboutputs",
    b"root_image_url": b"https://vo.example.org/image.iso",
    b"option_queue": b"short & <long>",
    b"option_x509_proxy": PROXY,
    b"file_hostcert": CERTIFICATE,
    b"file_script": SCRIPT,
    b"option_comment": b"",
    b"option_never_set": b"",
    b"option_unset,list": b"",
}


@pytest.mark.parametrize("name", ["multipart", "amiconfig", "cloud-config"])
def test_templates_of_sites_differ_in_their_patterns_only(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(user_data, "proxy_from_files", lambda *args, **options: PROXY)
    machine = wanted(
        tmp_path,
        machine_model="cernvm4",
        user_data=URL,
        root_image="https://vo.example.org/image.iso",
        user_data_proxy=True,
        user_data_options={"queue": "short & <long>"},
        user_data_files={"hostcert": "hostcert.pem", "script": "script"},
    )
    (tmp_path / "files/hostcert.pem").write_bytes(CERTIFICATE)
    (tmp_path / "files/script").write_bytes(SCRIPT)
    template = (DATA / name).read_bytes()
    server.answers = [template]
    pieces = template.split(b"##user_data_")
    expected = pieces[0]
    for piece in pieces[1:]:
        pattern, rest = piece.split(b"##", 1)
        expected += EXPECTED[pattern] + rest
    assert len(pieces) > 8
    assert make_user_data(machine).content == expected


def test_the_parts_of_a_multi_part_template_stay_parts(tmp_path: Path) -> None:
    content = made(tmp_path, (DATA / "multipart").read_bytes())
    parts = list(email.message_from_bytes(content).walk())[1:]
    kinds = [part.get_content_type() for part in parts]
    assert kinds == ["text/x-shellscript", "text/cloud-config", *["application/octet-stream"] * 2]
    begin = content.index(b"\x1f\x8b")
    packed = content[begin : content.index(b"\r\n--====", begin)]
    assert gzip.decompress(packed) == b"#!/bin/sh\necho started by a compressed part\n"


def test_a_proxy_has_the_machines_lifetime_and_types_name(tmp_path: Path) -> None:
    machine = wanted(
        tmp_path, user_data="template", user_data_proxy=True, user_data_options={"x509_proxy": "wrong"}
    )
    (tmp_path / "files/template").write_bytes(b"##user_data_option_x509_proxy##")
    robot = certify("/CN=Robot", start=NOW - 86400, end=NOW + 2 * 86400)
    robot.write(tmp_path, "x509")
    proxy, source = read_certificates(make_user_data(machine).content)
    assert dn(proxy.subject) == "/CN=Robot/CN=lhcb-prod"
    assert validity(proxy)[1] == machine.shutdown_time
    assert source == robot.certificate
    late = dataclasses.replace(machine, shutdown_time=NOW + 3 * 86400)
    with pytest.raises(ContextError, match=r"no X.509 proxy from .*: /CN=Robot expires on 2027-"):
        make_user_data(late)


def test_files_and_templates_are_read_anew_for_each_machine(server: Server, tmp_path: Path) -> None:
    server.answers = [b"1 ##user_data_option_a##", b"2 ##user_data_option_a##"]
    machine = wanted(tmp_path, user_data=URL, user_data_files={"a": "a"})
    (tmp_path / "files/a").write_bytes(b"old")
    assert make_user_data(machine).content == b"1 old"
    (tmp_path / "files/a").write_bytes(b"new")
    assert make_user_data(machine).content == b"2 new"


def test_what_a_site_puts_in_is_masked_where_people_see_it(tmp_path: Path) -> None:
    machine = wanted(
        tmp_path,
        user_data_options={"token": "hunter2"},
        user_data_files={"key": "key"},
        root_image="https://me:hunter2@vo.example.org/image.iso",
    )
    (tmp_path / "files/key").write_bytes(b"PRIVATE")
    shown = user_data.masked(user_data.values(machine, URL))
    assert shown["user_data_option_token"] == b"(user_data_option_token: 7 bytes, not shown)"
    assert shown["user_data_file_key"] == b"(user_data_file_key: 7 bytes, not shown)"
    assert shown["user_data_url"] == b"https://***@vo.example.org/user_data"
    assert shown["user_data_root_image_url"] == b"https://***@vo.example.org/image.iso"
    assert shown["user_data_uuid"] == b"4b0a"
    assert not any(
        b"hunter2" in value or b"PRIVATE" in value or b"secret" in value for value in shown.values()
    )


@pytest.mark.parametrize(("pipe", "local"), [(None, Local.ALLOWED), ("vo", Local.REFUSED)])
def test_a_pipes_template_may_not_come_from_a_local_address(
    server: Server, tmp_path: Path, pipe: str | None, local: Local
) -> None:
    server.answers = [b"template"]
    assert make_user_data(wanted(tmp_path, user_data=URL, pipe=pipe)).content == b"template"
    assert server.asked == [local]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (DownloadFailed("the server answers with status 404"), "the server answers with status 404"),
        (b"<!DOCTYPE html>\n<title>Log in</title>", r"the server sends a web page \(HTML\) instead"),
        (b"", "the server sends nothing"),
    ],
)
def test_what_is_no_template_is_refused_without_secrets(
    server: Server, tmp_path: Path, answer: bytes | DownloadFailed, reason: str
) -> None:
    server.answers = [answer]
    with pytest.raises(ContextError, match=rf"^user_data https://\*\*\*@vo.example.org/user_data: {reason}$"):
        make_user_data(wanted(tmp_path, user_data=URL))
