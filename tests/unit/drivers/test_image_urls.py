"""What the Docker driver says of images with URLs, without an engine."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.context.downloads import DownloadFailed
from vac.drivers.docker.engine import DockerDriver
from vac.drivers.registry import driver_for

URL = "https://user:secret@example.com/image.tar"
MACHINETYPE = Machinetype("test", machine_model="docker", root_image=URL)


def fail(source: str, signing_dn: str | None = None) -> Path:
    assert source == URL
    raise DownloadFailed("the server answers with status 404")


def test_the_reason_of_a_failed_download_is_told_without_the_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    driver = driver_for("docker", Settings(), fail)
    assert isinstance(driver, DockerDriver)
    deadline = time.monotonic() + 60
    reason = driver.prepare(MACHINETYPE, Settings(), Path())
    while "404" not in (reason or "") and time.monotonic() < deadline:
        time.sleep(0.01)
        reason = driver.prepare(MACHINETYPE, Settings(), Path())
    assert "image.tar: the server answers with status 404; next attempt in" in (reason or "")
    assert "example.com/image.tar: the server answers with status 404" in caplog.text
    assert "secret" not in f"{reason}{caplog.text}"


def test_a_driver_without_downloads_says_so_without_the_password() -> None:
    driver = driver_for("docker", Settings())
    assert isinstance(driver, DockerDriver)
    reason = driver.prepare(MACHINETYPE, Settings(), Path())
    assert "can't be downloaded here" in (reason or "")
    assert "secret" not in (reason or "")
