"""Archives of images: what they call their image, and that they take no other image's name."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Callable, cast

import pytest

from vac.drivers.docker import images
from vac.drivers.docker.api import Connection
from vac.drivers.docker.image_archive import BadArchive, ImageArchive, read_archive
from vac.drivers.docker.images import ImageKeeper

VICTIM = "sha256:" + "11" * 32


def config(content: str) -> bytes:
    return json.dumps({"content": content}).encode()


def identity(content: str) -> str:
    return f"sha256:{hashlib.sha256(config(content)).hexdigest()}"


def manifest(*tags: str, **more: object) -> bytes:
    return json.dumps([{"Config": "c.json", "RepoTags": tags, "Layers": [], **more}]).encode()


def index(annotations: Mapping[str, str]) -> bytes:
    return json.dumps({"manifests": [{"annotations": annotations}]}).encode()


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


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_id_and_names_are_read(compress: Callable[[bytes], bytes]) -> None:
    found = read_archive(io.BytesIO(compress(image("a", "pilot:1", "b/c:2"))))
    assert found == ImageArchive(identity("a"), ("pilot:1", "b/c:2"))


@pytest.mark.parametrize(
    ("files", "tag"),
    [
        ([("manifest.json", manifest(repotagS=["x:1"]))], "x:1"),
        ([("manifest.json", manifest(RepoTagſ=["x:1"]))], "x:1"),
        ([("./manifest.json", manifest("x:1"))], "x:1"),
        ([("manifest.json", manifest()), ("index.json", index({"io.containerd.image.name": "x:1"}))], "x:1"),
        (
            [
                ("manifest.json", manifest()),
                ("index.json", index({"org.opencontainers.image.ref.name": "1"})),
            ],
            "1:latest",
        ),
    ],
)
def test_names_are_seen_wherever_an_engine_sees_them(files: list[tuple[str, bytes]], tag: str) -> None:
    assert tag in read_archive(io.BytesIO(tar(("c.json", config("a")), *files))).tags


C, M = ("c.json", config("a")), ("manifest.json", manifest("x:1"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither a tar archive nor"),
        (b"no archive at all", "neither a tar archive nor"),
        (gzip.compress(tar(C, M))[:60], "neither a tar archive nor"),
        (tar(C), "no manifest.json"),
        (tar(C, ("manifest.json", b"[")), "its manifest.json or index.json"),
        (tar(C, ("manifest.json", b"[" * 100_000)), "its manifest.json or index.json"),
        (tar(C, ("manifest.json", b"[]")), "holds 0 images"),
        (tar(C, ("manifest.json", b"[{}, {}]")), "holds 2 images"),
        (tar(C, ("manifest.json", b"[{}]")), "names 0 configurations"),
        (image("a", *["x:1"] * 101), "101 names, more than 100"),
        (tar(M), "c.json has to be one file"),
        (tar(C, M, ("manifest.json", manifest("y:1"))), "manifest.json has to be one file"),
        (tar(C, M, ("d/manifest.json", manifest("y:1")), links={"d": "."}), "has to be one file"),
        (tar(C, ("m", manifest()), links={"manifest.json": "m"}), "manifest.json has to be one file"),
        (tar(C, M, ("x/c.json", config("b"))), "c.json has to be one file"),
        (tar(C, ("manifest.json", manifest() + b" " * 2**22)), "more than 4194304"),
        (tar(C, M)[:2048] + b"junk" * 256, "no tar header at byte 2048"),
    ],
    ids=lambda value: value if isinstance(value, str) else "archive",
)
def test_what_is_no_clear_archive_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(BadArchive, match=reason):
        read_archive(io.BytesIO(content))


def test_a_header_cannot_fill_the_memory() -> None:
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, 2**32
    with pytest.raises(BadArchive, match="a part of 4294967296 bytes"):
        read_archive(io.BytesIO(entry.tobuf(tarfile.USTAR_FORMAT)[:512] + bytes(1024)))


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

    def load_lines(self, file: BinaryIO) -> Iterator[Mapping[str, object]]:
        found = read_archive(file)
        self.images.update(dict.fromkeys(found.tags, found.id))
        yield {"stream": f"Loaded image: {found.tags[0]}\n"}

    def tag(self, name: str, repository: str, tag: str) -> None:
        self.images[f"{repository}:{tag}"] = self.images[name]

    def remove_image(self, name: str, noprune: bool = False) -> None:
        del self.images[name]


def loaders() -> set[threading.Thread]:
    """The threads of all keepers."""
    return {thread for thread in threading.enumerate() if thread.name == "docker-image"}


class Site:
    """A keeper of images, and the archive that it is to load."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine, self.archive = engine, directory / "image.tar"
        self.now = 0.0
        self.keeper = ImageKeeper(cast(Connection, engine), lambda: None, clock=lambda: self.now)

    def load(self, content: bytes) -> str | None:
        """Why it can't be used."""
        self.archive.write_bytes(content)
        self.now += 10**6
        self.keeper.prepare(str(self.archive), Path("/"))
        self.settle()
        return self.keeper.prepare(str(self.archive), Path("/"))

    def settle(self) -> None:
        for thread in loaders():
            thread.join()

    @property
    def others(self) -> dict[str, str]:
        return {name: each for name, each in self.engine.images.items() if "vac-archive/" not in name}

    @property
    def own(self) -> list[str]:
        return [each for name, each in self.engine.images.items() if "vac-archive/" in name]


def test_an_archive_takes_no_other_images_name(tmp_path: Path) -> None:
    site = Site(Engine(pilot_1=VICTIM), tmp_path)
    assert "the archive's name 'pilot:1' is another image's" in (
        site.load(image("a", "x:1", "pilot:1")) or ""
    )
    assert site.engine.images == {"pilot:1": VICTIM}


@pytest.mark.parametrize(
    "name", ["vac-archive/00:1", "docker.io/vac-archive/00:1", "localhost/vac-archive/0:1"]
)
def test_an_archive_takes_no_name_that_we_give(tmp_path: Path, name: str) -> None:
    site = Site(Engine(), tmp_path)
    assert "got otherwise" in (site.load(image("a", name)) or "")
    assert site.engine.images == {}


def test_a_newer_archive_of_the_same_name_replaces_the_older(tmp_path: Path) -> None:
    site = Site(Engine(pilot_1=VICTIM), tmp_path)
    for content in ("a", "bb"):
        assert site.load(image(content, "x:1") + bytes(len(content))) is None
        assert site.own == [identity(content)]
        assert site.others == {"pilot:1": VICTIM}, "the archive's own name is gone"


def test_what_an_archive_was_before_goes_also_after_a_restart(tmp_path: Path) -> None:
    engine = Engine(**{"pilot_1": VICTIM, "localhost/vac-archive/0_1": VICTIM})
    for content in ("a", "bb"):
        site = Site(engine, tmp_path)
        assert site.load(image(content, "x:1") + bytes(len(content))) is None
        assert site.own == [VICTIM, identity(content)], "that of another archive stays"
    assert site.others == {"pilot:1": VICTIM}


def test_a_name_that_the_image_has_already_stays(tmp_path: Path) -> None:
    site = Site(Engine(pilot_1=identity("a")), tmp_path)
    assert site.load(image("a", "pilot:1")) is None
    assert site.others == {"pilot:1": identity("a")}


class Stalling(Engine):
    """Loading an archive of a certain size takes until it is let go."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.stalls, self.go = size, threading.Event(), threading.Event()

    def load_lines(self, file: BinaryIO) -> Iterator[Mapping[str, object]]:
        if file.seek(0, 2) == self.size:
            self.stalls.set()
            assert self.go.wait(60)
        file.seek(0)
        return super().load_lines(file)


def test_an_archive_that_hangs_holds_up_those_of_the_same_name_only(tmp_path: Path) -> None:
    hung = image("a", "x:1") + bytes(1)
    engine = Stalling(len(hung))
    keeper = ImageKeeper(cast(Connection, engine), lambda: None)

    def load(name: str, content: bytes) -> str | None:
        (tmp_path / name).write_bytes(content)
        return keeper.prepare(name, tmp_path)

    assert "is being loaded" in (load("hung", hung) or "")
    assert engine.stalls.wait(60)
    assert "is being loaded" in (load("same", image("b", "docker.io/x:1", "z:1")) or "")
    before = loaders()
    load("other", image("c", "y:1"))
    for thread in loaders() - before:
        thread.join(60)
    assert keeper.prepare("other", tmp_path) is None
    assert "is being loaded" in (keeper.prepare("same", tmp_path) or "")
    engine.go.set()
    for thread in loaders():
        thread.join(60)
    assert [keeper.prepare(name, tmp_path) for name in ("hung", "same")] == [None, None]
    assert set(engine.images.values()) == {identity(content) for content in "abc"}


def test_a_link_out_of_cvmfs_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vac.host.probes.real_image.__defaults__", (str(tmp_path / "cvmfs"),))
    (tmp_path / "cvmfs").mkdir()
    (tmp_path / "secret.tar").write_bytes(image("a", "x:1"))
    site = Site(Engine(), tmp_path / "cvmfs")
    site.archive.symlink_to(tmp_path / "secret.tar")
    assert "must not leave it" in (site.load(image("a", "x:1")) or "")
    assert site.engine.images == {}


def test_an_archive_that_does_not_answer_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "problem_of", "{} doesn't answer".format)
    monkeypatch.setattr(images, "real_image", None)
    site = Site(Engine(), tmp_path)
    assert f"{site.archive} doesn't answer" in (site.load(image("a", "x:1")) or "")
