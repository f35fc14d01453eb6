"""What `vac doctor` says of the place where the page is to be served."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vac.cli import doctor_web
from vac.config.settings import Settings
from vac.machines.layout import StateDir


def test_a_taken_port_is_told_unless_the_page_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [*doctor_web.rows(Settings(state_dir=tmp_path))] == []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(state_dir=tmp_path, metrics_listen=f"127.0.0.1:{taken.getsockname()[1]}")
        ((what, problem, serious),) = doctor_web.rows(settings)
        assert (what, serious) == (f"metrics_listen {settings.metrics_listen}", False)
        assert "Address already in use: choose" in (problem or "")
        StateDir(tmp_path).pid("page").write_text(f"{os.getpid()}\n")
        assert len([*doctor_web.rows(settings)]) == 1, "the process of that number is another one"
        monkeypatch.setattr(doctor_web, "serves", lambda state, role: role == "page")
        assert [*doctor_web.rows(settings)] == []
    assert [problem for _, problem, _ in doctor_web.rows(settings)] == []


@pytest.mark.parametrize(
    ("listen", "problem"),
    [
        ("127.0.0.1:0", None),
        ("192.0.2.1:9995", "Cannot assign requested address"),
        ("nowhere.invalid:9995", ""),
    ],
)
def test_an_address_must_be_this_hosts(tmp_path: Path, listen: str, problem: str | None) -> None:
    if problem is None:
        listen = listen.replace(":0", f":{_free_port()}")
    ((_, found, _),) = doctor_web.rows(Settings(state_dir=tmp_path, metrics_listen=listen))
    assert (found is None) == (problem is None)
    assert (problem or "") in (found or "")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
