"""The process vacd-factory: one factory, from its configuration and its state directory."""

from __future__ import annotations

import logging
import os
import queue
import random
import time
from collections.abc import Callable

import vac
from vac.config.load import Configuration, ConfigurationError, Loader
from vac.config.machinetype import VM_MODELS, Machinetype
from vac.config.settings import Settings
from vac.context.downloads import GRID_CERTIFICATES, ImageCache, Local
from vac.context.signatures import SignedImages
from vac.drivers.engine import Engine, InlineEngine
from vac.drivers.registry import APART, driver_for, engine_name
from vac.factory.contexts import Run, in_thread
from vac.factory.floor import Floor, slot_names
from vac.factory.loop import Factory, Message, Stop, Stuck, Wake
from vac.factory.monitor import Monitor
from vac.factory.peers import Peers
from vac.factory.slots import Slots
from vac.factory.space import Ask, ask_nobody
from vac.host import facts
from vac.logs import OnChange
from vac.machines import statefiles
from vac.machines.layout import StateDir, StateDirBusy
from vac.machines.slots import finished_machines, load_slots, strays
from vac.machines.sweeping import Sweeper
from vac.roles import EXIT_OTHER_AT_WORK, RoleOptions
from vac.scheduling.backoff import History, reported_message
from vac.vacquery.resolver import Names, Resolver

log = logging.getLogger(__name__)

EXIT_STUCK = 70
"""An engine's thread hangs for good: the supervisor starts the process anew."""
RETRY_SECONDS = 10.0
"""Until the configuration is read again if it doesn't even tell where the state directory is."""


def main(options: RoleOptions) -> int:
    """Run the factory until it is told to stop; returns the exit status."""
    inbox: queue.Queue[Message] = queue.Queue()
    options.listen(stop=lambda: inbox.put(Stop()), wake=lambda: inbox.put(Wake()))
    loader = Loader(options.configs or None, facts.read)
    configuration, error = _first_configuration(loader, inbox)
    if configuration is None:
        return 1 if error else 0
    if loader.host.assumed:
        log.warning("VAC_ASSUME_PROCESSORS: assuming %d processors", loader.host.processors)
    state = StateDir(configuration.settings.state_dir)
    options.uses(state.root)
    state.root.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        with state.lock():
            state.prepare()
            names = Resolver(configuration.settings.factory_name)
            peers = Peers(names, time.time)
            factory = open_factory(
                state, configuration, loader, inbox, names=names, ask=peers.ask, need=options.need
            )
            if error is not None:
                factory.floor.sure = False
                factory.floor.configuration_broken(error)
            factory.run(alive=options.alive, ready=options.ready)
    except StateDirBusy as busy:
        log.error("%s", busy)
        return EXIT_OTHER_AT_WORK
    except Stuck as stuck:
        log.critical("leaving, to be started anew: %s", stuck)
        logging.shutdown()
        os._exit(EXIT_STUCK)
    return 0


def _first_configuration(
    loader: Loader, inbox: queue.Queue[Message]
) -> tuple[Configuration | None, ConfigurationError | None]:
    """The configuration to begin with; of a broken one, what suffices to watch the machines that
    there are, and to fetch pipes."""
    try:
        return loader.load(time.time()), None
    except ConfigurationError as error:
        for problem in error.problems:
            log.error("%s", problem)
        return stand_in(error), error


def stand_in(error: ConfigurationError) -> Configuration | None:
    """In place of a broken configuration: no machinetypes; None if not even [settings] could be looked at."""
    return None if error.settings is None else Configuration(error.settings, {}, error.pipes, {}, (), "")


def open_factory(
    state: StateDir,
    configuration: Configuration,
    loader: Loader,
    inbox: queue.Queue[Message],
    *,
    clock: Callable[[], float] = time.time,
    rng: random.Random | None = None,
    open_engine: Callable[[str, Settings], InlineEngine] | None = None,
    names: Names | None = None,
    ask: Ask = ask_nobody,
    need: Callable[[str, str], None] = lambda role, purpose: None,
    run: Run = in_thread,
) -> Factory:
    """A factory with its slots as they are on disk. The keyword arguments are for tests, but for names, ask and need,
    which is that of RoleOptions."""
    settings = configuration.settings

    def local(url: str) -> Local:
        """Refuse local addresses to URLs that no machinetype of the site's own names."""
        own = [one.root_image for one in floor.configuration.machinetypes.values() if not one.pipe]
        return Local.ALLOWED if url in own else Local.REFUSED

    cache = ImageCache(state.imagecache, state.tmp, local=local)
    images = SignedImages(cache.fetch, GRID_CERTIFICATES, clock)

    def engine(machine_model: str, settings: Settings) -> InlineEngine:
        if machine_model in VM_MODELS:
            need("metadata", "VMs")
            need("mjf", "VMs")
        name = engine_name(machine_model)
        return Engine(
            name,
            lambda: driver_for(machine_model, settings, images.fetch),
            inbox.put,
            clock,
            apart=APART.get(name, frozenset()),
        )

    statefiles.write_version(state, vac.__version__)
    machines = load_slots(state, configuration.machinetypes, settings)
    outcomes = finished_machines(state, configuration.machinetypes, settings, reported_message)
    fizzles = {outcome.machinetype: Machinetype.fizzle_seconds for outcome in outcomes}
    fizzles.update({name: one.fizzle_seconds for name, one in configuration.machinetypes.items()})
    floor = Floor(
        state=state,
        configuration=configuration,
        slots=Slots(slot_names(settings), machines),
        clock=clock,
        rng=rng or random.Random(),
        open_engine=open_engine or engine,
        started_time=clock(),
        changes=OnChange(log),
        history=History.of(outcomes, fizzles).no_later_than(clock()),
        monitor=Monitor(state, names or Resolver(settings.factory_name), clock),
        sweeper=Sweeper(state.tmp, run),
        strays=strays(state, machines.values(), configuration.machinetypes, settings),
    )
    running = sum(1 for slot in floor.slots if slot.occupied)
    log.info("%s: %d machines found in %d slots", settings.factory_name, running, len(floor.slots))
    return Factory(floor, loader, inbox, ask, run, need)
