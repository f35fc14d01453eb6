"""A guest of this host's files under a kernel of its own, on which cgroup v2 is all there is; with or without systemd.

The guest's root is this host's, read-only through virtiofs, below a file system in memory that takes what it
writes. So whatever the host has, this checkout and its Python included, is there, and nothing has to be built but
an initramfs. The processor is emulated: what takes a second here takes ten there.
"""

from __future__ import annotations

import contextlib
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import require_root, require_tool
from tests.engines import guest_images

ROOT = Path(__file__).parents[2]
MEMORY_MB = 1536
PATIENCE_SECONDS = 1800.0
"""Longest that a guest may run."""
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
"""Its places in Debian: with QEMU 7, and as a package of its own."""
KERNEL_OPTIONS = (
    *("console=ttyS0", "quiet", "panic=-1", "random.trust_cpu=on"),
    "no_timer_check",  # on a busy host the emulated timer seems not to work
)
SYSTEMD_OPTIONS = ("systemd.unit=vac-guest.target", "fstab=no", "systemd.gpt_auto=no", "systemd.log_color=no")
MODULES = ("virtio_pci", "virtio-rng", "fuse", "virtiofs", "overlay")
UNITS = ROOT / "systemd"
MASKED = (
    *("systemd-udevd", "systemd-udev-trigger", "systemd-timesyncd", "systemd-binfmt", "systemd-resolved"),
    *(
        "systemd-update-utmp",
        "systemd-random-seed",
        "systemd-journal-flush",
        "systemd-journal-catalog-update",
    ),
    *("systemd-hwdb-update", "systemd-ldconfig", "kmod-static-nodes", "systemd-modules-load", "ldconfig"),
    *("systemd-machine-id-commit", "systemd-sysusers", "systemd-pstore", "apparmor", "keyboard-setup"),
    *("systemd-tmpfiles-setup", "systemd-tmpfiles-setup-dev"),  # would look at every file of the host's /tmp
)
"""Services that systemd would start at boot and the tests have no use for."""

INIT = (
    guest_images.PREAMBLE
    + """
fail() { say "$*"; sleep 1; poweroff -f; }
value() { sed -n "s/.*$1=\\\\([^ ]*\\\\).*/\\\\1/p" /proc/cmdline; }
home=$(value vac.home) init=$(value vac.init)
mkdir -p /host /memory /new
mount -t virtiofs -o ro host /host || fail "no virtiofs"
mount -t tmpfs -o mode=755,size=4g memory /memory  # the factory wants a free GB
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work root /new || fail "no overlay"
for each in dev proc; do mount --move /$each /new/$each; done
umount /sys
mount -t sysfs sys /new/sys
mount -t tmpfs -o mode=755 run /new/run
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
mkdir -p /new/dev/shm /new/dev/pts
mount -t tmpfs -o mode=1777 shm /new/dev/shm
mount -t devpts -o ptmxmode=666 pts /new/dev/pts
for each in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do ln -s /proc/self/${each#*:} /new/dev/${each%:*}; done
rm -f /new/.dockerenv
ifconfig lo up
[ "$init" != /bin/sh ] || exec switch_root /new /bin/sh $home/script
mount -t tmpfs -o mode=755 units /new/etc/systemd/system
cp -a /new$home/units/. /new/etc/systemd/system/
exec switch_root /new $init
"""
)
TARGET = "[Unit]\nRequires=basic.target vac-guest.service\nAfter=basic.target\n"
SERVICE = "[Unit]\nAfter=basic.target\n[Service]\nType=oneshot\nExecStart=/bin/sh {script}\n"
SCRIPT = """exec </dev/null >/dev/ttyS1 2>&1
cd {directory}
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PYTHONPATH={directory} PYTHONDONTWRITEBYTECODE=1
{command}
echo "{mark} $?"
sync
echo o > /proc/sysrq-trigger
sleep 60
"""
MARK = "the guest's command has ended with status"


@dataclass(frozen=True)
class Ran:
    """Result of a command in a guest."""

    status: int | None
    """None: the guest ended, or was ended, before the command did."""
    output: str
    console: str
    """The kernel's messages."""


def run_tests(*arguments: str, systemd: bool = False) -> str:
    """Run pytest with these arguments in a new guest; its output. A test that fails there fails this one."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", "-v"]
    command += [f"--timeout={PATIENCE_SECONDS:.0f}", *arguments]
    ran = run_in_guest(command, systemd=systemd)
    print(ran.output)
    assert ran.status == 0, f"in the guest, exit status {ran.status}:\n{ran.output}\nconsole:\n{ran.console}"
    return ran.output


def run_in_guest(command: Sequence[str], *, systemd: bool = False) -> Ran:
    """Run a command as root in a new guest, in this checkout's directory; its output and exit status."""
    require_root()
    with tempfile.TemporaryDirectory(prefix="vac-guest-", dir="/var/tmp") as home:
        directory = Path(home)
        script = directory / "script"
        words = {"directory": shlex.quote(str(ROOT)), "command": shlex.join(command), "mark": MARK}
        script.write_text(SCRIPT.format(**words))
        init = "/bin/sh"
        if systemd:
            init = "/lib/systemd/systemd"
            make_units(directory / "units", script)
        options = [f"vac.home={directory}", f"vac.init={init}", *(SYSTEMD_OPTIONS if systemd else ())]
        with shared_root(directory) as socket:
            qemu(directory, socket, options)
        output = (directory / "output").read_text(errors="replace").replace("\r", "")
        console = (directory / "console").read_text(errors="replace")
    ended = re.search(rf"^{MARK} (\d+)$", output, re.MULTILINE)
    return Ran(int(ended[1]) if ended else None, output[: ended.start()] if ended else output, console)


def make_units(directory: Path, script: Path) -> None:
    """The guest's /etc/systemd/system: our units, and one that runs the script."""
    shutil.copytree(UNITS, directory)
    (directory / "vac-guest.target").write_text(TARGET)
    (directory / "vac-guest.service").write_text(SERVICE.format(script=script))
    for name in MASKED:
        (directory / f"{name}.service").symlink_to("/dev/null")


@contextlib.contextmanager
def shared_root(directory: Path) -> Iterator[Path]:
    """virtiofsd for this host's root: its socket."""
    program = next(filter(None, map(shutil.which, VIRTIOFSD)), None) or require_tool("virtiofsd")
    socket = directory / "virtiofs"
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)  # it keeps open what the guest has looked at
    command = [program, f"--socket-path={socket}", "-o", "source=/,sandbox=chroot,cache=always,xattr"]
    with (directory / "virtiofsd.log").open("wb") as log:
        daemon = subprocess.Popen([*command, f"--rlimit-nofile={most_files}", "-f"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not socket.exists():
            said = (directory / "virtiofsd.log").read_text()
            assert daemon.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.02)
        yield socket
    finally:
        daemon.kill()
        daemon.wait()


def qemu(directory: Path, socket: Path, options: Sequence[str]) -> None:
    """Run the guest until it ends; what it says is in the files console and output."""
    guest = guest_images.Guest(INIT, modules=MODULES)
    command = [
        *(require_tool("qemu-system-x86_64"), "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"),
        *("-smp", "2", "-m", str(MEMORY_MB), "-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none", "-nic", "none"),
        *("-object", f"memory-backend-memfd,id=memory,size={MEMORY_MB}M,share=on"),
        *("-numa", "node,memdev=memory", "-chardev", f"socket,id=root,path={socket}"),
        *("-device", "vhost-user-fs-pci,chardev=root,tag=host"),
        *("-kernel", str(guest_images.kernel()), "-initrd", str(guest_images.initramfs(guest))),
        *("-append", " ".join([*KERNEL_OPTIONS, *options])),
        *("-serial", f"file:{directory}/console", "-serial", f"file:{directory}/output"),
    ]
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, stdin=subprocess.DEVNULL, check=False, timeout=PATIENCE_SECONDS)
