"""A wall clock that a test can set, for all Python processes that have this directory on PYTHONPATH.

The file that VAC_TEST_CLOCK names holds the step as a double: time.time() and time.time_ns() are off by that many
seconds.
Monotonic clocks stay as they are, and so does the kernel's own time.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

with open(os.environ["VAC_TEST_CLOCK"], "rb") as file:  # noqa: PTH123 # at each start of Python: import little
    step = mmap.mmap(file.fileno(), struct.calcsize("d"), prot=mmap.PROT_READ)

real_time, real_time_ns = time.time, time.time_ns


def seconds() -> float:
    """Return the step that is in force."""
    return float(struct.unpack("d", step[:8])[0])


time.time = lambda: real_time() + seconds()
time.time_ns = lambda: real_time_ns() + int(seconds() * 1e9)
