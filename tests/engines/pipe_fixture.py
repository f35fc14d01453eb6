"""A real factory whose machinetypes come from pipes that the test serves over HTTPS."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.engines.factory_fixture import AT_ONCE, FactorySite, factory_site
from tests.engines.guest_images import CONTEXTUALIZED, Guest, boot_iso
from tests.engines.libvirt_fixture import PrivateLibvirt
from tests.https_server import Page, Site, Web
from vac.machines.machine import Machine

PATIENCE = 300.0
PUBLISHER = "192.0.2.1"
"""Address of the server beside a hypervisor: URLs in pipes may not lead to loopback."""


class Piped:
    """A factory with pipes, and the server that it has them from."""

    def __init__(self, factory: FactorySite, web: Web, server: Site) -> None:
        self.factory = factory
        self.settings: dict[str, Any] = {}
        self.web = web
        self.server = server

    def add_file(self, name: str, content: str) -> None:
        """A file that documents of the pipe `vo` may name."""
        (self.factory.state.machinetype_files("vo") / name).write_text(content)

    def configure(self, pipes: Mapping[str, str], more: str = "", **settings: Any) -> None:
        """Pipes' URLs by prefix, each with a target share of 1; more sections."""
        self.factory.configure({}, machines_per_cycle=AT_ONCE, **self.settings, **settings)
        with self.factory.config.open("a") as file:
            for prefix, url in pipes.items():
                file.write(f"[vacuum_pipe {prefix}]\nvacuum_pipe_url = {url}\ntarget_share = 1\n")
            file.write(more)

    def start(self) -> None:
        """Start the factory, which trusts the test's CA."""
        self.factory.start(SSL_CERT_FILE=str(self.web.ca_file), no_proxy="*")

    def start_ready(self, *names: str) -> None:
        """Start it, and let it create nothing before it could create machines of all these types.

        A failing health check stands in the way till then: while a factory drains, it fetches nothing for pipes.
        """
        config = self.factory.config
        text = config.read_text()
        config.write_text(text.replace("[settings]\n", "[settings]\nhealth_command = /bin/false\n", 1))
        self.start()

        def ready() -> bool:
            reasons = self.factory.status().passed_over
            return all("health_command says" in reasons.get(name, "") for name in names)

        self.factory.wait_for(ready, f"there could be machines of {names}", PATIENCE)
        config.write_text(text)

    def types(self) -> list[str]:
        """The names of the machinetypes that the factory knows."""
        return [facts.name for facts in self.factory.status().machinetypes]

    def wait_for_types(self, *names: str) -> None:
        self.factory.wait_for(lambda: self.types() == list(names), f"the types are {names}", PATIENCE)

    def wait_for_machines(self, **numbers: int) -> None:
        def there() -> bool:
            return all(len(self.factory.running(f"vo-{kind}")) == number for kind, number in numbers.items())

        self.factory.wait_for(there, f"machines run: {numbers}", PATIENCE)

    def end(self, machine: Machine) -> None:
        """Let it end by itself, and wait until that is known."""
        (machine.directory / "jobfeatures" / "end").write_text("now")
        self.factory.wait_for((machine.directory / "finished").exists, f"{machine.name} has ended", PATIENCE)

    def trouble(self, prefix: str) -> str:
        """Return the factory's report on a pipe."""
        return self.factory.status().pipes.get(prefix) or ""

    def wait_for_trouble(self, prefix: str, words: str) -> None:
        self.factory.wait_for(
            lambda: words in self.trouble(prefix), f"{words!r} is said of {prefix}", PATIENCE
        )


@contextlib.contextmanager
def piped(
    home: Path, pages: Mapping[str, Page], processors: int, hypervisor: PrivateLibvirt | None = None
) -> Iterator[Piped]:
    """A factory that hasn't been started, of so many slots, and a server of these pages; home is for certificates.

    With a hypervisor, all of vacd runs beside it, and so does the server; boot.iso is a guest's image.
    """
    with Web(home) as web, factory_site({}, processors=processors, start=False) as factory:
        files = factory.state.machinetype_files("vo")
        files.mkdir(parents=True)
        if hypervisor is None:
            yield Piped(factory, web, web.serve(pages))
            return
        shutil.copyfile(boot_iso(Guest(CONTEXTUALIZED)), files / "boot.iso")
        factory.enter, factory.words = hypervisor.enter, ()
        hypervisor.run("ip", "address", "add", f"{PUBLISHER}/32", "dev", "lo")
        site = Piped(factory, web, hypervisor.inside(lambda: web.serve(pages, host=PUBLISHER)))
        site.settings = {"libvirt_uri": hypervisor.uri, "vm_domain_type": "qemu", "mb_per_processor": 96}
        try:
            yield site
        finally:
            if factory.process is not None:
                factory.stop()
            for process in hypervisor.processes("qemu-system"):
                os.kill(process, signal.SIGKILL)
