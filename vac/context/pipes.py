"""Fetching the documents of Vacuum Pipes."""

from __future__ import annotations

from vac.config.pipe_document import LARGEST_BYTES
from vac.context.transfers import Limits, document

LIMITS = Limits(largest_bytes=LARGEST_BYTES)


def fetch_pipe(url: str) -> bytes:
    """What the URL of a pipe answers with, whatever it is. Blocks; raises DownloadFailed with a reason."""
    return document(url, LIMITS)
