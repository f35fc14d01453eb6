"""All of vacd with metrics_listen: a process without rights serves Prometheus and people as long as it is wanted."""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.engines.factory_fixture import AT_ONCE, FactorySite, Kind, factory_site
from tests.https_server import closed_port
from vac.host.privileges import unprivileged_user

pytestmark = pytest.mark.engine
LASTING = Kind("exec sleep 600\n")
HOSTILE = Kind(
    'echo "300 <script>no</script> work" > "$JOBOUTPUTS/shutdown_message"\n', {"backoff_seconds": 600}
)


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def get(port: int, path: str) -> str:
    """Return the page served there; nothing if there is no server, or if it ends in the middle of its answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    no_server = contextlib.suppress(OSError, http.client.HTTPException)
    with no_server, opener.open(f"http://127.0.0.1:{port}{path}", timeout=300) as reply:
        return str(reply.read().decode())
    return ""


def samples(port: int) -> dict[tuple[str, ...], float]:
    """By metric and its labels' values, sorted by label."""
    return {
        (one.name, *(text for _, text in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(get(port, "/metrics"))
        for one in family.samples
    }


def line(pid: int, key: str) -> list[str]:
    found = re.search(rf"^{key}:(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return found[1].split()


def configurer(site: FactorySite, pipe_url: str, vacquery_port: int) -> Callable[[str], None]:
    def configure(listen: str) -> None:
        more = {"metrics_listen": listen} if listen else {}
        kinds = {"lasting": LASTING, "hostile": HOSTILE}
        site.configure(kinds, machines_per_cycle=AT_ONCE, vacquery_port=vacquery_port, **more)
        with site.config.open("a") as file:
            file.write(f"[vacuum_pipe vo]\nvacuum_pipe_url = {pipe_url}\ntarget_share = 1\n")

    return configure


def test_the_page_comes_moves_and_goes_with_its_address() -> None:
    user = unprivileged_user()
    first, second = free_port(), free_port()
    with (
        factory_site({}, processors=2, start=False) as site,
        closed_port() as nobody,
        socket.socket() as taken,
    ):
        assert user is not None
        configure = configurer(site, f"https://127.0.0.1:{nobody}/pipe", free_port(socket.SOCK_DGRAM))
        site.words = ()
        configure("")
        site.start()
        site.wait_for(lambda: "factory is ready" in site.log(), "vacd is ready")
        assert "vacd-page" not in site.log()

        def reload(listen: str) -> None:
            configure(listen)
            assert site.process is not None
            site.process.send_signal(signal.SIGHUP)

        reload(f"127.0.0.1:{first}")
        site.wait_for(lambda: get(first, "/"), "the page is there")
        pid = int(site.state.pid("page").read_text())
        assert line(pid, "Uid") == [str(user.pw_uid)] * 4
        assert line(pid, "CapPrm") == ["0000000000000000"]
        assert Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"vacd-page")

        trouble = "connection refused or host unreachable"
        site.wait_for(
            lambda: any(
                key[:2] == ("vac_vacuum_pipe_error_info", "vo") and trouble in key[2]
                for key in samples(first)
            ),
            "the reason of the pipe's failure is told",
        )
        site.wait_for(
            lambda: samples(first).get(("vac_machinetype_machines", "lasting")) == 2, "both slots are full"
        )
        site.wait_for(
            lambda: samples(first).get(("vac_machinetype_ends_total", "300", "hostile")), "ends count"
        )
        created = ("vac_machine_creation_duration_seconds_count", "bubblewrap", "created")
        site.wait_for(lambda: samples(first).get(created, 0) >= 3, "three machines have been made")
        found = samples(first)
        assert found["vac_vacuum_pipe_ok", "vo"] == 0
        assert found["vac_machinetype_held_back", "hostile", "aborts_here"] == 1
        assert found["vac_engine_up", "processes"] == 1
        machines = {machine.name for machine in site.running()}
        assert {key[1] for key in found if key[0] == "vac_machine_info"} == machines
        text = get(first, "/")
        assert "<script" not in text
        for words in (*machines, "held back here", trouble, "&lt;script&gt;no"):
            assert words in text

        taken.bind(("127.0.0.1", second))
        taken.listen()
        reload(f"127.0.0.1:{second}")
        words = f"can't listen at metrics_listen = 127.0.0.1:{second}: Address already in use"
        site.wait_for(lambda: words in site.log(), "the taken port is told of")
        assert get(first, "/") == ""
        taken.close()
        site.wait_for(lambda: get(second, "/metrics"), "the page has moved")

        reload("")
        site.wait_for(lambda: "page: not needed any more" in site.log(), "the page is told to go")
        site.wait_for(lambda: get(second, "/") == "", "the page is gone")
        assert {machine.name for machine in site.running()} == machines
        assert "Traceback" not in site.log()
        assert site.stop() == 0
