"""Substitution into user_data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.context import user_data
from vac.context.user_data import ContextError, load_template, make_user_data, substitute, values

SETTINGS = Settings(vac_space="vac01.example.org", factory_name="factory1.example.org")


def made(files_dir: Path, template: bytes, **options: Any) -> bytes:
    (files_dir / "template").write_bytes(template)
    machinetype = Machinetype(
        **{"name": "lhcb-prod", "machine_model": "docker", "user_data": "template", **options}
    )
    return make_user_data(
        machinetype,
        SETTINGS,
        name="factory1-00.example.org",
        uuid="4b0a",
        version="4.0.0",
        files_dir=files_dir,
    )


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
    (tmp_path / "script").write_bytes(b"from a file\n")
    content = made(
        tmp_path,
        f"# <##user_data_{pattern}##>".encode(),
        machine_model=model,
        root_image="docker://vo/image",
        user_data_options={"queue": "short", "both": "the option's"},
        user_data_files={"script": "script", "both": str(tmp_path / "script")},
    )
    assert content == f"# <{value}>".encode()


@pytest.mark.parametrize(
    "text", [b"##user_data_UPPER##", b"##user_data_a b##", b"#user_data_uuid#", b"##other##"]
)
def test_what_is_no_pattern_stays(text: bytes) -> None:
    assert substitute(text, {"user_data_uuid": b"x"}) == text


def test_a_value_that_looks_like_a_pattern_is_not_substituted_again(tmp_path: Path) -> None:
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


def test_a_proxy_is_put_in_as_it_is(tmp_path: Path) -> None:
    found = values(
        Machinetype(name="a", user_data_options={"x509_proxy": "wrong"}),
        SETTINGS,
        name="n",
        uuid="u",
        version="v",
        files_dir=tmp_path,
        x509_proxy=b"-----BEGIN",
        user_data_url="https://example.org/user_data",
    )
    assert found["user_data_option_x509_proxy"] == b"-----BEGIN"
    assert found["user_data_url"] == b"https://example.org/user_data"


def test_a_template_may_be_anywhere_on_this_host_or_missing(tmp_path: Path) -> None:
    (tmp_path / "script").write_bytes(b"\x7fELF")
    elsewhere = Machinetype(name="a", user_data=str(tmp_path / "script"))
    assert load_template(elsewhere, tmp_path / "files") == b"\x7fELF"
    assert load_template(Machinetype(name="a"), tmp_path) == b""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"user_data": "absent"}, "user_data: .*absent can't be read: No such file"),
        ({"user_data": "."}, "Is a directory"),
        ({"user_data": "large"}, "larger than"),
        ({"user_data": "https://example.org/user_data"}, "local files"),
        ({"user_data": "small", "user_data_files": {"key": "absent"}}, "user_data_file_key: .*No such file"),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(user_data, "LIMIT_BYTES", 10)
    (tmp_path / "large").write_bytes(b"x" * 11)
    (tmp_path / "small").write_bytes(b"x" * 10)
    machinetype = Machinetype(name="a", **options)
    with pytest.raises(ContextError, match=reason):
        make_user_data(machinetype, SETTINGS, name="n", uuid="u", version="v", files_dir=tmp_path)
