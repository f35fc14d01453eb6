"""The Nagios check."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.state_dirs import new_state
from vac import roles
from vac.cli.check_vacd import CRITICAL, check, main
from vac.machines import status as statefiles
from vac.machines.layout import StateDir
from vac.machines.status import Status, TypeFacts
from vac.roles import Restarts

NOW = 1_000_000.0


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    made = new_state(tmp_path)
    for role in ("factory", "responder"):
        statefiles.touch_heartbeat(made, role, NOW - 60)
    statefiles.write_counts(made, 5, 8, 6, 16, 62.5)
    return made


COUNTS = " (5/8 6/16) | machines=5;;;0;8 processors=6;;;0;16 hs06=62.50;;;0"


def test_all_is_well(state: StateDir) -> None:
    assert check(state, 600, NOW) == (0, "Factory + responder ok" + COUNTS)


@pytest.mark.parametrize("role", ["factory", "responder"])
def test_a_heartbeat_that_is_missing_or_old_is_critical(state: StateDir, role: str) -> None:
    statefiles.touch_heartbeat(state, role, NOW - 5400)
    assert check(state, 600, NOW) == (2, f"No vacd {role} heartbeat in 1.50 hours" + COUNTS)
    assert check(state, 7200, NOW)[0] == 0
    state.heartbeat(role).unlink()
    assert check(state, 7200, NOW) == (2, f"No vacd {role} heartbeat file" + COUNTS)


def test_an_error_of_the_factory_is_critical_and_breaks_no_performance_data(state: StateDir) -> None:
    statefiles.write_error(state, ("creation", "it | failed\nat length"))
    assert check(state, 600, NOW) == (2, "it / failed" + COUNTS)


def test_a_crash_loop_is_critical_until_five_minutes_after_it(state: StateDir) -> None:
    times = (NOW - 9999, NOW - 40, NOW - 38, NOW - 34)
    ended = "ended with exit status 1; starts again in 4 s"
    roles.write_restarts(
        state.root, {"factory": Restarts(4, times, ended), "page": Restarts(2, times[2:], "")}
    )
    assert check(state, 600, NOW) == (2, f"vacd-factory restarted 3 times in 5 minutes: {ended}" + COUNTS)
    statefiles.touch_heartbeat(state, "factory", NOW + 261)
    statefiles.touch_heartbeat(state, "responder", NOW + 261)
    assert check(state, 600, NOW + 261)[0] == 0


@pytest.mark.parametrize("content", ["", "[]", "{", '{"factory": {"count": 5}}', '{"factory": 3}'])
def test_unreadable_restarts_are_none(state: StateDir, content: str) -> None:
    (state.root / roles.RESTARTS).write_text(content)
    assert roles.read_restarts(state.root) == {}
    assert check(state, 600, NOW)[0] == 0


def test_a_warning_of_the_factory_is_a_warning(state: StateDir) -> None:
    statefiles.write(state, Status(warnings=("lhcb-prod fails here alone",)))
    assert check(state, 600, NOW) == (1, "lhcb-prod fails here alone" + COUNTS)


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"engines": {"docker": "no answer for 34 s", "libvirt": None}}, "docker: no answer for 34 s"),
        ({"pipes": {"vo": "no such host"}}, "vo: no such host"),
        ({"guard_name": "disk", "guard": "0.1 GB free"}, "Nothing is created: 0.1 GB free"),
    ],
)
def test_what_keeps_machines_from_being_made_is_a_warning(
    state: StateDir, told: dict[str, Any], line: str
) -> None:
    statefiles.write(state, Status(**told))
    assert check(state, 600, NOW) == (1, line + COUNTS)


@pytest.mark.parametrize("guard", ["full", "draining", None])
def test_what_keeps_them_in_ordinary_life_is_not(state: StateDir, guard: str | None) -> None:
    statefiles.write(state, Status(guard_name=guard, guard="so", engines={"docker": None}))
    assert check(state, 600, NOW)[0] == 0


class Disk:
    """Result of statvfs."""

    def __init__(self, flag: int = 0, blocks: int = 9, inodes: int = 9) -> None:
        self.f_flag, self.f_bfree, self.f_files, self.f_ffree = flag, blocks, 9, inodes


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        (Disk(os.ST_RDONLY), "is read-only"),
        (Disk(blocks=0), "is full"),
        (Disk(inodes=0), "has no inodes left"),
    ],
)
def test_a_disk_that_takes_nothing_is_critical_at_once(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, disk: Disk, words: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    assert check(state, 600, NOW) == (2, f"{state.root} {words}{COUNTS}")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"warnings": []}', '{"warnings": 5}'])
def test_a_status_without_warnings_is_none(state: StateDir, content: str) -> None:
    state.status.write_text(content)
    assert check(state, 600, NOW)[0] == 0


@pytest.mark.parametrize("content", [None, "", "1 2 3"])
def test_without_counts_there_are_no_numbers(state: StateDir, content: str | None) -> None:
    state.counts.unlink()
    if content is not None:
        state.counts.write_text(content)
    assert check(state, 600, NOW) == (0, "Factory + responder ok")


def test_a_state_dir_that_is_gone_is_critical(tmp_path: Path) -> None:
    assert check(StateDir(tmp_path / "gone"), 600, NOW) == (2, f"{tmp_path}/gone: No such file or directory")


def test_it_prints_one_line_and_exits_as_nagios_wants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["60", "--state-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().out == "No vacd factory heartbeat file\n"


@pytest.mark.allow_subprocess
def test_it_imports_nothing_but_the_standard_library(tmp_path: Path) -> None:
    script = (
        "import sys, vac.cli.check_vacd\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} - set(sys.argv[1].split())))\n"
    )
    names = " ".join(
        {name.partition(".")[0] for name in sys.modules} - {"vac"}
        if sys.version_info < (3, 10)
        else sys.stdlib_module_names  # type: ignore[attr-defined]
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", script, names],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path.cwd(),
    )
    assert set(result.stdout.split()) <= {"__main__", "vac", "__mp_main__"}


def test_a_heartbeat_in_the_future_is_critical(state: StateDir) -> None:
    statefiles.touch_heartbeat(state, "responder", NOW + 7200)
    line = "vacd responder heartbeat is 2.00 hours in the future: was the clock set back?"
    assert check(state, 600, NOW) == (2, line + COUNTS)


def test_draining_is_said_and_no_trouble(state: StateDir) -> None:
    statefiles.write(state, Status(guard_name="draining", guard="this factory is draining: new disk"))
    assert check(state, 600, NOW) == (
        0,
        "Factory + responder ok, this factory is draining: new disk" + COUNTS,
    )


def test_a_factory_without_a_share_for_anything_is_a_warning(state: StateDir) -> None:
    statefiles.write(state, Status(machinetypes=(TypeFacts("a"), TypeFacts("b"))))
    assert check(state, 600, NOW) == (1, "No machinetype has a share" + COUNTS)
    statefiles.write(state, Status(machinetypes=(TypeFacts("a"), TypeFacts("b", target_share=1.0))))
    assert check(state, 600, NOW)[0] == 0


def test_thresholds_are_options_and_mistakes_are_unknown(
    state: StateDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)
    place = ["--state-dir", str(state.root)]
    for words, status in ((["-w", "30"], 1), (["-w", "90"], 0), (["-c", "30"], 2), (["30"], 2), ([], 0)):
        assert main([*words, *place]) == status, words
    for words in (["soon"], ["--no-such-option"], ["-w"]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 3
        told = capsys.readouterr()
        assert told.out.startswith("check-vacd: ") and told.out.count("\n") == 1


@pytest.mark.allow_subprocess
@pytest.mark.parametrize("output", ["/dev/full", "&-"])
def test_a_line_that_can_not_be_written_changes_no_status(tmp_path: Path, output: str) -> None:
    script = "import sys; from vac.cli.check_vacd import main; sys.exit(main())"
    words = [
        "sh",
        "-c",
        f'exec "$@" >{output}',
        "sh",
        sys.executable,
        "-c",
        script,
        "--state-dir",
        str(tmp_path),
    ]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (CRITICAL, "")
