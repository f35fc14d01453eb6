"""Real factories that share a space without a head: five hosts, 40 slots, bubblewrap machines.

The space is started once for all tests of this file; each waits for it to be full, and leaves it as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping

import pytest

from tests.engines.factory_fixture import AT_ONCE, ROOT, Kind, Life, Option
from tests.space.space_fixture import Space, SpaceFactory, mean_machines, space_of

pytestmark = pytest.mark.engine

FACTORIES = 5
PROCESSORS = 8
CLASSIC = "f4"
"""This one goes by share_policy = classic."""
SHARES = {"large": 3, "middle": 2, "small": 1, "nowork": 1}
TARGETS = {name: FACTORIES * PROCESSORS * SHARES[name] / 6 for name in ("large", "middle", "small")}
FIZZLE_SECONDS = 3
BACKOFF_SECONDS = 15
GENERATION_SECONDS = 15
GENERATIONS = 5
"""Enough for reliable means of the shares; docs/testing.md explains it."""
WORK = """
cat /tmp/jobfeatures/job_id > /tmp/joboutputs/job_id
sleep $(( 8 + 0x$(cut -c1-2 /tmp/jobfeatures/job_id) * 14 / 256 ))
echo '200 all done' > /tmp/joboutputs/shutdown_message
"""
NO_WORK = "sleep 0.5; echo '300 nothing to do' > /tmp/joboutputs/shutdown_message"
OPTIONS = {"fizzle_seconds": FIZZLE_SECONDS, "backoff_seconds": BACKOFF_SECONDS}
KINDS = {
    name: Kind(NO_WORK if name == "nowork" else WORK, {**OPTIONS, "target_share": share})
    for name, share in SHARES.items()
}


@pytest.fixture(scope="module")
def space() -> Iterator[Space]:
    """The space, started from nothing with all that the tests need."""
    with space_of(FACTORIES, PROCESSORS) as space:
        configure(space)
        for factory in space.factories:
            factory.start_vacd()
        yield space


def configure(space: Space, classic: bool = True, **settings: Option) -> None:
    own: Mapping[str, Mapping[str, Option]] = {CLASSIC: {"share_policy": "classic"}} if classic else {}
    space.configure(KINDS, own, udp_timeout_seconds=2, machines_per_cycle=AT_ONCE, **settings)


def reconfigure(space: Space, classic: bool = True, **settings: Option) -> None:
    configure(space, classic, **settings)
    for factory in space.factories:
        factory.wake()


def shares_are_met(space: Space, begin: float, end: float) -> bool:
    """Return True if between these times each type ran as many machines as it should, within two, on average."""
    means = mean_machines(space.lives(), begin, end)
    return all(abs(means.get(name, 0.0) - target) <= 2 for name, target in TARGETS.items())


def wait_for_shares(space: Space) -> None:
    """Wait until the shares have been met over a generation that is yet to come."""
    begun = time.time()

    def met() -> bool:
        now = time.time()
        return now - GENERATION_SECONDS >= begun and shares_are_met(space, now - GENERATION_SECONDS, now)

    space.wait_for(met, "shares are met over a generation", 20 * GENERATION_SECONDS)


def created_since(begin: float, factory: SpaceFactory) -> int:
    return sum(life.created > begin for life in factory.lives())


def silent_for(factory: SpaceFactory) -> set[str]:
    return set(factory.status().silent)


def test_an_empty_space_fills_and_shares_are_met(space: Space) -> None:
    space.wait_for(space.is_full, "all slots are taken")
    full, wanted = time.time(), GENERATIONS * space.slots

    def ended() -> int:
        return sum((life.finished or 0.0) > full for life in space.lives() if life.machinetype in TARGETS)

    space.wait_for(lambda: ended() >= wanted, f"{GENERATIONS} generations have ended")
    means = mean_machines(space.lives(), full, time.time())
    running = sum(means[name] for name in TARGETS)
    assert running > 0.9 * space.slots, means
    for name, target in TARGETS.items():
        assert means[name] == pytest.approx(target * running / space.slots, abs=2.0), means


def test_a_type_without_work_is_rarely_probed_in_the_space(
    space: Space,
) -> None:
    space.wait_for(lambda: space.lives("nowork"), "the first probe")
    begin = min(life.created for life in space.lives("nowork")) + BACKOFF_SECONDS
    space.wait_for(lambda: time.time() > begin + 3 * BACKOFF_SECONDS, "three periods")
    created = [life.created for life in space.lives("nowork")]
    periods = int((time.time() - begin) / BACKOFF_SECONDS)
    probes = [
        sum(begin <= time - period * BACKOFF_SECONDS < begin + BACKOFF_SECONDS for time in created)
        for period in range(periods)
    ]
    assert statistics.median(probes) <= 3, probes
    assert sum(probes) >= 1, "it is tried all the same"


def test_from_one_factory_the_whole_space_is_seen(space: Space) -> None:
    space.wait_for(space.is_full, "all slots are taken")
    names = [factory.short for factory in space.factories]
    asked = space.factories[0]
    slots = [f"{name}-{number:02}" for name in names for number in range(PROCESSORS)]
    types = {(factory.name, name) for factory in space.factories for name in SHARES}

    def first_words(what: str) -> list[str]:
        done = asked.vac(what)
        return [line.split()[0] for line in done.stdout.splitlines()] if done.returncode == 0 else []

    def seen_types() -> set[tuple[str, str]]:
        told = json.loads(asked.vac("machinetypes", "--json").stdout)
        return {(one["factory"], one["machinetype"]) for one in told}

    space.wait_for(lambda: first_words("factories") == names, "all factories answer")
    space.wait_for(lambda: first_words("machines") == slots, "all slots are told of")
    space.wait_for(lambda: seen_types() == types, "all machinetypes are told of")


def test_a_factory_cut_off_goes_on_and_is_missed(space: Space) -> None:
    space.wait_for(space.is_full, "all slots are taken")
    alone, others = space.factories[2], [*space.factories[:2], *space.factories[3:]]
    space.network.cut_off(alone.name)
    try:
        space.wait_for(
            lambda: (
                len(silent_for(alone)) == FACTORIES - 1
                and all(silent_for(factory) == {alone.name} for factory in others)
            ),
            "the silence is noticed",
        )
        begin = time.time()
        assert f"No answer from 1 of {FACTORIES} factories: {alone.name}." in others[0].vac("why").stdout
        assert f"No answer from {FACTORIES - 1} of {FACTORIES} factories: " in alone.vac("why").stdout
        space.wait_for(
            lambda: all(created_since(begin, factory) >= PROCESSORS for factory in space.factories),
            "all go on creating",
        )
    finally:
        space.network.rejoin(alone.name)
    space.wait_for(lambda: not any(map(silent_for, space.factories)), "all hear each other again")
    wait_for_shares(space)


def test_a_factory_killed_and_started_again_keeps_its_machines(space: Space) -> None:
    space.wait_for(space.is_full, "all slots are taken")
    victim = space.factories[1]
    before = {machine.uuid for machine in victim.running()}
    assert len(before) >= PROCESSORS // 2
    victim.kill()
    killed = time.time()
    victim.start_vacd()
    space.wait_for(lambda: victim.status().time > killed + 1, "it reports again")

    def ended() -> list[Life]:
        return [life for life in victim.lives() if life.finished and life.output("job_id") in before]

    space.wait_for(lambda: len(ended()) == len(before), "all of them end")
    assert all(life.message == "200 all done" for life in ended()), "each of them has come to its own end"
    wait_for_shares(space)


def test_a_factory_on_which_all_fails_affects_no_other(space: Space) -> None:
    space.wait_for(space.is_full, "all slots are taken")
    *well, broken = space.factories
    scripts = [broken.state.machinetype_files(name) / "user_data" for name in TARGETS]
    try:
        reconfigure(space, classic=False)  # by the classic rules its aborts would hold types back on others
        for script in scripts:
            script.write_text("#!/bin/sh\nexit 1\n")
        space.wait_for(lambda: set(broken.status().held_here) >= set(TARGETS), "all fails there")
        begin = time.time()
        space.wait_for(
            lambda: all(created_since(begin, factory) >= PROCESSORS for factory in well),
            "the others go on creating",
        )
        means = [sum(mean_machines(one.lives(), begin, time.time()).values()) for one in well]
        assert min(means) > 0.9 * PROCESSORS, means
        text = "keeps failing on this factory while others run it: this node is probably broken"
        space.wait_for(lambda: text in broken.vac("why").stdout, "vac why tells")
    finally:
        reconfigure(space)
    space.wait_for(space.is_full, "mended, it is full again")


def test_a_changed_port_and_a_key_are_taken_up_by_all(space: Space) -> None:
    space.wait_for(space.is_full, "all slots are taken")
    asked = space.factories[0]
    key = asked.home / "space.key"
    key.write_text("a secret of the whole space")
    reconfigure(space, vacquery_port=1995, vacquery_key_file=key)

    def answers() -> int:
        return len(asked.vac("factories").stdout.splitlines())

    space.wait_for(lambda: answers() == FACTORIES, "all answer at the new port and by the key")
    space.wait_for(lambda: not any(map(silent_for, space.factories)), "all hear each other again")


def test_factories_reboot_one_after_the_other(space: Space) -> None:
    space.wait_for(space.is_full, "all slots are taken")
    pair = {factory.name: factory for factory in space.factories[:2]}
    stand_in = space.factories[0].home / "bin" / "shutdown"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\necho "$*" >"$REBOOTED"\n')
    stand_in.chmod(0o755)
    rebooted = {name: factory.home / "rebooted" for name, factory in pair.items()}
    with contextlib.ExitStack() as stack:
        for name, factory in pair.items():
            vac = (str(ROOT / "bin" / "vac"), "--config", str(factory.config), "drain", "--reboot")
            path = f"{stand_in.parent}:{factory.environment.get('PATH', os.defpath)}"
            environment = {**factory.environment, "PATH": path, "REBOOTED": str(rebooted[name])}
            stack.callback(factory.vac, "undrain")
            process = stack.enter_context(subprocess.Popen(factory.host.inside(*vac), env=environment))
            stack.callback(process.kill)
        for _ in pair:
            space.wait_for(lambda: any(path.exists() for path in rebooted.values()), "one reboots")
            (name,) = [name for name, path in rebooted.items() if path.exists()]
            assert rebooted.pop(name).read_text() == "-r now\n"
            assert pair[name].occupied() == 0, "its machines had ended"
            assert all("to be rebooted" not in pair[other].vac("why").stdout for other in rebooted)
            pair[name].vac("undrain")  # as its next boot does
    space.wait_for(space.is_full, "all slots are taken again")
