"""A real factory on this host for a minute: `make demo`.

Three machinetypes of bubblewrap machines share this host's processors: two have work and target shares of 3 : 1, the
task queue of the third is empty. Everything is under a throw-away directory; /etc and /var/lib/vac are not touched.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP))

from vac.machines import machine as machines  # noqa: E402
from vac.machines.layout import StateDir  # noqa: E402
from vac.machines.status import read as read_status  # noqa: E402

FACTORY = "demo.vac.example.org"
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
# Works for a few seconds, then says so in its shutdown message.
set -- $(od -An -N1 -tu1 /dev/urandom)
end=$(( $(date +%s) + 4 + $1 % 5 ))
while [ $(date +%s) -lt $end ]; do i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; sleep 0.05; done
echo "200 Success" > "$JOBOUTPUTS/shutdown_message"
"""
IDLER = """\
#!/bin/sh
# Asks a task queue that has nothing.
sleep 0.5
echo "300 No work available" > "$JOBOUTPUTS/shutdown_message"
"""
TYPES = {"atlas-prod": (3.0, WORKER), "lhcb-prod": (1.0, WORKER), "empty-queue": (2.0, IDLER)}


class Demo:
    """The throw-away factory."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.state = StateDir(top / "state")
        self.seen: dict[str, str] = {}
        self.processor_seconds: Counter[str] = Counter()

    def configure(self) -> Path:
        """Write configuration and user_data; returns the configuration file."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        text = SETTINGS.format(factory=FACTORY, state=self.state.root, port=port)
        for name, (share, script) in TYPES.items():
            user_data = self.top / f"{name}.sh"
            user_data.write_text(script)
            text += MACHINETYPE.format(name=name, share=share, user_data=user_data)
        path = self.top / "demo.conf"
        path.write_text(text)
        return path

    def table(self, elapsed: float, seconds: float) -> str:
        """What runs now, and what each type has had so far, as lines of text."""
        status = read_status(self.state)
        live = machines.load_slots(self.state, FACTORY)
        lines = [f"── {elapsed:3.0f} of {seconds:.0f} s " + "─" * 60]
        for name, machine in sorted(live.items()):
            what = "-" if machine.finished else machine.machinetype
            state = "Shut down" if machine.finished else "Running" if machine.started_time else "Starting"
            lines.append(f"  {name.partition('.')[0]:10} {what:12} {state:10} {self.age(machine)}")
        for name, (share, _) in TYPES.items():
            used = self.processor_seconds[name]
            part = 100 * used / max(1.0, sum(self.processor_seconds.values()))
            ended = sum(1 for key in self.seen if f"_{name}_" in key)
            words = status.passed_over.get(name, "") if status else ""
            lines.append(
                f"  {name:12} share {share:g}  {ended:3d} machines  {part:3.0f} % of the time  {words}"
            )
        return "\n".join(lines)

    @staticmethod
    def age(machine: machines.Machine) -> str:
        """How long it has run, or its last words."""
        if machine.finished:
            return f'"{machines.shutdown_message(machine) or ""}"'
        return f"{time.time() - machine.created_time:.0f} s"

    def watch(self, seconds: float, daemon: subprocess.Popen[bytes]) -> None:
        """Show the table every two seconds."""
        start = shown = time.monotonic()
        while (now := time.monotonic()) - start < seconds:
            if daemon.poll() is not None:
                raise SystemExit(f"vacd ended with code {daemon.returncode}; its log is {self.top}/log")
            for directory in self.state.machines.iterdir() if self.state.machines.is_dir() else ():
                self.seen.setdefault(directory.name, directory.name.split("_")[1])
            for machine in machines.load_slots(self.state, FACTORY).values():
                if machine.started_time and not machine.finished:
                    self.processor_seconds[machine.machinetype] += 1
            if now - shown >= 2:
                shown = now
                print(self.table(now - start, seconds), flush=True)
            time.sleep(0.2)

    def end(self, conf: Path) -> None:
        """Drain, and destroy what still runs."""
        command = [str(TOP / "bin/vac"), "--config", str(conf)]
        subprocess.run(
            [*command, "drain", "--reason", "the demo is over"], stdout=subprocess.DEVNULL, check=True
        )
        for name, machine in machines.load_slots(self.state, FACTORY).items():
            if not machine.finished:
                subprocess.run(
                    [*command, "destroy", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([*command, "drain", "--wait"], stdout=subprocess.DEVNULL, timeout=20)
