"""A throw-away factory of process machines, and that nothing of it is left afterwards."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from tests.conftest import cgroups_named, require_tool
from tests.waiting import PATIENCE_SECONDS
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.context.downloads import ImageCache
from vac.context.signatures import SignedImages
from vac.drivers.base import EngineState, MachineSpec, Observed
from vac.drivers.processes.process_driver import ProcessDriver
from vac.host.cgroups import Groups, GroupsV1, GroupsV2, find_mounts

MIB = 2**20


def group_makers() -> dict[str, Callable[[str], Groups]]:
    """Return how to open this host's cgroups: v1, v2 (perhaps without controllers) or both."""
    mounts = find_mounts()
    makers: dict[str, Callable[[str], Groups]] = {}
    v2 = mounts.v2
    if v2 is not None:
        makers["v2"] = lambda factory: GroupsV2(v2, factory)
    if "memory" in mounts.v1:
        makers["v1"] = lambda factory: GroupsV1(mounts.v1, [], factory)
    return makers


def shell_seconds(text: str) -> float:
    """A time as the shell's `times` prints it, such as 1m2.50s."""
    minutes, _, seconds = text.rstrip("s").partition("m")
    return int(minutes) * 60 + float(seconds)


def make_tree(root: Path) -> None:
    """A directory tree that a container can be made from, with Busybox and a motd in it."""
    if root.exists():
        return
    for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "var/tmp", "usr", "home", "root"):
        (root / name).mkdir(parents=True)
    busybox = require_tool("busybox")
    shutil.copy(busybox, root / "bin/busybox")
    listed = subprocess.run([busybox, "--list"], stdout=subprocess.PIPE, text=True, check=True)
    for name in set(listed.stdout.split()) - {"busybox"}:
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/motd").write_text("the image")


class Site:
    """A factory's state_dir and driver, of machines of one model. Singularity's are made from a tree of Busybox."""

    def __init__(self, groups: Groups, state_dir: Path, factory: str, model: str = "bubblewrap") -> None:
        for name in ("imagecache", "tmp"):
            (state_dir / name).mkdir(exist_ok=True)
        self.groups = groups
        self.model = model
        cache = ImageCache(state_dir / "imagecache", state_dir / "tmp")
        images = SignedImages(cache.fetch, state_dir, time.time)
        self.driver = ProcessDriver(groups, images.fetch)
        self.image = "/"
        if model == "singularity":
            self.image = str(state_dir / "machinetypes/t/files/busybox")
            make_tree(Path(self.image))
        self.settings = Settings(factory_name=factory, state_dir=state_dir, memory_limit_factor=2.0)
        self._ends: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()
        self._changed = threading.Event()
        self.driver.wake = self._changed.set
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def spec(self, number: int = 0, user_data: str = "exec sleep 600\n", **options: Any) -> MachineSpec:
        """A machine whose directory is complete; options are the machinetype's."""
        name = f"f1-{number:02}.example.com"
        directory = self.settings.state_dir / f"machines/1_t_{name}"
        for each in ("machinefeatures", "jobfeatures", "joboutputs"):
            (directory / each).mkdir(parents=True)
        (directory / "jobfeatures/job_id").write_text(f"uuid-{number}")
        (directory / "user_data").write_text("#!/bin/sh\n" + user_data)
        (directory / "user_data").chmod(0o600)
        wanted = {"machine_model": self.model, "root_image": self.image, **options}
        files = self.settings.state_dir / "machinetypes/t/files"
        kind = Machinetype("t", **wanted)
        return MachineSpec(name, f"uuid-{number}", kind, self.settings, 1, 64 * MIB, directory, files)

    def create(self, spec: MachineSpec) -> MachineSpec:
        """Make the machine."""
        self.driver.create(spec)
        return spec

    def output(self, spec: MachineSpec, name: str) -> str:
        """Return a file of the machine's joboutputs."""
        return (spec.directory / "joboutputs" / name).read_text()

    def processes(self, spec: MachineSpec) -> list[int]:
        """The numbers of the machine's processes."""
        return self.groups.processes(f"{spec.name}_{spec.uuid}")

    def state(self, spec: MachineSpec) -> EngineState | None:
        """Return the machine's state as the driver lists it; None if it isn't listed."""
        listed: list[Observed] = [each for each in self.driver.list() if each.uuid == spec.uuid]
        return listed[0].state if listed else None

    def wait_for_end(self, spec: MachineSpec) -> float:
        """Wait for the event of the machine's end; when it came, Unix seconds."""
        while True:
            name, now = self._ends.get(timeout=PATIENCE_SECONDS)
            if name == spec.name and self.state(spec) is EngineState.ENDED:
                return now

    def wait_for_word(self) -> None:
        """Wait until the driver says that an answer of its own has changed."""
        assert self._changed.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        """Destroy all machines and see that nothing is left."""
        for machine in self.driver.list():
            self.driver.destroy(machine.name, machine.uuid)
        self.driver.close()
        self._listener.join(PATIENCE_SECONDS)
        assert not self._listener.is_alive()
        state_dir, factory = str(self.settings.state_dir), self.settings.factory_name
        assert state_dir not in Path("/proc/self/mountinfo").read_text()
        assert not cgroups_named(factory)
        assert not processes_of(state_dir)

    def _listen(self) -> None:
        for name in self.driver.events():
            self._ends.put((name, time.time()))


def processes_of(state_dir: str) -> list[int]:
    """Processes of this host, zombies left out, whose command line names the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and state_dir.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@contextlib.contextmanager
def open_site(version: str, model: str = "bubblewrap") -> Iterator[Site]:
    """A site with cgroups v1 or v2."""
    state_dir = Path(tempfile.mkdtemp(prefix="vac-test-", dir="/var/tmp"))
    state_dir.chmod(0o711)
    factory = f"test-{os.getpid()}-{state_dir.name[-8:]}.example.com"
    site = Site(group_makers()[version](factory), state_dir, factory, model)
    try:
        yield site
    finally:
        try:
            site.close()
        finally:
            shutil.rmtree(state_dir)
