"""Features of Apptainer alone among process machines: image files, names of images, images with URLs."""

from __future__ import annotations

import email.utils
import hashlib
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require_root, require_tool
from tests.driver_contract import details_of
from tests.engines.process_site import Site, group_makers, make_tree, open_site
from tests.engines.shared_places import FUSE, fuse_for_all
from tests.waiting import wait_for
from vac.cli.main import main
from vac.drivers.base import MachineSpec

pytestmark = pytest.mark.engine

VERSION = "v1" if "v1" in group_makers() else "v2"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tree (tree/), a squashfs (image.sqsh) and a SIF (image.sif) of it."""
    require_root()
    directory = tmp_path_factory.mktemp("images")
    make_tree(directory / "tree")
    squashed, sif, tree = directory / "image.sqsh", directory / "image.sif", directory / "tree"
    commands: list[list[str | Path]] = [
        [require_tool("mksquashfs"), tree, squashed, "-quiet", "-no-progress"],
        [require_tool("apptainer"), "--silent", "build", sif, tree],
    ]
    for command in commands:
        environment = {"PATH": os.environ["PATH"], "HOME": str(directory)}
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return directory


@pytest.fixture
def site(images: Path) -> Iterator[Site]:
    """A site whose images are in its machinetype's files/, and whose /dev/fuse is everybody's, as usual."""
    with fuse_for_all(), open_site(VERSION, "singularity") as site:
        files = site.settings.state_dir / "machinetypes/t/files"
        for image in images.glob("image.*"):
            shutil.copy(image, files)
        yield site


def runs_from(site: Site, **options: Any) -> bool:
    """Return True if a machine with these options of the machinetype sees the image's files."""
    script = 'cat /etc/motd >"$JOBOUTPUTS/motd"; touch /etc/x && echo writable >>"$JOBOUTPUTS/motd"\n'
    spec = site.create(site.spec(0, script, **options))
    site.wait_for_end(spec)
    return site.output(spec, "motd") == "the image"


def facts_of(site: Site, spec: MachineSpec, wanted: str) -> str:
    """Wait until the driver knows this fact of a machine, and return it."""
    wait_for(lambda: wanted in details_of(site.driver, spec.uuid), f"{wanted} is known")
    return details_of(site.driver, spec.uuid)[wanted]


@pytest.mark.parametrize("image", ["image.sif", "image.sqsh"])
def test_image_file(site: Site, image: str) -> None:
    spec = site.create(site.spec(1, root_image=image))
    assert runs_from(site, root_image=image)
    own = [Path(f"/proc/{process}/cmdline").read_bytes() for process in site.processes(spec)]
    assert b"sleep\x00600\x00" in own
    file = site.settings.state_dir / "machinetypes/t/files" / image
    assert facts_of(site, spec, "image_digest") == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    site.driver.destroy(spec.name, spec.uuid)
    assert not site.processes(spec), "the program that serves the image belongs to the machine as well"


@pytest.mark.parametrize(
    "name",
    [
        "--fakeroot",
        "-B",
        "a,b",
        "a:b",
        "instance:",
        "a b",
        'a"b',
        "$(id)",
        "~",
        "%2f",
        "docker:",
        "../files/./sub/../linked",
        "ünï",
    ],
)
def test_any_name_of_an_image_is_a_name(site: Site, name: str) -> None:
    files = site.settings.state_dir / "machinetypes/t/files"
    (files / "sub").mkdir()
    Path(site.image).rename(files / name)
    assert runs_from(site, root_image=name, tmp_binds=('/a,b"c', "/d:e", "/-f"))


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one image, once it may."""

    content = b""
    may = threading.Event()

    def do_GET(self) -> None:
        self.may.wait(60)
        self.send_response(200)
        self.send_header("Last-Modified", email.utils.formatdate(1_700_000_000, usegmt=True))
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quietly."""


def test_image_with_a_url_is_downloaded_in_the_background(site: Site, images: Path) -> None:
    Server.content = (images / "image.sif").read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    driver = site.driver
    try:
        url = f"http://127.0.0.1:{server.server_port}/a%20b/image.sif?x=1"
        kind = site.spec(2, root_image=url).machinetype
        files = site.settings.state_dir
        shown = url.replace("?x=1", "?…")
        assert driver.prepare(kind, site.settings, files) == f"image {shown} is being downloaded"
        Server.may.set()
        site.wait_for_word()
        assert driver.prepare(kind, site.settings, files) is None
        assert runs_from(site, root_image=url)
    finally:
        server.shutdown()
        server.server_close()


def test_doctor_tries_it(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    conf = site.settings.state_dir / "vac.conf"
    conf.write_text(
        "[settings]\nvac_space = vac.example.com\nfactory_name = f1.example.com\nsingularity_user = nobody\n"
        f"state_dir = {site.settings.state_dir}\n[machinetype t]\ntarget_share = 1\nmachine_model = singularity\n"
        "root_image = image.sif\ncontainer_command = /bin/true\n"
    )
    tried = "ok       a container made by apptainer or singularity\n"
    assert main(["--config", str(conf), "doctor"]) == 0
    said = capsys.readouterr().out
    assert tried in said
    assert "ok       machinetype t\n" in said
    FUSE.chmod(0o600)
    assert main(["--config", str(conf), "doctor"]) == 1
    said = capsys.readouterr().out
    assert tried in said
    assert "PROBLEM  machinetype t: /dev/fuse must be there, readable and writable for all" in said
