"""`vac doctor`: is this host fit for what is configured? One line a requirement, with what to do."""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vac.cli import common, doctor_cvmfs, doctor_docker, doctor_files, doctor_vms, doctor_web
from vac.cli.doctor_files import image_problem
from vac.cli.doctor_processes import apptainer_problem, bubblewrap_problem, image_file_problem
from vac.config.load import Configuration, ConfigurationError
from vac.config.machinetype import VM_MODELS, Machinetype
from vac.config.settings import Settings
from vac.drivers.base import CreationFailed, EngineUnavailable
from vac.drivers.processes.launch_plan import account
from vac.drivers.registry import driver_for
from vac.host.cgroups import CgroupError, open_groups
from vac.host.privileges import PREFERRED, unprivileged_user
from vac.machines import requests
from vac.machines.layout import StateDir
from vac.scheduling.eligibility import LEAST_FREE_BYTES
from vac.text import escaped

_CONTAINERS = ("docker", "singularity", "bubblewrap")


@dataclass(frozen=True)
class Finding:
    """One requirement."""

    what: str
    problem: str | None = None
    """What is wrong and what to do; None: it is met."""
    serious: bool = True
    """Machines can't be made, or peers not be heard, as long as it is so."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    command = commands.add_parser("doctor", help="check that this host is fit for what is configured")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print every finding; 1 if a serious one is among them."""
    worst = 0
    for finding in examine(arguments):
        if finding.problem is None:
            print(f"ok       {escaped(finding.what)}", flush=True)
        else:
            kind = "PROBLEM" if finding.serious else "note   "
            print(f"{kind}  {escaped(f'{finding.what}: {finding.problem}')}", flush=True)
            worst = max(worst, int(finding.serious))
    return worst


def examine(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Everything that is looked at, in the order in which it should be put right."""
    try:
        configuration = common.configuration(arguments)
    except ConfigurationError as error:
        for problem in error.problems:
            yield Finding("configuration", str(problem))
        return
    yield Finding("configuration")
    for warning in configuration.warnings:
        yield Finding("configuration", str(warning), serious=False)
    settings = configuration.settings
    yield from _host(settings)
    yield from (Finding(*row) for row in doctor_files.rows(settings, arguments.config))
    yield from _peers(settings)
    yield from (Finding(*row) for row in doctor_web.rows(settings))
    for name, copy in configuration.copies.items():
        yield Finding(f"pipe {name}", copy.trouble(), serious=False)
    wanted = [one for one in configuration.machinetypes.values() if one.target_share > 0]
    models = sorted({one.machine_model for one in wanted})
    if {"bubblewrap", "singularity"} & set(models):
        yield from _process_containers(settings)
    if set(VM_MODELS) & set(models):
        yield from (Finding(*row) for row in doctor_vms.rows(settings))
    if settings.volume_group and not set(VM_MODELS) & set(models):
        yield from (Finding(*row) for row in doctor_vms.lvm_rows(settings))
    for model in models:
        yield from _model(model, settings, [one for one in wanted if one.machine_model == model])
    broken = set()
    for row in doctor_cvmfs.rows(wanted):
        yield Finding(*row)
        if row[1] is not None:
            broken.add(row[0])
    for one in wanted:
        yield from _machinetype(one, configuration, touched=not broken & {*doctor_cvmfs.paths(one)})


def _host(settings: Settings) -> Iterator[Finding]:
    root = os.geteuid() == 0
    yield Finding("running as root", None if root else "vacd has to, and so has `vac doctor` to see it all")
    state = StateDir(settings.state_dir)
    what = f"state_dir {settings.state_dir}"
    place = next(path for path in (settings.state_dir, *settings.state_dir.parents) if path.exists())
    free = shutil.disk_usage(place).free
    problem = (
        f"{free / 1000**3:.1f} GB free; nothing is created below 1 GB" if free < LEAST_FREE_BYTES else None
    )
    yield Finding(what, problem)
    running = requests.running(state)
    yield Finding("vacd is running", None if running else "start it: systemctl start vacd", serious=False)
    try:
        pwd.getpwnam(PREFERRED)
        yield Finding(f"account {PREFERRED}")
    except KeyError:
        yield Finding(
            f"account {PREFERRED}", "the responder runs as nobody; better: useradd -r vac", serious=False
        )


def _peers(settings: Settings) -> Iterator[Finding]:
    for name in settings.factories:
        if name != settings.factory_name:
            try:
                socket.getaddrinfo(name, settings.vacquery_port, type=socket.SOCK_DGRAM)
                yield Finding(f"factory {name} has an address")
            except OSError as error:
                yield Finding(
                    f"factory {name}", f"{error.strerror}: put it into the DNS or /etc/hosts", serious=False
                )


def _model(model: str, settings: Settings, machinetypes: Sequence[Machinetype]) -> Iterator[Finding]:
    if model == "bubblewrap":
        yield Finding("bubblewrap in an unprivileged user namespace", bubblewrap_problem(settings))
    if model == "singularity":
        yield Finding("a container made by apptainer or singularity", apptainer_problem(settings))
    try:
        driver = driver_for(model, settings)
        driver.list()
        driver.close()
        yield Finding(f"engine for {model}")
    except EngineUnavailable as error:
        yield Finding(f"engine for {model}", str(error))
        return
    if model in VM_MODELS:
        yield from (Finding(*row) for row in doctor_vms.hypervisor_rows(settings))
    if model == "docker":
        yield from (Finding(*row) for row in doctor_docker.rows(settings, machinetypes))


def _process_containers(settings: Settings) -> Iterator[Finding]:
    try:
        user, responder = account(settings), unprivileged_user()
        what = f"machines run as {user.pw_name}"
        shared = responder is not None and responder.pw_uid == user.pw_uid
        problem = "so does the process that answers the network: make an account vac, or set singularity_user"
        yield Finding(what, problem if shared else None, serious=False)
        alike = (
            None if settings.slot_uids else "all slots' machines share it: set slot_uids to keep them apart"
        )
        yield Finding("a uid for each slot", alike, serious=False)
    except CreationFailed as error:
        yield Finding("singularity_user", str(error))
    try:
        groups = open_groups(settings.factory_name)
        yield Finding(f"cgroups ({type(groups).__name__[-2:].lower()})")
    except (CgroupError, OSError) as error:
        yield Finding("cgroups", str(error))


def _machinetype(one: Machinetype, configuration: Configuration, *, touched: bool) -> Iterator[Finding]:
    """touched: whatever it needs below /cvmfs answers, and may be looked at."""
    what = f"machinetype {one.name}"
    settings = configuration.settings
    problems = [configuration.unusable[one.name]] if one.name in configuration.unusable else []
    files = StateDir(settings.state_dir).machinetype_files(one.pipe or one.name)
    problems += _context(one, settings)
    if one.machine_model in _CONTAINERS and one.cvmfs_repositories and not Path("/cvmfs").is_dir():
        problems.append("/cvmfs isn't there: install and configure CernVM-FS")
    if not touched:
        problems.append("what it needs below /cvmfs isn't there")
    elif one.machine_model == "singularity" and not (files / (one.root_image or "")).is_dir():
        problems += filter(None, [image_file_problem(settings)])
    if one.machine_model in VM_MODELS and touched:
        problems += doctor_vms.image_problems(one, files)
    if one.machine_model in ("bubblewrap", "singularity") and touched:
        problems += filter(None, [image_problem(one, files)])
    if one.token_dir is not None and not one.token_dir.is_dir():
        problems.append(f"token_dir {one.token_dir} isn't there")
    for problem in problems:
        yield Finding(what, problem)
    if not problems:
        yield Finding(what)


def _context(one: Machinetype, settings: Settings) -> Iterable[str]:
    """Try to make user_data, which may mean to ask a server. The library for proxies is loaded only here."""
    from vac.context.proxies import KEY_FILE
    from vac.context.user_data import ContextError, ContextRequest, Templates, make_user_data

    directory, now = StateDir(settings.state_dir).machinetype(one.pipe or one.name), time.time()
    wanted = ContextRequest(one, settings, "test", "test", directory, now, now + one.max_wallclock_seconds)
    try:
        make_user_data(wanted, Templates())
    except ContextError as error:
        yield str(error)
    key = directory / KEY_FILE
    with contextlib.suppress(OSError):
        if one.user_data_proxy and stat.S_IMODE(key.stat().st_mode) & 0o077:
            yield f"others can read {key}: chmod 600 it"
