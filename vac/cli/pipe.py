"""`vac pipe check | show`: is a Vacuum Pipe's document right, and what do the configured pipes give this factory."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vac.cli import common
from vac.config import pipe_document
from vac.config.files import Problem
from vac.config.load import Configuration
from vac.config.machinetype import Machinetype
from vac.config.pipe_document import PipeDocument, parse_pipe
from vac.config.pipes import PipeCopy, review
from vac.config.strict_json import Flaw, Refused
from vac.context.downloads import DownloadFailed, fetch_pipe
from vac.text import without_url_secrets


@dataclass(frozen=True)
class Verdict:
    """What `vac pipe check` has found."""

    flaws: tuple[Flaw, ...]
    document: PipeDocument | None = None
    """None: it can't be used at all."""
    suffixes: tuple[str, ...] = ()
    """Of the machinetypes that are right."""

    @property
    def right(self) -> bool:
        """Is there nothing that is left out?"""
        return not any(flaw.serious for flaw in self.flaws)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `pipe` and what belongs to it."""
    parser = commands.add_parser("pipe", help="check a Vacuum Pipe's document, or show the configured pipes")
    actions = parser.add_subparsers(dest="action", metavar="check|show", required=True)
    text = (
        "tell all that is wrong with a pipe's document, each by its JSON path; exit status 1 if anything is"
    )
    check = actions.add_parser("check", help=text, description=text)
    check.add_argument("place", metavar="URL|FILE", help="where the document is")
    check.set_defaults(run=run_check)
    text = "show the configured pipes: their copies in the cache, the last failure, and what machinetypes they make"
    show = actions.add_parser("show", help=text, description=text)
    show.add_argument("names", nargs="*", metavar="PREFIX", help="these only")
    show.set_defaults(run=run_show)
    for each in (check, show):
        each.add_argument("--json", action="store_true", help="for programs")


def run_check(arguments: argparse.Namespace) -> int:
    """Carry out `vac pipe check`: 0 if all is right, 1 if anything is left out or nothing can be used."""
    place: str = arguments.place
    try:
        verdict = examine(fetch_pipe(place) if "://" in place else read_file(Path(place)))
    except DownloadFailed as error:
        verdict = Verdict((Flaw("$", f"can't be fetched: {error}"),))
    print(_check_json(verdict) if arguments.json else "\n".join(check_lines(verdict)))
    return 0 if verdict.right else 1


def read_file(path: Path) -> bytes:
    """The document in this file, not more of it than is needed to see that it is too large."""
    with path.open("rb") as file:
        return file.read(pipe_document.LARGEST_BYTES + 1)


def examine(content: bytes) -> Verdict:
    """All that can be said of a document without knowing the site that will use it."""
    try:
        found = parse_pipe(content)
    except Refused as error:
        return Verdict(error.flaws)
    more = list(review(found))
    unfit = [flaw.path.rpartition(".")[0] for flaw in more if flaw.serious]
    suffixes = tuple(entry.suffix for entry in found.entries if entry.path not in unfit)
    return Verdict(tuple(sorted([*found.flaws, *more], key=lambda flaw: not flaw.serious)), found, suffixes)


def check_lines(verdict: Verdict) -> list[str]:
    """A verdict for people."""
    lines = [f"{'error' if flaw.serious else 'warning'}: {_printable(str(flaw))}" for flaw in verdict.flaws]
    errors = sum(flaw.serious for flaw in verdict.flaws)
    counts = f"{_count(errors, 'error')}, {_count(len(verdict.flaws) - errors, 'warning')}"
    if verdict.document is None:
        return [*lines, f"The document can't be used: {counts}."]
    names = f" ({', '.join(verdict.suffixes)})" if verdict.suffixes else ""
    types = _count(len(verdict.suffixes), "machinetype") + names
    can = f"The document can be used: {types}, asked for again after {verdict.document.cache_seconds} s"
    return [*lines, f"{can}: {counts}."]


def _check_json(verdict: Verdict) -> str:
    found = verdict.document
    content = {
        "valid": verdict.right,
        "errors": [_plain(flaw) for flaw in verdict.flaws if flaw.serious],
        "warnings": [_plain(flaw) for flaw in verdict.flaws if not flaw.serious],
        "cache_seconds": found.cache_seconds if found else None,
        "suffixes": verdict.suffixes,
    }
    return json.dumps(content, indent=2)


def _plain(flaw: Flaw) -> dict[str, str]:
    return {"path": flaw.path, "text": flaw.text}


def run_show(arguments: argparse.Namespace) -> int:
    """Carry out `vac pipe show`: 1 if a pipe that is asked for isn't configured."""
    configuration = common.configuration(arguments)
    strangers = [name for name in arguments.names if name not in configuration.pipes]
    names = [name for name in configuration.pipes if not arguments.names or name in arguments.names]
    if arguments.json:
        print(json.dumps({name: _facts(configuration, name) for name in names}, indent=2))
    else:
        blocks = ["\n".join(_show_lines(configuration, name, time.time())) for name in names]
        print("\n\n".join(blocks or ["No pipe is configured." if not strangers else ""]))
    for name in strangers:
        print(f"vac: there is no [vacuum_pipe {name}]", file=sys.stderr)
    return 1 if strangers else 0


def _show_lines(configuration: Configuration, name: str, now: float) -> list[str]:
    pipe, copy = configuration.pipes[name], configuration.copies[name]
    lines = [f"[vacuum_pipe {name}] {without_url_secrets(pipe.vacuum_pipe_url)}", *_copy_lines(copy, now)]
    types = _types(configuration, name)
    width = max((len(one.name) for one in types), default=0)
    for one in types:
        reason = configuration.unusable.get(one.name)
        image = without_url_secrets(one.root_image or "-")
        lines.append(
            f"  {one.name:<{width}}  share {one.target_share:g}  {one.machine_model}  {image}"
            f"{f'  ({reason})' if reason else ''}"
        )
    lines += [f"  warning: {warning}" for warning in _warnings(configuration, name)]
    return [_printable(line) for line in lines]


def _copy_lines(copy: PipeCopy, now: float) -> list[str]:
    lines = []
    if copy.document is None or copy.fetched_time is None:
        lines.append(f"  no copy{f': {copy.problem}' if copy.problem else ''}")
    else:
        left = copy.fetched_time + copy.cache_seconds - now
        until = f"asked for again in {_span(left)}" if left > 0 else f"due for {_span(-left)}"
        lines.append(f"  copy of {_moment(copy.fetched_time)}, {_span(now - copy.fetched_time)} old, {until}")
    if copy.failure is not None:
        lines.append(f"  last attempt failed ({_moment(copy.failure_time)}): {copy.failure}")
    return lines


def _facts(configuration: Configuration, name: str) -> dict[str, object]:
    pipe, copy = configuration.pipes[name], configuration.copies[name]
    return {
        "url": without_url_secrets(pipe.vacuum_pipe_url),
        "fetched_time": copy.fetched_time,
        "cache_seconds": copy.cache_seconds,
        "problem": copy.problem,
        "failure": copy.failure,
        "failure_time": copy.failure_time or None,
        "machinetypes": {
            one.name: {"target_share": one.target_share, "machine_model": one.machine_model}
            for one in _types(configuration, name)
        },
        "warnings": [str(warning) for warning in _warnings(configuration, name)],
    }


def _types(configuration: Configuration, name: str) -> Sequence[Machinetype]:
    return [one for one in configuration.machinetypes.values() if one.pipe == name]


def _warnings(configuration: Configuration, name: str) -> Sequence[Problem]:
    """What is wrong with the document, or with its types as this site changes them."""
    return [
        warning
        for warning in configuration.warnings
        if warning.section == f"vacuum_pipe {name}" or warning.section.startswith(f"machinetype {name}-")
    ]


def _moment(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if abs(seconds) < 600 else f"{seconds / 60:.0f} min"


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
