"""Adopting the processes that a dead child leaves behind: prctl(2), PR_SET_CHILD_SUBREAPER."""

from __future__ import annotations

import ctypes
import os

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def become_subreaper() -> None:
    """Make this process the parent of orphans among its descendants, which it then has to wait for.

    Where process 1 isn't an init system nobody else would. Raises OSError if the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(error)}")
