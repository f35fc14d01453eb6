"""What is read of an image whose author may be a stranger."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Generator
from typing import cast

import pytest

from vac.drivers.docker.api import Client
from vac.drivers.docker.make import LONGEST_PASSWD_BYTES, read_passwd

PASSWD = b"root:x:0:0::/:/bin/sh\npilot:x:1234:1235::/:/bin/sh\n"
DIRECTORY, LINK, DEVICE = 1 << 31, 1 << 27, 1 << 26


def one_file(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("passwd")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class Engine:
    """Answers a request for an archive with pieces that have no end of their own."""

    def __init__(self, archive: bytes, mode: int = 0o644, size: int = len(PASSWD)) -> None:
        self.archive, self.mode, self.size = archive, mode, size
        self.sent, self.closed = 0, False

    def get_archive(self, container: str, path: str) -> tuple[Generator[bytes, None, None], dict[str, int]]:
        def pieces() -> Generator[bytes, None, None]:
            try:
                for start in range(0, len(self.archive), 65536):
                    self.sent += 65536
                    yield self.archive[start : start + 65536]
            finally:
                self.closed = True

        return pieces(), {"mode": self.mode, "size": self.size}


def read(engine: Engine) -> str:
    return read_passwd(cast(Client, engine), "c0")


def test_passwd_is_read() -> None:
    assert read(Engine(one_file(PASSWD))) == PASSWD.decode()
    largest = Engine(one_file(bytes(LONGEST_PASSWD_BYTES)), size=LONGEST_PASSWD_BYTES)
    assert len(read(largest)) == LONGEST_PASSWD_BYTES


@pytest.mark.parametrize("kind", [DIRECTORY, LINK, DEVICE])
def test_nothing_is_read_of_what_is_no_regular_file(kind: int) -> None:
    engine = Engine(one_file(PASSWD), mode=kind | 0o755, size=4096)
    assert (read(engine), engine.sent) == ("", 0)


def test_no_more_is_read_than_a_passwd_may_have() -> None:
    assert read(Engine(one_file(PASSWD), size=LONGEST_PASSWD_BYTES + 1)) == ""
    endless = Engine(bytes(8 * LONGEST_PASSWD_BYTES))
    assert read(endless) == ""
    assert endless.sent <= 2 * LONGEST_PASSWD_BYTES
    assert endless.closed


def test_an_archive_that_is_none_counts_as_no_passwd() -> None:
    assert read(Engine(b"no archive at all")) == ""
    assert read(Engine(b"")) == ""
