"""An image that hangs while a machine is being made of it; run by test_cvmfs.py in a mount namespace of its own."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import require_tool
from tests.engines.process_site import open_site
from tests.waiting import PATIENCE_SECONDS, wait_for
from vac.drivers.engine import APART, Action, ActionDone, ActionKind, Engine, Message
from vac.drivers.processes.process_driver import ProcessDriver


def main(version: str) -> None:
    with open_site(version) as site:
        files = site.settings.state_dir / "machinetypes/t/files"
        tree, image, mounted = (files / name for name in ("tree", "image", "mounted"))
        for directory in (tree / "etc", mounted):
            directory.mkdir(parents=True)
        subprocess.run([require_tool("mksquashfs"), tree, image, "-quiet", "-no-progress"], check=True)
        command: list[str | Path] = [require_tool("squashfuse"), "-f", "-o", "allow_other", image, mounted]
        messages: queue.Queue[Message] = queue.Queue()
        with subprocess.Popen(command) as server:
            wait_for(mounted.is_mount, "the image is mounted")
            server.send_signal(signal.SIGSTOP)
            try:
                driver = ProcessDriver(site.groups)
                engine = Engine(
                    "processes", lambda: driver, messages.put, time.time, apart=APART["processes"]
                )
                hanging, other = site.spec(0, root_image=str(mounted)), site.spec(1)
                engine.create(hanging)
                wait_for(lambda: site.processes(hanging), "its creation has begun")
                engine.create(other)
                created = messages.get(timeout=PATIENCE_SECONDS)
                assert isinstance(created, ActionDone), created
                assert (created.action.name, created.problem) == (other.name, None)
                assert Action(ActionKind.CREATE, hanging.name, hanging.uuid) in engine.pending
            finally:
                server.send_signal(signal.SIGCONT)
            refused = messages.get(timeout=PATIENCE_SECONDS)
            assert isinstance(refused, ActionDone), refused
            assert "user_data" in (refused.problem or ""), "it is looked at, and lacks an interpreter"
            site.driver.destroy(other.name, other.uuid)
            subprocess.run(["umount", "--lazy", mounted], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
