"""Running the examples' user_data without machines: patterns replaced as Vac does it, in a shell of this host's."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.conftest import require_tool
from tests.waiting import PATIENCE_SECONDS, wait_for
from vac.context.user_data import substitute

EXAMPLES = Path(__file__).parents[2] / "examples"
POWER_OFF = b"{ poweroff || poweroff -f || shutdown -h now; }"
"""The last command of a virtual machine, which no test may run: busybox's shell prefers its own to any stand-in."""


class Place:
    """A machine's surroundings, in a throw-away directory; programs are busybox's and none else."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.programs = home / "bin"
        self.jobfeatures = home / "jobfeatures"
        self.joboutputs = home / "joboutputs"
        self.temporary = home / "tmp"
        for directory in (self.programs, self.jobfeatures, self.joboutputs, self.temporary):
            directory.mkdir()
        busybox = require_tool("busybox")
        listed = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
        for applet in listed.stdout.split():
            (self.programs / applet).symlink_to(busybox)
        self.set_shutdown_time(time.time() + 100_000)

    def set_shutdown_time(self, when: float) -> None:
        """Publish it as Vac does: the file appears whole."""
        new = self.home / "new"
        new.write_text(str(int(when)))
        new.replace(self.jobfeatures / "shutdowntime_job")

    def add_program(self, name: str, script: str) -> None:
        """A stand-in for a program."""
        (self.programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.programs / name).chmod(0o755)

    def script(self, template: Path, jobfeatures: str = "", joboutputs: str = "", **options: str) -> Path:
        """The user_data as a machine gets it, but with shorter pauses."""
        values = {
            "user_data_uuid": "c0ffee",
            "user_data_machine_hostname": "vac-01-00.example.org",
            "user_data_machinetype": "vo-docker",
            "user_data_jobfeatures_url": jobfeatures or str(self.jobfeatures),
            "user_data_joboutputs_url": joboutputs or str(self.joboutputs),
            **{f"user_data_option_{key}": text for key, text in options.items()},
        }
        content = substitute(template.read_bytes(), {key: text.encode() for key, text in values.items()})
        for name, short in (("pause_seconds", b"0.2"), ("attempts", b"2")):
            content = re.sub(rb"(?m)^%s=\d+" % name.encode(), name.encode() + b"=" + short, content)
        content = content.replace(POWER_OFF, b"touch " + bytes(self.home / "off"))
        assert b"poweroff" not in content, "this host is to go on"
        path = self.home / "user_data"
        path.write_bytes(content)
        path.chmod(0o755)
        return path

    def start(self, script: Path) -> subprocess.Popen[bytes]:
        """Run it with the shell that is first in the programs."""
        environment = {"PATH": str(self.programs), "TMPDIR": str(self.temporary), "no_proxy": "*"}
        return subprocess.Popen(
            [require_tool("env"), "--default-signal=HUP", self.programs / "sh", script],  # nohup ignores it
            env=environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
        )

    def run(self, script: Path) -> str:
        """Run it to its end; its shutdown message."""
        with self.start(script) as process:
            assert process.wait(PATIENCE_SECONDS) == 0
        return self.message()

    def message(self) -> str:
        """The shutdown message."""
        return (self.joboutputs / "shutdown_message").read_text().strip()


def wait_for_file(path: Path) -> None:
    """Wait until this file is there."""
    wait_for(path.exists, f"{path} is there")


class FeaturesServer(ThreadingHTTPServer):
    """Serves and takes files below a directory by GET and PUT, as virtual machines find them."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory = directory
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FeaturesServer

    def do_GET(self) -> None:
        path = self.server.directory / self.path.lstrip("/")
        found = path.read_bytes() if path.is_file() else None
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Length", str(len(found or b"")))
        self.end_headers()
        self.wfile.write(found or b"")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.server.directory / self.path.lstrip("/")
        temporary = self.server.directory / f"put-{threading.get_ident()}"
        temporary.write_bytes(content)
        temporary.replace(path)
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
