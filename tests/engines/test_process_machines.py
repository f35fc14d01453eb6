"""Machines made with bubblewrap and Apptainer on this host: what they see, may do, leave behind, and how they end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.conftest import require_root, require_tool
from tests.driver_contract import usages
from tests.engines.process_site import (
    MIB,
    Site,
    group_makers,
    make_tree,
    open_site,
    processes_of,
    shell_seconds,
)
from tests.waiting import wait_for
from vac.drivers.base import CreationFailed, EngineState, Observed
from vac.drivers.processes.process_driver import ProcessDriver
from vac.host import privileges
from vac.host.cgroups import Limits, find_mounts

pytestmark = pytest.mark.engine

VERSIONS = sorted(group_makers())
LIMITING = ["v1"] if "v1" in VERSIONS else VERSIONS
"""Cgroups that have controllers here."""


LIMITED = {
    "v1": {
        "cpu.shares": "1024",
        "cpu.cfs_quota_us": "100000",
        "memory.soft_limit_in_bytes": str(64 * MIB),
        "memory.limit_in_bytes": str(128 * MIB),
        "memory.memsw.limit_in_bytes": str(128 * MIB),
        "pids.max": "4096",
    },
    "v2": {
        "cpu.weight": "100",
        "cpu.max": "100000 100000",
        "memory.low": str(64 * MIB),
        "memory.max": str(128 * MIB),
        "memory.swap.max": "0",
        "pids.max": "4096",
    },
}
"""Limits of a machine of one processor with 64 MiB."""
SWAP = {"memory.memsw.limit_in_bytes", "memory.swap.max"}
"""Those that exist only if the kernel counts swap."""
PROGRAMS = {"bubblewrap": "bwrap", "singularity": "apptainer"}


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    require_root()
    version, model = getattr(request, "param", (LIMITING[0], "bubblewrap"))
    require_tool(PROGRAMS[model])
    with open_site(version, model) as site:
        yield site


def command_line(process: int) -> bytes:
    """A process's command line, b"" if it has just gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def read_text(file: Path) -> str:
    """A file's content, "" if it has just gone."""
    with contextlib.suppress(OSError):
        return file.read_text()
    return ""


def on(*cases: tuple[str, str]) -> pytest.MarkDecorator:
    """Run the test on these cgroups with machines of these models."""
    return pytest.mark.parametrize("site", cases, indirect=True, ids="-".join)


BWRAP, APPTAINER = ((LIMITING[0], model) for model in PROGRAMS)
each_model = on(*((LIMITING[0], model) for model in PROGRAMS))
both = on(*((version, "bubblewrap") for version in VERSIONS), (LIMITING[0], "singularity"))


@each_model
def test_machine_is_unprivileged_and_alone(site: Site) -> None:
    script = """
        cd $JOBOUTPUTS
        cp /proc/self/status .
        id -u >id
        echo /proc/[0-9]* >processes
        env >env
    """
    spec = site.create(site.spec(0, script))
    site.wait_for_end(spec)
    status = dict(line.split(":", 1) for line in site.output(spec, "status").splitlines())
    assert status["CapEff"].strip() == status["CapPrm"].strip() == status["CapBnd"].strip() == "0" * 16
    assert status["Groups"].strip() == ""
    assert status["NoNewPrivs"].strip() == "1"
    assert site.output(spec, "id").strip() != "0"
    assert len(site.output(spec, "processes").split()) == 2, "the program's init, the script"
    environment = dict(line.split("=", 1) for line in site.output(spec, "env").splitlines())
    own = {"PATH", "HOME", "MACHINEFEATURES", "JOBFEATURES", "JOBOUTPUTS"}
    shells = {"PWD", "SHLVL", "_", "OLDPWD", "PS1", "PROMPT_COMMAND", "USER_PATH"}
    others = {name for name in environment if not name.startswith(("APPTAINER_", "SINGULARITY_"))}
    assert others - shells == own


@each_model
def test_machine_finds_its_own(site: Site) -> None:
    script = """
        cat "$JOBFEATURES/job_id" >$JOBOUTPUTS/job_id
        hostname >$JOBOUTPUTS/hostname
        ls /proc/self/fd >$JOBOUTPUTS/fds
        for each in /tmp /var/tmp /scratch /var/spool/x; do
            touch $each/x && echo $each
        done >$JOBOUTPUTS/writable
        cat /etc/vac-tokens/token >$JOBOUTPUTS/token
        echo to the console
    """
    tokens = site.settings.state_dir / "tokens"
    tokens.mkdir()
    (tokens / "token").write_text("T0K3N")
    spec = site.create(site.spec(0, script, tmp_binds=("/scratch", "/var/spool/x"), token_dir=tokens))
    site.wait_for_end(spec)
    assert site.output(spec, "job_id") == "uuid-0"
    assert site.output(spec, "hostname").strip() == spec.name
    assert site.output(spec, "fds").split() == ["0", "1", "2", "3"], "3 being ls's own"
    assert site.output(spec, "writable").split() == ["/tmp", "/var/tmp", "/scratch", "/var/spool/x"]
    assert site.output(spec, "token") == "T0K3N"
    assert (spec.directory / "pid").read_text().strip().isdigit()
    assert (spec.directory / "console.log").read_text() == "to the console\n"
    scratch = {path.parent.name for path in (spec.directory / "mnt").glob("*/x")}
    assert scratch == {"tmp", "var_tmp", "bind0", "bind1"}, "on the machine's own disk"
    assert not list(Path("/tmp").glob("machinefeatures")), "nothing of it is in the host's"
    assert (spec.directory / "user_data").stat().st_mode & 0o777 == 0o500


@each_model
def test_machine_sees_and_changes_nothing_of_others(site: Site) -> None:
    other = site.create(site.spec(1, "# SECRET\nexec sleep 600\n"))
    state_dir = site.settings.state_dir
    script = f"""
        for each in {other.directory}/user_data {state_dir}/machines/*/user_data; do
            cat $each && echo read
        done
        for each in /root /home /run /etc/vac.d {state_dir}; do
            [ -e $each ] && [ -n "$(ls -A $each 2>&1)" ] && echo seen $each
        done
        for each in /etc /usr /run /home / /dev/.. /sys $JOBFEATURES $MACHINEFEATURES; do
            touch $each/x && echo changed $each
        done
        echo x >>/user_data && echo changed
        kill -9 -1
    """
    spec = site.create(site.spec(0, script.replace("&& echo", "2>/dev/null && echo")))
    site.wait_for_end(spec)
    assert "SECRET" not in (spec.directory / "console.log").read_text()
    console = (spec.directory / "console.log").read_text()
    assert not any(word in console for word in ("read\n", "seen", "changed")), console
    assert site.state(other) is EngineState.RUNNING


def test_machine_sees_no_configuration_and_no_foreign_tokens(site: Site) -> None:
    with tempfile.TemporaryDirectory(prefix="vac-test-", dir="/opt") as name:
        place = Path(name)
        place.chmod(0o755)
        for each in ("vac.conf", "tokens/other", "plain"):
            (place / each).parent.mkdir(exist_ok=True)
            (place / each).write_text(f"{each} S3CRET")
        script = (
            f"cd {place}; cat plain; while [ ! -e /tmp/joboutputs/go ]; do sleep 0.02; done; grep -r S3C .\n"
        )
        hidden = (place / "vac.conf", place / "tokens")
        spec = site.create(dataclasses.replace(site.spec(0, script), hidden=hidden))
        successor = place / "new"
        successor.write_text("successor S3CRET")
        successor.rename(place / "vac.conf")
        (spec.directory / "joboutputs/go").touch()
        site.wait_for_end(spec)
    assert (spec.directory / "console.log").read_text() == "plain S3CRET./plain:plain S3CRET\n"


def test_what_is_hidden_may_be_below_a_directory_nobody_lists(site: Site) -> None:
    with tempfile.TemporaryDirectory(prefix="vac-test-", dir="/opt") as name:
        Path(name).chmod(0o711)
        (Path(name) / "tokens").mkdir()
        (Path(name) / "tokens/other").write_text("S3CRET")
        script = f"cat {name}/tokens/other; echo runs; ls -A {name}\n"
        spec = site.create(dataclasses.replace(site.spec(0, script), hidden=(Path(name) / "tokens",)))
        site.wait_for_end(spec)
    console = (spec.directory / "console.log").read_text()
    assert "S3CRET" not in console
    assert console.endswith("\nruns\n")


@both
def test_escaped_processes_belong_to_the_machine_and_end_with_it(site: Site) -> None:
    script = """
        (setsid sh -c '(setsid sh -c "touch /tmp/joboutputs/escaped; sleep 600" &)' &)
        sleep 600
    """
    spec = site.create(site.spec(0, script))
    wait_for((spec.directory / "joboutputs/escaped").exists, "the escaped process runs")

    def sleepers() -> int:
        return [command_line(process) for process in site.processes(spec)].count(b"sleep\x00600\x00")

    wait_for(lambda: sleepers() == 2, "the machine's own command and what it left behind")
    assert site.state(spec) is EngineState.RUNNING
    site.driver.stop(spec.name, spec.uuid)
    assert site.state(spec) is EngineState.ENDED
    assert not processes_of(str(site.settings.state_dir))
    site.driver.destroy(spec.name, spec.uuid)
    assert site.state(spec) is None
    site.driver.destroy(spec.name, spec.uuid)


@on(*((version, "bubblewrap") for version in VERSIONS))
def test_end_is_an_event_within_moments(site: Site) -> None:
    delays = []
    for number in range(5):
        spec = site.create(site.spec(number, "sleep 0.2; date +%s.%N >/tmp/joboutputs/end\n"))
        delays.append(site.wait_for_end(spec) - float(site.output(spec, "end")))
    print(f"event after {min(delays) * 1000:.1f} to {max(delays) * 1000:.1f} ms")
    assert min(delays) < 5


@each_model
def test_stop_of_another_uuid_changes_nothing(site: Site) -> None:
    spec = site.create(site.spec())
    site.driver.stop(spec.name, "other")
    site.driver.destroy(spec.name, "other")
    assert site.state(spec) is EngineState.RUNNING


@each_model
def test_usage_is_measured_and_stays_after_the_end(site: Site) -> None:
    script = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; times >$JOBOUTPUTS/times\n"
    begun = time.monotonic()
    spec = site.create(site.spec(0, script))
    site.wait_for_end(spec)
    most = (time.monotonic() - begun) * (os.cpu_count() or 1)
    own = sum(map(shell_seconds, site.output(spec, "times").splitlines()[0].split()))
    used = usages(site.driver)[spec.uuid]
    assert used.cpu_seconds is not None
    assert own > 0
    assert own - 0.05 < used.cpu_seconds < most
    assert used.peak_memory_bytes is not None
    assert 0 < used.peak_memory_bytes < 128 * MIB


@each_model
def test_limits_are_the_cgroups(site: Site) -> None:
    spec = site.create(site.spec(0))
    limits = {}
    for process in site.processes(spec)[:1]:
        for line in Path(f"/proc/{process}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                for name in LIMITED[LIMITING[0]]:
                    file = Path(f"/sys/fs/cgroup/{controller}{path}/{name}")
                    if file.exists():
                        limits[name] = file.read_text().strip()
    wanted = dict(LIMITED[LIMITING[0]])
    for swap in SWAP & set(wanted) - set(limits):
        assert not list(Path("/sys/fs/cgroup").glob(f"**/{swap}")), "this kernel counts no swap"
        del wanted[swap]
    assert limits == wanted


@each_model
def test_memory_eater_ends_alone_at_its_own_limit(site: Site) -> None:
    neighbour = site.create(site.spec(1))
    eat = "tail /dev/zero; echo $? >/tmp/joboutputs/code\n"
    spec = site.create(site.spec(0, eat))
    site.wait_for_end(spec)
    assert site.output(spec, "code") == "137\n", "killed, and only what was too big"
    peak = usages(site.driver)[spec.uuid].peak_memory_bytes
    assert peak is not None
    assert 100 * MIB < peak <= 128 * MIB, "memory_limit_factor 2 × 64 MiB"
    assert site.state(neighbour) is EngineState.RUNNING


LAUNCH = """
import sys
from tests.engines.process_site import Site, group_makers
from pathlib import Path
state_dir, factory, version, model = sys.argv[1:]
site = Site(group_makers()[version](factory), Path(state_dir), factory, model)
site.create(site.spec(0, "while [ ! -e /tmp/joboutputs/go ]; do sleep 0.02; done\\n"))
print("created", flush=True)
sys.stdin.read()
"""


@both
def test_machine_outlives_the_factory_until_its_successor(site: Site) -> None:
    version = "v2" if "V2" in type(site.groups).__name__ else "v1"
    arguments = [str(site.settings.state_dir), site.settings.factory_name, version, site.model]
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", LAUNCH, *arguments], stdin=pipe, stdout=pipe) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"created\n"
        first.kill()
    successor = ProcessDriver(site.groups)
    listed = successor.list()
    assert [(each.name, each.uuid, each.state) for each in listed] == [
        ("f1-00.example.com", "uuid-0", EngineState.RUNNING)
    ]
    events = successor.events()
    go = site.settings.state_dir / "machines/1_t_f1-00.example.com/joboutputs/go"
    go.touch()
    assert next(events) == "f1-00.example.com"
    assert [each.state for each in successor.list()] == [EngineState.ENDED]
    assert usages(successor)["uuid-0"].cpu_seconds
    successor.destroy("f1-00.example.com", "uuid-0")
    assert not successor.list()
    successor.close()


@both
def test_creation_cut_short_is_told_from_an_end(site: Site) -> None:
    spec = site.spec()
    site.groups.create(f"{spec.name}_{spec.uuid}", Limits(1, MIB, None, 100))
    assert site.state(spec) is EngineState.HALF_MADE
    site.driver.destroy(spec.name, spec.uuid)
    assert site.state(spec) is None


def test_machine_sees_no_other_mount_of_the_state_directory(site: Site) -> None:
    other = site.create(site.spec(1, "# SECRET\nexec sleep 600\n"))
    with tempfile.TemporaryDirectory(prefix="vac-test-", dir="/opt") as name:
        Path(name).chmod(0o755)
        subprocess.run(["mount", "--bind", site.settings.state_dir, name], check=True)
        try:
            assert "SECRET" in (Path(name) / "machines" / other.directory.name / "user_data").read_text()
            spec = site.create(
                site.spec(0, f"find {name} >$JOBOUTPUTS/seen; cat {name}/machines/*/user_data\n")
            )
            site.wait_for_end(spec)
        finally:
            subprocess.run(["umount", name], check=True)
    assert site.output(spec, "seen") == f"{name}\n"
    assert "SECRET" not in (spec.directory / "console.log").read_text()


@on(APPTAINER)
def test_apptainer_needs_accounts_for_the_uids_of_slots(site: Site) -> None:
    settings = dataclasses.replace(site.settings, factory_name="f1.example.com", slot_uids="200000-200001")
    with pytest.raises(CreationFailed, match="needs an account with uid 200000, a uid of slot_uids"):
        site.create(dataclasses.replace(site.spec(), settings=settings))


def test_each_slot_has_a_uid_of_its_own(site: Site) -> None:
    settings = dataclasses.replace(site.settings, factory_name="f1.example.com", slot_uids="200000-200001")
    script = """
        id -u >$JOBOUTPUTS/id; id -g >>$JOBOUTPUTS/id; touch /var/tmp/x; sleep 600
    """
    specs = [dataclasses.replace(site.spec(number, script), settings=settings) for number in range(3)]
    for number, spec in enumerate(specs[:2]):
        site.create(spec)
        wait_for((spec.directory / "mnt/var_tmp/x").exists, "it writes in its directories")
        assert site.output(spec, "id").split() == 2 * [str(200000 + number)]
        assert (spec.directory / "joboutputs/id").stat().st_uid == 200000 + number
        assert (spec.directory / "user_data").stat().st_uid == 200000 + number
        owners = {Path(f"/proc/{process}").stat().st_uid for process in site.processes(spec)}
        assert owners == {200000 + number}
    with pytest.raises(CreationFailed, match="slot_uids 200000-200001 has no uid for f1-02"):
        site.create(specs[2])


def test_without_slot_uids_a_slot_has_one_that_belongs_to_vac(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "subids").write_text("vac:2000000000:2\n")
    monkeypatch.setattr(privileges, "SUBORDINATE_IDS", 2 * (tmp_path / "subids",))
    settings = dataclasses.replace(site.settings, factory_name="f1.example.com")
    users = []
    for number in range(3):
        spec = dataclasses.replace(site.spec(number, "id -u >$JOBOUTPUTS/id\n"), settings=settings)
        site.create(spec)
        site.wait_for_end(spec)
        users.append(site.output(spec, "id").strip())
    nobody = str(pwd.getpwnam("nobody").pw_uid)
    assert users == ["2000000000", "2000000001", nobody], "the third slot has none"


@on(APPTAINER)
def test_few_user_namespaces_can_be_made_in_a_machines_own(site: Site) -> None:
    script = """
        while [ $(cat /proc/sys/user/max_user_namespaces) != 1000 ]; do sleep 0.1; done
        touch $JOBOUTPUTS/limited; exec sleep 600
    """
    spec = site.create(site.spec(0, script, container_nested=True))
    spaces = {os.readlink(f"/proc/{process}/ns/user") for process in site.processes(spec)}  # noqa: PTH115
    if os.readlink("/proc/self/ns/user") not in spaces:  # noqa: PTH115
        wait_for((spec.directory / "joboutputs/limited").exists, "the limit is set in its own name space")
    assert int(Path("/proc/sys/user/max_user_namespaces").read_text()) > 1000


DIE_EARLY = """
import sys
from tests.engines.process_site import Site, group_makers
from pathlib import Path
state_dir, factory, version, model = sys.argv[1:5]
site = Site(group_makers()[version](factory), Path(state_dir), factory, model)
procs_files = site.groups.procs_files
def freezing(name):
    found = procs_files(name)
    if version == "v1":
        found = (*found, Path(sys.argv[5], "cgroup.procs"))
    else:
        (found[0].parent / "cgroup.freeze").write_text("1")
    print(name, flush=True)
    return found
site.groups.procs_files = freezing
wait = "while [ ! -e /tmp/joboutputs/go ]; do sleep 0.02; done"
site.create(site.spec(0, f"{wait}; date +%s >/tmp/joboutputs/end; exit 3"))
"""


@both
def test_machine_is_half_made_until_its_command_runs(site: Site) -> None:
    version = "v2" if "V2" in type(site.groups).__name__ else "v1"
    arguments = [str(site.settings.state_dir), site.settings.factory_name, version, site.model]
    if version == "v1":
        freezer = find_mounts().v1["freezer"] / site.settings.factory_name
        freezer.mkdir()
        (freezer / "freezer.state").write_text("FROZEN")
        arguments.append(str(freezer))
    with subprocess.Popen([sys.executable, "-c", DIE_EARLY, *arguments], stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        name = maker.stdout.readline().decode().strip()
        wait_for(lambda: site.groups.populated(name), "the launcher has entered")
        maker.kill()
    machines = site.settings.state_dir / "machines"
    successor = ProcessDriver(site.groups, machines=machines)
    assert [each.state for each in successor.list()] == [EngineState.HALF_MADE]
    if version == "v1":
        (freezer / "freezer.state").write_text("THAWED")
    else:
        (site.groups.procs_files(name)[0].parent / "cgroup.freeze").write_text("0")
    wait_for(
        lambda: [each.state for each in successor.list()] == [EngineState.RUNNING], "it waits for nobody"
    )
    successor.close()
    outputs = machines / "1_t_f1-00.example.com/joboutputs"
    (outputs / "go").touch()
    wait_for(lambda: not site.groups.populated(name), "it ends while there is no factory")
    late = ProcessDriver(site.groups, machines=machines)
    [found] = late.list()
    assert found.state is EngineState.ENDED
    if site.model == "bubblewrap":
        assert found.usage.exit_code == 3
        assert abs((found.usage.ended_time or 0.0) - float((outputs / "end").read_text())) < 5
    late.close()
    site.driver.destroy(found.name, found.uuid)
    if version == "v1":
        freezer.rmdir()


@each_model
def test_a_machine_that_is_just_ending_is_not_half_made(site: Site) -> None:
    machines, programs = site.settings.state_dir / "machines", {"sh", "dash", "sleep", "date"}

    def commands() -> set[str]:
        found = (Path(f"/proc/{process}/comm") for process in site.processes(spec))
        return {each.read_text().strip() for each in found if each.exists()}

    script = "while [ ! -e /tmp/joboutputs/go ]; do sleep 0.02; done; exit 3"
    spec = site.create(site.spec(0, script))
    first = int((spec.directory / "pid").read_text())
    wait_for(lambda: commands() & programs, "its command runs")
    os.kill(first, signal.SIGSTOP)
    (spec.directory / "joboutputs/go").touch()
    wait_for(lambda: not commands() & programs, "its command has ended")
    threading.Timer(1.0, os.kill, (first, signal.SIGCONT)).start()
    successor = ProcessDriver(site.groups, machines=machines)
    assert [each.state for each in successor.list()] == [EngineState.ENDED]
    successor.close()
    site.driver.destroy(spec.name, spec.uuid)


@each_model
def test_end_is_told_with_its_time_and_exit_code(site: Site) -> None:
    spec = site.create(site.spec(0, "date +%s >/tmp/joboutputs/end; exit 7"))
    site.wait_for_end(spec)

    def found() -> Observed:
        return next(each for each in site.driver.list() if each.uuid == spec.uuid)

    wait_for(lambda: found().usage.exit_code is not None, "the program's own end is a moment behind")
    assert found().usage.exit_code == 7
    assert abs((found().usage.ended_time or 0.0) - float(site.output(spec, "end"))) < 5


def test_vanishing_directories_fail_no_creation(site: Site) -> None:
    with tempfile.TemporaryDirectory(prefix="vac-test-", dir="/opt") as name:
        place, over = Path(name), threading.Event()
        place.chmod(0o755)

        def come_and_go() -> None:
            while not over.is_set():
                for change in (Path.mkdir, Path.rmdir):
                    for number in range(20):
                        change(place / f"d{number}")
                    over.wait(0.02)

        churn = threading.Thread(target=come_and_go)
        churn.start()
        try:
            for number in range(10):
                site.create(site.spec(number, tmp_binds=(f"{place}/fresh",)))
        finally:
            over.set()
            churn.join()


def test_console_log_of_a_machine_that_says_much_stays_small(site: Site) -> None:
    script = "echo begin; for i in 1 2 3; do yes | head -c 100000000; sleep 1.5; done; echo the end\n"
    spec = site.create(site.spec(0, script))
    site.wait_for_end(spec)
    log = spec.directory / "console.log"
    assert log.stat().st_size > 300_000_000
    assert log.stat().st_blocks * 512 < 150_000_000
    site.driver.destroy(spec.name, spec.uuid)
    content = log.read_text()
    assert content.startswith("begin\ny\n")
    assert content.endswith("y\nthe end\n")
    assert "bytes were left out here" in content
    assert len(content) < 10_000_000


def test_needless_system_calls_are_refused_unless_nested(site: Site) -> None:
    script = """
        unshare --user true 2>/dev/null && echo nested >>$JOBOUTPUTS/can
        python3 -c 'import ctypes; print(ctypes.CDLL(None).syscall(250, 0, -3, 1))' >>$JOBOUTPUTS/keyctl
        grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status >$JOBOUTPUTS/status
        : >>$JOBOUTPUTS/can
    """
    for number, nested in enumerate((False, True)):  # one after the other: waiting for one drops others' ends
        spec = site.create(site.spec(number, script, container_nested=nested))
        site.wait_for_end(spec)
        assert site.output(spec, "status").split() == ["NoNewPrivs:", "1", "Seccomp:", "2"]
        assert site.output(spec, "keyctl").strip() == "-1"
        assert site.output(spec, "can") == ("nested\n" if nested else "")


Failure = tuple[Optional[str], dict[str, Any], str]
"""user_data, the machinetype's options, and what the reason says."""
BWRAP_FAILURES: list[Failure] = [
    ("", {"root_image": "/not/there"}, "root_image /not/there can't be found; bubblewrap takes / or"),
    ("", {"root_image": "image.sif"}, "can't be found"),
    ("", {"root_image": "http://a/b"}, "can't be found"),
    ("", {"container_command": "/not/there"}, "container_command /not/there does not exist"),
    ("", {"container_command": "/etc/passwd"}, "/etc/passwd is not a file that user"),
    ("", {"token_dir": Path("/not/there")}, "bwrap: Can't find source path /not/there"),
    (None, {}, "container_command /user_data does not exist"),
    ("#!/not/there/interpreter\n", {}, "bwrap: execvp /user_data: No such file or directory"),
]
APPTAINER_FAILURES: list[Failure] = [
    ("", {"root_image": "/not/there"}, "root_image /not/there can't be found"),
    ("", {"root_image": "docker://busybox"}, "files/docker:/busybox can't be found"),
    ("", {"root_image": "oras://a/b"}, "files/oras:/a/b can't be found"),
    ("", {"root_image": "--fakeroot"}, "files/--fakeroot can't be found"),
    ("", {"root_image": "http://a/b"}, "image http://a/b"),
    ("", {"root_image": "/etc/passwd"}, "/etc/passwd"),
    ("", {"container_command": "/not/there"}, "stat /not/there: no such file or directory"),
    ("", {"container_command": "/etc/motd"}, "permission denied"),
    ("", {"token_dir": Path("/not/there")}, "mount source /not/there doesn't exist"),
    (None, {}, "stat /user_data: no such file or directory"),
    ("#!/not/there/interpreter\n", {}, "no such file or directory"),
]


@pytest.mark.parametrize(
    ("site", "user_data", "options", "reason"),
    [(BWRAP, *each) for each in BWRAP_FAILURES] + [(APPTAINER, *each) for each in APPTAINER_FAILURES],
    indirect=["site"],
)
def test_failed_creation_has_one_reason_and_leaves_nothing(
    site: Site, user_data: str | None, options: dict[str, Any], reason: str
) -> None:
    spec = site.spec(0, **options)
    (spec.directory / "user_data").unlink()
    if user_data is not None:
        (spec.directory / "user_data").write_text(user_data)
    with pytest.raises(CreationFailed) as failure:
        site.driver.create(spec)
    assert reason in str(failure.value)
    assert len(str(failure.value).splitlines()) == 1
    assert site.groups.names() == []
    assert not processes_of(str(site.settings.state_dir))


@each_model
@pytest.mark.parametrize(
    ("user", "reason"), [("nosuchuser", "there is no account nosuchuser"), ("root", "is root")]
)
def test_account_must_be_there_and_unprivileged(site: Site, user: str, reason: str) -> None:
    settings = dataclasses.replace(site.settings, singularity_user=user)
    with pytest.raises(CreationFailed, match=reason):
        site.driver.create(dataclasses.replace(site.spec(), settings=settings))


def test_unreachable_state_dir_is_told(site: Site) -> None:
    spec = site.spec()
    site.settings.state_dir.chmod(0o700)
    with pytest.raises(CreationFailed, match=r"can't reach .*/user_data: every directory above"):
        site.driver.create(spec)


@each_model
def test_command_that_ends_at_once_is_a_machine_that_has_run(site: Site) -> None:
    spec = site.create(site.spec(0, container_command="/bin/true"))
    site.wait_for_end(spec)


@each_model
def test_directory_tree_as_root_image(site: Site) -> None:
    make_tree(site.settings.state_dir / "machinetypes/t/files/tree")
    spec = site.create(site.spec(0, "ls / >/tmp/joboutputs/ls; cat /etc/motd\n", root_image="tree"))
    site.wait_for_end(spec)
    listed = site.output(spec, "ls").split()
    assert {"bin", "dev", "etc", "proc", "tmp", "user_data", "var"} <= set(listed)
    assert (spec.directory / "console.log").read_text() == "the image"


def test_sixty_four_machines(site: Site) -> None:
    begun = time.monotonic()
    for number in range(64):
        site.create(site.spec(number))
    created = time.monotonic()
    assert len(site.driver.list()) == 64
    listed = time.monotonic()
    site.driver.contacts()
    traced = time.monotonic()
    for machine in site.driver.list():
        site.driver.destroy(machine.name, machine.uuid)
    destroyed = time.monotonic()
    print(
        f"64 machines: created in {created - begun:.2f} s, listed in {(listed - created) * 1000:.1f} ms, "
        f"traced in {(traced - listed) * 1000:.1f} ms, "
        f"destroyed in {destroyed - traced:.2f} s"
    )


def test_ended_machines_leave_no_zombies(site: Site) -> None:
    def zombies() -> set[str]:
        of_ours = f") Z {os.getpid()} "
        stats = map(read_text, Path("/proc").glob("[0-9]*/stat"))
        return {stat.partition(" ")[0] for stat in stats if of_ours in stat}

    others = zombies()  # of drivers that tests before this one have closed
    for number in range(3):
        site.wait_for_end(site.create(site.spec(number, "exit 0\n")))

    def reaped() -> bool:
        site.driver.list()
        return zombies() <= others

    wait_for(reaped, "bwrap's exit is a moment behind its machine's")
