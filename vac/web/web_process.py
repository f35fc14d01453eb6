"""A web process: one service at one address, with no more privileges than it needs."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vac.config.load import ConfigurationError, load
from vac.config.settings import Settings
from vac.host import facts
from vac.host.privileges import become, unprivileged_user
from vac.machines.layout import StateDir
from vac.machines.status import prepare_role
from vac.roles import RoleOptions, bind

if TYPE_CHECKING:
    from vac.web.http_server import Answer, Request

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """A service of one of the processes."""

    role: str
    address: str
    open: Callable[[StateDir], Callable[[Request], Answer]]
    """Prepares the service while the process is still root; returns what answers requests."""
    body_limit_bytes: int
    port: int = 80
    for_people: bool = False
    """True: serve all clients except VMs, at an address of this host; False: VMs only."""
    name: str = ""
    """Its configured address, for messages."""


def run(
    service_for: Callable[[Settings], Service | None], options: RoleOptions, keep: tuple[int, ...] = ()
) -> int:
    """Serve until told to end. Return the exit status.

    service_for: returns the service that [settings] ask for, None (here an error) for none. keep: capabilities, as
    for privileges.become.
    """
    from vac.web.http_server import Guests, Server, adjustments, allow_connections, application, network_of

    settings = _settings(options)
    if settings is None:
        log.error("no usable configuration: state_dir is unknown")
        return 1
    service = service_for(settings)
    if service is None:
        log.error("the present configuration asks for no such service")
        return 1
    try:
        if service.for_people and options.listening is not None:
            bound = options.listening
        else:
            bound = bind(service.address, service.port, future=not service.for_people)
    except OSError as error:
        where = service.name or f"{service.address}:{service.port}"
        advice = "if another service listens at all addresses, configure its address"
        log.error("can't listen at %s: %s; %s", where, error.strerror, advice)
        return 1
    options.uses(settings.state_dir)
    state = StateDir(settings.state_dir)
    prepare_role(state, service.role, unprivileged_user())
    respond = service.open(state)
    allow_connections()
    adjusted = adjustments(service.body_limit_bytes)
    become(unprivileged_user(), keep)
    heartbeat = state.heartbeat(service.role)

    def alive() -> None:
        with contextlib.suppress(OSError):
            os.utime(heartbeat)

    if service.for_people:
        server = Server(application(respond, None), bound, adjusted, is_person, network_of, alive)
    else:
        app = application(respond, Guests(state, settings.factory_name))
        server = Server(app, bound, adjusted, alive=alive)
    options.listen(server.stop, lambda: None)
    log.info("serving at %s", service.name or service.address)
    options.ready()
    server.serve()
    return 0


def is_person(address: str) -> bool:
    """Return True if the client isn't a VM: pages for people show other machines."""
    from vac.web.http_server import is_slot, network_of

    return not is_slot(network_of(address))


def _settings(options: RoleOptions) -> Settings | None:
    """Return [settings], of a broken configuration as far as they can be understood."""
    try:
        return load(options.configs or None, facts.read()).settings
    except ConfigurationError as error:
        return error.settings
