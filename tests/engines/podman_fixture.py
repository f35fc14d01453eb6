"""Podman's Docker-compatible service of the tests' own; see docker_fixture."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.engines.docker_fixture import PrivateEngine

RUNTIME = """#!/bin/sh
case " $* " in
*" create "* | *" exec "*) {python} {directory}/unlimited.py "$@" || exit ;;
esac
exec {runtime} "$@"
"""
UNLIMITED = """
import json, pathlib, sys
given = dict(zip(sys.argv, sys.argv[1:]))
path = pathlib.Path(given["--bundle"], "config.json") if "--bundle" in given else pathlib.Path(given["--process"])
config = json.loads(path.read_text())
config.get("process", config).pop("rlimits", None)
path.write_text(json.dumps(config))
"""
"""The runtime without limits on a process's resources: Podman raises them, which a host without CAP_SYS_RESOURCE
refuses even to root. What Vac sets are limits of cgroups."""
CONFIGURATION = """
[network]
network_config_dir = "{directory}/networks"
firewall_driver = "iptables"
[engine]
init_path = "{init}"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
[engine.runtimes]
runc = ["{directory}/runc"]
"""
REGISTRIES = """
unqualified-search-registries = ["registry.example.com"]
[[registry]]
location = "127.0.0.1:{port}"
insecure = true
"""


class PrivatePodman(PrivateEngine):
    """A Podman service. It keeps its containers when it ends: each has a monitor of its own."""

    kind = "podman"
    daemon = "podman"
    package = "podman"
    registry_port = 5000
    live_restore = True

    def prepare(self) -> None:
        """Its configuration, and the runtime."""
        runtime, init = shutil.which("runc"), shutil.which("docker-init")
        (self.directory / "unlimited.py").write_text(UNLIMITED)
        (self.directory / "runc").write_text(
            RUNTIME.format(python=sys.executable, runtime=runtime, directory=self.directory)
        )
        (self.directory / "runc").chmod(0o755)
        lookup = self.directory / "bin/dpkg-query"
        lookup.parent.mkdir()
        lookup.write_text("#!/bin/sh\nexit 1\n")
        lookup.chmod(0o755)
        configuration = CONFIGURATION.format(directory=self.directory, init=init)
        (self.directory / "registries.conf").write_text(REGISTRIES.format(port=self.registry_port))
        (self.directory / "containers.conf").write_text(configuration)

    def environment(self) -> Mapping[str, str]:
        """See PrivateEngine."""
        return {
            "PATH": f"{self.directory}/bin:{os.environ['PATH']}",  # it looks up its parts' packages all the time
            "CONTAINERS_CONF": f"{self.directory}/containers.conf",
            "CONTAINERS_REGISTRIES_CONF": f"{self.directory}/registries.conf",
            "TMPDIR": str(self.directory),
        }

    def command(self) -> Sequence[str]:
        """See PrivateEngine."""
        return [
            *("podman", "--root", f"{self.directory}/data", "--runroot", f"{self.directory}/run"),
            *("--tmpdir", f"{self.directory}/libpod", "system", "service", "--time=0", self.url),
        ]

    def close(self) -> None:
        """See PrivateEngine. Podman leaves the cgroups of containers whose monitor was killed."""
        events = "".join(path.read_text(errors="replace") for path in self.directory.rglob("events.log"))
        super().close()
        for parent in Path("/sys/fs/cgroup").glob("*/libpod_parent"):
            for group in parent.glob("libpod-*"):
                if group.name.partition("-")[2] in events:
                    group.rmdir()
            for group in (parent / "conmon", parent):
                with contextlib.suppress(OSError):  # others' containers may be there
                    group.rmdir()

    def digests(self) -> set[str]:
        """Return the digests of all its images, as their registries know them."""
        with contextlib.closing(self.client()) as client:
            return {digest for image in client.images() for digest in image["RepoDigests"] or ()}
