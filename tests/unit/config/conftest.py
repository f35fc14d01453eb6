"""A host that is all that a configuration may ask for, and a way to load a text."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from vac.config.load import Configuration, load
from vac.host.facts import HostFacts

ACCOUNTS = {"vacuser": 1000, "root": 0, "toor": 0}


@pytest.fixture
def host() -> HostFacts:
    return HostFacts(
        "vac-01.example.org", 64, ACCOUNTS.get, lambda name: name in ("vac_volume_group", "other")
    )


@pytest.fixture
def load_text(tmp_path: Path, host: HostFacts) -> Callable[[str], Configuration]:
    """Loads a text as the one configuration file."""

    def load_this(text: str) -> Configuration:
        path = tmp_path / "site.conf"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        return load([path], host)

    return load_this
