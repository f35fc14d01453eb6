"""64 slots filled with bubblewrap machines: how fast, by whom, what each machine has and what it can't reach.

One factory runs once for all tests of this file: it fills, and goes on until three generations of machines
have ended. The tests read what it and the machines have left.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engines.factory_fixture import FactorySite, Kind, Life, factory_site, replacements
from vac.factory.loop import CYCLE_SECONDS
from vac.scheduling.decide import STEP_SECONDS

pytestmark = pytest.mark.engine

SLOTS = 64
GENERATIONS = 3
FIZZLE_SECONDS = 10
BACKOFF_SECONDS = 5
SHARES = {"large": 3.0, "small": 1.0, "nowork": 0.05, "quick": 0.05}
TARGETS = {"large": 48, "small": 16}

REPORT = """
out=/tmp/joboutputs
cat /tmp/jobfeatures/job_id > $out/job_id
exec 2> /dev/null
grep -E '^(Cap...|Groups|Uid|NoNewPrivs):' /proc/self/status > $out/status
for d in machinefeatures jobfeatures; do
  for f in /tmp/$d/*; do echo "${f#/tmp/}=$(cat $f)"; done
done > $out/mjf
env > $out/environment
for p in /proc/[0-9]*; do echo "${p#/proc/} $(tr '\\0' ' ' < $p/cmdline)"; done > $out/processes
( cd ##user_data_option_state_dir## && { ls -A; cat machines/*/user_data status.json; } ) > $out/state_dir
ls -d ##user_data_option_state_dir## > $out/state_dir_is_there
ls -A /root /home /run > $out/hidden
for f in /tmp/machinefeatures/x /tmp/jobfeatures/job_id /user_data /etc/x /x; do
  echo x > $f && echo $f
done > $out/written
cat /proc/1/root/##user_data_option_state_dir##/VERSION /etc/shadow > $out/read
hostname > $out/hostname
"""
WORK = (
    REPORT
    + """
life=$(( 20 + 0x$(cut -c1-2 $out/job_id) * 20 / 256 ))
sleep $life
echo '200 all done' > $out/shutdown_message
"""
)

IDLE_SECONDS = 10.0
"""Longest that a slot may be empty between two machines, on average: about a second on an idle host."""


@dataclass(frozen=True)
class Run:
    """Remains of one run."""

    site: FactorySite
    begun: float
    full: float
    """The time when all slots were first taken."""
    end: float
    lives: Sequence[Life]
    log: str

    def of(self, machinetype: str) -> list[Life]:
        return [life for life in self.lives if life.machinetype == machinetype and life.started is not None]

    def told_between(self, begin: float, end: float) -> str:
        """Return what the factory logged then, to find the cause of a failure."""
        times = [time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(moment)) for moment in (begin, end)]
        return "\n".join(line for line in self.log.splitlines() if times[0] <= line[:24] <= times[1])

    def mean_machines(self, machinetype: str) -> float:
        """Over the time from full to the end."""
        lived = sum(
            max(0.0, min(life.finished or self.end, self.end) - max(life.created, self.full))
            for life in self.of(machinetype)
        )
        return lived / (self.end - self.full)

    def machines_at(self, moment: float, machinetype: str) -> int:
        return sum(
            life.created <= moment and (life.finished is None or moment < life.finished)
            for life in self.of(machinetype)
        )


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    kinds = {
        "large": Kind(WORK, {"target_share": SHARES["large"]}),
        "small": Kind(WORK, {"target_share": SHARES["small"]}),
        "nowork": Kind("sleep 0.5; echo '300 nothing to do' > /tmp/joboutputs/shutdown_message"),
        "quick": Kind("sleep 1; echo '200 done at once' > /tmp/joboutputs/shutdown_message"),
    }
    kinds = {
        name: Kind(
            kind.script,
            {
                "target_share": SHARES[name],
                "fizzle_seconds": FIZZLE_SECONDS,
                "backoff_seconds": BACKOFF_SECONDS,
            },
        )
        for name, kind in kinds.items()
    }
    with factory_site(kinds, processors=SLOTS, start=False) as site:
        options = {"user_data_option_state_dir": site.state.root}
        site.configure({name: Kind(kind.script, {**kind.options, **options}) for name, kind in kinds.items()})
        site.start()
        site.wait_for(site.lives, "the first machine")
        begun = site.lives()[0].created
        site.wait_for(lambda: site.occupied() >= SLOTS, "all slots are taken", 600)
        full = max(life.started or 0.0 for life in site.lives())
        wanted = GENERATIONS * SLOTS

        def generations_over() -> bool:
            return sum((life.finished or 0.0) > full for life in site.lives()) >= wanted

        site.wait_for(generations_over, f"{GENERATIONS} generations have ended", 600)
        site.stop()
        lives = site.lives()
        end = max(life.finished or 0.0 for life in lives)
        yield Run(site, begun, full, end, lives, site.log())


def test_64_slots_fill_by_the_ramp_until_a_type_is_known(run: Run) -> None:
    """A type is known when a machine of it has outlived fizzle_seconds; then the node is full at once."""
    print(f"full after {run.full - run.begun:.1f} s")
    created = sorted(life.created for name in SHARES for life in run.of(name))[:SLOTS]
    beyond = []
    for number, moment in enumerate(created, 1):
        steps = int((moment - run.begun + 1) / STEP_SECONDS) + 1
        ended = sum((life.finished or moment) < moment for life in run.lives)
        if number > 2**steps + ended:
            beyond.append(moment)
    assert beyond, "nothing grew faster than by doubling"
    known = min(life.started for name in SHARES for life in run.of(name) if life.started is not None)
    assert min(beyond) >= known + FIZZLE_SECONDS - 1
    assert "assuming 64 processors" in run.log


def test_shares_are_met_within_two_machines_nearly_all_the_time(run: Run) -> None:
    """Or within those that are being replaced, which are many on a busy host."""
    for machinetype, target in TARGETS.items():
        seen = [
            (run.machines_at(moment, machinetype), sum(run.machines_at(moment, each) for each in TARGETS))
            for moment in (run.full + second for second in range(2, int(run.end - run.full)))
        ]
        far = sum(abs(machines - target * whole / SLOTS) > max(2, SLOTS - whole) for machines, whole in seen)
        assert far <= 0.2 * len(seen), f"{machinetype}: {seen}"
    means = {machinetype: run.mean_machines(machinetype) for machinetype in TARGETS}
    print(f"machines on average: {means}")
    whole = sum(means.values())
    ended = sum((life.finished or 0.0) > run.full for life in run.lives)
    idle_seconds = (SLOTS - whole) * (run.end - run.full) / ended
    assert idle_seconds < IDLE_SECONDS, (
        "from an end to the next machine, with tries of the types without work"
    )
    for machinetype, target in TARGETS.items():
        assert means[machinetype] == pytest.approx(whole * target / SLOTS, abs=0.5)


def test_an_ended_machine_is_replaced_before_the_next_cycle(run: Run) -> None:
    pairs = replacements(run.lives, run.full)
    pauses = [start - end for end, start in pairs]
    assert len(pauses) >= GENERATIONS * SLOTS - SLOTS
    worst = pauses.index(max(pauses))
    print(f"replaced after {statistics.median(pauses):.2f} s, at worst {pauses[worst]:.2f} s")
    assert pauses[worst] < CYCLE_SECONDS / 2, run.told_between(*pairs[worst])


def test_a_type_without_work_is_tried_once_per_doubling_backoff(run: Run) -> None:
    tries = _tries(run.of("nowork"))
    assert [len(machines) for machines in tries] == [1] * len(tries)
    assert {life.message for machines in tries for life in machines} == {"300 nothing to do"}
    _assert_pauses_double(tries)


def test_a_type_that_succeeds_at_once_is_backed_off(run: Run) -> None:
    tries = _tries(run.of("quick"))
    assert {life.message for machines in tries for life in machines} == {"200 done at once"}
    _assert_pauses_double(tries)


def _tries(lives: Sequence[Life]) -> list[list[Life]]:
    """Machines that ended, gathered into those that were created before the others' ends were known."""
    tries: list[list[Life]] = []
    end = 0.0
    for life in lives:
        if life.finished is not None:
            if life.created > end:
                tries.append([])
            tries[-1].append(life)
            end = max(end, life.finished)
    return tries


def _assert_pauses_double(tries: Sequence[Sequence[Life]]) -> None:
    """After the nth try at least backoff_seconds × 2^(n-1); times on disk are whole seconds in part."""
    assert len(tries) >= 3
    for number, (before, after) in enumerate(zip(tries, tries[1:])):
        pause = after[0].created - max(life.output_time("shutdown_message") for life in before)
        assert pause > BACKOFF_SECONDS * 2**number - 1


def test_features_are_there_before_user_data_starts(run: Run) -> None:
    for life in _workers(run):
        features = dict(line.split("=", 1) for line in life.output("mjf").splitlines())
        assert life.output("job_id") == (life.directory / "jobfeatures" / "job_id").read_text()
        assert features["jobfeatures/job_id"] == life.output("job_id")
        assert features["machinefeatures/total_cpu"] == features["jobfeatures/allocated_cpu"] == "1"
        assert features["jobfeatures/max_rss_bytes"] == str(64 * 2**20)
        assert int(features["machinefeatures/shutdowntime"]) == pytest.approx(life.created + 3600, abs=30)
        assert int(features["jobfeatures/wall_limit_secs"]) == pytest.approx(3600, abs=30)
        environment = dict(
            line.split("=", 1) for line in life.output("environment").splitlines() if "=" in line
        )
        assert environment["MACHINEFEATURES"] == "/tmp/machinefeatures"
        assert environment["JOBFEATURES"] == "/tmp/jobfeatures"
        assert environment["JOBOUTPUTS"] == "/tmp/joboutputs"
        assert set(environment) <= {"MACHINEFEATURES", "JOBFEATURES", "JOBOUTPUTS", "PATH", "HOME", "PWD"}
        assert life.output("hostname").strip() == life.name


def test_no_machine_has_capabilities_groups_or_root(run: Run) -> None:
    for life in _workers(run):
        status = dict(line.split(":\t", 1) for line in life.output("status").splitlines())
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapAmb"], 16) == 0
        assert int(status["CapBnd"], 16) == int(status["CapInh"], 16) == 0
        assert status["Groups"].split() == []
        assert "0" not in status["Uid"].split()
        assert status["NoNewPrivs"] == "1"


def test_no_machine_sees_others_the_state_dir_or_the_host(run: Run) -> None:
    for life in _workers(run):
        assert life.output("state_dir_is_there") != "", "nothing is proved by a directory that isn't there"
        assert life.output("state_dir") == ""
        assert [line for line in life.output("hidden").split() if not line.endswith(":")] == []
        assert life.output("written") == ""
        assert life.output("read") == ""
        processes = [line.split(" ", 1) for line in life.output("processes").splitlines()]
        assert len(processes) < 6, processes
        for _, command in processes:
            assert (
                command.split(" ")[0].rpartition("/")[2] in ("bwrap", "sh", "tr", "")
                or "/user_data" in command
            )


def test_user_data_is_readable_by_the_machines_user_alone(run: Run) -> None:
    for life in _workers(run):
        status = (life.directory / "user_data").stat()
        assert status.st_mode & 0o7777 == 0o500
        assert status.st_uid != 0


def test_each_machine_that_worked_has_one_record_with_its_times(run: Run) -> None:
    ended = [life for life in run.lives if life.finished is not None]
    finished = {_job_id(life): life for life in ended if _lived_seconds(life) >= FIZZLE_SECONDS}
    assert {_job_id(life) for life in _workers(run)} <= set(finished)
    texts = [record.read_text() for record in Path(run.site.state.apel_archive).glob("*/*")]
    records = [dict(line.split(": ", 1) for line in text.splitlines() if ": " in line) for text in texts]
    assert {record["LocalJobId"] for record in records} == set(finished)
    assert len(records) == len(finished), "the others fizzled"
    for record in records:
        life = finished[record["LocalJobId"]]
        assert life.started is not None
        assert life.finished is not None
        assert int(record["StartTime"]) == pytest.approx(life.started, abs=30)
        assert int(record["EndTime"]) == pytest.approx(life.finished, abs=30)


def _job_id(life: Life) -> str:
    return (life.directory / "jobfeatures" / "job_id").read_text()


def _lived_seconds(life: Life) -> float:
    """From its start to its end as they are kept for accounting."""
    return (life.directory / "heartbeat").stat().st_mtime - int((life.directory / "started").read_text())


def _workers(run: Run) -> list[Life]:
    """Machines that had the time to report, at least a whole node of them."""
    found = [life for name in TARGETS for life in run.of(name) if life.finished is not None]
    assert len(found) >= SLOTS
    return found
