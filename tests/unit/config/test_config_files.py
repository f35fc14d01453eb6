"""Files in their order, what INI text means, and the Loader, which reads them again when something has changed."""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
import time
from pathlib import Path

import pytest

from vac.config import ini
from vac.config.ini import read
from vac.config.load import FACTS_SECONDS, ConfigurationError, Loader
from vac.host.facts import HostFacts


def texts(path: Path, section: str) -> dict[str, str]:
    return {key: value.text for key, value in read([path]).sections[section].values.items()}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_default_places_are_read_in_order_and_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = (tmp_path / "etc/vac.d", tmp_path / "etc/vac.conf", tmp_path / "run/vac.conf")
    monkeypatch.setattr(ini, "DEFAULT_PATHS", places)
    assert read(None).files == ()
    assert read(None).problems == ()
    names = ["etc/vac.d/10-a.conf", "etc/vac.d/9-b.conf", "etc/vac.d/b.conf", "etc/vac.conf", "run/vac.conf"]
    for name in (*names, "etc/vac.d/site.conf.sample", "etc/vac.d/.#b.conf", "etc/vac.d/b.conf~"):
        write(tmp_path / name, f"[settings]\nlast = {name}\n{Path(name).stem} = x\n")
    contents = read(None)
    assert contents.files == tuple(str(tmp_path / name) for name in names)
    assert contents.sections["settings"].values["last"].text == "run/vac.conf"
    assert contents.sections["settings"].values["9-b"].file == str(tmp_path / "etc/vac.d/9-b.conf")


def test_the_default_places_are_the_classic_ones() -> None:
    assert [str(path) for path in ini.DEFAULT_PATHS] == ["/etc/vac.d", "/etc/vac.conf", "/run/vac.conf"]


def test_named_paths_replace_the_default_places_and_have_to_be_there(tmp_path: Path) -> None:
    first = write(tmp_path / "first.conf", "[settings]\na = 1\nb = 1\n")
    write(tmp_path / "more/second.conf", "[Settings]\nB = 2\n")
    contents = read([first, tmp_path / "more", tmp_path / "missing.conf"])
    assert {key: value.text for key, value in contents.sections["settings"].values.items()} == {
        "a": "1",
        "b": "2",
    }
    assert [(problem.file, problem.text) for problem in contents.problems] == [
        (str(tmp_path / "missing.conf"), "can't be read: No such file or directory")
    ]


def test_a_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> object:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    path = write(tmp_path / "closed.conf", "[settings]\n")
    monkeypatch.setattr(Path, "open", refuse)
    (problem,) = read([tmp_path]).problems
    assert (problem.file, problem.text) == (str(path), "can't be read: Permission denied")


def test_only_files_are_read_and_others_warned_about(tmp_path: Path) -> None:
    (tmp_path / "1.conf").mkdir()
    os.mkfifo(tmp_path / "2.conf")
    write(tmp_path / ".3.conf", "[settings]\n")
    (tmp_path / ".#3.conf").symlink_to("me@host.1:2")  # an editor's lock
    write(tmp_path / "4.conf", "[settings]\na = 1\n")
    (tmp_path / "5.conf").symlink_to("nowhere")
    contents = read([tmp_path])
    assert contents.files == (str(tmp_path / "4.conf"),)
    assert contents.problems == ()
    assert [(Path(warning.file).name, warning.text) for warning in contents.warnings] == [
        (".3.conf", "is skipped, since its name begins with '.'"),
        ("1.conf", "is skipped, since it is a directory and not a file"),
        ("2.conf", "is skipped, since it is a pipe, socket or device and not a file"),
        ("5.conf", "is skipped, since it is a link to nothing and not a file"),
    ]


def test_a_pipe_that_is_named_explicitly_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("[settings]\na = 1\n",))
    writer.start()
    assert texts(tmp_path / "pipe", "settings") == {"a": "1"}
    writer.join()


@pytest.mark.parametrize(
    "line", ["a = 1\n", " more\n", "broken\n", "[settings]\n", "[x\n", "\n", "= 1\n", "a" * 99, ";\n"]
)
def test_millions_of_lines_are_refused_quickly(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "x.conf", "[settings]\na = 1\n" + line * 5_000_000)
    began = time.monotonic()
    (problem,) = read([path]).problems
    assert "is larger than 1048576 bytes" in problem.text
    assert time.monotonic() - began < 10
    path.write_text(path.read_text()[: ini.LARGEST_BYTES])
    assert len(read([path]).problems) <= ini.MOST_BROKEN_LINES + 1


def test_repeated_options_of_one_file_are_warned_about(tmp_path: Path) -> None:
    write(tmp_path / "1.conf", "[settings]\na = 1\nb = 1\n[x]\na = 1\n[settings]\na = 2\nb = 2\nb = 3\n")
    write(tmp_path / "2.conf", "[settings]\na = 2\n")
    assert [str(warning).partition(": ")[2] for warning in read([tmp_path]).warnings] == [
        "[settings] a: is set in line 2 and again in line 7, which counts",
        "[settings] b: is set in 2 lines, first in 3 and again in line 9, which counts",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1 ; comment", {"a": "1"}),
        ("a = 1;2", {"a": "1;2"}),
        ("a = 1 # no comment", {"a": "1 # no comment"}),
        ("a = 100%d %(b)s", {"a": "100%d %(b)s"}),
        ("a: 1\nB=2", {"a": "1", "b": "2"}),
        ("a = 1\na = 2", {"a": "2"}),
        ("a = 1\n[machinetype x]\nb = 1\n[settings]\nc = 3", {"a": "1", "c": "3"}),
        ("a = one\n two\n\tthree", {"a": "one\ntwo\nthree"}),
        ("a = one\n; comment\n # kept ; kept\n ;kept\n two", {"a": "one\n# kept ; kept\n;kept\ntwo"}),
        ("a = one\n\n\t\n two", {"a": "one\ntwo"}),
        ("a = b;c ;d", {"a": "b;c ;d"}),
        ("a = ;b ;c\nb =;", {"a": ";b ;c", "b": ";"}),
        ('a = ""\nb = "" ; comment\nc = "x"', {"a": "", "b": "", "c": '"x"'}),
        ("[settings] # comment\na = 1\n[settings]; [x]\nb = 2", {"a": "1", "b": "2"}),
        ("a =\n one\n two", {"a": "\none\ntwo"}),
        ("a = \x0bone\x0c", {"a": "one"}),
        ("a = \xa0one\xa0", {"a": "\xa0one\xa0"}),
        ("rem this = that\nREM\nRem\tx\na = 1", {"a": "1"}),
        ("a = one\nrem in between\n two", {"a": "one\ntwo"}),
        ("remark = 1\nrem=2", {"remark": "1", "rem": "2"}),
        (" rem = 1", {"rem": "1"}),
        ("a = one\n rem two", {"a": "one\nrem two"}),
        ("a = 1\r\nb = 2\r\n", {"a": "1", "b": "2"}),
        ("a =\nb = 2", {"a": "", "b": "2"}),
    ],
)
def test_ini_text_means_what_the_classic_took_it_for(
    tmp_path: Path, text: str, expected: dict[str, str]
) -> None:
    path = tmp_path / "x.conf"
    path.write_bytes(b"[settings]\n" + text.encode())
    assert texts(path, "settings") == expected


def test_section_names_are_lower_cased_with_single_blanks(tmp_path: Path) -> None:
    path = write(tmp_path / "x.conf", "[Machinetype   LHCb]\na = 1\n[machinetype lhcb]\nb = 2\n")
    assert texts(path, "machinetype lhcb") == {"a": "1", "b": "2"}


def test_bytes_that_are_not_utf8_survive(tmp_path: Path) -> None:
    path = tmp_path / "x.conf"
    path.write_bytes(b"\xef\xbb\xbf[settings]\na = Gen\xe8ve\nb = Z\xc3\xbcrich\n")
    found = texts(path, "settings")
    assert found["a"].encode("utf-8", "surrogateescape") == b"Gen\xe8ve"
    assert found["b"] == "Zürich"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[settings]\na = 1\nMIIEsecret\nb = 2\n", "line 3", "neither a [section] nor option = value"),
        ("\n\na = secret\n[settings]\n", "line 3", "before the first [section]"),
        ("[settings]\n= secret\n", "line 2", "neither"),
    ],
)
def test_a_broken_line_is_named_by_file_and_number_but_not_quoted(
    tmp_path: Path, text: str, line: str, words: str
) -> None:
    path = write(tmp_path / "x.conf", text)
    (problem,) = read([path]).problems
    assert (problem.file, problem.option) == (str(path), line)
    assert words in problem.text
    assert "secret" not in str(problem)


def test_the_rest_of_a_broken_file_is_still_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.conf", "[settings]\na = 1\nbroken\nb = 2\n")
    assert texts(path, "settings") == {"a": "1", "b": "2"}


SPACE = "[settings]\nvac_space = vac01.example.org\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.conf"
    path.write_text(SPACE)
    return path


def test_an_unchanged_configuration_is_the_same_object(site: Path, host: HostFacts) -> None:
    loader = Loader([site.parent], lambda: host)
    first = loader.load(0)
    assert loader.load(1) is first
    assert loader.load(10 * FACTS_SECONDS) is first


def test_changed_added_replaced_and_removed_files_are_noticed(site: Path, host: HostFacts) -> None:
    loader = Loader([site.parent], lambda: host)
    assert loader.load(0).settings.draining is False
    site.write_text(SPACE + "draining = yes\n")
    assert loader.load(0).settings.draining is True
    extra = site.parent / "zz.conf"
    extra.write_text("[settings]\ndraining = no\n")
    assert loader.load(0).settings.draining is False
    new = site.parent / "new"
    new.write_text("[settings]\ndraining = on\n")
    times = extra.stat()
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
    new.replace(extra)
    assert loader.load(0).settings.draining is True
    extra.unlink()
    site.write_text(SPACE)
    assert loader.load(0).settings.draining is False


def test_a_broken_configuration_is_tried_anew_each_time(site: Path, host: HostFacts) -> None:
    accounts: dict[str, int] = {}
    loader = Loader([site.parent], lambda: dataclasses.replace(host, user_id=accounts.get))
    good = loader.load(0)
    site.write_text(SPACE + "singularity_user = later\n")
    for now in (1, 2):
        with pytest.raises(ConfigurationError, match="there is no account 'later'"):
            loader.load(now)
    accounts["later"] = 4711
    assert loader.load(3).settings.singularity_user == "later"
    site.write_text(SPACE)
    assert loader.load(4) == good


def test_the_host_is_asked_again_now_and_then(site: Path, host: HostFacts) -> None:
    asked = []

    def facts() -> HostFacts:
        asked.append(host)
        return dataclasses.replace(host, processors=64 if len(asked) < 3 else 32)

    loader = Loader([site.parent], facts)
    first = loader.load(1000)
    assert loader.load(1000 + FACTS_SECONDS - 1) is first
    assert len(asked) == 1
    assert loader.load(1000 + FACTS_SECONDS) is first
    assert len(asked) == 2
    assert loader.load(1000 + 2 * FACTS_SECONDS).settings.total_processors == 32
    assert loader.host.processors == 32


def test_a_file_that_has_gone_is_told(site: Path, host: HostFacts) -> None:
    loader = Loader([site], lambda: host)
    loader.load(0)
    site.unlink()
    with pytest.raises(ConfigurationError, match="No such file"):
        loader.load(1)
