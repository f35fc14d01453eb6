"""vacd's processes under kill, stop, hang and log rotation."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import termios
import time
from pathlib import Path

import pytest

from tests.faults.conftest import PATIENCE_SECONDS, ROOT, Vacd, open_files, wait_for_end
from vac.roles import crash_loop, read_restarts

LOGS = ("vacd", "vacd-factory", "vacd-responder")


def both_ready(vacd: Vacd) -> dict[str, int]:
    return {role: vacd.wait_for(role, "ready")["pid"] for role in ("factory", "responder")}


def test_a_killed_role_is_started_again_after_a_growing_pause(vacd: Vacd) -> None:
    vacd.start(timing={"first_pause": 0.05})
    pids = both_ready(vacd)
    seen = {pids["factory"]}
    for _ in range(3):
        os.kill(pids["factory"], signal.SIGKILL)
        pids["factory"] = vacd.wait_for("factory", "ready")["pid"]
        seen.add(pids["factory"])
    assert len(seen) == 4
    log = vacd.log()
    ends = [line for line in log.splitlines() if "ended by SIGKILL" in line]
    assert [line.rpartition("starts again in ")[2] for line in ends] == ["0.05 s", "0.1 s", "0.2 s"]
    assert log.count("responder started") == 1


def test_a_role_that_ran_well_is_restarted_after_a_short_pause(vacd: Vacd) -> None:
    vacd.start(timing={"first_pause": 0.05, "stable": 0.0})
    pid = vacd.wait_for("factory", "ready")["pid"]
    for _ in range(2):
        os.kill(pid, signal.SIGKILL)
        pid = vacd.wait_for("factory", "ready")["pid"]
    assert vacd.log().count("starts again in 0.05 s") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_ends_its_roles_and_itself(vacd: Vacd, number: signal.Signals) -> None:
    vacd.start("--config", "/etc/a", "--config", "b")
    assert vacd.process is not None
    for role in ("factory", "responder"):
        report = vacd.wait_for(role, "ready")
        assert report["configs"] == ["/etc/a", str(ROOT / "b")]
        assert os.getsid(report["pid"]) == report["pid"], "Ctrl-C would reach the role, too"
    vacd.signal(number)
    vacd.wait_for("factory", "stopped")
    vacd.wait_for("responder", "stopped")
    assert vacd.wait() == 0
    assert f"stopping: {number.name}" in vacd.log()
    assert vacd.log().count("ended with exit status 0") == 2


def test_told_to_stop_at_once_it_leaves_nothing_behind(vacd: Vacd) -> None:
    vacd.start("--pid-file", str(vacd.directory / "pid"), environ=notify(vacd))
    vacd.wait_for_notification("STATUS=")
    vacd.signal(signal.SIGTERM)
    assert vacd.wait() == 0
    assert not (vacd.directory / "pid").exists()
    assert vacd.log().count("started, process") - 1 == vacd.log().count("(process ")


def test_a_role_that_does_not_stop_is_killed(vacd: Vacd) -> None:
    vacd.start(factory="hanging", timing={"stop": 3.0})
    both_ready(vacd)
    vacd.signal(signal.SIGTERM)
    vacd.wait_for("factory", "told to stop")
    assert vacd.wait() == 0
    assert "doesn't end: killing it" in vacd.log()


def test_a_role_that_hangs_is_replaced_and_dumps_its_stack(vacd: Vacd) -> None:
    vacd.start(
        factory="hanging",
        responder="lively",
        stuck_seconds=10,
        timing={"first_pause": 0.05, "dump": 3.0},
    )
    both_ready(vacd)
    vacd.wait_for("factory", "ready")
    assert "has been stuck for 10 s" in vacd.log()
    assert "in hanging" in vacd.log("vacd-factory")
    assert vacd.log().count("responder started") == 1


def test_a_role_with_a_bug_is_restarted_and_forges_no_log_line(vacd: Vacd) -> None:
    vacd.start(factory="failing", timing={"first_pause": 0.05})
    vacd.wait_for("factory", "failing")
    vacd.wait_for("factory", "failing")
    lines = vacd.log("vacd-factory").splitlines()
    assert any("RuntimeError: a bug" in line for line in lines)
    assert all(" vacd-factory[" in line for line in lines)
    assert "factory (process" in vacd.log()
    assert "ended with exit status 1" in vacd.log()


def test_vacd_leaves_to_another_what_that_keeps_doing(vacd: Vacd) -> None:
    state_dir = vacd.directory / "state"
    state_dir.mkdir()
    timing = {"first_pause": 0.05, "longest_pause": 0.05, "other": 1.0}
    vacd.start(factory="superfluous", timing=timing, state_dir=str(state_dir))
    vacd.wait_for("factory", "superfluous")
    vacd.wait_for("factory", "superfluous")
    assert vacd.wait() == 1
    assert read_restarts(state_dir) == {}, "the other's restarts are told there"
    assert "ending: another vacd works on the same state_dir" in vacd.log()


def test_vacd_waits_for_what_a_killed_one_has_left_behind(vacd: Vacd) -> None:
    vacd.start(factory="superfluous", timing={"first_pause": 0.05, "longest_pause": 0.05, "other": 1000.0})
    for _ in range(5):
        vacd.wait_for("factory", "superfluous")
    vacd.signal(signal.SIGTERM)
    assert vacd.wait() == 0


def test_a_role_that_cannot_be_started_is_tried_again(vacd: Vacd) -> None:
    vacd.log_dir.joinpath("vacd-factory").mkdir()
    vacd.start(timing={"first_pause": 0.05}, environ=notify(vacd))
    vacd.wait_for("responder", "ready")
    vacd.wait_for_notification("STATUS=factory can't be started")
    vacd.log_dir.joinpath("vacd-factory").rmdir()
    vacd.wait_for("factory", "ready")


def test_rotated_logs_go_on_in_new_files(vacd: Vacd) -> None:
    vacd.start(responder="unprivileged")
    both_ready(vacd)
    old = vacd.directory / "old"
    vacd.log_dir.rename(old)
    vacd.log_dir.mkdir(mode=0o700)
    vacd.signal(signal.SIGHUP)
    for role in ("factory", "responder"):
        vacd.wait_for(role, "woken")
    before = {name: (old / name).read_text() for name in LOGS}
    vacd.signal(signal.SIGUSR1)
    for role in ("factory", "responder"):
        vacd.wait_for(role, "woken")
        assert "INFO woken" in vacd.log(f"vacd-{role}")
    vacd.signal(signal.SIGTERM)
    assert vacd.wait() == 0
    assert "stopping: SIGTERM" in vacd.log()
    assert {name: (old / name).read_text() for name in LOGS} == before


def test_logs_renamed_without_a_signal_go_on_in_new_files(vacd: Vacd) -> None:
    vacd.start(responder="unprivileged", timing={"log_check": 0.1})
    both_ready(vacd)
    old = vacd.directory / "old"
    vacd.log_dir.rename(old)
    vacd.log_dir.mkdir(mode=0o700)
    for role in ("factory", "responder"):
        vacd.wait_for(role, "woken")
    before = {name: (old / name).read_text() for name in LOGS}
    vacd.signal(signal.SIGTERM)
    assert vacd.wait() == 0
    assert "stopping: SIGTERM" in vacd.log()
    for name in LOGS[1:]:
        assert "INFO woken" in vacd.log(name)
    assert {name: (old / name).read_text() for name in LOGS} == before


def test_a_crash_loop_is_noted_in_the_state_dir(vacd: Vacd) -> None:
    state_dir = vacd.directory / "state"
    state_dir.mkdir()
    vacd.start(factory="failing", timing={"first_pause": 0.05}, state_dir=str(state_dir))
    vacd.wait_for("responder", "ready")
    while (found := crash_loop(state_dir, time.time())) is None:
        vacd.wait_for("factory", "failing")
    assert found.startswith("vacd-factory restarted 3 times in 5 minutes: (process ")
    assert "ended with exit status 1" in found
    assert list(read_restarts(state_dir)) == ["factory"]
    vacd.signal(signal.SIGTERM)
    assert vacd.wait() == 0


def test_an_end_on_purpose_is_no_failure(vacd: Vacd) -> None:
    state_dir = vacd.directory / "state"
    state_dir.mkdir()
    vacd.start(factory="beginning_anew", timing={"first_pause": 0.05}, state_dir=str(state_dir))
    for _ in range(5):
        vacd.wait_for("factory", "beginning anew")
    vacd.signal(signal.SIGTERM)
    assert vacd.wait() == 0
    assert read_restarts(state_dir) == {}
    assert "ended with exit status 79" in vacd.log()


def test_log_files_that_cannot_be_made_anew_are_kept(vacd: Vacd) -> None:
    vacd.start()
    both_ready(vacd)
    old = vacd.directory / "old"
    vacd.log_dir.rename(old)
    vacd.signal(signal.SIGHUP)
    vacd.wait_for("factory", "woken")
    vacd.signal(signal.SIGTERM)
    assert vacd.wait() == 0
    assert f"can't reopen {vacd.log_dir}/vacd: No such file" in (old / "vacd").read_text()
    assert "INFO woken" in (old / "vacd-factory").read_text()


def test_roles_end_when_their_supervisor_is_killed(vacd: Vacd) -> None:
    vacd.start()
    pidfds = [os.pidfd_open(pid) for pid in both_ready(vacd).values()]
    vacd.signal(signal.SIGKILL)
    vacd.wait_for("factory", "stopped")
    vacd.wait_for("responder", "stopped")
    for pidfd in pidfds:
        wait_for_end(pidfd)
        os.close(pidfd)
    assert "stopping: the supervisor has ended" in vacd.log("vacd-factory")


def test_a_role_that_hangs_soon_follows_its_supervisor(vacd: Vacd) -> None:
    vacd.start(factory="hanging", orphan_seconds=3.0)
    pidfd = os.pidfd_open(both_ready(vacd)["factory"])
    vacd.signal(signal.SIGKILL)
    vacd.wait_for("factory", "told to stop")
    wait_for_end(pidfd)
    os.close(pidfd)


def notify(vacd: Vacd, watchdog_seconds: float | None = None) -> dict[str, str]:
    environ = {"NOTIFY_SOCKET": str(vacd.notifications.path)}
    if watchdog_seconds is not None:
        environ["WATCHDOG_USEC"] = str(int(watchdog_seconds * 1e6))
    return environ


def test_the_service_manager_learns_of_readiness_life_and_end(vacd: Vacd) -> None:
    vacd.start(factory="ready_when_woken", environ=notify(vacd, watchdog_seconds=0.1))
    environ = vacd.wait_for("responder", "ready")["environ"]
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "VAC_SUPERVISOR_FD"} & set(environ)
    vacd.wait_for("factory", "running")
    lines = vacd.wait_for_notification("STATUS=factory running; responder ready")
    lines += [line for _ in range(3) for line in vacd.wait_for_notification("WATCHDOG=1")]
    assert "READY=1" not in lines
    vacd.signal(signal.SIGUSR1)
    assert "STATUS=factory ready; responder ready" in vacd.wait_for_notification("READY=1")
    vacd.signal(signal.SIGTERM)
    vacd.wait_for_notification("STOPPING=1")
    assert vacd.wait() == 0


def test_what_is_needed_on_demand_comes_changes_and_goes(vacd: Vacd) -> None:
    vacd.start(factory="needing", environ=notify(vacd), timing={"first_pause": 0.05})
    both_ready(vacd)
    vacd.wait_for_notification("STATUS=factory ready; responder ready")
    assert "web" not in vacd.log()
    vacd.signal(signal.SIGUSR1)
    pid = vacd.wait_for("web", "ready")["pid"]
    vacd.wait_for_notification("STATUS=factory ready; responder ready; web ready")
    os.kill(pid, signal.SIGKILL)
    another = vacd.wait_for("web", "ready")["pid"]
    assert another != pid
    vacd.wait_for("factory", "said")
    vacd.signal(signal.SIGUSR1)
    assert vacd.wait_for("web", "stopped")["pid"] == another
    last = vacd.wait_for("web", "ready")["pid"]
    assert last != another
    for _ in range(2):
        vacd.wait_for("factory", "said")
        vacd.signal(signal.SIGUSR1)
    assert vacd.wait_for("web", "stopped")["pid"] == last
    while vacd.wait_for_notification("STATUS=")[-1] != "STATUS=factory ready; responder ready":
        pass
    assert vacd.log().count("starts again") == 1, "only what nobody wanted to end is waited for"
    vacd.signal(signal.SIGTERM)
    assert vacd.wait() == 0


def answer_at(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, PATIENCE_SECONDS) as connection:
        return connection.recv(100)


def test_the_port_of_a_dead_role_is_held(vacd: Vacd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        first = free.getsockname()
    with socket.create_server(("127.0.0.1", 0)) as free:
        second = free.getsockname()
    purposes = [f"127.0.0.1:{port} x" for _, port in (first, second)]
    vacd.start(factory="needing", environ=notify(vacd), timing={"first_pause": 1.0}, purposes=purposes)
    both_ready(vacd)
    vacd.signal(signal.SIGUSR1)
    vacd.wait_for("factory", "said")
    vacd.wait_for_notification("FDNAME=127.0.0.1|")
    pid = int(answer_at(first))
    assert vacd.wait_for("web", "ready")["pid"] == pid
    os.kill(pid, signal.SIGKILL)
    vacd.wait_for_notification("STATUS=factory ready; responder ready; web (process")
    with pytest.raises(OSError, match="in use"), socket.create_server(first):
        pass
    assert int(answer_at(first)) != pid
    vacd.wait_for("web", "ready")
    vacd.signal(signal.SIGUSR1)
    vacd.wait_for("web", "stopped")
    assert vacd.wait_for_notification("FDSTOREREMOVE=1")
    assert answer_at(second)
    with socket.create_server(first):
        pass
    vacd.signal(signal.SIGTERM)
    assert vacd.wait() == 0


def test_a_dead_role_shows_in_the_status(vacd: Vacd) -> None:
    vacd.start(environ=notify(vacd), timing={"first_pause": 0.05})
    os.kill(vacd.wait_for("factory", "ready")["pid"], signal.SIGKILL)
    lines = vacd.wait_for_notification("STATUS=factory (process")
    assert "ended by SIGKILL" in lines[-1]


def test_what_a_dead_role_leaves_is_adopted_and_reaped(vacd: Vacd) -> None:
    fifo = vacd.directory / "fifo"
    os.mkfifo(fifo)
    descriptor = os.open(fifo, os.O_RDWR)
    vacd.start(factory="leaving", environ={"VAC_TEST_FIFO": str(fifo)}, timing={"first_pause": 600.0})
    assert vacd.process is not None
    orphan = vacd.wait_for("factory", "child")["child"]
    pids = both_ready(vacd)
    assert not [target for target in open_files(orphan) if target.startswith("socket:")]
    pidfd, orphan_pidfd = os.pidfd_open(pids["factory"]), os.pidfd_open(orphan)
    os.kill(pids["factory"], signal.SIGKILL)
    wait_for_end(pidfd)
    assert f"PPid:\t{vacd.process.pid}\n" in Path(f"/proc/{orphan}/status").read_text()
    os.close(descriptor)
    wait_for_end(orphan_pidfd)
    os.close(pidfd)
    os.close(orphan_pidfd)
    for _ in range(2):  # the second round begins after the first one's reaping
        vacd.signal(signal.SIGUSR1)
        vacd.wait_for("responder", "woken")
    assert not Path(f"/proc/{orphan}").exists()


def test_detached_it_has_no_terminal_and_says_where_it_is(vacd: Vacd) -> None:
    pid_file = vacd.directory / "pid"
    controller, terminal = os.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    finished = subprocess.run(
        vacd.command("--detach", "--pid-file", str(pid_file)),
        env=vacd.environment("good", "good", {}),
        cwd=ROOT,
        stdin=terminal,
        start_new_session=True,
        preexec_fn=take_terminal,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert finished.returncode == 0
    both_ready(vacd)
    pid = int(pid_file.read_text())
    vacd.own(pid)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert fields[4] == "0", "it has a controlling terminal"
    assert str(Path(f"/proc/{pid}/fd/0").readlink()) == "/dev/null"
    assert str(Path(f"/proc/{pid}/fd/2").readlink()) == str(vacd.log_dir / "vacd")
    assert str(Path(f"/proc/{pid}/cwd").readlink()) == "/"
    assert Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0") == b"vacd"
    again = vacd.command("--detach", "--pid-file", str(pid_file))
    environ = vacd.environment("good", "good", {})
    second = subprocess.run(
        again, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert (second.returncode, int(pid_file.read_text())) == (2, pid), "a second one leaves the first alone"
    assert "stop it first" in second.stderr
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGTERM)
    vacd.wait_for("factory", "stopped")
    wait_for_end(pidfd)
    assert not pid_file.exists()
    for descriptor in (pidfd, controller, terminal):
        os.close(descriptor)


def test_a_role_runs_alone(vacd: Vacd) -> None:
    vacd.start("--role", "factory")
    pid = vacd.wait_for("factory", "ready")["pid"]
    assert vacd.process is not None
    assert pid == vacd.process.pid
    assert Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0") == b"vacd-factory"
    vacd.log_dir.joinpath("vacd-factory").rename(vacd.directory / "old")
    vacd.signal(signal.SIGHUP)
    vacd.wait_for("factory", "woken")
    assert "INFO woken" in vacd.log("vacd-factory")
    vacd.signal(signal.SIGTERM)
    vacd.wait_for("factory", "stopped")
    assert vacd.wait() == 0
