"""What `vac doctor` says of files that options name, and of secrets that everybody can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from vac.cli.doctor_files import image_problem, rows
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings

SECRET = "0123456789abcdef0123456789abcdef"


def test_programs_and_keys_that_are_not_there_are_problems(tmp_path: Path) -> None:
    health, key = tmp_path / "health", tmp_path / "key"
    settings = Settings(health_command=health, vacquery_key_file=key)

    assert [serious for _, problem, serious in rows(settings, []) if problem] == [True, True]
    health.write_text("#!/bin/sh\n")
    health.chmod(0o755)
    key.write_text(SECRET)
    key.chmod(0o604)
    readable = (f"vacquery_key_file {key}", f"others can read it: chmod 600 {key}", False)
    assert [*rows(settings, [])] == [(f"health_command {health}", None, True), readable]
    key.chmod(0o600)
    assert [problem for _, problem, _ in rows(settings, []) if problem] == []


@pytest.mark.parametrize(
    ("line", "mode", "noted"),
    [
        ("user_data_option_token = sesame", 0o644, True),
        ("user_data_option_token = sesame", 0o640, False),
        ("root_image = https://user:sesame@example.com/image", 0o644, True),
        ("root_image = https://example.com/image", 0o644, False),
    ],
)
def test_secrets_that_everybody_can_read_are_noted(tmp_path: Path, line: str, mode: int, noted: bool) -> None:
    path = tmp_path / "a.conf"
    path.write_text(f"[machinetype a]\n{line}\n")
    path.chmod(mode)
    found = [*rows(Settings(), [path])]
    assert [(what, serious) for what, _, serious in found] == [(str(path), False)] * noted
    assert "sesame" not in str(found)


@pytest.mark.parametrize("model", ["bubblewrap", "singularity"])
@pytest.mark.parametrize(
    ("root_image", "command", "words"),
    [
        ("tree", "/user_data", None),
        ("tree", "/bin/tool", None),
        ("tree", "/no/such/command", "container_command /no/such/command does not exist in root_image"),
        ("tree", "/tmp/made-later", None),
        ("/no/such/tree", "/user_data", "root_image /no/such/tree is"),
        ("https://example.com/image", "/no/such/command", None),
    ],
)
def test_images_and_commands_of_process_containers(
    tmp_path: Path, model: str, root_image: str, command: str, words: str | None
) -> None:
    tool = tmp_path / "tree" / "bin" / "tool"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    one = Machinetype("t", machine_model=model, root_image=root_image, container_command=command)
    problem = image_problem(one, tmp_path)
    assert problem is None if words is None else words in (problem or "")


def test_an_image_file_is_for_singularity_alone(tmp_path: Path) -> None:
    (tmp_path / "image.sif").touch()
    one = Machinetype("t", machine_model="singularity", root_image="image.sif")
    assert image_problem(one, tmp_path) is None
    other = Machinetype("t", machine_model="bubblewrap", root_image="image.sif")
    assert "is no directory tree" in (image_problem(other, tmp_path) or "")
