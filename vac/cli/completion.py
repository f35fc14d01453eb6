"""`vac completion`: a script for bash and zsh that completes commands, their options and this host's machines.

It is made of the commands' parsers.
"""

from __future__ import annotations

import argparse

from vac.cli import main as commands

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


def add_arguments(parser: argparse.ArgumentParser, _: str) -> None:
    """Add no arguments."""
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Print the script."""
    cases = [f"        '') words='{' '.join(commands.COMMANDS)} help --help --version --config' ;;"]
    for name in commands.COMMANDS:
        known = " ".join(words_of(commands.command_parser(name)))
        machines = " $(ls /var/lib/vac/slots 2>/dev/null)" if name in _NAMING else ""
        cases.append(f'        {name}) words="{known}{machines}" ;;')
    print(_SCRIPT.format(cases="\n".join(cases)), end="")
    return 0


def words_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return options and choices that may follow, those of sub-commands included."""
    found: dict[str, None] = {}
    for action in parser._actions:
        found.update(dict.fromkeys(action.option_strings or map(str, action.choices or ())))
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                found.update(dict.fromkeys(words_of(each)))
    return list(found)
