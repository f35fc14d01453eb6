"""Format and place of the log: always standard error, which may be a file of --log-dir.

Under systemd standard error is the journal's stream; then lines carry sd-daemon(3)'s `<N>` priorities instead
of times. With --log-dir the process that opens the file puts it in place of descriptors 1 and 2, so that
tracebacks and what libraries print end up in it too, and a process without rights to the directory can be
handed a new file when logs are rotated.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from types import TracebackType

from vac.text import escaped

LEVELS = ("debug", "info", "warning", "error")
SYSLOG_PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}

logger = logging.getLogger(__name__)


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00+0000 vacd-factory[123] INFO text`, or for the journal `<6>vacd-factory: text`.

    Times are local with their offset. Each line of a traceback has the same beginning and is indented.
    """

    def __init__(self, name: str, *, journal: bool) -> None:
        super().__init__()
        self._name = name
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        lines = [escaped(record.getMessage())]
        if record.exc_info:
            trace = self.formatException(record.exc_info).split("\n")
            lines += ["    " + escaped(line) for line in trace]
        beginning = self._beginning(record)
        return "\n".join(beginning + line for line in lines)

    def _beginning(self, record: logging.LogRecord) -> str:
        if self._journal:
            return f"<{SYSLOG_PRIORITIES.get(record.levelname, 6)}>{self._name}: "
        moment = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.created))
        return f"{moment} {self._name}[{record.process}] {record.levelname} "


def is_journal(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Return True if this is the stream of JOURNAL_STREAM (`DEVICE:INODE`, systemd.exec(5))."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def set_up(name: str, level: str) -> None:
    """Log to standard error under this name; ours from the level of LEVELS on, libraries' warnings and worse.

    Libraries say too much at lower levels, such as secrets in URLs. Uncaught exceptions are logged.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(name, journal=is_journal(2, os.environ)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("vac").setLevel(level.upper())
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def _log_uncaught(kind: type[BaseException], exception: BaseException, trace: TracebackType | None) -> None:
    logger.critical("uncaught %s", kind.__name__, exc_info=exception)


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        thread = args.thread.name if args.thread else "unknown"
        logger.critical("uncaught %s in thread %s", args.exc_type.__name__, thread, exc_info=args.exc_value)


def open_file(path: Path) -> int:
    """Open or create a log file; return a descriptor that appends to it. Raises OSError."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


def write_to(descriptor: int) -> None:
    """Put this file in place of standard output and standard error, and close the descriptor itself."""
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def try_open(path: Path) -> int | None:
    """Open the file that now has this name; return None, with an error in the old one, if it can't be opened."""
    try:
        return open_file(path)
    except OSError as error:
        logger.error("can't reopen %s: %s; logging goes on in the old file", path, error.strerror)
        return None


def reopen(path: Path) -> None:
    """Log to the file that now has this name; if it can't be opened, go on with the old one."""
    descriptor = try_open(path)
    if descriptor is not None:
        write_to(descriptor)


class OnChange:
    """Log of conditions: each is logged when it begins, changes and ends, however often it is reported."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._texts: dict[Hashable, str] = {}

    def say(self, key: Hashable, text: str, level: int = logging.INFO) -> bool:
        """Log the text and return True unless it is what was last said under this key."""
        if self._texts.get(key) == text:
            return False
        self._texts[key] = text
        self._log.log(level, "%s", text)
        return True

    def clear(self, key: Hashable) -> bool:
        """Log that the condition of this key has ended; return False if there was none."""
        text = self._texts.pop(key, None)
        if text is not None:
            self._log.info("no longer: %s", text)
        return text is not None

    def tell(self, key: Hashable, text: str | None, level: int = logging.WARNING) -> bool:
        """Say this text, or, without one, that the condition has ended. Return True if that is news."""
        return self.say(key, text, level) if text else self.clear(key)

    def texts(self, kind: str) -> dict[str, str]:
        """Return the present conditions whose keys are pairs of this kind and a name, by name."""
        return {
            key[1]: text for key, text in self._texts.items() if isinstance(key, tuple) and key[0] == kind
        }

    def only(self, texts: Mapping[Hashable, str], level: int = logging.INFO) -> None:
        """Log all of these; all other conditions have ended."""
        for key in [key for key in self._texts if key not in texts]:
            self.clear(key)
        for key, text in texts.items():
            self.say(key, text, level)
