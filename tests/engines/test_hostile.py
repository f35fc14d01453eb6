"""Things that machines plant in their joboutputs, secrets in user_data, and machines that break the rules."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.engines.factory_fixture import (
    AT_ONCE,
    FactorySite,
    Kind,
    Life,
    Option,
    command_lines,
    factory_site,
)
from vac.machines.outputs import UNREADABLE

pytestmark = pytest.mark.engine

FORGED = "CRITICAL forged line"
PLANTS = {
    "link": "ln -s /etc/shadow shutdown_message",
    "loop": "ln -s shutdown_message shutdown_message",
    "fifo": "mkfifo shutdown_message",
    "huge": "echo '200 done' > shutdown_message; truncate -s 1G shutdown_message",
    "device": "mknod shutdown_message c 0 0",
    "directory": "mkdir -p shutdown_message/a/b; chmod 0 shutdown_message/a; chmod 0 shutdown_message",
}
"""Shell commands in joboutputs, by machinetype. Of devices the kernel lets nobody make more than this one."""
NAMES = f"""
touch "a
{FORGED}" "$(printf '\\033[2Jclear')" "$(printf '\\377\\376')"
mkdir "d
{FORGED}"
printf '200 done\\r\\033[31m {FORGED}\\n{FORGED}\\n' > shutdown_message
"""
KEY = "MIIEowIBAAKCAQEA7secretsecretsecret"
PRIVATE_KEY = f"-----BEGIN RSA PRIVATE KEY-----\n{KEY}\n-----END RSA PRIVATE KEY-----"


def planting(commands: str) -> Kind:
    """Machines that do this in their joboutputs, then end."""
    return Kind(f"set -e\ncd /tmp/joboutputs\n{commands}\ntouch planted\nsleep 4")


def test_what_a_machine_plants_is_unreadable_and_does_no_harm() -> None:
    shadow = Path("/etc/shadow").stat()
    kinds = {name: planting(commands) for name, commands in PLANTS.items()}
    kinds["names"] = planting(NAMES)
    with factory_site(kinds, processors=len(kinds), machines_per_cycle=AT_ONCE) as site:
        for name in PLANTS:
            first = _first(site, name)
            site.wait_for((first.directory / "shutdown_message").exists, f"{name} ends")
            assert os.path.lexists(first.directory / "joboutputs" / "planted"), f"{name} could not be planted"
            assert first.message == UNREADABLE
        names = _first(site, "names")
        _answers_about(site, names)
        site.wait_for((names.directory / "finished").exists, "names ends")
        assert names.message.startswith("200 done")
        lives = [_first(site, name) for name in PLANTS]
        soon = {name: Kind(kind.script, {"machines_dir_days": 0.00001}) for name, kind in kinds.items()}
        site.configure(soon, machines_per_cycle=AT_ONCE)
        _is_expired(site, lives)
        assert "Traceback" not in site.log()
        assert not [line for line in site.log().splitlines() if line.startswith(FORGED)]
        assert "\x1b" not in site.log()
        assert "root:" not in site.log()
    after = Path("/etc/shadow").stat()
    assert (after.st_ino, after.st_size, after.st_mode) == (shadow.st_ino, shadow.st_size, shadow.st_mode)


def _first(site: FactorySite, machinetype: str) -> Life:
    """The first machine of this type."""
    site.wait_for(lambda: site.lives(machinetype), f"one of {machinetype} is created")
    return site.lives(machinetype)[0]


def _answers_about(site: FactorySite, life: Life) -> None:
    site.wait_for(lambda: os.path.lexists(life.directory / "joboutputs" / "planted"), "it has planted")
    told = site.vac("machine", life.name)
    assert told.returncode == 0, told.stderr
    assert not [line for line in told.stdout.splitlines() if line.startswith(FORGED)]
    assert "\x1b" not in told.stdout


def _is_expired(site: FactorySite, lives: list[Life]) -> None:
    """Directories of old machines go, with whatever is in them."""

    def gone() -> bool:
        site.wake()
        return not any(life.directory.exists() for life in lives)

    site.wait_for(gone, "the first machines' directories have been removed")


def test_a_private_key_in_user_data_leaks_nowhere() -> None:
    script = f": '{KEY}-template' '##user_data_option_key##' '##user_data_option_other##'\nsleep 600"
    with factory_site({}, processors=2, start=False) as site:
        files = site.state.machinetype_files("a")
        files.mkdir(parents=True)
        (files / "key.pem").write_text(PRIVATE_KEY)
        (files / "key.pem").chmod(0o600)
        options = {"user_data_option_other": f"{KEY}-option", "user_data_file_key": "key.pem"}
        site.configure({"a": Kind(script, options)}, machines_per_cycle=AT_ONCE)
        files.joinpath("user_data").chmod(0o600)
        site.start()
        seen: list[bytes] = []

        def runs() -> bool:
            seen.extend(command_lines().values())
            return len(site.running("a")) == 2

        site.wait_for(runs, "two machines run")
        seen.extend(command_lines().values())
        assert not [words for words in seen if KEY.encode() in words], "in a command line"
        for life in site.lives("a"):
            assert PRIVATE_KEY in (life.directory / "user_data").read_text()
        told = [
            site.vac(*words)
            for words in (["config", "show"], ["config", "show", "--json"], ["config", "check"], ["why"])
        ]
        told.append(site.vac("machine", site.lives("a")[0].name))
        assert [done.returncode for done in told] == [0] * len(told), told
        assert not [done for done in told if KEY in done.stdout + done.stderr]
        assert KEY not in site.log()
        assert _modes_of_files_with(site, KEY.encode()) == {
            ("machines", "user_data", 0o500),
            ("machinetypes", "key.pem", 0o600),
            ("machinetypes", "user_data", 0o600),
        }


def _modes_of_files_with(site: FactorySite, text: bytes) -> set[tuple[str, str, int]]:
    """In what files of state_dir the text is: directory there, name and mode."""
    found = set()
    for path in site.state.root.rglob("*"):
        if path.is_file() and not path.is_symlink() and text in path.read_bytes():
            directory = path.relative_to(site.state.root).parts[0]
            found.add((directory, path.name, stat.S_IMODE(path.stat().st_mode)))
    return found


def test_only_machines_that_break_the_rules_are_ended() -> None:
    beat = "while touch /tmp/joboutputs/beat; do sleep 0.5; done"
    beating: dict[str, Option] = {"heartbeat_file": "beat", "fizzle_seconds": 15, "heartbeat_seconds": 20}
    kinds = {
        "silent": Kind("sleep 600", beating),
        "stopped": Kind("touch /tmp/joboutputs/beat; sleep 600", beating),
        "linked": Kind("ln -s /etc/shadow /tmp/joboutputs/beat; sleep 600", beating),
        "lively": Kind(beat, beating),
        "fat": Kind("fallocate -l 1100M /tmp/big && touch /tmp/joboutputs/big; sleep 600"),
        "idle": Kind("sleep 600", {"idle_cpu_percent": 50, "idle_seconds": 6}),
        "late": Kind("sleep 600", {"max_wallclock_seconds": 10, "fizzle_seconds": 3}),
    }
    expected = {
        "silent": "700 Heartbeat file not created",
        "stopped": "700 Heartbeat file not updated",
        "linked": "700 Heartbeat file not created",
        "fat": "700 Disk limit",
        "idle": "700 Idle",
        "late": "100 Shutdown time reached",
    }
    with factory_site(
        kinds, processors=len(kinds), machines_per_cycle=AT_ONCE, disk_gb_per_processor=1
    ) as site:
        lives = {name: _first(site, name) for name in kinds}
        fat = lives["fat"].directory
        site.wait_for((fat / "joboutputs" / "big").exists, "fat has grown")
        site.wait_for((fat / "started").exists, "the factory has noticed that it runs")
        site.wake()
        for name, message in expected.items():
            # Perhaps fat was measured before it had grown: then it is its turn again after 300 s at the latest.
            site.wait_for((lives[name].directory / "finished").exists, f"{name} is ended", 500)
            assert lives[name].message == message
        assert not (lives["lively"].directory / "finished").exists()
