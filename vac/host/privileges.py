"""Becoming an unprivileged user: `vac`, or `nobody` where there is no such account."""

from __future__ import annotations

import os
import pwd

PREFERRED, OTHER = "vac", "nobody"


def unprivileged_user() -> pwd.struct_passwd | None:
    """The account that processes which need no rights run as. None when this process isn't root: it stays."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(PREFERRED)
    except KeyError:
        return pwd.getpwnam(OTHER)


def become(user: pwd.struct_passwd | None) -> None:
    """Be this user from now on, without a way back and without supplementary groups."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
