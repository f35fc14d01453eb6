"""Accounts of Vac's own processes."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from vac.host import privileges


def test_nobodys_group_is_never_vacs(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.struct_passwd(("nobody", "x", 65534, 65534, "", "/", "/bin/false"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", {"nobody": nobody}.__getitem__)
    user = privileges.unprivileged_user()
    assert user is not None
    assert (user.pw_name, user.pw_uid, user.pw_gid) == ("nobody", 65534, privileges.OWN_GROUP)


@pytest.mark.parametrize(
    ("uids", "gids", "expected"),
    [
        (
            "user:100000:65536\nvac:2000000000:256\n",
            "vac:2000000000:256\n",
            range(2_000_000_000, 2_000_000_256),
        ),
        ("vac:2000000000:256\n", "vac:1000000000:256\n", range(0)),
        ("vac:2000000000:256\n", "", range(0)),
        ("vac:500:100\n", "vac:500:100\n", range(0)),
        ("vacuum:100000:65536\n", "vacuum:100000:65536\n", range(0)),
        ("vac:x:y\n\0\n", "vac\n", range(0)),
        (None, None, range(0)),
    ],
)
def test_numbers_of_vac_are_those_in_subuid_and_subgid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uids: str | None, gids: str | None, expected: range
) -> None:
    paths = tmp_path / "subuid", tmp_path / "subgid"
    for path, text in zip(paths, (uids, gids)):
        if text is not None:
            path.write_text(text)
    monkeypatch.setattr(privileges, "SUBORDINATE_IDS", paths)
    assert privileges.subordinate_ids() == expected
