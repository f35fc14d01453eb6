"""Images of the Docker driver: from a registry, from an archive, and each reason why one isn't there."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import docker
import pytest

from tests.driver_contract import details_of
from tests.engines.docker_fixture import IMAGE, PrivateDocker, root_tar
from tests.engines.docker_machines import Machines, with_image
from tests.engines.registry_fixture import Registry, incompressible
from tests.waiting import wait_for
from vac.context.downloads import ImageCache
from vac.context.signatures import SignedImages
from vac.drivers.base import CreationFailed, EngineState
from vac.drivers.docker.docker_driver import DockerDriver
from vac.drivers.docker.docker_images import ARCHIVES
from vac.drivers.engine import driver_for
from vac.host.filesystems import stamp_of

pytestmark = pytest.mark.engine

SLEEP = "#!/bin/sh\nexec sleep 600\n"


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivateDocker]:
    engine = PrivateDocker()
    yield engine
    engine.close()


@pytest.fixture
def machines(engine: PrivateDocker, tmp_path: Path) -> Iterator[Machines]:
    with contextlib.closing(Machines(engine.url, tmp_path)) as machines:
        yield machines
    engine.remove_containers()


def test_an_image_is_pulled_in_the_background(engine: PrivateDocker, machines: Machines) -> None:
    root = root_tar({"large": incompressible(4_000_000)})
    with contextlib.closing(
        Registry(engine.listening_socket(), "site/pilot", root, stalling=True)
    ) as registry:
        spec = machines.spec(SLEEP, root_image=f"docker://{registry.image}")
        with machines.listening() as news:
            assert news.get(timeout=300) == ""
            with pytest.raises(CreationFailed, match="is being pulled"):
                machines.driver.create(spec)
            wait_for(lambda: "%" in (machines.prepared(spec) or ""), "progress is told")
            other = machines.spec(SLEEP)
            machines.create(other)
            assert machines.state(other) is EngineState.RUNNING
            registry.release()
            assert news.get(timeout=300) == ""
            machines.create(spec)  # on a busy host it may have been given up once
            assert details_of(machines.driver, spec.uuid)["image_digest"] == registry.digest


def test_a_pull_that_stalls_is_given_up_and_tried_again(engine: PrivateDocker, machines: Machines) -> None:
    root = root_tar({"large": incompressible(4_000_001)})
    with contextlib.closing(Registry(engine.listening_socket(), "slow", root, stalling=True)) as registry:
        spec = machines.spec(SLEEP, root_image=f"docker://{registry.image}")
        wait_for(lambda: "the registry stalls" in (machines.prepared(spec) or ""), "the stall is the reason")
        registry.release()
        wait_for(lambda: machines.prepared(spec) is None, "a later attempt succeeds")
        machines.driver.create(spec)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("docker://127.0.0.1:9/pilot:1", "the registry can't be reached: .*connection refused"),
        ("docker://UPPER", "invalid reference format"),
        ("https://example.com/image.tar", "images can't be downloaded or checked here"),
        ("nothing.tar", "No such file or directory"),
    ],
)
def test_why_an_image_cant_be_had_is_told(machines: Machines, image: str, reason: str) -> None:
    spec = machines.spec(SLEEP, root_image=image)
    wait_for(lambda: "being" not in (machines.prepared(spec) or ""), "it is settled")
    with pytest.raises(CreationFailed, match=reason):
        machines.driver.create(spec)
    assert machines.driver.list() == []


def test_an_image_that_the_registry_lacks_is_told(engine: PrivateDocker, machines: Machines) -> None:
    with contextlib.closing(Registry(engine.listening_socket(), "pilot", root_tar())) as registry:
        spec = machines.spec(SLEEP, root_image=f"docker://{registry.address}/absent:1")
        reason = "the registry has no such image, or not for us"
        wait_for(lambda: reason in (machines.prepared(spec) or ""), "the reason is told")


def test_a_moved_tag_is_followed_and_its_old_image_removed(engine: PrivateDocker, tmp_path: Path) -> None:
    listener = engine.listening_socket()
    first = Registry(listener, "moving", root_tar())
    image = first.image
    with (
        contextlib.closing(engine.client()) as client,
        contextlib.closing(Machines(engine.url, tmp_path)) as old,
    ):
        wait_for(
            lambda: old.prepared(old.spec(SLEEP, root_image=f"docker://{image}")) is None, "it is pulled"
        )
        before = engine.image_id(image)
        wait_for(lambda: first.asked.count("/v2/moving/manifests/1") > 0, "it was asked for")
        first.replace(root_tar({"new": "content"}))
        with contextlib.closing(Machines(engine.url, tmp_path / "new")) as new:
            spec = new.spec(SLEEP, root_image=f"docker://{image}")
            assert new.prepared(spec) is None, "the old one serves meanwhile"
            wait_for(lambda: engine.image_id(image) != before, "the tag is followed")
            wait_for(lambda: before not in client.images(quiet=True, all=True), "the old one is removed")
            new.driver.create(spec)
            assert details_of(new.driver, spec.uuid)["image_digest"] == first.digest
    first.close()
    engine.remove_containers()


def test_an_archive_is_loaded_and_run(engine: PrivateDocker, machines: Machines) -> None:
    spec = machines.spec(SLEEP, root_image="image.tar")
    spec.files.mkdir()
    archive = spec.files / "image.tar"
    with contextlib.closing(engine.client()) as client:
        archive.write_bytes(b"".join(client.get_image(IMAGE)))
        machines.create(spec)
        assert details_of(machines.driver, spec.uuid)["image_id"] == engine.image_id(IMAGE)
    archive.write_bytes(b"no archive at all")
    again = with_image(machines.spec(SLEEP), str(archive))
    with contextlib.closing(machines.successor()) as driver:
        wait_for(
            lambda: (
                "no image archive" in (driver.prepare(again.machinetype, again.settings, again.files) or "")
            ),
            "the reason is told",
        )


def test_an_archive_that_has_been_replaced_is_loaded_anew(
    engine: PrivateDocker, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vac.drivers.docker.docker_images.ARCHIVE_LOOK_SECONDS", 0.0)
    spec = machines.spec(SLEEP, root_image="image.tar")
    spec.files.mkdir()
    archive = spec.files / "image.tar"
    with contextlib.closing(engine.client()) as client:
        others = loaded(client)
        client.import_image_from_data(root_tar({"new": "content"}), "vactest", "2")
        for number, image in enumerate((IMAGE, "vactest:2")):
            archive.write_bytes(b"".join(client.get_image(image)))
            wanted = engine.image_id(image)

            def made_from_it(number: int = number, wanted: str = wanted) -> bool:
                one = replace(machines.spec(SLEEP), machinetype=spec.machinetype)
                machines.create(one)
                return details_of(machines.driver, one.uuid)["image_id"] == wanted

            wait_for(made_from_it, f"machines are made from archive {number}")
        before = loaded(client)
        engine.remove_containers()
        archive.touch()
        with contextlib.closing(machines.successor()) as driver:

            def only_the_latest() -> bool:
                driver.prepare(spec.machinetype, spec.settings, spec.files)
                own = loaded(client) - others
                return len(own) == 1 and not own & before

            wait_for(only_the_latest, "what earlier archives held has gone, whichever driver loaded it")


def test_an_archives_own_names_do_not_matter(engine: PrivateDocker, machines: Machines) -> None:
    spec = machines.spec(SLEEP, root_image="image.tar")
    spec.files.mkdir()
    name, _, tag = IMAGE.partition(":")
    with contextlib.closing(engine.client()) as client:
        victim = engine.image_id(IMAGE)
        client.import_image_from_data(root_tar({"another": "one"}), "vactest", "named")
        other = engine.image_id("vactest:named")
        client.tag(other, name, tag or "latest", force=True)
        (spec.files / "image.tar").write_bytes(b"".join(client.get_image(IMAGE)))
        client.tag(victim, name, tag or "latest", force=True)
        client.remove_image("vactest:named")
        machines.create(spec)
        assert details_of(machines.driver, spec.uuid)["image_id"] == other
        assert engine.image_id(IMAGE) == victim


def loaded(client: docker.APIClient) -> set[str]:
    """Names of what the engine has from archives."""
    tags = {tag for image in client.images() for tag in image["RepoTags"] or ()}
    return {tag for tag in tags if tag.startswith(ARCHIVES)}


def test_an_archive_with_a_url_is_what_was_fetched(engine: PrivateDocker, machines: Machines) -> None:
    spec = machines.spec(SLEEP, root_image="https://example.com/image.tar")
    archive = machines.directory / "fetched"
    with contextlib.closing(engine.client()) as client:
        archive.write_bytes(b"".join(client.get_image(IMAGE)))
    driver = DockerDriver(spec.settings, lambda source, signing_dn=None: (archive, stamp_of(archive)))
    with contextlib.closing(driver):
        prepared = (spec.machinetype, spec.settings, spec.files)
        wait_for(lambda: driver.prepare(*prepared) is None, "the image is ready")
        driver.create(spec)
        assert details_of(driver, spec.uuid)["image_id"] == engine.image_id(IMAGE)


def test_an_archive_is_downloaded_and_run(engine: PrivateDocker, machines: Machines) -> None:
    served, cached, unfinished = (machines.directory / name for name in ("served", "imagecache", "tmp"))
    for directory in (served, cached, unfinished):
        directory.mkdir()
    with contextlib.closing(engine.client()) as client:
        (served / "image.tar").write_bytes(b"".join(client.get_image(IMAGE)))
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            spec = machines.spec(SLEEP, root_image=f"http://127.0.0.1:{server.server_port}/image.tar")
            images = SignedImages(ImageCache(cached, unfinished).fetch, machines.directory, time.time)
            driver = driver_for("docker", spec.settings, images.fetch)
            assert isinstance(driver, DockerDriver)
            with contextlib.closing(driver):
                prepared = (spec.machinetype, spec.settings, spec.files)
                wait_for(lambda: driver.prepare(*prepared) is None, "the image is ready")
                driver.create(spec)
                assert details_of(driver, spec.uuid)["image_id"] == engine.image_id(IMAGE)
        finally:
            server.shutdown()
            thread.join()


def test_an_image_that_was_removed_is_got_again(engine: PrivateDocker, machines: Machines) -> None:
    with contextlib.closing(Registry(engine.listening_socket(), "vanishing", root_tar())) as registry:
        spec = machines.spec(SLEEP, root_image=f"docker://{registry.image}")
        wait_for(lambda: machines.prepared(spec) is None, "it is pulled")
        with contextlib.closing(engine.client()) as client:
            client.remove_image(registry.image)
        with pytest.raises(CreationFailed, match="isn't there any more"):
            machines.driver.create(spec)
        machines.create(spec)
        assert machines.state(spec) is EngineState.RUNNING
