"""The command `vacd`: its options, and how it runs: in the foreground, detached, or as a single role."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from setproctitle import setproctitle

from vac import __version__, logs
from vac.daemon import role_process
from vac.daemon.supervisor import Supervisor, notifier_from, stored_sockets
from vac.roles import ROLES, Role

UMASK = 0o022
DETACHED_LOG_DIR = Path("/var/log")


def _absolute(text: str) -> Path:
    return Path(text).absolute()


def make_parser(roles: Sequence[Role]) -> argparse.ArgumentParser:
    """Return the parser of all options; --role takes one of the roles."""
    parser = argparse.ArgumentParser(
        prog="vacd",
        description="Fill this host's processors with logical machines. SIGTERM ends vacd, not the machines; SIGHUP "
        "makes it reload its configuration and reopen its log files.",
        epilog="Configuration: vac config options. Machines: vac machines.",
    )
    parser.add_argument(
        "--config",
        metavar="PATH",
        type=_absolute,
        action="append",
        default=[],
        help="configuration file or directory, in place of the default ones; may be given again",
    )
    parser.add_argument("--detach", action="store_true", help="run in the background, away from the terminal")
    parser.add_argument("--role", choices=[role.name for role in roles], help="run this one process alone")
    parser.add_argument(
        "--log-dir",
        metavar="DIRECTORY",
        type=_absolute,
        help="log to files vacd, vacd-factory and so on in it, in place of standard error "
        f"(default with --detach: {DETACHED_LOG_DIR})",
    )
    parser.add_argument("--log-level", choices=logs.LEVELS, default="info", help="default: info")
    parser.add_argument("--pid-file", metavar="PATH", type=_absolute, help="write the process number to it")
    parser.add_argument("--version", action="version", version=f"Vac {__version__}")
    return parser


def command_for(role: Role, arguments: argparse.Namespace) -> list[str]:
    """Return the command line of a role's process."""
    configs = [part for path in arguments.config for part in ("--config", str(path))]
    level = ["--log-level", arguments.log_level]
    return [sys.executable, "-m", "vac.daemon", "--role", role.name, *configs, *level]


def main(
    argv: Sequence[str] | None = None,
    roles: Sequence[Role] = ROLES,
    command: Callable[[Role, argparse.Namespace], Sequence[str]] = command_for,
) -> int:
    """Run vacd, or one of its roles, until it is told to stop. Return the exit status."""
    parser = make_parser(roles)
    arguments = parser.parse_args(argv)
    if arguments.role and arguments.detach:
        parser.error("--role runs in the foreground: leave out --detach")
    if arguments.detach and arguments.log_dir is None:
        arguments.log_dir = DETACHED_LOG_DIR
    title = f"vacd-{arguments.role}" if arguments.role else "vacd"
    log_file = None if arguments.log_dir is None else arguments.log_dir / title
    try:
        log_descriptor = None if log_file is None else logs.open_file(log_file)
    except OSError as error:
        parser.error(f"--log-dir: can't write {log_file}: {error.strerror}")
    try:
        pid_descriptor = None if arguments.pid_file is None else _open_pid_file(arguments.pid_file)
    except BlockingIOError:
        parser.error(f"--pid-file: a running vacd has locked {arguments.pid_file}: stop it first")
    except OSError as error:
        parser.error(f"--pid-file: can't write {arguments.pid_file}: {error.strerror}")

    if roles is ROLES and arguments.role in (None, "factory") and os.geteuid() != 0:
        parser.exit(1, "vacd: only root can run it: sudo systemctl start vacd\n")
    if arguments.detach:
        _detach([descriptor for descriptor in (log_descriptor, pid_descriptor) if descriptor is not None])
    os.umask(UMASK)
    os.chdir("/")
    if log_descriptor is not None:
        logs.write_to(log_descriptor)
    if pid_descriptor is not None:
        os.ftruncate(pid_descriptor, 0)
        os.pwrite(pid_descriptor, b"%d\n" % os.getpid(), 0)
    logs.set_up(title, arguments.log_level)
    try:
        if arguments.role:
            role = next(role for role in roles if role.name == arguments.role)
            return role_process.run(role, tuple(arguments.config), log_file)
        setproctitle("vacd")
        notifier, stored = notifier_from(os.environ, os.getpid()), stored_sockets(os.environ, os.getpid())
        supervisor = Supervisor(
            roles, lambda role: command(role, arguments), notifier, arguments.log_dir, stored
        )
        return supervisor.run()
    finally:
        if arguments.pid_file is not None:
            arguments.pid_file.unlink(missing_ok=True)


def _open_pid_file(path: Path) -> int:
    """Open the file and lock it for as long as the descriptor is open. Raises BlockingIOError if it is locked."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


def _detach(descriptors: Sequence[int]) -> None:
    """Continue in a session without a terminal; only these descriptors stay open.

    SIGHUP arrives when this process led the terminal's session (`ssh -t HOST vacd --detach`) and has ended.
    """
    from daemon import DaemonContext

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    DaemonContext(detach_process=True, umask=UMASK, files_preserve=descriptors, signal_map={}).open()
