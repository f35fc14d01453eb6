"""The faults that come over a soak's factory, drawn by its seed; each is mended before the next comes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from tests.conftest import cgroups_named
from tests.engines.factory_fixture import command_lines

if TYPE_CHECKING:
    from tests.faults.soak import Soak

STEPS = (-40.0, 40.0, -3600.0, 3600.0, 200 * 86400.0, -10 * 365 * 86400.0, 10 * 365 * 86400.0)
ROLES = ("vacd-factory", "vacd-responder", "vacd-page")
SETTLED_SECONDS = 5.0
"""After its start, until a factory has looked at all machines."""
RECONNECT_SECONDS = 40.0
"""After libvirtd's start, until a factory has surely seen its machines again."""
LAUNCHER_SECONDS = 5.0
"""A launcher lives for a moment: so long one is waited for."""


class Faults:
    """Draws faults and brings them about."""

    def __init__(self, soak: Soak) -> None:
        self.soak = soak
        self.site = soak.site
        self.rng = soak.rng
        self._faults: list[Callable[[], None]] = [
            *(self.kill_role, self.kill_role, self.kill_supervisor, self.kill_all, self.kill_all),
            *(self.restart, self.restart, self.kill_process, self.kill_process, self.kill_launcher),
            *(self.set_clock, self.set_clock, self.edit, self.break_configuration, self.order),
            *(self.engine_hangs, self.engine_fails),
        ]
        if soak.containers:
            self._faults += [self.containers_hang, self.containers_stop]
        if soak.vms:
            self._faults += [self.vms_hang, self.vms_stop, self.vms_stop, self.kill_vm]
        else:  # QEMU itself would pause
            self._faults += [self.read_only, self.full, self.no_inodes, self.lose_outgoing]
        self._looking_since: float | None = None
        self._away_since = time.monotonic()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def next(self) -> None:
        """Bring the next fault about."""
        self.rng.choice(self._faults)()

    def _watch(self) -> None:
        """Note when no factory looks."""
        pid = None
        while True:
            now = time.monotonic()
            if pid is None or not Path(f"/proc/{pid}/cmdline").exists():
                if self._looking():
                    self._away_since = now
                pid, self._looking_since = next(iter(self.soak.pids(ROLES[0])), None), None
            if pid is not None and self._looking_since is None:
                self._looking_since = now
                self.soak.away.append((self._away_since - 1.0, now + SETTLED_SECONDS))
            time.sleep(0.5)

    def _looking(self) -> bool:
        since = self._looking_since
        return since is not None and time.monotonic() > since + SETTLED_SECONDS

    def _set_clock_right(self) -> None:
        """For what ends unseen: the kernel's and dockerd's times aren't stepped with vacd's."""
        self.soak.step_clock(0.0)

    def _kill(self, *titles: str) -> None:
        for title in titles:
            for pid in self.soak.pids(title):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def kill_role(self) -> None:
        """Kill one process of vacd; the supervisor starts it again."""
        self._set_clock_right()
        role = self.rng.choice(ROLES)
        self._kill(role)
        self.soak.note(f"killed {role}")

    def kill_supervisor(self) -> None:
        """Kill the supervisor alone, and start vacd again, at once or when the others have followed."""
        self._set_clock_right()
        assert self.site.process is not None
        self.site.process.kill()
        self.site.process.wait()
        pause = self.rng.choice([0.0, 3.0])
        self.soak.note(f"killed the supervisor for {pause:.0f} s")
        time.sleep(pause)
        self.soak.start()

    def kill_all(self) -> None:
        """Kill all of vacd at once, as the kernel does when memory is short, and start it after a while."""
        pause = self._pause()
        assert self.site.process is not None
        self.site.process.kill()
        self._kill(*ROLES)
        self.site.process.wait()
        self.soak.note(f"killed vacd for {pause:.0f} s")
        time.sleep(pause)
        self.soak.start()

    def restart(self) -> None:
        """Stop vacd in good order and start it after a while, as an upgrade does."""
        pause = self._pause()
        self.site.stop()
        self.soak.note(f"stopped vacd for {pause:.0f} s")
        time.sleep(pause)
        self.soak.start()

    def _pause(self) -> float:
        """Mostly short, at times longer than machines live."""
        self._set_clock_right()
        return self.rng.choice([0.0, 1.0, 5.0, self.rng.uniform(10.0, 40.0)])

    def kill_process(self) -> None:
        """Kill any process of any machine: bwrap, Apptainer's, its init, the work itself."""
        processes = []
        for top in cgroups_named(self.site.name):
            for group, _, _ in os.walk(top):
                with contextlib.suppress(OSError):
                    processes += [int(word) for word in (Path(group) / "cgroup.procs").read_text().split()]
        if processes:
            pid = self.rng.choice(sorted(set(processes)))
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                os.kill(pid, signal.SIGKILL)
                self.soak.note(f"killed a machine's {name}")

    def kill_launcher(self) -> None:
        """Kill what makes a machine of this factory, before or after it has become the engine's program."""
        deadline = time.monotonic() + LAUNCHER_SECONDS
        home = str(self.site.home).encode()
        while time.monotonic() < deadline:
            for pid, words in command_lines().items():
                if home in words and (b"launch.py" in words or home + b"/bin" in words):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        self.soak.note("killed a launcher")
                        return
            time.sleep(0.02)

    def set_clock(self) -> None:
        """Step vacd's wall clock, or set it right, while the factory looks."""
        if self._looking():
            offset = self.rng.choice([0.0, 0.0, *STEPS])
            self.soak.step_clock(offset)
            self.soak.note(f"clock off by {offset:.0f} s")

    def read_only(self) -> None:
        """Let state_dir be read-only for a while, as a file system is after an error."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self._remount("ro")
            self.soak.note("state_dir is read-only")
            time.sleep(self.rng.uniform(1.0, 6.0))
        self._remount("rw")

    def no_inodes(self) -> None:
        """Let state_dir have no inodes left for a while."""
        found = os.statvfs(self.site.state.root)
        with contextlib.suppress(subprocess.CalledProcessError):
            self._remount(f"nr_inodes={found.f_files - found.f_ffree}")
            self.soak.note("state_dir has no inodes left")
            time.sleep(self.rng.uniform(1.0, 6.0))
        self._remount(f"nr_inodes={found.f_files}")

    def _remount(self, option: str) -> None:
        """Remount state_dir's file system; its superblock, not only this mount."""
        command = ["mount", "-o", f"remount,{option}", str(self.site.state.root)]
        subprocess.run(command, check=True, capture_output=True)

    def full(self) -> None:
        """Let state_dir be full for a while."""
        path = self.site.state.root / "ballast"
        with path.open("wb", buffering=0) as file:
            for size in (2**20, 2**12):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))
        self.soak.note("state_dir is full")
        time.sleep(self.rng.uniform(1.0, 6.0))
        path.unlink()

    def edit(self) -> None:
        """Give the machinetypes other shares; often one of them is missing until the next time."""
        without = self.rng.choice([None, "usual", "silent", "lasting", "docked"])
        self.soak.configure(without)
        self.soak.note(f"shares changed, {without or 'no type'} removed")

    def break_configuration(self) -> None:
        """Leave the configuration broken for a while."""
        self.site.config.write_text("[settings]\nvac_space = \n[machinetype\n")
        self.site.wake()
        self.soak.note("configuration is broken")
        time.sleep(self.rng.uniform(1.0, 5.0))
        self.soak.configure()

    def lose_outgoing(self) -> None:
        """Remove the queue of records, as a sender or an administrator may."""
        shutil.rmtree(self.site.state.root / "apel-outgoing", ignore_errors=True)
        self.soak.note("apel-outgoing is gone")

    def order(self) -> None:
        """Have a machine ended as people do."""
        running = self.site.running()
        if running:
            how, machine = self.rng.choice(["finish", "destroy"]), self.rng.choice(running)
            self.site.vac(how, machine.name)
            self.soak.note(f"vac {how} {machine.name.partition('.')[0]}")

    def engine_hangs(self) -> None:
        """Let bwrap and apptainer hang at their start for a while."""
        self._for_a_while("hanging", 12.0)

    def engine_fails(self) -> None:
        """Let bwrap and apptainer fail for a while."""
        self._for_a_while("failing", 4.0)

    def _for_a_while(self, how: str, most_seconds: float) -> None:
        path = self.site.home / how
        path.touch()
        self.soak.note(f"bwrap and apptainer are {how}")
        time.sleep(self.rng.uniform(1.0, most_seconds))
        path.unlink()

    def containers_hang(self) -> None:
        """Let the engine of containers answer nothing for a while."""
        assert self.soak.containers
        self._set_clock_right()
        with self.soak.containers.hanging():
            self.soak.note(f"{self.soak.containers.daemon} hangs")
            time.sleep(self.rng.uniform(1.0, 12.0))

    def containers_stop(self) -> None:
        """Kill or stop the engine of containers, and start it after a while."""
        engine = self.soak.containers
        assert engine
        stop = self.rng.choice([engine.kill, engine.stop])
        self._set_clock_right()
        stop()
        self.soak.note(f"{engine.daemon}: {stop.__name__}")
        time.sleep(self.rng.uniform(0.0, 12.0))
        engine.start()

    def vms_hang(self) -> None:
        """Let libvirtd answer nothing for a while."""
        assert self.soak.vms
        with self._libvirtd_away(), self.soak.vms.hanging():
            self.soak.note("libvirtd hangs")
            time.sleep(self.rng.uniform(1.0, 12.0))

    def vms_stop(self) -> None:
        """Kill or stop libvirtd, and start it after a while; VMs go on."""
        assert self.soak.vms
        how = self.rng.choice([signal.SIGTERM, signal.SIGKILL])
        with self._libvirtd_away():
            self.soak.vms.stop(how)
            self.soak.note(f"libvirtd: {how.name}")
            time.sleep(self.rng.uniform(0.0, 12.0))
            self.soak.vms.start()

    @contextlib.contextmanager
    def _libvirtd_away(self) -> Iterator[None]:
        self._set_clock_right()
        begun = time.monotonic()
        yield
        self.soak.away.append((begun - 1.0, time.monotonic() + RECONNECT_SECONDS))

    def kill_vm(self) -> None:
        """Kill the process of a VM."""
        assert self.soak.vms
        processes = self.soak.vms.processes("qemu-system")
        if processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(processes), signal.SIGKILL)
                self.soak.note("killed a VM")
