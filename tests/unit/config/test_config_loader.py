"""Loading each cycle: nothing is read again while nothing has changed, and everything when something has."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from vac.config.load import FACTS_SECONDS, ConfigurationError, Loader
from vac.host.facts import HostFacts

SPACE = "[settings]\nvac_space = vac01.example.org\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.conf"
    path.write_text(SPACE)
    return path


def test_an_unchanged_configuration_is_the_same_object(site: Path, host: HostFacts) -> None:
    loader = Loader([site.parent], lambda: host)
    first = loader.load(0)
    assert loader.load(1) is first
    assert loader.load(10 * FACTS_SECONDS) is first


def test_changed_added_replaced_and_removed_files_are_noticed(site: Path, host: HostFacts) -> None:
    loader = Loader([site.parent], lambda: host)
    assert loader.load(0).settings.draining is False
    site.write_text(SPACE + "draining = yes\n")
    assert loader.load(0).settings.draining is True
    extra = site.parent / "zz.conf"
    extra.write_text("[settings]\ndraining = no\n")
    assert loader.load(0).settings.draining is False
    new = site.parent / "new"
    new.write_text("[settings]\ndraining = on\n")
    times = extra.stat()
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
    new.replace(extra)
    assert loader.load(0).settings.draining is True
    extra.unlink()
    site.write_text(SPACE)
    assert loader.load(0).settings.draining is False


def test_a_broken_configuration_is_tried_anew_each_time(site: Path, host: HostFacts) -> None:
    accounts: dict[str, int] = {}
    loader = Loader([site.parent], lambda: dataclasses.replace(host, user_id=accounts.get))
    good = loader.load(0)
    site.write_text(SPACE + "singularity_user = later\n")
    for now in (1, 2):
        with pytest.raises(ConfigurationError, match="there is no account 'later'"):
            loader.load(now)
    accounts["later"] = 4711
    assert loader.load(3).settings.singularity_user == "later"
    site.write_text(SPACE)
    assert loader.load(4) == good


def test_the_host_is_asked_again_now_and_then(site: Path, host: HostFacts) -> None:
    asked = []

    def facts() -> HostFacts:
        asked.append(host)
        return dataclasses.replace(host, processors=64 if len(asked) < 3 else 32)

    loader = Loader([site.parent], facts)
    first = loader.load(1000)
    assert loader.load(1000 + FACTS_SECONDS - 1) is first
    assert len(asked) == 1
    assert loader.load(1000 + FACTS_SECONDS) is first
    assert len(asked) == 2
    assert loader.load(1000 + 2 * FACTS_SECONDS).settings.total_processors == 32
    assert loader.host.processors == 32


def test_a_file_that_has_gone_is_told(site: Path, host: HostFacts) -> None:
    loader = Loader([site], lambda: host)
    loader.load(0)
    site.unlink()
    with pytest.raises(ConfigurationError, match="No such file"):
        loader.load(1)
