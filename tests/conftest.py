"""Common to all tests: Hypothesis profiles, a usual environment, the order of files, and asking for tools."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from vac.host.filesystems import mounts

# Tests run on busy machines: how long an example takes says nothing.
settings.register_profile("vac", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("brief", settings.get_profile("vac"), max_examples=20, database=None)
settings.load_profile("vac")


# nohup and background jobs of scripts ignore signals, and so would all that tests start; Ctrl-C would end nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
# Others have to read what tests write, servers are on this host, and messages are compared.
os.umask(0o022)
os.environ["LC_ALL"] = "C.UTF-8"
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"


LONGEST_FIRST = (
    *(
        "test_guests",
        "test_cloud_init",
        "test_soak",
        "test_htcondor_pool",
        "test_docker_factory",
        "test_vm_factory",
        "test_space",
    ),
    *("test_hostile_vm", "test_pipes", "test_shares", "test_mixed_space", "test_fill", "test_libvirt"),
    *("test_task_queue", "test_docker_fill", "test_containers", "test_orders", "test_crash_bubblewrap"),
    *("test_process_machines", "test_crash_walk", "test_apptainer", "test_commands", "test_vm_services"),
    *("test_cvmfs", "test_hostile", "test_demo", "test_traces", "test_goals", "test_simulate"),
)
"""Files that take half a minute or more. Much of that is waiting, which is why files are run side by side."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, or else a single file is run for minutes when all others are through."""
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def require_tool(name: str) -> str:
    """The path of a program that the test can't do without; a host that lacks it fails the test."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not on PATH; as root, `tools/bootstrap test` installs what tests need")
    return path


def cgroups_named(name: str) -> list[Path]:
    """Return the directories of this name in all hierarchies; others' may vanish meanwhile."""
    return [Path(directory) / name for directory, names, _ in os.walk("/sys/fs/cgroup") if name in names]


def require_root() -> None:
    """Fails a test that can't work without root, instead of letting it fail in some odd place."""
    if os.geteuid() != 0:
        pytest.fail(f"this test needs root, and runs with user id {os.geteuid()}")


def unmount_below(directory: Path) -> None:
    """Unmount what vacd has mounted there: it mounts its state_dir on itself, for good."""
    for mount in reversed(mounts()):
        if f"{mount.point}/".startswith(f"{directory.resolve()}/"):
            subprocess.run(["umount", mount.point], check=True)


@pytest.fixture(scope="session", autouse=True)
def _nothing_stays_mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    unmount_below(tmp_path_factory.getbasetemp())
