"""Requirements of engines for `vac doctor`: CernVM-FS, Docker and Podman, process containers and VMs.

Nothing is changed. Engines' libraries are imported when their findings are asked for.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from vac.config.checks import needed_repositories
from vac.config.machinetype import CONTAINER_MODELS, Machinetype
from vac.config.settings import Settings
from vac.drivers.base import CreationFailed, EngineUnavailable
from vac.drivers.libvirt.libvirt_domain import FILTER, METADATA, SERVER
from vac.drivers.processes.launch_plan import PATH, account, find_program
from vac.drivers.volumes import group_in_use
from vac.host import filesystems
from vac.host.child_processes import run
from vac.host.nat import BRIDGE, NatHost, NatProblem
from vac.host.probes import CVMFS, problem_of
from vac.host.syscall_filter import compiled
from vac.machines.layout import StateDir
from vac.roles import bind

TRY_SECONDS = 20.0
FUSE, PROC_SYS = Path("/dev/fuse"), Path("/proc/sys")
FUSE_HINT = f"modprobe fuse, chmod 666 {FUSE}"

SYSCTLS = {"user/max_user_namespaces": "1000000", "kernel/unprivileged_userns_clone": "1"}
"""Files below PROC_SYS that switch user namespaces off if they are 0 (the latter only in Debian): good values."""
PLACES = tuple(
    f"{place}/docker" for place in ("/usr/local/libexec", "/usr/libexec", "/usr/local/lib", "/usr/lib")
)
"""Directories besides PATH in which Docker looks for its init. Distributions' packages come without one."""
_HINT = "; see sysctl user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns"
_PROGRAMS = (
    (("dnsmasq",), "dnsmasq-base (EL9: dnsmasq)"),
    (("qemu-img",), "qemu-utils (EL9: qemu-img)"),
    (("ip",), "iproute2 (EL9: iproute)"),
    (("iptables-save", "nft"), "iptables or nftables"),
)


class Finding(NamedTuple):
    """One requirement."""

    what: str
    problem: str | None = None
    """Mistake and remedy; None if the requirement is met."""
    serious: bool = True
    """True: as long as it is so, machines can't be made, or peers not be heard."""


def cvmfs_paths(machinetype: Machinetype) -> list[str]:
    """Return the paths below /cvmfs that this type needs: repositories, and its image."""
    image = machinetype.root_image or ""
    own = [image] if image.startswith(f"{CVMFS}/") else []
    return list(dict.fromkeys([*(str(CVMFS / name) for name in needed_repositories(machinetype)), *own]))


def cvmfs_findings(machinetypes: Sequence[Machinetype]) -> Iterator[Finding]:
    """Yield requirements of these types; a path below /cvmfs without problem may then be touched.

    Child processes look, since looking may take for ever.
    """
    if any(one.machine_model in CONTAINER_MODELS and one.cvmfs_repositories for one in machinetypes):
        mount = filesystems.mount_of(CVMFS, filesystems.mounts())
        kinds = () if mount is None else mount.propagation
        shared = any(each.startswith(("shared:", "master:")) for each in kinds)
        text = "isn't mounted shared: repositories mounted later are invisible inside. Run "
        text += f"`mount --make-rshared {CVMFS}`"
        yield Finding(f"{CVMFS} in containers", None if shared else text, False)
    wanted = list(dict.fromkeys(path for one in machinetypes for path in cvmfs_paths(one)))
    with ThreadPoolExecutor(32) as pool:
        for path, problem in zip(wanted, pool.map(problem_of, wanted)):
            yield Finding(path, problem, True)


def docker_findings(settings: Settings, machinetypes: Sequence[Machinetype]) -> Iterator[Finding]:
    """Yield requirements of an engine that answers; machinetypes are those that it is to make."""
    from vac.drivers.docker.docker_api import Connection  # only here is the SDK needed

    connection = Connection(settings.docker_host)
    try:
        with connection.client() as client:
            told = client.info()
            podman = "podman" in str(client.version(api_version=False).get("Components")).lower()
    except EngineUnavailable as error:
        yield Finding("what the container engine offers", str(error))
        return
    finally:
        connection.forget()
    yield from engine_findings(told, settings.docker_host, podman=podman)
    if any(one.disk_gb_per_processor for one in machinetypes):
        yield disk_finding(told)
    if any(one.container_nested for one in machinetypes) and settings.docker_host.startswith("unix:"):
        yield from nested_findings()


def engine_findings(told: Mapping[str, Any], url: str, *, podman: bool) -> Iterator[Finding]:
    """Yield requirements of Docker by its own information and, if it is on this host, its init. Podman has none."""
    if podman:
        return
    if url.startswith("unix:"):
        program = str(told.get("InitBinary") or "docker-init")
        where = os.pathsep.join([os.environ.get("PATH", os.defpath), *PLACES])
        missing = "isn't there, and no machine can be made: install tini"
        yield Finding(f"{program} of Docker", None if shutil.which(program, path=where) else missing, True)
    off = 'is off: machines end with dockerd; set "live-restore": true in /etc/docker/daemon.json'
    yield Finding("live-restore of Docker", None if told.get("LiveRestoreEnabled") else off, False)


def disk_finding(told: Mapping[str, Any]) -> Finding:
    """Return if the disk use of containers' own layers can be measured; containerd's image store hides them."""
    driver = str(told.get("Driver"))
    own = "io.containerd" not in str(told.get("DriverStatus"))
    known = own and driver in ("overlay2", "overlay", "fuse-overlayfs")
    problem = (
        f"storage driver {driver} doesn't tell where containers write: only their directories are measured"
    )
    return Finding("disk_gb_per_processor of containers", None if known else problem, False)


def nested_findings() -> Iterator[Finding]:
    """Yield requirements of container_nested."""
    for name, right in SYSCTLS.items():
        file = PROC_SYS / name
        if file.exists() and file.read_text().strip() == "0":
            option = name.replace("/", ".")
            problem = f"{option} is 0, which switches user namespaces off: sysctl {option}={right}"
            yield Finding("user namespaces for container_nested", problem, True)
    missing = f"not there, readable and writable for all: payloads can use directories only: {FUSE_HINT}"
    yield Finding(f"{FUSE} for container_nested", None if open_to_all(FUSE) else missing, False)


def process_container_problem(model: str, settings: Settings) -> str | None:
    """Return the reason why no machine of this model can be made here, such as user namespaces switched off."""
    try:
        compiled(nested=model == "singularity")
        if model == "singularity":
            return _try_singularity(settings)
        options = ["--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc"]
        return _try([find_program("bubblewrap", settings), *options, "true"], settings)
    except CreationFailed as error:
        return str(error)
    except OSError as error:
        return f"{error.filename} {error.strerror}"


def _try_singularity(settings: Settings) -> str | None:
    """Run a command in a directory tree that has this host's /usr, and return its error."""
    with tempfile.TemporaryDirectory(prefix="vac-doctor-") as name:
        tree = Path(name)
        tree.chmod(0o755)
        for each in ("dev", "etc", "proc", "sys", "tmp", "usr", "var/tmp"):
            (tree / each).mkdir(parents=True)
        for link in ("bin", "lib", "lib64"):
            (tree / link).symlink_to(f"usr/{link}")
        options = ["--silent", "exec", "--contain", "--pid", "--uts", "--hostname", "test", "--bind", "/usr"]
        return _try([find_program("singularity", settings), *options, name, "/usr/bin/true"], settings)


def image_file_problem(settings: Settings) -> str | None:
    """Return the reason why image files can't be mounted, None if the installation is setuid and mounts them itself."""
    try:
        program = find_program("singularity", settings)
    except CreationFailed:
        return None
    told = run([program, "buildcfg"], time_limit_seconds=TRY_SECONDS)
    if b"_SUID_INSTALL=1" in told.output:
        return None
    if not any(shutil.which(each, path=PATH) for each in ("squashfuse_ll", "squashfuse")):
        return "squashfuse is not installed: install the package squashfuse"
    return None if open_to_all(FUSE) else f"{FUSE} must be there, readable and writable for all: {FUSE_HINT}"


def open_to_all(device: Path) -> bool:
    """Return True if the device is there and everybody may use it."""
    everybody = stat.S_IROTH | stat.S_IWOTH
    return device.exists() and device.stat().st_mode & everybody == everybody


def _try(command: list[str], settings: Settings) -> str | None:
    """Return the error of the command run by the machines' account. Raises CreationFailed if there is no account."""
    identity = None
    if os.geteuid() == 0:
        user = account(settings)
        identity = (user.pw_uid, user.pw_gid)
    environment = {"PATH": PATH, "HOME": "/nonexistent"}
    done = run(command, time_limit_seconds=TRY_SECONDS, environment=environment, identity=identity)
    if done.exit_code is None:
        return done.failure
    return " ".join(done.errors.decode(errors="replace").split()) + _HINT if done.failure else None


def vm_findings(settings: Settings) -> Iterator[Finding]:
    """Yield requirements of VMs, the hypervisor left aside."""
    for names, packages in _PROGRAMS:
        there = any(shutil.which(name) for name in names)
        yield Finding(" or ".join(names), None if there else f"install {packages}", True)
    there = importlib.util.find_spec("waitress") is not None
    yield Finding("web server for VMs", None if there else "install python3-waitress", True)
    yield _port_finding(settings, "metadata", METADATA)
    yield _port_finding(settings, "mjf", SERVER)
    yield from _network_findings()
    key = settings.root_public_key
    no_key = "isn't there, so nobody can log in to VMs as root; make one, or leave it so"
    yield Finding(f"root_public_key {key}", None if key.is_file() else no_key, False)
    if settings.vm_domain_type != "qemu":
        slow = (
            "isn't there: VMs are emulated, which is slow; load the module kvm, or allow it in the firmware"
        )
        there = Path("/dev/kvm").exists()
        yield Finding("/dev/kvm", None if there else slow, settings.vm_domain_type == "kvm")


def hypervisor_findings(settings: Settings) -> Iterator[Finding]:
    """Yield requirements of a hypervisor that answers."""
    from vac.drivers.libvirt.libvirt_api import Connection  # only here is libvirt needed

    connection = Connection(settings.libvirt_uri, settings.vm_domain_type)
    try:
        with connection.use("doctor") as libvirt:
            found = connection.hypervisor(libvirt)
        yield Finding(f"VMs are of type {found.domain_type}", None, True)
        lacking = f"libvirt lacks the filter {FILTER}: install its default network filters"
        yield Finding("VMs can't take each other's addresses", None if found.filtering else lacking, False)
    except EngineUnavailable as error:
        yield Finding("what VMs are made of", str(error), True)
    finally:
        connection.close()
    yield from lvm_findings(settings)


def lvm_findings(settings: Settings) -> Iterator[Finding]:
    """Yield requirements of disks in a volume group, if one is used."""
    if group_in_use(settings) is not None:
        missing = [name for name in ("vgs", "lvs", "lvcreate", "lvremove") if shutil.which(name) is None]
        problem = f"{' '.join(missing)} not there: install lvm2" if missing else None
        yield Finding("LVM's programs", problem)


def vm_image_problems(one: Machinetype, files: Path) -> Iterator[str]:
    """Yield what VMs of this type lack for their image; relative paths are in files."""
    from vac.context.downloads import GRID_CERTIFICATES  # only here is curl's library needed

    if one.image_signing_dn and not (GRID_CERTIFICATES.is_dir() and any(GRID_CERTIFICATES.iterdir())):
        yield f"image_signing_dn needs the signers' CAs in {GRID_CERTIFICATES}: there are none; install them"
    image = one.root_image or ""
    if "://" not in image and not (files / image).is_file():
        yield f"root_image {files / image} isn't there, or is no file: put a disk image there, or name a URL"


def _network_findings() -> Iterator[Finding]:
    host = NatHost()
    what = f"network of VMs on {BRIDGE}"
    try:
        addresses = host.addresses()
    except NatProblem as error:
        yield Finding(what, str(error), True)
        return
    if addresses is None:
        yield Finding(what, "isn't there yet: vacd makes it when a VM is due", serious=False)
        return
    missing = [address for address in (SERVER, METADATA) if address not in addresses]
    problem = f"has not {' and '.join(missing)}: vacd repairs it with fix_networking" if missing else None
    yield Finding(what, problem, serious=False)
    yield from (Finding("packet filter", found) for found in host.missing())


def _port_finding(settings: Settings, role: str, address: str) -> Finding:
    """Return if our process can listen there, or already does."""
    what = f"TCP port 80 of {address}"
    try:
        bind(address, 80, future=True).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return Finding(what, f"can't be tried: {error.strerror}", serious=False)
        taken = "is taken by another service: let that listen at its own addresses only"
        return Finding(what, None if serves(StateDir(settings.state_dir), role) else taken)
    return Finding(what)


def serves(state: StateDir, role: str) -> bool:
    """Return True if the process of this role is alive."""
    try:
        number = int(state.pid(role).read_text(encoding="ascii"))
        name = Path(f"/proc/{number}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False
    return f"vacd-{role}".encode() in name
