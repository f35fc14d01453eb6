"""Headless Chromium, told by its debugging pipe what to load and how: no WebDriver, no WebSocket."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import require_tool

_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
_DIALOGUE = 'exec "$@" 3<&{} 4>&{}'
"""For bash, as sh takes one digit only: the browser's ends of the pipes have the numbers 3 and 4."""


class Browser:
    """One tab. enter: words before its command line, which choose its network."""

    def __init__(self, enter: Sequence[str]) -> None:
        self._profile = tempfile.mkdtemp(prefix="vac-browser-")
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        command = [*enter, require_tool("chromium"), *_OPTIONS, f"--user-data-dir={self._profile}"]
        self._process = subprocess.Popen(
            [
                "bash",
                "-c",
                _DIALOGUE.format(theirs_in, theirs_out),
                "bash",
                *command,
                "--remote-debugging-pipe",
                "about:blank",
            ],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self._profile},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers, self._kept, self._session = itertools.count(1), b"", ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Page.enable")

    def close(self) -> None:
        """End it and remove its profile."""
        with contextlib.suppress(OSError):
            self._ask("Browser.close")
        self._process.wait(60)
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._profile)

    def _ask(self, method: str, **params: Any) -> Any:
        """Return the result of a command of the DevTools protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        session = {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps({**message, **session}).encode() + b"\0")
        return self._await(lambda told: told.get("id") == number)["result"]

    def _await(self, wanted: Any) -> Any:
        while True:
            while b"\0" not in self._kept:
                piece = os.read(self._from, 1 << 20)
                if not piece:
                    raise OSError("the browser has ended")
                self._kept += piece
            line, _, self._kept = self._kept.partition(b"\0")
            told = json.loads(line)
            if wanted(told):
                assert "error" not in told, told
                return told

    def load(self, url: str, width: int, dark: bool) -> None:
        """Load a page in a window of this width, in this colour scheme."""
        self._ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        failed = self._ask("Page.navigate", url=url).get("errorText")
        assert not failed, f"{url}: {failed}"
        self._await(lambda told: told.get("method") == "Page.loadEventFired")

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression in the page, or that of its promise."""
        found = self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, path: Path) -> None:
        """Write the whole page as PNG."""
        found = self._ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def browser(enter: Sequence[str]) -> Iterator[Browser]:
    """A browser that is ended afterwards."""
    with contextlib.closing(Browser(enter)) as opened:
        yield opened
