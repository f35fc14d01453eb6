"""A real factory under random faults, judged by a ledger that its machines report to.

`python -m tests.faults.soak --minutes 6 --seed 1`, as root. The seed decides which faults come when. Exits with 1 if
the ledger and the accounting records disagree, or anything is left. `--models bubblewrap,podman` and `--models
bubblewrap,vm` have machines of Podman and of QEMU in the place of those of Apptainer and Docker. VMs report nothing:
the ledger sees their processes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import cgroups_named
from tests.engines.docker_fixture import IMAGE, PrivateDocker, PrivateEngine
from tests.engines.factory_fixture import AT_ONCE, FactorySite, Kind, Option, command_lines, factory_site
from tests.engines.guest_images import CONTEXTUALIZED, Guest, boot_iso
from tests.engines.libvirt_fixture import PrivateLibvirt
from tests.engines.podman_fixture import PrivatePodman
from tests.engines.process_site import make_tree
from tests.faults.ledger import TICKS_PER_SECOND, Ledger, judge, read_records
from tests.faults.soak_faults import Faults
from vac.drivers.docker.docker_container import LABEL_FACTORY
from vac.factory.loop import CYCLE_SECONDS

SKEWED_CLOCK = Path(__file__).with_name("skewed_clock")
FIZZLE_SECONDS = 3
TOLERANCE_SECONDS = 3.0
PROCESSORS = 8
STATE_MB = 1300  # nothing is created with less than 1 GB free
PATIENCE_SECONDS = 300.0
VM_SETTINGS: Mapping[str, Option] = {"vm_domain_type": "qemu", "mb_per_processor": 96}
MOST_DESCRIPTORS = MOST_THREADS = 60
LOOK_SECONDS = 0.5
"""From one look at the processes of VMs to the next."""
MODELS = ("bubblewrap", "singularity", "docker")
BRIDGES = {"docker": "172.17.0.1", "podman": "10.88.0.1"}
"""Address of the host as containers see it."""
STAND_IN = """\
#!/bin/bash
sleep 0.$(( RANDOM % 4 ))
while [ -e {home}/hanging ]; do sleep 0.2; done
[ ! -e {home}/failing ] || exit 1
exec {program} "$@"
"""
"""In the place of an engine's program: slow, and at times it hangs or fails."""

SAY_DONE = "echo '200 done' > $JOBOUTPUTS/shutdown_message"
SCRIPTS: Mapping[str, str] = {
    "brief": f"live $(( 10 + RANDOM % 40 ))\nreport END\n{SAY_DONE}",
    "usual": f"live $(( 50 + RANDOM % 250 ))\nreport END\n{SAY_DONE}",
    "silent": "live $(( 50 + RANDOM % 150 ))\nreport END",
    "mute": f"mute=MUTE\nlive $(( 50 + RANDOM % 150 ))\nreport END\n{SAY_DONE}",
    "crashing": "live $(( 40 + RANDOM % 60 ))\nreport END\nkill -9 $$",
    "lasting": f"live $(( 300 + RANDOM % 2700 ))\nreport END\n{SAY_DONE}",
    "endless": "live 1000000",
    "docked": f"live $(( 40 + RANDOM % 200 ))\nreport END\n{SAY_DONE}",
    "contained": f"live $(( 40 + RANDOM % 200 ))\nreport END\n{SAY_DONE}",
    "guest": "sleep $(( 4 + RANDOM % 20 ))\nput shutdown_message '200 done'",
}
"""Lifetimes of the machines of each type, and their ends."""
OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "endless": {"max_wallclock_seconds": 25},
    "docked": {"machine_model": "docker", "root_image": f"docker://{IMAGE}"},
    "contained": {"machine_model": "singularity"},
    "guest": {"machine_model": "cernvm3", "root_image": "boot.iso", "disk_gb_per_processor": 1},
}
NEEDS = {"docked": {"docker", "podman"}, "contained": {"singularity"}, "guest": {"vm"}}
"""Models of which one has to be there for a type; the others are bubblewrap's."""


@dataclass
class Soak:
    """One factory, its engines and its ledger."""

    site: FactorySite
    ledger: Ledger
    rng: random.Random
    clock: Path
    ports: tuple[int, int]
    """Of responder and page."""
    models: Collection[str] = MODELS
    containers: PrivateEngine | None = None
    place: tuple[str, int] = ("", 0)
    """Address at which its containers reach the ledger."""
    vms: PrivateLibvirt | None = None
    done: list[str] = field(default_factory=list)
    """The faults so far, in words."""
    away: list[tuple[float, float]] = field(default_factory=list)
    """Times without a running factory: moments of the monotonic clock."""

    def start(self) -> None:
        """Start vacd with all its processes."""
        search = os.pathsep.join([str(SKEWED_CLOCK), self.site.environment["PYTHONPATH"]])
        path = os.pathsep.join([str(self.site.home / "bin"), os.environ["PATH"]])
        self.site.start(PYTHONPATH=search, PATH=path, VAC_TEST_CLOCK=str(self.clock))

    def watch_vms(self, vms: PrivateLibvirt) -> None:
        """Enter VMs into the ledger as long as their processes live; nobody else knows when one ended."""
        while vms is self.vms:
            for pid in vms.processes("qemu-system"):
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                    if "-uuid" in words:
                        uuid = words[words.index("-uuid") + 1]
                        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / TICKS_PER_SECOND
                        self.ledger.note("SEEN-MUTE", uuid)
                        self.ledger.lives[uuid].unlooked_seconds = CYCLE_SECONDS
                        self.ledger.lives[uuid].began = time.monotonic() - age
            time.sleep(LOOK_SECONDS)

    def run(self, seconds: float) -> None:
        """Let machines come and go and faults happen, for so long; then mend all and drain."""
        self.step_clock(0.0)
        self.start()
        self.site.wait_for(lambda: self.ledger.lives, "the first machine reports")
        faults = Faults(self)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self.rng.uniform(1.0, 6.0))
            faults.next()
        self.finish()

    def note(self, text: str) -> None:
        """Remember what was done, and show it."""
        self.done.append(text)
        print(f"{time.strftime('%H:%M:%S')} {text}; {len(self.ledger.lives)} machines so far", flush=True)

    def step_clock(self, offset: float) -> None:
        """Have vacd's wall clock be off by so many seconds."""
        with self.clock.open("r+b") as file:
            file.write(struct.pack("d", offset))

    def pids(self, title: str) -> list[int]:
        """Processes of this vacd by their title."""
        log, found = str(self.site.log_file), []
        for pid, words in command_lines().items():
            with contextlib.suppress(OSError):
                if words.startswith(title.encode()) and str(Path(f"/proc/{pid}/fd/2").readlink()) == log:
                    found.append(pid)
        return found

    def configure(self, without: str | None = None) -> None:
        """Write a configuration with shares drawn anew."""
        kinds = {}
        for name, script in SCRIPTS.items():
            if name in NEEDS and NEEDS[name].isdisjoint(self.models):
                continue
            head = self.ledger.script(*self.place) if name == "docked" else self.ledger.script()
            options: dict[str, Option] = {
                "fizzle_seconds": FIZZLE_SECONDS,
                "backoff_seconds": 2,
                "min_wallclock_seconds": 1,
                "target_share": self.rng.randint(1, 4) * (4 if name == "guest" else 1),
                **OPTIONS.get(name, {}),
            }
            if name == "contained":
                options["root_image"] = self.site.home / "tree"
            kinds[name] = Kind(script if name == "guest" else head + script, options)
        kinds.pop(without or "", None)
        self.site.configure(
            kinds,
            machines_per_cycle=AT_ONCE,
            gocdb_sitename="SOAK",
            hs06_per_processor=10,
            vacquery_port=self.ports[0],
            metrics_listen=f"127.0.0.1:{self.ports[1]}",
            singularity_user="nobody",
            **({"docker_host": self.containers.url} if self.containers else {}),
            **({**VM_SETTINGS, "libvirt_uri": self.vms.uri} if self.vms else {}),
        )

    def finish(self) -> None:
        """Destroy what runs, and wait until every slot is empty."""
        self.step_clock(0.0)
        self.site.vac("drain", "--reason", "the soak is over")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (alive := self.ledger.alive()) or self.site.occupied() or self.remains():
            if time.monotonic() > deadline:
                print(f"still there: {alive}, {self.site.occupied()} directories")
                break
            for machine in self.site.running():
                self.site.vac("destroy", machine.name)
            time.sleep(1.0)

    def remains(self) -> list[str]:
        """Return what engines still have of machines."""
        groups = [each for group in cgroups_named(self.site.name) for each in group.glob("*/")]
        found = [f"cgroup {each} is left" for each in groups if each.is_dir()]
        if self.containers:
            with contextlib.closing(self.containers.client()) as client:
                left = client.containers(all=True, filters={"label": f"{LABEL_FACTORY}={self.site.name}"})
            found += [f"container {each['Names']} is left" for each in left]
        if self.vms:
            found += [f"domain {name} is left" for name in self.vms.virsh("list", "--all", "--name").split()]
        return found

    def differences(self, tolerance_seconds: float = TOLERANCE_SECONDS) -> list[str]:
        """Return what is wrong now that all is over."""
        found = judge(
            self.ledger.lives,
            list(read_records(self.site.state.apel_archive)),
            fizzle_seconds=FIZZLE_SECONDS,
            tolerance_seconds=tolerance_seconds,
            away=self.away,
        )
        found += [f"{machine.name}: still taken" for machine in self.site.running()]
        found += self.remains()
        assert self.site.process is not None
        pids = {title: self.pids(title) for title in ("vacd-factory", "vacd-responder", "vacd-page")}
        for title, found_pids in {**pids, "vacd": [self.site.process.pid]}.items():
            for pid in found_pids:
                descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
                threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
                print(f"{title}: {descriptors} open files, {threads} threads")
                if descriptors > MOST_DESCRIPTORS or threads > MOST_THREADS:
                    found.append(f"{title} has {descriptors} open files, {threads} threads")
        if [line for line in self.site.log().splitlines() if "vacd-factory" in line and "Traceback" in line]:
            found.append("a traceback of the factory is in the log")
        return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _servers(port: int) -> list[socket.socket]:
    """Return sockets for a ledger at this port of another loopback interface."""
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", port))
    return [datagrams, socket.create_server(("127.0.0.1", port))]


@contextlib.contextmanager
def soak(seed: int, models: Collection[str] = MODELS) -> Iterator[Soak]:
    """A factory whose state_dir is a file system of its own, not yet started.

    With odd seeds dockerd keeps its containers while it is stopped.
    """
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(contextlib.closing(Ledger()))
        ledger.listen(socket.create_server(("127.0.0.1", ledger.port)))
        site = stack.enter_context(factory_site({}, processors=PROCESSORS, start=False))
        site.words = ()
        state = str(site.state.root)
        options = f"size={STATE_MB}m,nr_inodes=40000,mode=755,nosuid,nodev"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "soak", state], check=True)
        quiet = subprocess.DEVNULL
        stack.callback(subprocess.run, ["umount", "--lazy", state], check=False, stderr=quiet)
        clock = site.home / "clock"
        clock.write_bytes(struct.pack("d", 0.0))
        (site.home / "bin").mkdir()
        for name in ("bwrap", "apptainer"):
            program = site.home / "bin" / name
            program.write_text(STAND_IN.format(program=shutil.which(name), home=site.home))
            program.chmod(0o755)
        make_tree(site.home / "tree")
        run = Soak(site, ledger, random.Random(seed), clock, (_free_port(), _free_port()), models)
        # engines see what has been mounted before they start
        for model in BRIDGES.keys() & set(models):
            engine = PrivatePodman() if model == "podman" else PrivateDocker(live_restore=seed % 2 == 1)
            run.containers = stack.enter_context(contextlib.closing(engine))
            server = engine.listening_socket("0.0.0.0")
            ledger.listen(server)
            run.place = BRIDGES[model], server.getsockname()[1]
        if "vm" in models:
            run.vms = stack.enter_context(contextlib.closing(PrivateLibvirt()))
            site.enter = run.vms.enter
            for each in run.vms.inside(lambda: _servers(ledger.port)):
                ledger.listen(each)
            stack.callback(setattr, run, "vms", None)
            threading.Thread(target=run.watch_vms, args=(run.vms,), name="vms", daemon=True).start()
        run.configure()
        if "vm" in models:
            shutil.copyfile(
                boot_iso(Guest(CONTEXTUALIZED)), site.state.machinetype_files("guest") / "boot.iso"
            )
        try:
            yield run
        finally:
            if site.process is not None and site.process.poll() is None:
                site.stop()
            with contextlib.suppress(AssertionError):
                site.clean_up()


def main() -> int:
    """Run one soak; 0 if nothing was lost and nothing invented."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--models", type=lambda text: text.split(","), default=MODELS)
    parser.add_argument(
        "--keep", type=Path, help="copy vacd's log and state_dir to this new directory at the end"
    )
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.minutes:g} minutes", flush=True)
    with soak(arguments.seed, arguments.models) as run:
        try:
            run.run(60 * arguments.minutes)
            found = run.differences()
        finally:
            if arguments.keep:
                ignore = shutil.ignore_patterns("ballast", "tmp")
                shutil.copytree(run.site.state.root, arguments.keep, symlinks=True, ignore=ignore)
                (arguments.keep / "log").write_text(run.site.log())
        records = len(list(read_records(run.site.state.apel_archive)))
        print(
            f"{len(run.ledger.lives)} machines, {records} records, {len(run.done)} faults, "
            f"reports at most {run.ledger.lateness():.1f} s late; {len(found)} differences"
        )
        print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
