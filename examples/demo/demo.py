"""A real factory on this host for a minute: `make demo`.

Three machinetypes of bubblewrap machines share this host's processors: two have work and target shares of 3 : 1, the
task queue of the third is empty. Everything is under a throw-away directory; /etc and /var/lib/vac are not touched.
"""

from __future__ import annotations

import argparse
import contextlib
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
from vac.machines.messages import shutdown_message
from vac.machines.slots import read_slots

TOP = Path(__file__).resolve().parents[2]
FACTORY = "demo.vac.example.org"
SECONDS = 60.0
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
fizzle_seconds = 3
backoff_seconds = 4
max_wallclock_seconds = 120
min_wallclock_seconds = 5
accounting_fqan = /{name}/Role=NULL/Capability=NULL
"""
WORKER = """\
#!/bin/sh
# Computes for a few seconds, then says in its shutdown message that all is well.
random=$(od -An -N1 -tu1 /dev/urandom)
end=$(( $(date +%s) + 4 + random % 4 ))
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
        self.machines: Counter[str] = Counter()
        self.samples: Counter[str] = Counter()
        self._known: set[Path] = set()

    def configure(self) -> Path:
        """Write configuration and user_data; returns the configuration file."""
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
            port = probe.getsockname()[1]
        text = SETTINGS.format(factory=FACTORY, state=self.state.root, port=port)
        for name, (share, script) in TYPES.items():
            user_data = self.top / f"{name}.sh"
            user_data.write_text(script)
            text += MACHINETYPE.format(name=name, share=share, user_data=user_data)
        path = self.top / "demo.conf"
        path.write_text(text)
        return path

    def watch(self, vacd: subprocess.Popen[bytes], seconds: float) -> None:
        """Show the table every two seconds, for so long."""
        start = shown = time.monotonic()
        while (now := time.monotonic()) - start < seconds:
            if vacd.poll() is not None:
                raise SystemExit(
                    f"vacd has ended with code {vacd.returncode}; its log is in {self.top / 'log'}"
                )
            slots = read_slots(self.state)
            self._count(slots)
            if now - shown >= 2:
                shown = now
                print(self._table(slots, now - start, seconds), flush=True)
            time.sleep(0.2)

    def _count(self, slots: dict[str, Machine]) -> None:
        for directory in self.state.machines.iterdir() if self.state.machines.is_dir() else ():
            if directory not in self._known:
                self._known.add(directory)
                self.machines[directory.name.split("_")[1]] += 1
        for machine in slots.values():
            if machine.started_time is not None and not machine.finished:
                self.samples[machine.machinetype] += 1

    def _table(self, slots: dict[str, Machine], elapsed: float, seconds: float) -> str:
        """What each slot holds, and what each type has had so far."""
        status = statuses.read(self.state)
        lines = [f"── {elapsed:.0f} of {seconds:.0f} s ".ljust(100, "─")]
        for name, machine in sorted(slots.items()):
            lines.append(f"  {name.partition('.')[0]:12} {machine.machinetype:12} {self._doing(machine)}")
        for name, (share, _) in TYPES.items():
            part = 100 * self.samples[name] / max(1, sum(self.samples.values()))
            words = status.passed_over.get(name, "") if status else ""
            lines.append(
                f"  {name:12} share {share}: {self.machines[name]:3d} machines, {part:3.0f} % of the time  {words}"
            )
        return "\n".join(lines)

    @staticmethod
    def _doing(machine: Machine) -> str:
        if machine.finished:
            return f'Shut down   "{shutdown_message(machine) or ""}"'
        state = "Starting" if machine.started_time is None else "Running"
        return f"{state:10} {time.time() - machine.created_time:3.0f} s"

    def show_records(self) -> int:
        """Where the accounting records are, and one of them; returns how many."""
        records = sorted(self.state.apel_archive.glob("*/*"))
        print(f"\n{len(records)} accounting records are in {self.state.apel_archive}, for example:\n")
        if records:
            print(records[-1].read_text(), end="")
        return len(records)

    def end(self, conf: Path, vacd: subprocess.Popen[bytes]) -> None:
        """Destroy what still runs, stop vacd, and leave no process and no cgroup."""
        vac = [str(TOP / "bin/vac"), "--config", str(conf)]
        if vacd.poll() is None:
            quiet = subprocess.DEVNULL
            subprocess.run([*vac, "drain", "--reason", "the demo is over"], stdout=quiet, check=True)
            for name, machine in read_slots(self.state).items():
                if not machine.finished:
                    subprocess.run([*vac, "destroy", name], stdout=quiet, stderr=quiet, check=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run([*vac, "drain", "--wait"], stdout=quiet, check=False, timeout=20)
            vacd.terminate()
            vacd.wait()
        groups = open_groups(FACTORY)
        for name in groups.names():
            groups.kill_all(name, 10.0)
            groups.remove(name)
        groups.tidy()


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
    conf = demo.configure()
    print(f"A factory with {', '.join(TYPES)} works in {top}; its log is {top / 'log'}", flush=True)
    with (top / "log").open("wb") as log:
        # A session of its own: Ctrl-C is for the demo, which then ends vacd in good order.
        vacd = subprocess.Popen(
            [str(TOP / "bin/vacd"), "--config", str(conf)], stderr=log, start_new_session=True
        )
    try:
        demo.watch(vacd, arguments.seconds)
    except KeyboardInterrupt:
        print("\nInterrupted: ending all machines and removing everything", flush=True)
        demo.end(conf, vacd)
        shutil.rmtree(top)
        return 130
    demo.end(conf, vacd)
    records = demo.show_records()
    print(f"\nNo machine, process or cgroup is left; `rm -r {top}` removes the rest.")
    return 0 if records else 1


if __name__ == "__main__":
    sys.exit(main())
