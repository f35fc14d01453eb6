"""`vac config check | show | options` and `vac pipe check | show`: is the configuration right, and what is in force?"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vac.cli import common
from vac.cli.common import CommandFailed
from vac.config import pipe_document, reference
from vac.config.checks import template_mistakes
from vac.config.ini import Problem
from vac.config.load import Configuration, ConfigurationError, load
from vac.config.machinetype import Machinetype
from vac.config.pipe_document import PipeDocument, parse_pipe
from vac.config.pipe_types import review
from vac.decoding import BadJson, Flaw
from vac.host import facts
from vac.host.facts import HostFacts
from vac.machines.layout import StateDir
from vac.text import count, local_time, printable, without_url_secrets

_TEMPLATE_BYTES = 1024 * 1024
_CONFIG = """\
check: report everything that is wrong, by file, section and option; exit status 1 if it can't be used.
show: print the merged configuration, defaults included, secrets left out.
options: print the reference of all options"""
_PIPE = """\
check URL|FILE: report everything that is wrong with a document, by JSON path; exit status 1 if anything is.
show [PREFIX …]: show the configured pipes: their cached copies, the last failure, and the machinetypes they make"""


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the arguments of one of these commands."""
    actions = ("check", "show", "options") if name == "config" else ("check", "show")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = f"{parser.description}\n\n{_CONFIG if name == 'config' else _PIPE}."
    parser.add_argument("action", choices=actions, metavar="|".join(actions))
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--json", action="store_true", help="for programs")
    if name == "config":
        style.add_argument("--sample", action="store_true", help="options as a sample configuration file")
        parser.set_defaults(run=run_config)
    else:
        help_text = "document to check, or pipes to show"
        parser.add_argument("names", nargs="*", metavar="URL|FILE|PREFIX", help=help_text)
        parser.set_defaults(run=run_pipe)


def run_config(arguments: argparse.Namespace, host: HostFacts | None = None) -> int:
    """Carry out `vac config`; arguments.config are the paths or None. Return the exit status."""
    if arguments.action == "options":
        options = reference.sample if arguments.sample else reference.reference
        _print(reference.reference_json() if arguments.json else options())
        return 0
    host = host or facts.read()
    configuration: Configuration | None = None
    try:
        configuration = load(arguments.config, host)
        errors, warnings = configuration.errors, (*configuration.warnings, *likely_mistakes(configuration))
    except ConfigurationError as error:
        errors, warnings = tuple(error.problems), tuple(error.warnings)
    if arguments.action == "check" and arguments.json:
        copies = configuration.copies if configuration else {}
        content = {
            "valid": not errors,
            "errors": [vars(problem) for problem in errors],
            "warnings": [vars(problem) for problem in warnings],
            "pipes": {name: copy.trouble() for name, copy in copies.items()},
        }
        _print(json.dumps(content, indent=2))
    elif arguments.action == "check":
        _print("\n".join(_config_lines(configuration, errors, warnings, host)))
    elif configuration is not None:
        _print(reference.shown_json(configuration) if arguments.json else reference.shown(configuration))
        return 0
    else:
        print("\n".join(f"error: {problem}" for problem in errors), file=sys.stderr)
    return 1 if errors else 0


def _config_lines(
    configuration: Configuration | None,
    errors: Sequence[Problem],
    warnings: Sequence[Problem],
    host: HostFacts,
) -> Iterator[str]:
    yield from (f"error: {problem}" for problem in errors)
    yield from (f"warning: {problem}" for problem in warnings)
    for name, copy in configuration.copies.items() if configuration else ():
        if trouble := copy.trouble():
            yield f"note: [vacuum_pipe {name}]: {trouble}"
    if host.assumed:
        yield f"note: {facts.ASSUME_PROCESSORS} makes this a host of {host.processors} processors"
    counts = f"{count(len(errors), 'error')}, {count(len(warnings), 'warning')}"
    if configuration is None:
        yield f"The configuration can't be used: {counts}."
    else:
        parts = f"{count(len(configuration.machinetypes), 'machinetype')}, {count(len(configuration.pipes), 'pipe')}"
        yield f"The configuration can be used ({parts}): {counts}."


def likely_mistakes(configuration: Configuration) -> Iterator[Problem]:
    """Yield what is probably wrong in local user_data templates, which the factory tells when it uses them."""
    state = StateDir(configuration.settings.state_dir)
    for one in configuration.machinetypes.values():
        if one.user_data and "://" not in one.user_data:
            path = state.machinetype_files(one.pipe or one.name) / one.user_data
            with contextlib.suppress(OSError), path.open("rb") as file:
                for line, text in template_mistakes(one, file.read(_TEMPLATE_BYTES)):
                    yield Problem(str(path), f"machinetype {one.name}", f"line {line}", text)


def _print(text: str) -> None:
    """Print in the files' own bytes, whatever the locale."""
    sys.stdout.flush()
    sys.stdout.buffer.write((text.rstrip("\n") + "\n").encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()


def run_pipe(arguments: argparse.Namespace) -> int:
    """Carry out `vac pipe`. Return the exit status."""
    if arguments.action == "show":
        return _show_pipes(common.configuration(arguments), arguments.names, as_json=arguments.json)
    if len(arguments.names) != 1:
        raise CommandFailed("vac pipe check: give one URL or FILE", 2)
    verdict = examine(_document(arguments.names[0]))
    if arguments.json:
        found = verdict.document
        content = {
            "valid": verdict.right,
            "errors": [{"path": flaw.path, "text": flaw.text} for flaw in verdict.flaws if flaw.serious],
            "warnings": [
                {"path": flaw.path, "text": flaw.text} for flaw in verdict.flaws if not flaw.serious
            ],
            "cache_seconds": found.cache_seconds if found else None,
            "suffixes": verdict.suffixes,
        }
        print(json.dumps(content, indent=2))
    else:
        print("\n".join(verdict_lines(verdict)))
    return int(not verdict.right)


@dataclass(frozen=True)
class Verdict:
    """Result of `vac pipe check`."""

    flaws: tuple[Flaw, ...]
    document: PipeDocument | None = None
    """None: it can't be used at all."""
    suffixes: tuple[str, ...] = ()
    """Of the machinetypes that are right."""

    @property
    def right(self) -> bool:
        """True if nothing is left out."""
        return not any(flaw.serious for flaw in self.flaws)


def _document(place: str) -> bytes | Flaw:
    """Return the document at this URL or in this file, cut off where it is known to be too large."""
    if "://" in place:
        from vac.context.downloads import DownloadFailed, fetch_pipe  # only here is curl's library needed

        try:
            return fetch_pipe(place)
        except DownloadFailed as error:
            return Flaw("$", f"can't be fetched: {error}")
    with Path(place).open("rb") as file:
        return file.read(pipe_document.LARGEST_BYTES + 1)


def examine(content: bytes | Flaw) -> Verdict:
    """Return all that can be said of a document without knowing the site that will use it."""
    if isinstance(content, Flaw):
        return Verdict((content,))
    try:
        found = parse_pipe(content)
    except BadJson as error:
        return Verdict(error.flaws)
    more = list(review(found))
    unfit = [flaw.path.rpartition(".")[0] for flaw in more if flaw.serious]
    suffixes = tuple(entry.suffix for entry in found.entries if entry.path not in unfit)
    return Verdict(tuple(sorted([*found.flaws, *more], key=lambda flaw: not flaw.serious)), found, suffixes)


def verdict_lines(verdict: Verdict) -> Iterator[str]:
    for flaw in verdict.flaws:
        yield f"{'error' if flaw.serious else 'warning'}: {printable(str(flaw))}"
    errors = sum(flaw.serious for flaw in verdict.flaws)
    counts = f"{count(errors, 'error')}, {count(len(verdict.flaws) - errors, 'warning')}"
    if verdict.document is None:
        yield f"The document can't be used: {counts}."
    else:
        names = f" ({', '.join(verdict.suffixes)})" if verdict.suffixes else ""
        types = count(len(verdict.suffixes), "machinetype") + names
        seconds = verdict.document.cache_seconds
        yield f"The document can be used: {types}, asked for again after {seconds} s: {counts}."


def _show_pipes(configuration: Configuration, chosen: Sequence[str], *, as_json: bool) -> int:
    """Print these pipes, or all; 1 if one isn't configured."""
    unknown = [name for name in chosen if name not in configuration.pipes]
    names = [name for name in configuration.pipes if not chosen or name in chosen]
    if as_json:
        print(json.dumps({name: _pipe_facts(configuration, name) for name in names}, indent=2))
    else:
        blocks = ["\n".join(map(printable, _pipe_lines(configuration, name, time.time()))) for name in names]
        print("\n\n".join(blocks or ["" if unknown else "No pipe is configured."]))
    for name in unknown:
        print(f"vac: there is no [vacuum_pipe {name}]", file=sys.stderr)
    return 1 if unknown else 0


def _pipe_lines(configuration: Configuration, name: str, now: float) -> Iterator[str]:
    pipe, copy = configuration.pipes[name], configuration.copies[name]
    yield f"[vacuum_pipe {name}] {without_url_secrets(pipe.vacuum_pipe_url)}"
    if copy.document is None or copy.fetched_time is None:
        yield f"  no copy{f': {copy.problem}' if copy.problem else ''}"
    else:
        left = copy.fetched_time + copy.cache_seconds - now
        until = f"asked for again in {_span(left)}" if left > 0 else f"due for {_span(-left)}"
        yield f"  copy of {local_time(copy.fetched_time)}, {_span(now - copy.fetched_time)} old, {until}"
    if copy.failure is not None:
        yield f"  last attempt failed ({local_time(copy.failure_time)}): {copy.failure}"
    types = _types(configuration, name)
    width = max((len(one.name) for one in types), default=0)
    for one in types:
        reason = configuration.unusable.get(one.name)
        image = without_url_secrets(one.root_image or "-")
        row = f"  {one.name:<{width}}  share {one.target_share:g}  {one.machine_model}  {image}"
        yield f"{row}  ({reason})" if reason else row
    yield from (f"  warning: {warning}" for warning in _warnings(configuration, name))


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if abs(seconds) < 600 else f"{seconds / 60:.0f} min"


def _pipe_facts(configuration: Configuration, name: str) -> dict[str, object]:
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
    """Return warnings about the document, or about its types as this site changes them."""
    pipe, types = f"vacuum_pipe {name}", f"machinetype {name}-"
    return [one for one in configuration.warnings if one.section == pipe or one.section.startswith(types)]
