"""What `vac doctor` says of files that options name, and of who may read those with secrets. It changes nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

from vac.config.files import Value, read
from vac.config.machinetype import Machinetype
from vac.config.sections import USER_DATA_OPTION
from vac.config.settings import Settings
from vac.drivers.processes.bubblewrap import check_command
from vac.host.filesystems import real_image
from vac.text import without_url_secrets
from vac.vacquery.signed_json import read_key

Row = tuple[str, Optional[str], bool]
"""As doctor.Finding: what, the problem, whether it is serious."""


def rows(settings: Settings, paths: Sequence[Path] | None) -> Iterator[Row]:
    """Files of the whole factory; paths are where its configuration is."""
    command, key = settings.health_command, settings.vacquery_key_file
    if command is not None:
        runs = command.is_file() and os.access(command, os.X_OK)
        problem = "is no program that can be run, and nothing is created until it succeeds"
        yield f"health_command {command}", None if runs else problem, True
    if key is not None:
        yield _key_row(key)
    yield from _open_secrets(paths)


def image_problem(machinetype: Machinetype, files: Path) -> str | None:
    """Why a bubblewrap or singularity machine can't be made of what root_image and container_command name.

    What is downloaded isn't looked at, nor what is in an image file.
    """
    if not machinetype.root_image or "://" in machinetype.root_image:
        return None
    command = machinetype.container_command
    fresh = {"/user_data", "/tmp", "/var/tmp", *machinetype.tmp_binds}
    try:
        root = Path(real_image(str(files / machinetype.root_image)))
        if root.is_dir() and command not in fresh:
            check_command(str(root), command, dict.fromkeys(fresh, ("rw", "")))
        elif machinetype.machine_model == "bubblewrap" and not root.is_dir():
            return f"root_image {root} is no directory tree; bubblewrap takes / or the path of one"
        elif not root.exists():
            return f"root_image {root} isn't there; give a directory tree, an image file or a URL"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _key_row(key: Path) -> Row:
    what = f"vacquery_key_file {key}"
    try:
        read_key(key)
    except OSError as error:
        return (
            what,
            f"{error.strerror}: make it by `openssl rand -base64 32`, the same on all factories",
            True,
        )
    return what, f"others can read it: chmod 600 {key}" if _open_to_others(key) else None, False


def _open_secrets(paths: Sequence[Path] | None) -> Iterator[Row]:
    """Configuration files with secrets in them that everybody can read."""
    secrets: dict[str, str] = {}
    for section in read(paths).sections.values():
        for option, value in section.values.items():
            if _is_secret(option, value):
                secrets.setdefault(value.file, option)
    for file, option in secrets.items():
        if _open_to_others(Path(file)):
            yield file, f"others can read it, {option} too, which may be secret: chmod 640 {file}", False


def _is_secret(option: str, value: Value) -> bool:
    return option.startswith(USER_DATA_OPTION) or without_url_secrets(value.text) != value.text


def _open_to_others(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
