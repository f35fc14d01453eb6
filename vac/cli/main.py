"""The command `vac`: an administrator's questions and orders to a factory and its space."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import vac
from vac.cli.common import CommandFailed
from vac.config.load import ConfigurationError


class Command(NamedTuple):
    """One sub-command. Its module is imported when it runs."""

    module: str
    """In vac.cli; its add_arguments(parser, name) sets `run`, which returns the exit code, or None for 0."""
    does: str
    example: str


_BY_MODULE = {
    "space_commands": {
        "machines": ("show every slot of the space's factories and its machine", "machines -t 3"),
        "machinetypes": (
            "show what runs of every machinetype in the space; with NAME, of that one on each factory",
            "machinetypes example",
        ),
        "machinetype": ("show what runs of one machinetype on each factory", "machinetype example"),
        "factories": (
            "show the space's factories: processors and machines in use, load, KB free on / and state_dir, memory",
            "factories --json",
        ),
    },
    "machine_commands": {
        "machine": (
            "show everything known of one machine of this factory: how it ended, if it has, and where its files are",
            "machine vac-01-00",
        ),
        "logs": (
            "show the console of a machine of this factory, running or ended, or a file of its joboutputs",
            "logs -f vac-01-00",
        ),
        "exec": (
            "run a command, or a shell, in a running container of this factory, as the machine's user",
            "exec vac-01-00 ps aux",
        ),
        "history": (
            "list machines of this factory that have ended, with exit code or signal and shutdown message",
            "history --since 12h --failed",
        ),
    },
    "factory_commands": {
        "why": ("say why nothing, or nothing of a machinetype, is being created now", "why example"),
        "drain": (
            "create no more machines; those that run finish by themselves; then reboot, if asked to",
            "drain --until +2h --wait",
        ),
        "undrain": ("create machines again", "undrain"),
        "finish": ("tell a machine to end: its shutdown time becomes now + grace_secs", "finish vac-01-00"),
        "destroy": ("end a machine at once; what it did is accounted", "destroy vac-01-00"),
    },
    "doctor": {"doctor": ("check that this host is fit for what is configured", "doctor")},
    "config_commands": {
        "config": ("check or show the configuration, or list all options", "config check"),
        "pipe": ("check a Vacuum Pipe's document, or show the configured pipes", "pipe check vo.pipe"),
    },
    "simulate_command": {
        "simulate": ("show how a whole space would behave, in virtual time", "simulate --hours 48")
    },
    "accounting_commands": {
        "usage": (
            (
                "sum this factory's accounting records up: machines, hours, efficiency, shares; "
                "what fizzled is not in them"
            ),
            "usage --month 202611 --by fqan",
        ),
        "apel-sync": (
            "write sync records: how many jobs each month had, by their ends (UTC)",
            "apel-sync 202611",
        ),
        "gocdb": ("publish the space's capacity in GOCDB, as properties of its service", "gocdb --dry-run"),
        "apel-bundle": (
            "put the records that wait in apel-outgoing together, up to 1,000 to a message; not while ssmsend runs",
            "apel-bundle",
        ),
        "apel-republish": (
            "copy the archive's job records of these months to apel-outgoing, to be sent once more",
            "apel-republish 202611",
        ),
    },
    "context_commands": {
        "squid-conf": (
            (
                "copy Squid's configuration IN to OUT with the space's factories as clients and sibling caches; "
                "exit status 0 if OUT changed, 1 if not, 2 on an error"
            ),
            "squid-conf /etc/squid/squid.conf.in /etc/squid/squid.conf",
        ),
        "user-data": (
            "print the user_data that a machine of this type would get now, with an invented uuid",
            "user-data example",
        ),
        "cernvm-signature": (
            "show who has signed a CernVM image, and if the signature counts; exit status 1 if not",
            "cernvm-signature ucernvm-prod.iso",
        ),
        "proxy-init": (
            "make a limited X.509 proxy that lasts 12 hours; proxy, key and chain come on standard output",
            "proxy-init -c x509cert.pem -k x509key.pem",
        ),
    },
    "main": {"completion": ("print a script by which bash or zsh completes what is typed", "completion")},
}
"""By module: what each command does, and an example of its use."""
COMMANDS = {
    name: Command(module, *texts)
    for module, commands in _BY_MODULE.items()
    for name, texts in commands.items()
}
_NAMING = ("machine", "logs", "exec", "finish", "destroy")
"""Commands that take a machine's name."""
_SCRIPT = """\
# Completion of vac for bash and zsh. In bash: vac completion > /usr/share/bash-completion/completions/vac
# In zsh, after compinit: source <(vac completion)
_vac() {{
    local words='' command='' each
    for each in "${{COMP_WORDS[@]:1:$((COMP_CWORD - 1))}}"; do
        case $each in -*) ;; *) command=$each; break ;; esac
    done
    case $command in
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
[ -z "$ZSH_VERSION" ] || {{ autoload -U +X bashcompinit && bashcompinit; }}
complete -o default -F _vac vac
"""
_WITH_VALUE = {"-s": "--space", "-t": "--timeout", "-c": "--cert", "-k": "--key"}
"""Options that may stand before the command, as the classic wants them, and are followed by a value."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 1 not done or bad news, 2 used wrongly."""
    if sys.stdout is None:  # closed by the caller
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    options, name, rest = split(sys.argv[1:] if words is None else words)
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name in ("", "help") and not rest:
        top = top_parser()
        if top.parse_known_args(options)[1]:
            _no_command(name)
        top.print_help()
        return 0 if name else 2
    arguments = parse(name, [*options, *rest])
    try:
        try:
            code: int = arguments.run(arguments) or 0
        except CommandFailed as failure:
            print(failure, file=sys.stderr)
            code = failure.code
        sys.stdout.flush()
    except ConfigurationError as error:
        for problem in error.problems:
            print(f"vac: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return _failed(error)
    return code


def parse(name: str, words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of this command. All that follows the name of exec's machine is another command's."""
    parser = command_parser(name)
    return parser.parse_args(words) if name == "exec" else parser.parse_intermixed_args(words)


def split(words: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """Return the options before the command, its name (empty if there is none) and all that follows."""
    position = 0
    while position < len(words) and words[position].startswith("-"):
        position += 2 if _takes_next(words[position]) else 1
    return list(words[:position]), "".join(words[position : position + 1]), list(words[position + 1 :])


def _takes_next(word: str) -> bool:
    """Return True if the value of this option, or of the last one of `-Jt`, is the next word."""
    if word.startswith("--"):
        return "=" not in word and any(name.startswith(word) for name in ("--config", *_WITH_VALUE.values()))
    places = (place for place, letter in enumerate(word) if place and f"-{letter}" in _WITH_VALUE)
    return next(places, -1) == len(word) - 1


def top_parser() -> argparse.ArgumentParser:
    """Return the parser of a command line without command."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.does.partition(';')[0]}" for name, command in COMMANDS.items()]
    top = argparse.ArgumentParser(
        prog="vac",
        usage="vac COMMAND …",
        description="Ask and command this host's Vac factory and the factories of its space.",
        epilog="\n".join(["commands (`vac COMMAND --help` tells more):", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"Vac {vac.__version__}")
    return top


def command_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of this command; exit with status 2 if there is no such command."""
    command = COMMANDS.get(name)
    if command is None:
        _no_command(name)
    parser = argparse.ArgumentParser(
        prog=f"vac {name}",
        description=f"{command.does[0].upper()}{command.does[1:]}.",
        epilog=f"Example: vac {command.example}",
    )
    importlib.import_module(f"vac.cli.{command.module}").add_arguments(parser, name)
    parser.add_argument(
        "--config",
        action="append",
        type=Path,
        metavar="PATH",
        help="a configuration file, or a directory of *.conf, instead of /etc/vac.d and the others; repeatable",
    )
    return parser


def add_arguments(parser: argparse.ArgumentParser, _: str) -> None:
    """Add the arguments of `vac completion`: none."""
    parser.set_defaults(run=print_completion)


def print_completion(_: argparse.Namespace) -> None:
    """Print a script for bash and zsh that completes commands, their options and this host's machines."""
    cases = [f"        '') words='{' '.join(COMMANDS)} help --help --version --config' ;;"]
    for name in COMMANDS:
        found: dict[str, None] = {}
        for action in command_parser(name)._actions:
            found.update(dict.fromkeys(action.option_strings or map(str, action.choices or ())))
        machines = " $(ls /var/lib/vac/slots 2>/dev/null)" if name in _NAMING else ""
        cases.append(f'        {name}) words="{" ".join(found)}{machines}" ;;')
    print(_SCRIPT.format(cases="\n".join(cases)), end="")


def _no_command(name: str) -> NoReturn:
    from difflib import get_close_matches

    nearest = get_close_matches(name, COMMANDS, n=1)
    hint = f"do you mean {nearest[0]}?" if nearest else "`vac help` lists them"
    print(
        f"vac: there is no command {name!r}; {hint}" if name else "vac: no command is given", file=sys.stderr
    )
    sys.exit(2)


def _failed(error: OSError) -> int:
    """Report an error that the command didn't expect."""
    if isinstance(error, BrokenPipeError) or (error.errno == errno.ENOSPC and error.filename is None):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered can't be written either
    if isinstance(error, BrokenPipeError):
        return 1
    place = error.filename or ("standard output" if error.errno == errno.ENOSPC else "")
    words = error.strerror or str(error)
    if isinstance(error, PermissionError):
        words = "permission denied (try as root)"
    elif isinstance(error, FileNotFoundError):
        words = "there is no such file or directory (has vacd never run here?)"
        place = next(
            (path for path in (*reversed(Path(place).parents), place) if not Path(path).exists()), place
        )
    print(f"vac: {place}: {words}" if place else f"vac: {words}", file=sys.stderr)
    return 1
