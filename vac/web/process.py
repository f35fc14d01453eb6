"""A web process: one service at one address, without more rights than it needs."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from vac.config.load import ConfigurationError, Loader
from vac.config.settings import Settings
from vac.host import facts
from vac.host.privileges import become, unprivileged_user
from vac.machines import files
from vac.machines.layout import StateDir
from vac.machines.statefiles import touch_heartbeat
from vac.roles import RoleOptions
from vac.web.guests import Guests
from vac.web.listening import listen, listen_anywhere
from vac.web.server import Server, adjustments, allow_connections, is_slot, network_of
from vac.web.wsgi import Answer, Request, application

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0


@dataclass(frozen=True)
class Service:
    """What one of the processes serves."""

    role: str
    address: str
    open: Callable[[StateDir], Callable[[Request], Answer]]
    """Prepares what it needs while the process is still root; gives what answers requests."""
    body_limit_bytes: int
    port: int = 80
    for_people: bool = False
    """Is anybody but VMs listened to, rather than VMs only, at an address that this host has already?"""
    name: str = ""
    """What people call the address, where they have configured it."""

    def listen(self) -> socket.socket:
        """The socket to serve at. Raises OSError."""
        return (listen_anywhere if self.for_people else listen)(self.address, self.port)


def run(
    service_for: Callable[[Settings], Service | None], options: RoleOptions, keep: tuple[int, ...] = ()
) -> int:
    """Serve until told to end, or until the configuration names another factory; the exit status.

    service_for: gives what [settings] ask for; None, which is an error here, if that is nothing.
    keep: capabilities that it needs, as for privileges.become.
    """
    loader = Loader(options.configs or None, facts.read)
    settings = _settings(loader)
    if settings is None:
        log.error("There is no configuration that tells where the state directory is")
        return 1
    service = service_for(settings)
    if service is None:
        log.error("There is nothing to serve by the configuration as it is now")
        return 1
    where = service.name or f"{service.address}:{service.port}"
    try:
        bound = service.listen()
    except OSError as error:
        advice = "a service that takes all addresses should name its own"
        log.error("%s can't be listened at: %s; %s", where, error.strerror, advice)
        return 1
    state = StateDir(settings.state_dir)
    _prepare_state(state, service.role)
    respond = service.open(state)
    allow_connections()
    adjusted = adjustments(service.body_limit_bytes)
    become(unprivileged_user(), keep)
    if service.for_people:
        server = Server(application(respond, None), bound, adjusted, is_person, network_of)
    else:
        app = application(respond, Guests(state, settings.factory_name))
        server = Server(app, bound, adjusted, is_slot)
    options.listen(server.stop, lambda: None)
    keeper = threading.Thread(
        target=_keep, args=(state, service.role, loader, settings, server.stop), daemon=True
    )
    keeper.start()
    log.info("serving at %s", service.name or service.address)
    options.ready()
    server.serve()
    return 0


def is_person(address: str) -> bool:
    """Is it no VM that asks? What is for people tells of other machines."""
    return not is_slot(network_of(address))


def _settings(loader: Loader) -> Settings | None:
    """[settings]; of a broken configuration what can be understood of it."""
    try:
        return loader.load(time.time()).settings
    except ConfigurationError as error:
        return error.settings


def _moved(loader: Loader, settings: Settings) -> bool:
    try:
        now = loader.load(time.time()).settings
    except ConfigurationError:
        return False
    return (now.state_dir, now.factory_name) != (settings.state_dir, settings.factory_name)


def _prepare_state(state: StateDir, role: str) -> None:
    """Make, while still root, the files that tell of this process."""
    state.root.mkdir(mode=0o755, parents=True, exist_ok=True)
    touch_heartbeat(state, role, time.time())
    files.write_atomic(state.pid(role), b"%d\n" % os.getpid(), tmp=state.root, sync=False)
    user = unprivileged_user()
    if user is not None:
        os.chown(state.heartbeat(role), user.pw_uid, user.pw_gid, follow_symlinks=False)


def _keep(state: StateDir, role: str, loader: Loader, settings: Settings, stop: Callable[[], None]) -> None:
    """Touch the heartbeat, and end the process, to be started anew, when it serves the wrong factory."""
    while True:
        try:
            os.utime(state.heartbeat(role))
        except OSError as error:
            log.debug("%s", error)
        if _moved(loader, settings):
            log.warning("state_dir or factory_name has changed: starting anew with them")
            stop()
            return
        time.sleep(HEARTBEAT_SECONDS)
