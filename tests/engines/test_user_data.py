"""A real factory whose machines' user_data comes from an https server, with a proxy in it."""

from __future__ import annotations

import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import DAY, certify
from tests.conftest import require_tool
from tests.engines.factory_fixture import AT_ONCE, FactorySite, Kind, factory_site
from tests.https_server import HTML, Page, Web

pytestmark = pytest.mark.engine

SCRIPT = b"""#!/bin/sh
# caf\xe9 ##user_data_option_unknown##
cat > /tmp/joboutputs/proxy.part << 'EOF'
##user_data_option_x509_proxy##EOF
echo '##user_data_uuid## ##user_data_url##' > /tmp/joboutputs/told
mv /tmp/joboutputs/proxy.part /tmp/joboutputs/proxy
sleep 600
"""
OPENSSL = ["verify", "-allow_proxy_certs", "-auth_level", "2"]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with Web(tmp_path) as web:
        yield web


def test_user_data_from_a_slow_server_holds_up_nobody(web: Web, tmp_path: Path) -> None:
    gate = threading.Event()
    server = web.serve({"/good": Page(SCRIPT), "/slow": Page(SCRIPT, gate=gate), "/html": Page(HTML)})
    kinds = {
        name: Kind("", {"user_data": server.url(f"/{name}"), "user_data_proxy": "yes"})
        for name in ("good", "slow", "html")
    }
    ca = certify("/DC=org/DC=example/CN=Grid CA", ca=True)
    robot = certify("/DC=org/DC=example/CN=Robot", ca, usage=["digital_signature"], end=time.time() + 9 * DAY)
    (tmp_path / "ca.pem").write_bytes(ca.certificate_pem)
    with factory_site(kinds, processors=4, start=False, machines_per_cycle=AT_ONCE) as site:
        for name in kinds:
            robot.write(site.state.machinetype(name), "x509")
        site.start(SSL_CERT_FILE=str(web.ca_file), no_proxy="*")
        site.wait_for(lambda: site.running("good"), "a machine runs whose server answers")
        site.wait_for(lambda: "html" in site.status().failed, "the creation from a web page has failed")
        assert site.running("slow") == []
        check_machine(site, server.url("/good"), tmp_path)
        check_words(site, server.url("/html"))
        gate.set()
        site.wait_for(lambda: site.running("slow"), "the slow one's machine runs, too")
        assert site.lives("html") == []


def check_machine(site: FactorySite, url: str, place: Path) -> None:
    """Check what a machine has got, as it reports itself."""
    life = site.lives("good")[0]
    site.wait_for(lambda: life.output("proxy"), "the machine has its proxy")
    (machine,) = [one for one in site.running("good") if one.directory == life.directory]
    assert life.output("told") == f"{machine.uuid} {url}\n"
    written = life.directory / "user_data"
    assert stat.S_IMODE(written.stat().st_mode) == 0o500
    assert b"# caf\xe9 \n" in written.read_bytes()
    proxy = str(life.directory / "joboutputs/proxy")
    options = [*OPENSSL, "-CAfile", str(place / "ca.pem"), "-untrusted", proxy, proxy]
    done = subprocess.run([require_tool("openssl"), *options], capture_output=True, text=True, check=False)
    assert done.stdout == f"{proxy}: OK\n", done.stderr


def check_words(site: FactorySite, url: str) -> None:
    """Check what people are told, and what not."""
    reason = f"user_data {url}: the server sends a web page (HTML) instead"
    assert f"html: not created: {reason}" in site.log()
    assert reason in site.vac("why", "html").stdout
    assert reason in site.vac("machinetypes", "-t", "0.5").stderr
    assert "PRIVATE KEY" not in site.log()
