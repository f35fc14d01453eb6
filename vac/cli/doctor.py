"""`vac doctor`: is this host fit for what is configured? One line for each requirement, with what to do."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vac.cli import common, doctor_engines
from vac.cli.config_commands import likely_mistakes
from vac.cli.doctor_engines import Finding, serves
from vac.config.ini import read
from vac.config.load import Configuration, ConfigurationError
from vac.config.machinetype import CONTAINER_MODELS, VM_MODELS, Machinetype
from vac.config.options import split_host_port
from vac.config.sections import USER_DATA_OPTION
from vac.config.settings import Settings
from vac.drivers.base import CreationFailed, EngineUnavailable
from vac.drivers.engine import driver_for
from vac.drivers.processes.bubblewrap import check_command
from vac.drivers.processes.launch_plan import account
from vac.host import facts
from vac.host.cgroups import CgroupError, open_groups
from vac.host.filesystems import Mount, mount_of, mounts, other_paths, real_image
from vac.host.privileges import PREFERRED, subordinate_ids, unprivileged_user
from vac.machines import requests
from vac.machines.layout import NOSUID_OPTIONS, StateDir
from vac.roles import bind
from vac.scheduling.eligibility import LEAST_FREE_BYTES
from vac.text import escaped, without_url_secrets
from vac.vacquery.signed_json import read_key

PROCESS_CONTAINERS = {
    "bubblewrap": "bubblewrap in an unprivileged user namespace",
    "singularity": "a container made by apptainer or singularity",
}
"""By machine model: the trial that is made of it."""


def add_arguments(parser: argparse.ArgumentParser, _: str) -> None:
    """Add the arguments."""
    parser.add_argument("-J", "--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print every finding; return 1 if a serious one is among them."""
    findings = []
    for finding in examine(arguments):
        findings.append(finding)
        if not arguments.json:
            kind = "ok     " if finding.problem is None else "PROBLEM" if finding.serious else "note   "
            text = finding.what if finding.problem is None else f"{finding.what}: {finding.problem}"
            print(f"{kind}  {escaped(text)}", flush=True)
    if arguments.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    return int(any(finding.problem and finding.serious for finding in findings))


def examine(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Yield all findings, in the order in which they should be put right."""
    try:
        configuration = common.configuration(arguments)
    except ConfigurationError as error:
        yield from (Finding("configuration", str(problem)) for problem in error.problems)
        return
    yield Finding("configuration")
    yield from (Finding("configuration", str(problem)) for problem in configuration.errors)
    for warning in (*configuration.warnings, *likely_mistakes(configuration)):
        yield Finding("configuration", str(warning), serious=False)
    settings = configuration.settings
    yield from _host(settings)
    yield from file_findings(settings, arguments.config)
    yield from _peers(settings)
    yield from page_findings(settings)
    for name, copy in configuration.copies.items():
        yield Finding(f"pipe {name}", copy.trouble(), serious=False)
    wanted = [one for one in configuration.machinetypes.values() if one.target_share > 0]
    models = {one.machine_model for one in wanted}
    if models & PROCESS_CONTAINERS.keys():
        yield from _process_containers(settings)
    if models & {*VM_MODELS}:
        yield from doctor_engines.vm_findings(settings)
    elif settings.volume_group:
        yield from doctor_engines.lvm_findings(settings)
    yield from weakening_findings(settings, wanted)
    for model in sorted(models):
        yield from _model(model, settings, [one for one in wanted if one.machine_model == model])
    broken = set()
    for finding in doctor_engines.cvmfs_findings(wanted):
        yield finding
        if finding.problem is not None:
            broken.add(finding.what)
    for one in wanted:
        yield from _machinetype(one, configuration, touched=not broken & {*doctor_engines.cvmfs_paths(one)})


def _host(settings: Settings) -> Iterator[Finding]:
    root = os.geteuid() == 0
    yield Finding("running as root", None if root else "use sudo: `vac doctor` can't see everything else")
    state = StateDir(settings.state_dir)
    what = f"state_dir {settings.state_dir}"
    place = next(path for path in (settings.state_dir, *settings.state_dir.parents) if path.exists())
    free = shutil.disk_usage(place).free
    full = f"{free / 1000**3:.1f} GB free; nothing is created below 1 GB"
    yield Finding(what, full if free < LEAST_FREE_BYTES else _place_problem(place))
    running = requests.running(state)
    if running:
        problem = "vacd could not (see its log), so setuid files of machines work on this host; restart it, or do it"
        yield Finding(f"{what} is mounted nosuid,nodev", None if state.is_nosuid() else problem)
    if facts.REBOOT_REQUIRED.exists():
        yield Finding("this host", "packages want a reboot: vac drain --reboot", serious=False)
    problem = "setuid files of machines work there: umount it, or mount -o remount,nosuid,nodev"
    for path in _other_mounts(settings.state_dir, mounts()):
        yield Finding(f"{what} is also at {path}", problem, serious=False)
    stopped = Finding("vacd", "doesn't run: systemctl start vacd", serious=False)
    yield Finding("vacd is running") if running else stopped
    if not serves(state, "responder"):
        yield port_finding(settings.vacquery_port)
    try:
        pwd.getpwnam(PREFERRED)
        yield Finding(f"account {PREFERRED}")
    except KeyError:
        better = "the responder runs as nobody; better: useradd -r vac"
        yield Finding(f"account {PREFERRED}", better, serious=False)


def _other_mounts(state_dir: Path, found: list[Mount]) -> list[str]:
    """Return other paths of state_dir at which setuid files or devices work."""
    paths = other_paths(os.path.realpath(state_dir), found)
    holders = {path: mount_of(path, found) for path in paths}
    return [path for path, holder in holders.items() if holder and not holder.options >= NOSUID_OPTIONS]


def _place_problem(place: Path) -> str | None:
    """Return why this is no place for state_dir's content: its owner, its mode, or how its file system is mounted."""
    found, flags = place.stat(), os.statvfs(place).f_flag
    if found.st_uid != 0 and os.geteuid() == 0:
        owner = f"belongs to user {found.st_uid}, who could exchange what root reads"
        return f"{place} {owner}: chown root {place}"
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        return f"others may write into {place}: chmod go-w {place}"
    if flags & os.ST_RDONLY:
        return f"the file system of {place} is read-only: mount -o remount,rw"
    if flags & os.ST_NOEXEC:
        return f"the file system of {place} is mounted noexec, and machines run programs there: mount -o remount,exec"
    return None


def port_finding(port: int) -> Finding:
    """Tell if vacd's responder can have this UDP port, and else which process has it."""
    what = f"UDP port {port}"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trying:
            trying.bind(("", port))
    except PermissionError:
        return Finding(what, "only root can try it", serious=False)
    except OSError as error:
        taken = f"{error.strerror}{_holder('udp', port)}"
        return Finding(what, f"{taken}: stop that, or choose another vacquery_port")
    return Finding(what)


def _holder(kind: str, port: int) -> str:
    """Return the process of this host that has the port, as far as that can be seen: ` by dnsmasq (812)`; or ""."""
    inodes = set()
    for table in (Path(f"/proc/net/{kind}"), Path(f"/proc/net/{kind}6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            words = line.split()
            if int(words[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{words[9]}]")
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(descriptor.readlink()) in inodes:
                process = descriptor.parents[1]
                return f" by {(process / 'comm').read_text().strip()} ({process.name})"
    return ""


def _peers(settings: Settings) -> Iterator[Finding]:
    for name in settings.factories:
        if name != settings.factory_name:
            try:
                socket.getaddrinfo(name, settings.vacquery_port, type=socket.SOCK_DGRAM)
                yield Finding(f"factory {name} has an address")
            except OSError as error:
                problem = f"{error.strerror}: put it into the DNS or /etc/hosts"
                yield Finding(f"factory {name}", problem, serious=False)


def weakening_findings(settings: Settings, machinetypes: Sequence[Machinetype]) -> Iterator[Finding]:
    """Yield options in force that give machines more than their model needs to."""
    more = {
        "container_nested": "may use more of the kernel; in Docker and Podman, use up their uid's user namespaces",
        "container_network": "reach services on 127.0.0.1",
        "container_capabilities": "can be root inside; none is safer for images that allow it",
        "cpu_limit_factor 0": "can take processor time from others by forking all the time",
    }
    names: dict[str, list[str]] = {option: [] for option in more}
    for one in machinetypes:
        docker = one.machine_model == "docker"
        if one.container_nested:
            names["container_nested"].append(one.name)
        if docker and one.container_network == "host":
            names["container_network"].append(one.name)
        if docker and one.container_capabilities:
            names["container_capabilities"].append(one.name)
        if one.machine_model not in VM_MODELS and not settings.cpu_limit_factor:
            names["cpu_limit_factor 0"].append(one.name)
    for option, types in names.items():
        if types:
            yield Finding(f"{option} of {', '.join(types)}", f"machines {more[option]}", serious=False)


def _model(model: str, settings: Settings, machinetypes: Sequence[Machinetype]) -> Iterator[Finding]:
    if model in PROCESS_CONTAINERS:
        yield Finding(PROCESS_CONTAINERS[model], doctor_engines.process_container_problem(model, settings))
    try:
        driver = driver_for(model, settings)
        driver.list()
        driver.close()
        yield Finding(f"engine for {model}")
    except EngineUnavailable as error:
        yield Finding(f"engine for {model}", str(error))
        return
    if model in VM_MODELS:
        yield from doctor_engines.hypervisor_findings(settings)
    if model == "docker":
        yield from doctor_engines.docker_findings(settings, machinetypes)


def _process_containers(settings: Settings) -> Iterator[Finding]:
    try:
        user, responder = account(settings), unprivileged_user()
        what = f"machines run as {user.pw_name}"
        shared = responder is not None and responder.pw_uid == user.pw_uid
        problem = "so does the process that answers the network: make an account vac, or set singularity_user"
        yield Finding(what, problem if shared else None, serious=False)
        few = len(subordinate_ids()) < settings.host_processors
        first, count = 2_100_000_000, max(1024, settings.host_processors)  # the range that packages give
        numbers = f"{first}-{first + count - 1}"
        hint = f"usermod --add-subuids {numbers} --add-subgids {numbers} {PREFERRED}"
        alike = f"all slots' machines share it; to keep bubblewrap's apart: {hint}; for all see slot_uids"
        yield Finding("a uid for each slot", alike if few and not settings.slot_uids else None, serious=False)
    except CreationFailed as error:
        yield Finding("singularity_user", str(error))
    try:
        groups = open_groups(settings.factory_name)
        yield Finding(f"cgroups ({type(groups).__name__[-2:].lower()})")
    except (CgroupError, OSError) as error:
        yield Finding("cgroups", str(error))


def _machinetype(one: Machinetype, configuration: Configuration, *, touched: bool) -> Iterator[Finding]:
    """Yield requirements of one type. touched: all that it needs below /cvmfs answers, and may be looked at."""
    what = f"machinetype {one.name}"
    settings = configuration.settings
    problems = [configuration.unusable[one.name]] if one.name in configuration.unusable else []
    files = StateDir(settings.state_dir).machinetype_files(one.pipe or one.name)
    problems += _context(one, settings)
    if one.machine_model in CONTAINER_MODELS and one.cvmfs_repositories and not Path("/cvmfs").is_dir():
        problems.append("/cvmfs isn't there: install and configure CernVM-FS")
    if not touched:
        problems.append("what it needs below /cvmfs isn't there")
    elif one.machine_model == "singularity" and not (files / (one.root_image or "")).is_dir():
        problems += filter(None, [doctor_engines.image_file_problem(settings)])
    if one.machine_model in VM_MODELS and touched:
        problems += doctor_engines.vm_image_problems(one, files)
    if one.machine_model in PROCESS_CONTAINERS and touched:
        problems += filter(None, [tree_problem(one, files)])
    if one.token_dir is not None and not one.token_dir.is_dir():
        problems.append(f"token_dir {one.token_dir} isn't there")
    yield from (Finding(what, problem) for problem in problems)
    if not problems:
        yield Finding(what)


def _context(one: Machinetype, settings: Settings) -> Iterable[str]:
    """Yield why user_data can't be made; a server may be asked. The library for proxies is imported only here."""
    from vac.context.certificates import KEY_FILE
    from vac.context.user_data import ContextError, ContextRequest, make_user_data

    directory, now = StateDir(settings.state_dir).machinetype(one.pipe or one.name), time.time()
    wanted = ContextRequest(one, settings, "test", "test", directory, now, now + one.max_wallclock_seconds)
    try:
        make_user_data(wanted)
    except ContextError as error:
        yield str(error)
    key = directory / KEY_FILE
    with contextlib.suppress(OSError):
        if one.user_data_proxy and stat.S_IMODE(key.stat().st_mode) & 0o077:
            yield f"others can read {key}: chmod 600 it"


def file_findings(settings: Settings, paths: Sequence[Path] | None) -> Iterator[Finding]:
    """Yield findings about files that [settings] names, and files with secrets; paths are the configuration's."""
    command, key = settings.health_command, settings.vacquery_key_file
    if command is not None:
        runs = command.is_file() and os.access(command, os.X_OK)
        no_program = "is no program that can be run, and nothing is created until it succeeds"
        yield Finding(f"health_command {command}", None if runs else no_program)
    if key is not None:
        what, remedy = (
            f"vacquery_key_file {key}",
            "make it by `openssl rand -base64 32`, the same on all factories",
        )
        try:
            read_key(key)
            problem = f"others can read it: chmod 600 {key}" if _open_to_others(key) else None
            yield Finding(what, problem, serious=False)
        except OSError as error:
            yield Finding(what, f"{error.strerror}: {remedy}")
    secrets: dict[str, str] = {}
    for section in read(paths).sections.values():
        for option, value in section.values.items():
            if option.startswith(USER_DATA_OPTION) or without_url_secrets(value.text) != value.text:
                secrets.setdefault(value.file, option)
    for file, option in secrets.items():
        if _open_to_others(Path(file)):
            problem = f"others can read it, {option} too, which may be secret: chmod 640 {file}"
            yield Finding(file, problem, serious=False)


def _open_to_others(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def tree_problem(machinetype: Machinetype, files: Path) -> str | None:
    """Return why a bubblewrap or singularity machine can't be made of this root_image and container_command.

    What is downloaded isn't looked at, nor what is in an image file.
    """
    if not machinetype.root_image or "://" in machinetype.root_image:
        return None
    command = machinetype.container_command
    fresh = {"/user_data", "/tmp", "/var/tmp", *machinetype.tmp_binds}
    try:
        root = Path(real_image(str(files / machinetype.root_image)))
        if root.is_dir() and command not in fresh:
            check_command(str(root), command, dict.fromkeys(fresh, ("rw", "")))
        elif machinetype.machine_model == "bubblewrap" and not root.is_dir():
            return f"root_image {root} is no directory tree; bubblewrap takes / or the path of one"
        elif not root.exists():
            return f"root_image {root} isn't there; give a directory tree, an image file or a URL"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def page_findings(settings: Settings) -> Iterator[Finding]:
    """Yield if the status page can be served at its address. The configuration's check sees to its packages."""
    if settings.metrics_listen is None or serves(StateDir(settings.state_dir), "page"):
        return
    host, port = split_host_port(settings.metrics_listen)
    what = f"metrics_listen {settings.metrics_listen}"
    problem = None
    try:
        bind(host, port).close()
    except OSError as error:
        problem = f"{error.strerror}{_holder('tcp', port)}: choose an address of this host and a free port"
    yield Finding(what, problem, serious=False)
