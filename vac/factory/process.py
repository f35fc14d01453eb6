"""The process vacd-factory: one factory, from its configuration and its state directory."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import queue
import random
import shutil
import time
from collections.abc import Callable

import vac
from vac.background import in_thread
from vac.clock import Clock
from vac.config.load import Configuration, ConfigurationError, Loader
from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.context.downloads import GRID_CERTIFICATES, ImageCache
from vac.context.signatures import SignedImages
from vac.drivers.engine import APART, Engine, driver_for, engine_name
from vac.factory.loop import Factory, Stuck
from vac.factory.peers import Ask, ask_peers
from vac.factory.state import (
    FactoryState,
    Message,
    OpenEngine,
    Slot,
    Slots,
    Stop,
    Wake,
    slot_names,
)
from vac.host import facts
from vac.lifecycle.phases import SetAside
from vac.logs import OnChange
from vac.machines import files
from vac.machines import status as statuses
from vac.machines.layout import StateDir, StateDirBusy, lock_name
from vac.machines.slots import finished_machines, load_slots
from vac.roles import EXIT_OTHER_AT_WORK, EXIT_TO_RESTART, RoleOptions
from vac.scheduling.backoff import History
from vac.vacquery.poll import Resolver
from vac.vacquery.snapshot import VacMon

log = logging.getLogger(__name__)

EXIT_STUCK = 70
"""An engine's thread hangs: the supervisor restarts the process."""
RETRY_SECONDS = 10.0
"""Until state_dir is tried again."""


def main(options: RoleOptions) -> int:
    """Run the factory until it is told to stop; returns the exit status."""
    inbox: queue.Queue[Message] = queue.Queue()
    options.listen(lambda: inbox.put(Stop()), lambda: inbox.put(Wake()))
    loader = Loader(options.configs or None, facts.read)
    configuration, error = first_configuration(lambda: loader.load(time.time()))
    if configuration is None:
        return 1
    if loader.host.assumed:
        log.warning("VAC_ASSUME_PROCESSORS: assuming %d processors", loader.host.processors)
    settings = configuration.settings
    directory = StateDir(settings.state_dir)
    try:
        with contextlib.ExitStack() as locks:
            if not _take(directory, settings.factory_name, locks, inbox, options):
                return 0
            names = Resolver(settings.factory_name)
            ask = functools.partial(ask_peers, names, time.time)
            factory = open_factory(
                directory, configuration, loader, inbox, error, ask=ask, names=names, need=options.need
            )
            factory.run(alive=options.alive, ready=options.ready)
            return EXIT_TO_RESTART if factory.must_restart else 0
    except StateDirBusy as busy:
        log.error("%s", busy)
        return EXIT_OTHER_AT_WORK
    except Stuck as stuck:
        log.critical("leaving, to be started anew: %s", stuck)
        logging.shutdown()
        os._exit(EXIT_STUCK)


def _take(
    directory: StateDir,
    factory_name: str,
    locks: contextlib.ExitStack,
    inbox: queue.Queue[Message],
    options: RoleOptions,
) -> bool:
    """Lock the factory's name and state_dir and prepare that, as soon as the disk lets us; False if told to stop.

    Raises StateDirBusy.
    """
    changes = OnChange(log)
    locks.enter_context(lock_name(factory_name))
    while True:
        try:
            with contextlib.ExitStack() as tried:
                directory.root.mkdir(mode=0o755, parents=True, exist_ok=True)
                tried.enter_context(directory.lock())
                options.uses(directory.root)
                directory.prepare()
                failure = directory.mount_nosuid()
                text = failure and f"{directory.root} can't be mounted nosuid,nodev: {failure}"
                changes.tell("nosuid", text)
                locks.push(tried.pop_all())
                changes.clear("state_dir")
                return True
        except OSError as error:
            changes.say("state_dir", f"{directory.root} can't be used, waiting: {error}", logging.ERROR)
        options.alive()
        options.ready()
        with contextlib.suppress(queue.Empty):
            if isinstance(inbox.get(timeout=RETRY_SECONDS), Stop):
                return False


def first_configuration(
    load: Callable[[], Configuration],
) -> tuple[Configuration | None, ConfigurationError | None]:
    """Return the configuration to begin with, and what is wrong with it.

    Of a broken one, enough to watch the present machines and fetch pipes; None if [settings] can't be used either.
    """
    try:
        return load(), None
    except ConfigurationError as error:
        for problem in error.problems:
            log.error("%s", problem)
        return None if error.settings is None else Configuration(error.settings, {}, {}, {}, ()), error


def open_factory(
    directory: StateDir,
    configuration: Configuration,
    loader: Loader,
    inbox: queue.Queue[Message],
    error: ConfigurationError | None = None,
    *,
    ask: Ask,
    clock: Clock | None = None,
    rng: random.Random | None = None,
    open_engine: OpenEngine | None = None,
    names: Resolver | None = None,
    need: Callable[[str, str], None] = lambda role, purpose: None,
    spawn: Callable[[Callable[[], None], str], object] = in_thread,
) -> Factory:
    """Return a factory with its slots as they are on disk.

    error: of the configuration, if this one stands in for it. The keyword arguments are for tests, but for ask,
    names and need, which is that of RoleOptions.
    """
    settings, clock = configuration.settings, clock or Clock()

    def named() -> dict[str, str]:
        """Return the pipe of each URL of an image, "" if a machinetype of the site's own names it, too."""
        kinds = state.configuration.machinetypes.values()
        return {one.root_image or "": one.pipe or "" for one in sorted(kinds, key=lambda one: not one.pipe)}

    def most_bytes() -> float:
        """Return the limit of all pipes' images."""
        gb = state.settings.pipe_images_gb
        return shutil.disk_usage(directory.root).total / 2 if gb is None else gb * 1000**3

    cache = ImageCache(directory.imagecache, directory.tmp, named=named, most_bytes=most_bytes)
    images = SignedImages(cache.fetch, GRID_CERTIFICATES, clock.unix)

    def engine(machine_model: str, settings: Settings) -> Engine:
        name = engine_name(machine_model)
        return Engine(
            name,
            lambda: driver_for(machine_model, settings, images.fetch),
            inbox.put,
            clock.boot,
            apart=APART.get(name, frozenset()),
        )

    statuses.write_text(directory, directory.version, f"VERSION={vac.__version__}\n")
    now = clock.moment()
    found = load_slots(directory, configuration.machinetypes, settings)
    slots = [Slot(name, phase(now.boot), machine) for name, (machine, phase) in found.slots.items()]
    slots += [Slot(name, SetAside(now.boot)) for name in found.unreadable]
    for machine in [*found.orphans, *(slot.machine for slot in slots if slot.machine)]:
        machine.note_clock(now)
    state = FactoryState(
        dir=directory,
        configuration=configuration,
        slots=Slots(slot_names(settings), slots, now.boot),
        clock=clock,
        rng=rng or random.Random(),
        open_engine=open_engine or engine,
        post=inbox.put,
        spawn=spawn,
        started=now,
        changes=OnChange(log),
        history=_history(directory, configuration).no_later_than(now.unix),
        orphans=found.orphans,
        began_empty=not any(directory.machines.iterdir()) and not any(directory.slots.iterdir()),
    )
    for name, reason in found.unreadable.items():
        state.trouble(f"slot {name}", f"{name}: its machine's files can't be read, it is set aside: {reason}")
    state.log_configuration()
    occupied = [slot for slot in state.slots if slot.occupied]
    _check_identity(state, [slot.name for slot in occupied])
    log.info("%s: %d machines found in %d slots", settings.factory_name, len(occupied), len(state.slots))
    if error is not None:
        # factory_name or state_dir may be defaults, and engines and directories those of another factory
        state.doubts_about("configuration", "the configuration could not be read since the start")
        state.configuration_broken(error)
    vacmon = VacMon(directory, names or Resolver(settings.factory_name), clock.unix)
    return Factory(state, vacmon, loader, inbox, ask, need)


def _history(directory: StateDir, configuration: Configuration) -> History:
    outcomes = finished_machines(directory, configuration.machinetypes, configuration.settings)
    fizzles = {outcome.machinetype: Machinetype.fizzle_seconds for outcome in outcomes}
    fizzles.update({name: one.fizzle_seconds for name, one in configuration.machinetypes.items()})
    return History.of(outcomes, fizzles)


def _check_identity(state: FactoryState, occupied: list[str]) -> None:
    """Doubt factory_name or state_dir if they aren't those by which the machines here were made."""
    settings, directory = state.settings, state.dir
    present = {"factory_name": settings.factory_name, "state_dir": os.path.realpath(directory.root)}
    known = files.read_json(directory.identity)
    differing = [name for name, value in present.items() if known.get(name, value) != value]
    if differing and occupied:
        was = ", ".join(f"{name} was {known[name]}" for name in differing)
        state.doubts_about(
            "identity",
            f"{', '.join(occupied[:5])} were made when {was}: put it back; or, if {' and '.join(differing)} "
            f"is right now, remove {directory.identity} and start vacd again",
        )
    elif known != present:
        statuses.write_text(directory, directory.identity, json.dumps(present) + "\n")
