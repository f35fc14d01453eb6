"""The real factory with bubblewrap machines: killed and started again, on failing disks, with other directories."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from tests.conftest import require_tool
from tests.engines.factory_fixture import AT_ONCE, ROOT, FactorySite, Kind, Option, factory_site
from tests.faults.dying import STEP
from vac.accounting.records import message_fields
from vac.config.settings import Settings
from vac.drivers.base import EngineState
from vac.drivers.processes.process_driver import open_driver
from vac.roles import EXIT_OTHER_AT_WORK, EXIT_TO_RESTART

pytestmark = pytest.mark.engine

WORK = """
echo what nobody needs afterwards > /var/tmp/scratch
until [ -e /tmp/joboutputs/end ]; do sleep 0.1; done
echo '200 done' > /tmp/joboutputs/shutdown_message
"""
SHUT_DOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN of linux/ext4.h."""
KINDS = {"t": Kind(WORK, {"fizzle_seconds": 0, "backoff_seconds": 1})}
AT_ITS_BEGINNING = (
    "rename */machines/*",
    "renamed */machines/*",
    "before create .",
    "after create .",
    "renamed */started",
)
AT_ITS_END = (
    "rename */usage.json",
    "renamed */apel-archive/*",
    "renamed */apel-outgoing/*",
    "renamed */finished",
    "before destroy .",
    "after destroy .",
    "renamed */tmp/gone-*",
)
WHEN_DESTROYED = ("before stop .", "after stop .")


@pytest.fixture
def site() -> Iterator[FactorySite]:
    """Not started yet."""
    with factory_site(
        KINDS,
        processors=1,
        start=False,
        machines_per_cycle=AT_ONCE,
        gocdb_sitename="SITE",
        hs06_per_processor=10.0,
    ) as site:
        yield site


def wait_for_death(site: FactorySite) -> None:
    assert site.process is not None
    assert site.process.wait(120) == -signal.SIGKILL
    site.process = None


def wait_for_one(site: FactorySite) -> str:
    """Until a machine runs: its uuid."""
    site.wait_for(lambda: len(site.running()) == 1, "a machine runs")
    return site.running()[0].uuid


def end(site: FactorySite) -> None:
    """Let all machines end by themselves."""
    for life in site.lives():
        (life.directory / "joboutputs/end").touch()


def in_engine(site: FactorySite) -> dict[str, EngineState]:
    driver = open_driver(Settings(factory_name=site.name, state_dir=site.state.root))
    found = {machine.uuid: machine.state for machine in driver.list()}
    driver.close()
    return found


def finish_and_check(site: FactorySite, uuid: str | None = None) -> None:
    """Let all that is left end; then each machine that started has one record, and nothing is left anywhere."""
    assert site.vac("drain").returncode == 0
    site.wait_for(lambda: site.status().drain, "it is draining")
    end(site)
    site.wait_for(lambda: not site.running() and not in_engine(site), "all machines have ended")
    site.wait_for(
        lambda: not any((life.directory / "mnt").exists() for life in site.lives()), "disks are given back"
    )
    site.wait_for(lambda: not list(site.state.tmp.iterdir()), "nothing is under way")
    assert site.stop() == 0
    site.process = None
    lives = site.lives()
    assert len(list(site.state.machines.iterdir())) == len(lives)
    assert all(life.started and life.finished for life in lives)
    started = {(life.directory / "jobfeatures/job_id").read_text(): life for life in lives}
    assert uuid is None or uuid in started
    archived = sorted(site.state.apel_archive.glob("*/*"))
    records = [message_fields(path.read_text()) for path in archived]
    assert sorted(record["LocalJobId"] for record in records) == sorted(started)
    for record in records:
        life = started[record["LocalJobId"]]
        heartbeat = (life.directory / "heartbeat").stat().st_mtime
        assert int(record["StartTime"]) == int((life.directory / "started").read_text())
        assert int(record["EndTime"]) == int(heartbeat)
        assert int(record["WallDuration"]) == int(record["EndTime"]) - int(record["StartTime"]) >= 0
    sent = sorted(site.state.apel_outgoing.glob("*/*"))
    assert [path.read_bytes() for path in sent] == [path.read_bytes() for path in archived]
    newest = max(life.directory.name for life in lives).split("_")
    assert site.state.finish("t").read_text().split() == newest


@pytest.mark.parametrize("step", AT_ITS_BEGINNING)
def test_killed_while_a_machine_is_created(site: FactorySite, step: str) -> None:
    site.start("tests.faults.dying", **{STEP: step})
    wait_for_death(site)
    born = set(in_engine(site))
    site.start()
    uuid = wait_for_one(site)
    assert born <= {uuid}, "the machine that was made was not adopted"
    assert set(in_engine(site)) == {uuid}
    finish_and_check(site, uuid)


@pytest.mark.parametrize("step", AT_ITS_END + WHEN_DESTROYED)
def test_killed_while_a_machine_ends(site: FactorySite, step: str) -> None:
    site.start("tests.faults.dying", **{STEP: step})
    uuid = wait_for_one(site)
    if step in WHEN_DESTROYED:
        assert site.vac("destroy", site.running()[0].name).returncode == 0
    else:
        end(site)
    wait_for_death(site)
    site.start()
    site.wait_for(lambda: uuid not in in_engine(site), "what is left of the machine is gone")
    finish_and_check(site, uuid)
    messages = {(one.directory / "jobfeatures/job_id").read_text(): one.message for one in site.lives()}
    assert messages[uuid] == ("100 Destroyed by the administrator" if step in WHEN_DESTROYED else "200 done")


def test_a_start_nobody_saw_counts_though_it_just_ends(site: FactorySite) -> None:
    site.start("tests.faults.dying", **{STEP: "after create ."})
    wait_for_death(site)
    [uuid] = in_engine(site)
    [directory] = site.state.machines.iterdir()
    bwrap = int((directory / "pid").read_text())
    os.kill(bwrap, signal.SIGSTOP)  # its last processes take their time
    (directory / "joboutputs/end").touch()
    message = directory / "joboutputs/shutdown_message"
    site.wait_for(message.exists, "its command ends")
    site.start()
    site.wait_for(lambda: "machines found" in site.log(), "it looks around")
    time.sleep(1.0)
    os.kill(bwrap, signal.SIGCONT)
    site.wait_for(lambda: uuid not in in_engine(site), "its end is noticed")
    finish_and_check(site, uuid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_machines_outlive_a_factory_that_is_ended_at_rest(site: FactorySite, number: signal.Signals) -> None:
    site.start()
    uuid = wait_for_one(site)
    assert site.stop(number) == (0 if number is signal.SIGTERM else -number)
    site.process = None
    time.sleep(1.0)
    assert in_engine(site) == {uuid: EngineState.RUNNING}
    restarted = time.time()
    site.start()
    site.wait_for(lambda: (site.status().decision_time or 0.0) > restarted, "the factory has looked around")
    assert wait_for_one(site) == uuid
    assert site.stop(number) == (0 if number is signal.SIGTERM else -number)
    site.process = None
    end(site)
    site.wait_for(lambda: in_engine(site) == {uuid: EngineState.ENDED}, "it ends unseen")
    site.start()
    site.wait_for(lambda: uuid not in in_engine(site), "its end is noticed")
    finish_and_check(site, uuid)


def restart_with(site: FactorySite, **settings: Option) -> None:
    """Start it anew with other settings, and wait until it has looked around."""
    assert site.stop() == 0
    site.configure(KINDS, machines_per_cycle=AT_ONCE, **settings)
    start_and_look(site)


def start_and_look(site: FactorySite) -> None:
    before = time.time()
    site.start()
    site.wait_for(lambda: site.status().time > before, "it has looked around")


def unmount(site: FactorySite) -> None:
    """Unmount state_dir, which vacd mounts on itself, and in which its machines have open files."""
    subprocess.run(["umount", "--lazy", str(site.state.root)], check=True)


def test_an_empty_state_dir_ends_no_real_machine_and_makes_none(site: FactorySite) -> None:
    site.start()
    uuid = wait_for_one(site)
    assert site.stop() == 0
    unmount(site)
    full = site.state.root.rename(site.home / "full")
    shutil.copytree(full / "machinetypes", site.state.root / "machinetypes")
    site.start()
    site.wait_for(lambda: "knew of none" in site.vac("why").stdout, "it says so")
    assert in_engine(site) == {uuid: EngineState.RUNNING}
    assert not site.lives()
    assert site.stop() == 0
    unmount(site)
    shutil.rmtree(site.state.root)
    full.rename(site.state.root)
    site.start()
    assert wait_for_one(site) == uuid
    finish_and_check(site, uuid)


def test_another_factory_name_ends_no_real_machine_and_makes_none(site: FactorySite) -> None:
    site.start()
    uuid = wait_for_one(site)
    restart_with(site, factory_name=f"not-{site.name}")
    site.wait_for(lambda: f"factory_name was {site.name}" in site.vac("why").stdout, "it says so")
    assert in_engine(site) == {uuid: EngineState.RUNNING}
    assert len(site.lives()) == 1
    restart_with(site, gocdb_sitename="SITE", hs06_per_processor=10.0)
    assert wait_for_one(site) == uuid
    finish_and_check(site, uuid)


def test_a_second_vacd_of_one_name_refuses_to_start(site: FactorySite) -> None:
    site.start()
    uuid = wait_for_one(site)
    first, site.process = site.process, None
    site.config = site.home / "config" / "second.conf"
    site.configure(KINDS, state_dir=site.home / "second")
    site.start()
    assert site.process is not None
    assert site.process.wait(120) == EXIT_OTHER_AT_WORK
    assert f"factory {site.name}: factory process" in site.log()
    assert in_engine(site) == {uuid: EngineState.RUNNING}
    site.config, site.process = site.home / "config" / "vac.conf", first
    finish_and_check(site, uuid)


def test_another_state_dir_ends_no_real_machine_and_makes_none(site: FactorySite) -> None:
    site.start()
    uuid = wait_for_one(site)
    other = site.home / "other"
    shutil.copytree(site.state.machinetypes, other / "machinetypes")
    site.configure(KINDS, machines_per_cycle=AT_ONCE, state_dir=other)
    site.wake()
    assert site.process is not None
    assert site.process.wait(120) == EXIT_TO_RESTART, "to be started anew with it"
    site.start()
    site.wait_for(lambda: "knew of none" in site.vac("why").stdout, "it says so")
    assert in_engine(site) == {uuid: EngineState.RUNNING}
    assert not list((other / "machines").iterdir())
    assert site.stop() == 0
    subprocess.run(["umount", str(other)], check=True)
    site.configure(KINDS, machines_per_cycle=AT_ONCE, gocdb_sitename="SITE", hs06_per_processor=10.0)
    site.start()
    assert wait_for_one(site) == uuid
    finish_and_check(site, uuid)


@contextlib.contextmanager
def failing_copy(source: Path, home: Path) -> Iterator[Path]:
    """A copy of a directory on a disk that fails: whatever is opened or changed there meets EIO."""
    place, image = home / "failing", home / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(2 * 1024**3)
    subprocess.run([require_tool("mkfs.ext4"), "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        subprocess.run(["cp", "-a", f"{source}/.", str(place)], check=True)
        descriptor = os.open(place, os.O_RDONLY)
        fcntl.ioctl(descriptor, SHUT_DOWN, struct.pack("I", 0))
        os.close(descriptor)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()
        image.unlink()


@contextlib.contextmanager
def mounted(source: Path, place: Path) -> Iterator[None]:
    """Within it source is in the place of something else."""
    subprocess.run(["mount", "--bind", str(source), str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_disk_with_io_errors_is_told_and_costs_no_record(site: FactorySite, restarted: bool) -> None:
    site.start()
    uuid = wait_for_one(site)
    outputs = os.open(site.lives()[0].directory / "joboutputs", os.O_RDONLY)
    with failing_copy(site.state.root, site.home) as failing, mounted(failing, site.state.root):
        os.close(os.open("end", os.O_WRONLY | os.O_CREAT, dir_fd=outputs))
        os.close(outputs)
        site.wait_for(lambda: "its end can't be written" in site.log(), "it says so")
        if restarted:
            assert site.stop() == 0
            site.start()
            site.wait_for(lambda: "can't be used, waiting" in site.log(), "it waits")
        problem = f"{site.state.root}: Input/output error"
        assert problem in site.vac("why").stderr
        command = [str(ROOT / "bin/check-vacd"), "--state-dir", str(site.state.root)]
        check = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        assert (check.returncode, check.stdout.partition(" (")[0].strip()) == (2, problem)
    finish_and_check(site, uuid)


@pytest.mark.parametrize("place", ["apel-archive", "apel-outgoing"])
@pytest.mark.parametrize("gone", [True, False])
def test_an_end_waits_for_the_real_directories_of_accounting(
    site: FactorySite, place: str, gone: bool
) -> None:
    site.start()
    uuid = wait_for_one(site)
    shutil.rmtree(site.state.root / place)
    if not gone:
        (site.state.root / place).write_text("in its place")
        end(site)
        site.wait_for(lambda: place in site.vac("why").stdout, "it says so")
        assert [life.finished for life in site.lives()] == [None]
        (site.state.root / place).unlink()
    finish_and_check(site, uuid)


@pytest.mark.parametrize("how", ["destroy", "finish", "by itself"])
def test_what_people_end_holds_no_real_machine_back(site: FactorySite, how: str) -> None:
    message = "echo '700 ended early' > /tmp/joboutputs/shutdown_message"
    script = f"{message}\nuntil [ -e /tmp/joboutputs/end ]; do sleep 0.1; done"
    kinds = {"t": Kind(script, {"fizzle_seconds": 600, "backoff_seconds": 600})}
    site.configure(kinds, machines_per_cycle=AT_ONCE, grace_secs=1)
    site.start()
    wait_for_one(site)
    (first,) = site.lives()
    site.wait_for(lambda: first.message, "it has left a message")
    if how == "by itself":
        end(site)
        site.wait_for(lambda: site.status().held_here, "the type is held back")
        assert len(site.lives()) == 1
    else:
        assert site.vac(how, first.name).returncode == 0
        site.wait_for(lambda: len(site.lives()) == 2 and site.running(), "the next machine runs")
        assert site.status().held_here == {}


@contextlib.contextmanager
def directory_instead(path: Path, site: FactorySite) -> Iterator[None]:
    """Within it there is a directory in the place of a file."""
    aside = path.rename(site.state.root / "aside")
    path.mkdir()
    yield
    path.rmdir()
    aside.rename(path)


@contextlib.contextmanager
def io_errors_instead(path: Path, site: FactorySite) -> Iterator[None]:
    """Within it a file can't be opened: EIO."""
    with failing_copy(path.parent, site.home) as failing, mounted(failing / path.name, path):
        yield


@pytest.mark.parametrize("file", ["slots/*", "machines/*/jobfeatures/job_id"])
@pytest.mark.parametrize("instead", [directory_instead, io_errors_instead])
def test_a_real_machine_that_cannot_be_read_is_set_aside(
    site: FactorySite,
    file: str,
    instead: Callable[[Path, FactorySite], contextlib.AbstractContextManager[None]],
) -> None:
    site.start()
    uuid = wait_for_one(site)
    assert site.stop() == 0
    (path,) = site.state.root.glob(file)
    with instead(path, site):
        start_and_look(site)
        site.wait_for(lambda: "can't be read" in site.vac("why").stdout, "it says so")
        assert in_engine(site) == {uuid: EngineState.RUNNING}
    site.wake()
    site.wait_for(lambda: "can't be read" not in site.vac("why").stdout, "it can be read again")
    assert wait_for_one(site) == uuid
    finish_and_check(site, uuid)
