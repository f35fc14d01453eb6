"""The parts of vacd that need no process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from vac.daemon import role_process
from vac.daemon.command import command_for, main, make_parser
from vac.daemon.role_supervisor import Child, RoleSupervisor, describe_end, next_pause
from vac.daemon.supervisor import Notifier, notifier_from, stored_sockets
from vac.roles import ROLES, Role


def test_pauses_double_up_to_the_longest() -> None:
    pause: float | None = None
    pauses = []
    for _ in range(8):
        pause = next_pause(pause, 3.0)
        pauses.append(pause)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(("ran_seconds", "pause"), [(0.0, 60), (119.9, 60), (120.0, 1), (1e6, 1)])
def test_a_process_that_ran_well_is_started_again_at_once(ran_seconds: float, pause: float) -> None:
    assert next_pause(60, ran_seconds) == pause


@pytest.mark.parametrize(
    ("wait_status", "text"),
    [
        (0, "ended with exit status 0"),
        (3 << 8, "ended with exit status 3"),
        (signal.SIGKILL, "ended by SIGKILL"),
        (signal.SIGSEGV | 0x80, "ended by SIGSEGV"),
        (45, "ended by signal 45"),
    ],
)
def test_an_end_is_told_in_words(wait_status: int, text: str) -> None:
    assert describe_end(wait_status) == text


@pytest.mark.parametrize(
    ("environ", "address", "seconds"),
    [
        ({}, None, None),
        ({"NOTIFY_SOCKET": ""}, None, None),
        ({"NOTIFY_SOCKET": "/run/x"}, "/run/x", None),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "120000000"}, "/run/x", 120.0),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "500000", "WATCHDOG_PID": "7"}, "/run/x", 0.5),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "500000", "WATCHDOG_PID": "8"}, "/run/x", None),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "0"}, "/run/x", None),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "soon"}, "/run/x", None),
    ],
)
def test_the_manager_is_found_in_the_environment(
    environ: dict[str, str], address: str | None, seconds: float | None
) -> None:
    assert notifier_from(environ, pid=7) == Notifier(address, seconds)


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_gets_assignments_in_one_datagram(tmp_path: Path, abstract: bool) -> None:
    address = f"@vac-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0") if abstract else address)
        manager.settimeout(60)
        Notifier(address).send("READY=1", "STATUS=all is well")
        assert manager.recv(1000) == b"READY=1\nSTATUS=all is well"


def test_the_manager_stores_sockets_and_hands_them_back(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, socket.socket() as kept:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        Notifier(str(tmp_path / "notify")).send("FDSTORE=1", descriptors=[kept.fileno()])
        text, ancillary, _, _ = manager.recvmsg(100, socket.CMSG_SPACE(4))
        assert text == b"FDSTORE=1"
        stored = int.from_bytes(ancillary[0][2], sys.byteorder)
        assert os.fstat(stored) == os.fstat(kept.fileno())
        os.close(stored)


@pytest.mark.parametrize("changes", [{"LISTEN_PID": "8"}, {"LISTEN_FDS": "x"}, {"LISTEN_FDS": "0"}])
def test_sockets_for_others_are_left_alone(changes: dict[str, str]) -> None:
    environ = {"LISTEN_PID": "7", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "127.0.0.1|9995", **changes}
    assert stored_sockets(environ, 7) == {}
    assert environ == {}


def test_a_manager_that_is_gone_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    with caplog.at_level(logging.INFO, logger="vac"):
        notifier.send("READY=1")
        notifier.send("WATCHDOG=1")
    assert len(caplog.records) == 1
    assert "nobody" in caplog.text


def test_without_a_manager_nothing_is_sent_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    Notifier().send("READY=1")
    assert not caplog.records


def test_the_link_carries_messages_files_and_its_end(tmp_path: Path) -> None:
    ours, theirs = role_process.link_pair()
    with ours, theirs:
        role_process.send(theirs, b"ready")
        role_process.send(theirs, b"alive")
        received = [role_process.receive(ours) for _ in range(3)]
        assert received == [(b"ready", None), (b"alive", None), (role_process.GONE, None)]

        with (tmp_path / "log").open("w") as log:
            role_process.send(ours, b"wake", log.fileno())
        message, descriptor = role_process.receive(theirs)
        assert message == b"wake"
        assert descriptor is not None
        os.write(descriptor, b"new file")
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)
        assert (tmp_path / "log").read_text() == "new file"

        ours.close()
        assert role_process.receive(theirs) == (role_process.GONE, None)
        role_process.send(theirs, b"alive")


def test_a_reader_that_lags_behind_never_blocks_the_sender() -> None:
    ours, theirs = role_process.link_pair()
    with ours, theirs:
        for _ in range(5000):
            role_process.send(theirs, b"alive")
        assert role_process.receive(ours) == (b"alive", None)


def test_a_role_takes_its_link_out_of_the_environment() -> None:
    ours, theirs = role_process.link_pair()
    with ours:
        theirs.set_inheritable(True)
        environ = {role_process.LINK_VARIABLE: str(theirs.detach()), "PATH": "/bin"}
        link = role_process.inherited(environ)
        assert link is not None
        with link:
            assert environ == {"PATH": "/bin"}
            assert not link.get_inheritable()
            role_process.send(link, b"ready")
        assert role_process.receive(ours) == (b"ready", None)
    assert role_process.inherited({}) is None


@pytest.mark.parametrize(("stuck_seconds", "kill_failed_time"), [(600.0, 1300.0), (None, float("inf"))])
def test_a_role_that_killing_does_not_help_is_hopeless(
    stuck_seconds: float | None, kill_failed_time: float
) -> None:
    supervisor = RoleSupervisor(Role("factory", "m", stuck_seconds=stuck_seconds))
    assert supervisor.kill_failed_time() == float("inf")
    ours, theirs = role_process.link_pair()
    with ours, theirs:
        supervisor.child = Child(pid=1, link=ours, start_time=5.0, alive_time=100.0)
        assert supervisor.kill_failed_time() == kill_failed_time
        role_process.send(theirs, b"alive")
        assert supervisor.hear(now=1000.0)
        assert supervisor.kill_failed_time() == kill_failed_time + 900


@pytest.mark.parametrize(
    ("on_demand", "purposes", "stops"),
    [
        (False, ["", "port 995", "port 995", "port 996", "port 996", "port 995"], [3, 5]),
        (True, ["VMs of a", "VMs of a", "VMs of b", ""], [0, 2, 3]),
    ],
)
def test_a_process_is_restarted_when_it_is_needed_for_something_else(
    monkeypatch: pytest.MonkeyPatch, on_demand: bool, purposes: list[str], stops: list[int]
) -> None:
    told: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: told.append(number))
    supervisor = RoleSupervisor(Role("r", "m", on_demand=on_demand))
    ours, theirs = role_process.link_pair()
    with ours, theirs:
        supervisor.child = Child(pid=1, link=ours, start_time=0.0, alive_time=0.0)
        for turn, purpose in enumerate(purposes):
            told.clear()
            supervisor.serve(purpose, float(turn))
            assert told == ([signal.SIGTERM] if turn in stops else [])
            assert supervisor.wanted is (bool(purpose) or not on_demand)
    assert supervisor.child.dismissed


def test_roles_are_started_with_the_options_that_vacd_got() -> None:
    arguments = make_parser(ROLES).parse_args(
        ["--config", "/etc/a", "--config", "b", "--log-level", "debug", "--log-dir", "/var/log"]
    )
    command = command_for(ROLES[0], arguments)
    alone = make_parser(ROLES).parse_args(command[command.index("--role") :])
    assert alone.role == "factory"
    assert alone.config == [Path("/etc/a"), Path.cwd() / "b"]
    assert alone.log_level == "debug"
    assert alone.log_dir is None


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (
            ["--log-dir", "/nonexistent"],
            "--log-dir: can't write /nonexistent/vacd: No such file or directory",
        ),
        (["--role", "responder", "--log-dir", "/nonexistent"], "/nonexistent/vacd-responder: No such file"),
        (["--pid-file", "/nonexistent/pid"], "--pid-file: can't write /nonexistent/pid: No such file"),
        (["--detach", "--role", "factory"], "leave out --detach"),
        (["--role", "cook"], "invalid choice: 'cook'"),
    ],
)
def test_wrong_options_are_refused_with_a_reason(
    argv: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--role", "factory"], ["--detach", "--log-dir", "/tmp"]])
def test_only_root_can_run_it(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SystemExit) as left:
        main([word.replace("/tmp", str(tmp_path)) for word in words])
    assert left.value.code == 1
    assert capsys.readouterr().err == "vacd: only root can run it: sudo systemctl start vacd\n"
