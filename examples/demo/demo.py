"""A real factory on this host for a minute: `make demo`.

Three machinetypes of bubblewrap machines share this host's processors: two have work and target shares of 3 : 1, the
task queue of the third is empty. Everything is under a throw-away directory; /etc and /var/lib/vac are not touched.
What this host lacks is told before anything starts, as `vac doctor` finds it; why a machine can't be made, at once.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from vac.host.cgroups import open_groups
from vac.machines import status as statuses
from vac.machines.layout import StateDir
from vac.machines.machine import Machine
from vac.machines.outputs import shutdown_message
from vac.machines.slots import read_slots

TOP = Path(__file__).resolve().parents[2]
SECONDS = 60.0
HELP = """\
Machines need unprivileged user namespaces and cgroups that root may change: as root on the host itself, or in a
container that may both (docker run --privileged), but not in a chroot. The demo can be repeated at any time."""
SETTINGS = """\
[settings]
vac_space = vac.example.org
factory_name = {factory}
state_dir = {state}
vacquery_port = {port}
mb_per_processor = 256
hs06_per_processor = 10
gocdb_sitename = DEMO-SITE
overload_per_processor = 1000
"""
MACHINETYPE = """
[machinetype {name}]
target_share = {share}
machine_model = bubblewrap
root_image = /
user_data = {user_data}
fizzle_seconds = 1
backoff_seconds = 10
max_wallclock_seconds = 120
min_wallclock_seconds = 1
accounting_fqan = /{name}/Role=NULL/Capability=NULL
"""
WORKER = """\
#!/bin/sh
# Computes for two or three seconds, then says in its shutdown message that all is well.
end=$(( $(date +%s) + 3 ))
while [ $(date +%s) -lt $end ]; do i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; sleep 0.05; done
echo "200 Success" > "$JOBOUTPUTS/shutdown_message"
"""
IDLER = """\
#!/bin/sh
# Asks a task queue, in vain.
sleep 0.5
echo "300 No work available" > "$JOBOUTPUTS/shutdown_message"
"""
TYPES = {"atlas-prod": (3, WORKER), "lhcb-prod": (1, WORKER), "empty-queue": (2, IDLER)}


class Demo:
    """The throw-away factory."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.state = StateDir(top / "state")
        self.factory = f"demo-{secrets.token_hex(2)}.vac.example.org"
        self.conf = top / "demo.conf"
        self.machines: Counter[str] = Counter()
        self.processor_seconds: dict[str, float] = dict.fromkeys(TYPES, 0.0)
        self._known: set[Path] = set()
        self._told: set[str] = set()
        self._counted = time.monotonic()

    def configure(self) -> None:
        """Write configuration and user_data."""
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
            port = probe.getsockname()[1]
        text = SETTINGS.format(factory=self.factory, state=self.state.root, port=port)
        for name, (share, script) in TYPES.items():
            user_data = self.top / f"{name}.sh"
            user_data.write_text(script)
            text += MACHINETYPE.format(name=name, share=share, user_data=user_data)
        self.conf.write_text(text)

    def vac(self, *words: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """Run `vac` for this factory."""
        command = [str(TOP / "bin/vac"), "--config", str(self.conf), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)

    def problems(self) -> list[str]:
        """Return all that keeps this host from making machines, as `vac doctor` finds it."""
        doctor = self.vac("doctor")
        found = [
            line.removeprefix("PROBLEM").strip() for line in doctor.stdout.splitlines() if "PROBLEM" in line
        ]
        return found or doctor.stderr.splitlines()[-1:] * (doctor.returncode != 0)

    def watch(self, vacd: subprocess.Popen[bytes], seconds: float) -> None:
        """Show the table every two seconds, for so long."""
        start = shown = time.monotonic()
        while (now := time.monotonic()) - start < seconds:
            if vacd.poll() is not None:
                *_, last = ["nothing", *(self.top / "log").read_text(errors="replace").splitlines()]
                raise SystemExit(f"vacd has ended with code {vacd.returncode}; its log ends with: {last}")
            slots = read_slots(self.state)
            self._count(slots)
            self._tell_failures()
            if now - shown >= 2:
                shown = now
                print(self._table(slots, now - start, seconds), flush=True)
            time.sleep(0.2)

    def _count(self, slots: dict[str, Machine]) -> None:
        for directory in self.state.machines.iterdir() if self.state.machines.is_dir() else ():
            if directory not in self._known:
                self._known.add(directory)
                self.machines[directory.name.split("_")[1]] += 1
        before, self._counted = self._counted, time.monotonic()
        for machine in slots.values():
            if machine.started_time is not None and not machine.finished:
                self.processor_seconds[machine.machinetype] += (self._counted - before) * machine.processors

    def _tell_failures(self) -> None:
        """Say once why a machine could not be made, and what helps."""
        status = statuses.read(self.state)
        for name, creation in (status.failed if status else {}).items():
            told = f"{name}: a machine could not be made: {creation.reason}"
            if told not in self._told:
                print(told if self._told else f"{told}\n{HELP}", flush=True)
                self._told.add(told)

    def percent(self, name: str) -> float:
        """Return a type's part of all processor time so far."""
        return 100 * self.processor_seconds[name] / (sum(self.processor_seconds.values()) or 1)

    def _table(self, slots: dict[str, Machine], elapsed: float, seconds: float) -> str:
        """Return a table of what each slot holds, and what each type has had so far."""
        status = statuses.read(self.state)
        lines = [f"── {elapsed:.0f} of {seconds:.0f} s ".ljust(100, "─")]
        for name, machine in sorted(slots.items()):
            lines.append(f"  {name.partition('.')[0]:12} {machine.machinetype:12} {self._doing(machine)}")
        for name, (share, _) in TYPES.items():
            words = status.passed_over.get(name, "") if status else ""
            lines.append(
                f"  {name:12} share {share}: {self.machines[name]:3d} machines, "
                f"{self.percent(name):3.0f} % of the time  {words}"
            )
        return "\n".join(lines)

    @staticmethod
    def _doing(machine: Machine) -> str:
        if machine.finished:
            return f'Shut down   "{shutdown_message(machine) or ""}"'
        state = "Starting" if machine.started_time is None else "Running"
        return f"{state:10} {time.time() - machine.created_time:3.0f} s"

    def show_shares(self) -> None:
        """Compare what each type had of the processor time that was used for work with its target."""
        working = [name for name, (_, script) in TYPES.items() if script != IDLER]
        used = sum(self.processor_seconds[name] for name in working) or 1
        whole = sum(TYPES[name][0] for name in working)
        machines = sum(self.machines[name] for name in working)
        print("\nProcessor time of each machinetype, and its target:\n")
        for name, (share, _) in TYPES.items():
            if name in working:
                had, target = 100 * self.processor_seconds[name] / used, 100 * share / whole
                print(f"  {name:12} {had:3.0f} %  target {target:3.0f} %")
            else:
                print(f"  {name:12}   –   no work: its share went to the others")
        print(f"\nOf {machines} machines with work one more or less is {100 / (machines or 1):.1f} points.")

    def show_records(self) -> int:
        """Print where the accounting records are, and one of them; return their number."""
        records = sorted(self.state.apel_archive.glob("*/*"))
        print(f"\n{len(records)} accounting records are in {self.state.apel_archive}, for example:\n")
        if records:
            print(records[-1].read_text(), end="")
        return len(records)

    def end(self, vacd: subprocess.Popen[bytes]) -> None:
        """Destroy what still runs, stop vacd, and leave no process and no cgroup."""
        if vacd.poll() is None:
            self.vac("drain", "--reason", "the demo is over")
            for name, machine in read_slots(self.state).items():
                if not machine.finished:
                    self.vac("destroy", name)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.vac("drain", "--wait", timeout=60)
            vacd.terminate()
            vacd.wait()
        # vacd has mounted it on itself, nosuid and nodev, unless it ended before.
        subprocess.run(["umount", self.state.root], check=False, stderr=subprocess.DEVNULL)
        groups = open_groups(self.factory)
        for name in groups.names():
            groups.kill_all(name, 10.0)
            groups.remove(name)
        groups.remove_if_empty()


def interrupt(number: int, frame: FrameType | None) -> None:
    """Make SIGTERM end the demo as Ctrl-C does."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo; 0 if machines came, went and were accounted for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long to show it")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupt)
    top = Path(tempfile.mkdtemp(prefix="vac-demo-"))
    top.chmod(0o755)
    demo = Demo(top)
    demo.configure()
    problems = demo.problems()
    if problems:
        print("\n".join([f"The demo can't run on this host: {problems[0]}", *problems[1:], HELP]))
        shutil.rmtree(top)
        return 1
    print(f"A factory with {', '.join(TYPES)} works in {top}; its log is {top / 'log'}", flush=True)
    with (top / "log").open("wb") as log:
        # A session of its own: Ctrl-C is for the demo, which then ends vacd in good order.
        vacd = subprocess.Popen(
            [str(TOP / "bin/vacd"), "--config", str(demo.conf)], stderr=log, start_new_session=True
        )
    interrupted = False
    try:
        demo.watch(vacd, arguments.seconds)
    except KeyboardInterrupt:
        interrupted = True
        print("\nInterrupted: ending all machines and removing everything", flush=True)
    finally:
        demo.end(vacd)
    if interrupted:
        shutil.rmtree(top)
        return 130
    demo.show_shares()
    records = demo.show_records()
    print(f"\nNo machine, process, cgroup or mount is left; `rm -r {top}` removes the rest.")
    return 0 if records else 1


if __name__ == "__main__":
    sys.exit(main())
