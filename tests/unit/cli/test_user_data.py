"""`vac user-data`: what a machine would get, and whether secrets are shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vac.cli.main import main

CONFIGURATION = """
[settings]
vac_space = vac.example.org
factory_name = factory1.example.org
state_dir = {state}
[machinetype one]
machine_model = docker
root_image = docker://a
user_data = template
user_data_option_token = hunter2
user_data_file_key = key
[machinetype broken]
machine_model = docker
root_image = docker://a
user_data = absent
"""
TEMPLATE = b"\xff##user_data_uuid## ##user_data_machine_hostname##\r\n##user_data_option_token##\0"
TEMPLATE += b"##user_data_file_key##"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command up to its name."""
    files = tmp_path / "machinetypes/one/files"
    files.mkdir(parents=True)
    (files / "template").write_bytes(TEMPLATE)
    (files / "key").write_bytes(b"PRIVATE\n")
    (tmp_path / "vac.conf").write_text(CONFIGURATION.format(state=tmp_path))
    return ["--config", str(tmp_path / "vac.conf"), "user-data"]


@pytest.mark.parametrize(
    ("option", "token", "key"),
    [
        (
            [],
            rb"\(user_data_option_token: 7 bytes, not shown\)",
            rb"\(user_data_file_key: 8 bytes, not shown\)",
        ),
        (["--secrets"], b"hunter2", rb"PRIVATE\n"),
    ],
)
def test_what_a_machine_would_get_is_printed_byte_for_byte(
    words: list[str], capfdbinary: pytest.CaptureFixture[bytes], option: list[str], token: bytes, key: bytes
) -> None:
    assert main([*words, "one", *option]) == 0
    told = capfdbinary.readouterr().out
    assert re.fullmatch(rb"\xff[0-9a-f-]{36} factory1-00.example.org\r\n" + token + rb"\0" + key, told)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "broken",
            r"vac: broken: user_data: .*/broken/files/absent can't be read: No such file or directory",
        ),
        ("none", "vac: no machinetype none is configured; there are: broken one"),
    ],
)
def test_why_there_is_none_is_told(
    words: list[str], capfdbinary: pytest.CaptureFixture[bytes], name: str, reason: str
) -> None:
    assert main([*words, name]) == 1
    told = capfdbinary.readouterr()
    assert told.out == b""
    assert re.fullmatch(reason, told.err.decode().strip())
