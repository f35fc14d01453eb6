"""Accounts of Vac's own processes."""

from __future__ import annotations

import os
import pwd

import pytest

from vac.host import privileges


def test_nobodys_group_is_never_vacs(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.struct_passwd(("nobody", "x", 65534, 65534, "", "/", "/bin/false"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", {"nobody": nobody}.__getitem__)
    user = privileges.unprivileged_user()
    assert user is not None
    assert (user.pw_name, user.pw_uid, user.pw_gid) == ("nobody", 65534, privileges.OWN_GROUP)
