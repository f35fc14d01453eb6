"""Images for containers: how pulls are judged, what archives hold, which images go, and reasons for people."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import json
import logging
import lzma
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, cast

import docker.errors
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from vac.config.machinetype import Machinetype
from vac.config.settings import Settings
from vac.context.downloads import DownloadFailed
from vac.drivers.base import EngineUnavailable, no_images
from vac.drivers.docker import docker_images as images
from vac.drivers.docker.docker_api import Connection
from vac.drivers.docker.docker_driver import DockerDriver
from vac.drivers.docker.docker_images import (
    DockerImages,
    PullProgress,
    image_key,
    pull_failure,
    renamed_archive,
)
from vac.drivers.engine import driver_for
from vac.drivers.images import ImageUnavailable
from vac.host.filesystems import FileStamp


def workers() -> set[threading.Thread]:
    """The threads of all image stores."""
    return {thread for thread in threading.enumerate() if thread.name == "image"}


def settle() -> None:
    for thread in workers():
        thread.join(60)


@pytest.fixture(autouse=True, scope="module")
def short_limits() -> Iterator[None]:
    """Pulls take less time and bring fewer bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "STALL_SECONDS", 10)
        patch.setattr(images, "LEAST_BYTES", 1000)
        patch.setattr(images, "TOTAL_SECONDS", 100)
        yield


def downloading(layer: str, current: int, total: int) -> dict[str, object]:
    return {"status": "Downloading", "id": layer, "progressDetail": {"current": current, "total": total}}


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([], ""),
        ([{"status": "Pulling from library/busybox", "id": "latest"}], ""),
        ([downloading("a", 50, 200)], "25 %"),
        ([downloading("a", 50, 200), downloading("b", 150, 200)], "50 %"),
        (
            [downloading("a", 50, 200), {"status": "Download complete", "id": "a", "progressDetail": {}}],
            "100 %",
        ),
        ([downloading("a", 300, 200)], "100 %"),
    ],
)
def test_progress_is_the_share_that_has_come(lines: Sequence[Mapping[str, object]], text: str) -> None:
    progress = PullProgress(0)
    for line in lines:
        progress.feed(line, 1)
    assert progress.text == text


def test_a_pull_that_crawls_is_given_up_and_a_slow_one_is_not() -> None:
    crawling, slow = PullProgress(0), PullProgress(0)
    for second in range(1, 60):
        slow.feed(downloading("a", 101 * second, 100_000), second)
    with pytest.raises(ImageUnavailable, match="no progress for 10 s at 0 %"):
        for second in range(1, 60):
            crawling.feed(downloading("a", 99 * second, 1_000_000), second)


def test_retries_of_the_engine_are_no_progress() -> None:
    progress = PullProgress(0)
    with pytest.raises(ImageUnavailable, match="the registry stalls"):
        for second in range(1, 60):
            progress.feed({"status": f"Retrying in {60 - second} seconds", "id": "a"}, second)


def test_unpacking_is_progress() -> None:
    progress = PullProgress(0)
    for second in range(1, 60):
        detail = {"current": 1000 * second, "total": 100_000}
        progress.feed({"status": "Extracting", "id": "a", "progressDetail": detail}, second)


def test_no_pull_takes_longer_than_its_limit() -> None:
    progress = PullProgress(0)
    with pytest.raises(ImageUnavailable, match="not complete after 100 s, at"):
        for second in range(1, 200):
            progress.feed(downloading("a", 10_000 * second, 10_000_000), second)


@pytest.mark.parametrize(
    ("said", "begins"),
    [
        (
            'Get "https://r/v2/": dial tcp: lookup r on 192.0.2.1:53: no such host',
            "the registry can't be reached",
        ),
        (
            'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused',
            "the registry can't",
        ),
        ("net/http: TLS handshake timeout", "the registry can't be reached"),
        ("x509: certificate signed by unknown authority", "the registry can't be reached"),
        (
            "manifest for busybox:9 not found: manifest unknown",
            "the registry has no such image, or not for us",
        ),
        (
            "pull access denied for x, repository does not exist or may require 'docker login'",
            "the registry has",
        ),
        ("invalid reference format", "invalid reference format"),
        ("write /data: no space left on device", "write /data: no space left"),
    ],
)
def test_the_reason_begins_with_what_it_comes_to(said: str, begins: str) -> None:
    assert pull_failure(said).startswith(begins)
    with pytest.raises(ImageUnavailable) as caught:
        PullProgress(0).feed({"error": said, "errorDetail": {"message": said}}, 0)
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["status", "id", "progressDetail", "current", "total", "stream"])


@given(st.lists(st.dictionaries(keys, json_values | st.dictionaries(keys, json_values)), max_size=10))
def test_no_line_of_an_engine_breaks_it(lines: list[dict[str, object]]) -> None:
    progress = PullProgress(0)
    for line in lines:
        progress.feed(line, 1)
    assert progress.text == "" or progress.text.endswith(" %")


@pytest.mark.parametrize(
    ("root_image", "key"),
    [
        ("docker://busybox", "docker://busybox:latest"),
        ("docker://busybox:1", "docker://busybox:1"),
        ("docker://example.com:5000/a/b", "docker://example.com:5000/a/b:latest"),
        ("docker://a@sha256:00", "docker://a@sha256:00"),
        ("https://example.com/a.tar", "https://example.com/a.tar"),
        ("image.tar", "/files/image.tar"),
        ("/images/image.tar", "/images/image.tar"),
    ],
)
def test_one_image_has_one_key(root_image: str, key: str) -> None:
    assert image_key(root_image, Path("/files")) == key


OLD, NEW = "sha256:aa", "sha256:bb"
LATEST = "docker://repo:latest"


class RegistryEngine:
    """An engine's images, its registry, and the one connection to them."""

    def __init__(self) -> None:
        self.registry: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.images: set[str] = set()
        self.busy: set[str] = set()
        self.down = ""

    @contextmanager
    def client(self, _: float = 0) -> Iterator[RegistryEngine]:
        if self.down:
            raise EngineUnavailable(self.down)
        yield self

    stream_client = client

    def forget(self) -> None:
        """See Connection."""

    def image(self, reference: str) -> Mapping[str, Any] | None:
        found = self.names.get(reference, reference)
        if found not in self.images:
            return None
        tags = [name for name, image in self.names.items() if image == found and "@" not in name]
        return {"Id": found, "RepoTags": tags}

    def pull_lines(self, reference: str) -> Iterator[Mapping[str, object]]:
        self.names[reference] = self.registry[reference]
        self.images.add(self.registry[reference])
        return iter(())

    def remove_image(self, image: str) -> None:
        if image in self.busy:
            response = requests.Response()
            response.status_code = 409
            raise docker.errors.APIError("a container uses it", response=response)
        self.images.remove(image)
        self.names = {name: found for name, found in self.names.items() if found != image}


class PullSite:
    """A store whose images are due for a refresh whenever they are asked for."""

    def __init__(self) -> None:
        self.engine = RegistryEngine()
        self.now = 0.0
        connection = cast("Connection", self.engine)
        self.keeper = DockerImages(connection, lambda: None, no_images, clock=lambda: self.now)

    def refresh(self, image: str, **registry: str) -> None:
        """Get the image anew, from a registry that now has these tags of the repository."""
        self.engine.registry.update({f"repo:{tag}": found for tag, found in registry.items()})
        self.now += 2 * images.REST.success_seconds
        self.keeper.prepare(image, Path("/"))
        settle()


@pytest.fixture
def site() -> PullSite:
    return PullSite()


def test_what_nothing_names_any_more_is_removed(site: PullSite) -> None:
    site.refresh(LATEST, latest=OLD)
    site.refresh(LATEST, latest=NEW)
    assert site.engine.images == {NEW}


def test_what_another_tag_names_is_kept_until_it_does_not(site: PullSite) -> None:
    site.refresh(LATEST, latest=OLD)
    site.refresh("docker://repo:v1", v1=OLD)
    site.refresh(LATEST, latest=NEW)
    assert site.engine.images == {OLD, NEW}
    site.refresh("docker://repo:v1", v1=NEW)
    assert site.engine.images == {NEW}


def test_what_a_machinetype_names_by_digest_is_kept(site: PullSite) -> None:
    site.refresh(LATEST, latest=OLD)
    site.engine.names["repo@sha256:dd"] = OLD
    site.refresh("docker://repo@sha256:dd")
    site.refresh(LATEST, latest=NEW)
    assert site.engine.images == {OLD, NEW}


def test_what_a_tag_has_come_back_to_is_kept(site: PullSite) -> None:
    site.refresh(LATEST, latest=OLD)
    site.engine.busy.add(OLD)
    site.refresh(LATEST, latest=NEW)
    assert site.engine.images == {OLD, NEW}
    site.engine.busy.clear()
    site.refresh(LATEST, latest=OLD)
    assert site.engine.images == {OLD}
    site.refresh(LATEST, latest=NEW)
    assert site.engine.images == {NEW}


def test_an_outage_of_the_engine_gives_no_image_a_pause(site: PullSite) -> None:
    site.engine.registry["repo:latest"] = OLD
    site.engine.down = "refuses connections"
    site.keeper.prepare(LATEST, Path("/"))
    settle()
    assert "refuses connections" in (site.keeper.prepare(LATEST, Path("/")) or "")
    settle()
    site.engine.down = ""
    site.keeper.prepare(LATEST, Path("/"))
    settle()
    assert site.keeper.prepare(LATEST, Path("/")) is None


VICTIM = "sha256:" + "11" * 32


def config(content: str) -> bytes:
    return json.dumps({"content": content}).encode()


def identity(content: str) -> str:
    return f"sha256:{hashlib.sha256(config(content)).hexdigest()}"


def manifest(*tags: str, **more: object) -> bytes:
    return json.dumps([{"Config": "c.json", "RepoTags": tags, "Layers": [], **more}]).encode()


def tar(*files: tuple[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return buffer.getvalue()


def image(content: str, *tags: str) -> bytes:
    return tar(("c.json", config(content)), ("manifest.json", manifest(*tags)))


NAME = "vac-archive/00:1"


def files_of(archive: bytes) -> dict[str, bytes]:
    """Contents by name; "-> TARGET" for a link."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as opened:
        return {
            entry.name: content.read()
            if entry.isreg() and (content := opened.extractfile(entry))
            else entry.linkname.encode()
            for entry in opened
        }


def renamed(archive: bytes) -> dict[str, bytes]:
    pieces = list(renamed_archive(io.BytesIO(archive), NAME))
    assert all(pieces), "an empty piece would end the call"
    return files_of(b"".join(pieces))


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("size", [0, 1, 512, 3_000_000])
def test_an_archive_is_passed_on_with_our_name_only(compress: Callable[[bytes], bytes], size: int) -> None:
    long = "d" * 90 + "/" + "f" * 120
    layer = bytes(range(256)) * (size // 256 + 1)
    content = tar(
        *(("index.json", b"{}"), ("oci-layout", b"{}"), ("./repositories", b"{}"), ("d/index.json", b"{}")),
        *(("manifest.json", manifest("pilot:1", "b/c:2")), ("c.json", config("a"))),
        *((long, layer[:size]), ("layer.tar", layer[:size])),
    )
    found = renamed(compress(content))
    assert json.loads(found.pop("manifest.json")) == [{"Config": "c.json", "RepoTags": [NAME], "Layers": []}]
    assert found == {"c.json": config("a"), long: layer[:size], "layer.tar": layer[:size]}


def test_links_between_layers_stay_and_what_is_no_layer_goes() -> None:
    buffer = io.BytesIO(
        tar(("c.json", config("a")), ("manifest.json", manifest()), links={"l": "../x/layer.tar"})
    )
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        for kind in (tarfile.FIFOTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            entry = tarfile.TarInfo("x")
            entry.type, entry.linkname = kind, "manifest.json"
            archive.addfile(entry)
    assert renamed(buffer.getvalue()).keys() == {"c.json", "l", "manifest.json"}


C, M = ("c.json", config("a")), ("manifest.json", manifest("x:1"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither a tar archive nor"),
        (b"no archive at all", "neither a tar archive nor"),
        (gzip.compress(tar(C, M))[:60], "neither a tar archive nor"),
        (tar(C), "0 manifest.json"),
        (tar(C, ("manifest.json", b"[")), "its manifest.json: "),
        (tar(C, ("manifest.json", b"[" * 100_000)), "its manifest.json: "),
        (tar(C, ("manifest.json", b"[]")), "holds 0 images"),
        (tar(C, ("manifest.json", b"[{}, {}]")), "holds 2 images"),
        (tar(C, ("manifest.json", b"[{}]")), "names no configuration"),
        (tar(C, M, ("manifest.json", manifest("y:1"))), "2 manifest.json"),
        (tar(C, ("m", manifest()), links={"manifest.json": "m"}), "0 manifest.json"),
        (tar(C, ("manifest.json", manifest() + b" " * 2**22)), "more than 4194304"),
        (tar(C)[:1024] + b"junk" * 256 + tar(M), "0 manifest.json"),
        (tar(C, M, ("layer.tar", bytes(2**20)))[: -(2**19)], "it ends early"),
    ],
    ids=lambda value: value if isinstance(value, str) else "archive",
)
def test_no_archive_of_one_image_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ImageUnavailable, match=reason):
        renamed(content)


def test_a_header_cannot_fill_the_memory() -> None:
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, 2**32
    with pytest.raises(ImageUnavailable, match="a part of 4294967296 bytes"):
        renamed(entry.tobuf(tarfile.USTAR_FORMAT)[:512] + bytes(1024))


@given(st.binary(max_size=2000), st.integers(0, 3000))
def test_any_damage_is_a_bad_archive_or_none(junk: bytes, place: int) -> None:
    content = image("a", "x:1")
    with contextlib.suppress(ImageUnavailable):
        renamed(content[:place] + junk + content[place + len(junk) :])


class Engine:
    """An engine's images by name, and a Connection to it."""

    def __init__(self, **images: str) -> None:
        self.images = {name.replace("_", ":"): each for name, each in images.items()}

    @contextmanager
    def client(self) -> Iterator[Engine]:
        yield self

    @contextmanager
    def stream_client(self, seconds: float) -> Iterator[Engine]:
        yield self

    def forget(self) -> None:
        pass

    def image(self, reference: str) -> Mapping[str, Any] | None:
        found = self.images.get(reference, reference if reference in self.images.values() else None)
        return None if found is None else {"Id": found}

    def tags(self) -> frozenset[str]:
        return frozenset(self.images)

    def load_lines(self, archive: Iterable[bytes]) -> Iterator[Mapping[str, object]]:
        found = files_of(b"".join(archive))
        (wanted,) = json.loads(found["manifest.json"])
        image = f"sha256:{hashlib.sha256(found[wanted['Config']]).hexdigest()}"
        self.images.update(dict.fromkeys(wanted["RepoTags"], image))
        yield {"stream": f"Loaded image: {wanted['RepoTags'][0]}\n"}

    def remove_image(self, name: str, noprune: bool = False) -> None:
        del self.images[name]


class ArchiveSite:
    """A store of images, and the archive that it is to load."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine, self.archive = engine, directory / "image.tar"
        self.now = 0.0
        self.keeper = DockerImages(cast(Connection, engine), lambda: None, no_images, clock=lambda: self.now)

    def load(self, content: bytes) -> str | None:
        """Return the reason why it can't be used."""
        self.archive.write_bytes(content)
        self.now += 10**6
        self.keeper.prepare(str(self.archive), Path("/"))
        settle()
        return self.keeper.prepare(str(self.archive), Path("/"))

    @property
    def others(self) -> dict[str, str]:
        return {name: each for name, each in self.engine.images.items() if "vac-archive/" not in name}

    @property
    def own(self) -> list[str]:
        return [each for name, each in self.engine.images.items() if "vac-archive/" in name]


@pytest.mark.parametrize("name", ["pilot:1", "vac-archive/00:1", "docker.io/vac-archive/00:1", "repo:latest"])
def test_an_archives_own_names_do_not_matter(tmp_path: Path, name: str) -> None:
    site = ArchiveSite(Engine(pilot_1=VICTIM, **{"vac-archive/00_1": VICTIM}), tmp_path)
    assert site.load(image("a", name, "x:1")) is None
    assert site.others == {"pilot:1": VICTIM}
    assert site.own == [VICTIM, identity("a")]


def test_a_newer_archive_of_the_same_name_replaces_the_older(tmp_path: Path) -> None:
    site = ArchiveSite(Engine(pilot_1=VICTIM), tmp_path)
    for content in ("a", "bb"):
        assert site.load(image(content, "x:1") + bytes(len(content))) is None
        assert site.own == [identity(content)]
        assert site.others == {"pilot:1": VICTIM}, "the archive's own name is gone"


def test_what_an_archive_was_before_goes_also_after_a_restart(tmp_path: Path) -> None:
    engine = Engine(**{"pilot_1": VICTIM, "localhost/vac-archive/0_1": VICTIM})
    for content in ("a", "bb"):
        site = ArchiveSite(engine, tmp_path)
        assert site.load(image(content, "x:1") + bytes(len(content))) is None
        assert site.own == [VICTIM, identity(content)], "that of another archive stays"
    assert site.others == {"pilot:1": VICTIM}


class Stalling(Engine):
    """Loading an archive with certain content takes until it is released."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.content, self.stalls, self.go = config(content), threading.Event(), threading.Event()

    def load_lines(self, archive: Iterable[bytes]) -> Iterator[Mapping[str, object]]:
        content = b"".join(archive)
        if self.content in content:
            self.stalls.set()
            assert self.go.wait(60)
        return super().load_lines([content])


def test_an_archive_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    engine = Stalling("a")
    keeper = DockerImages(cast(Connection, engine), lambda: None, no_images)

    def load(name: str, content: bytes) -> str | None:
        (tmp_path / name).write_bytes(content)
        return keeper.prepare(name, tmp_path)

    assert "is being loaded" in (load("hung", image("a", "x:1")) or "")
    assert engine.stalls.wait(60)
    before = workers()
    load("other", image("b", "x:1"))
    for thread in workers() - before:
        thread.join(60)
    assert keeper.prepare("other", tmp_path) is None
    assert "is being loaded" in (keeper.prepare("hung", tmp_path) or "")
    engine.go.set()
    settle()
    assert keeper.prepare("hung", tmp_path) is None
    assert set(engine.images.values()) == {identity(content) for content in "ab"}


def test_an_engines_refusal_is_the_reason(tmp_path: Path) -> None:
    class Refusing(Engine):
        def load_lines(self, archive: Iterable[bytes]) -> Iterator[Mapping[str, object]]:
            yield {"status": "Loading layer"}
            yield {"error": "no space left on device"}

    site = ArchiveSite(Refusing(), tmp_path)
    assert "no image archive: no space left on device" in (site.load(image("a", "x:1")) or "")


def test_a_link_out_of_cvmfs_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vac.host.filesystems.real_image.__defaults__", (str(tmp_path / "cvmfs"),))
    (tmp_path / "cvmfs").mkdir()
    (tmp_path / "secret.tar").write_bytes(image("a", "x:1"))
    site = ArchiveSite(Engine(), tmp_path / "cvmfs")
    site.archive.symlink_to(tmp_path / "secret.tar")
    assert "must not leave it" in (site.load(image("a", "x:1")) or "")
    assert site.engine.images == {}


def test_an_archive_that_does_not_answer_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "problem_of", "{} doesn't answer".format)
    monkeypatch.setattr(images, "real_image", None)
    site = ArchiveSite(Engine(), tmp_path)
    assert f"{site.archive} doesn't answer" in (site.load(image("a", "x:1")) or "")


URL = "https://user:secret@example.com/image.tar"
MACHINETYPE = Machinetype("test", machine_model="docker", root_image=URL)


def fail(source: str, signing_dn: str | None = None) -> tuple[Path, FileStamp]:
    assert source == URL
    raise DownloadFailed("the server answers with status 404")


def test_a_failed_downloads_reason_has_no_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    driver = driver_for("docker", Settings(), fail)
    assert isinstance(driver, DockerDriver)
    deadline = time.monotonic() + 60
    reason = driver.prepare(MACHINETYPE, Settings(), Path())
    while "404" not in (reason or "") and time.monotonic() < deadline:
        time.sleep(0.01)
        reason = driver.prepare(MACHINETYPE, Settings(), Path())
    assert "image.tar: the server answers with status 404; next attempt in" in (reason or "")
    assert "example.com/image.tar: the server answers with status 404" in caplog.text
    assert "secret" not in f"{reason}{caplog.text}"
