"""Print the completion of `vac` for bash, made of the commands' own parsers: commands, options, and fixed choices."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from vac.cli.main import COMMANDS, command_parser

FUNCTION = """\
# vac(1) completion
_vac() {
    local word command=
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        [[ $word == -* ]] || command=${command:-$word}
    done
    case $command in
%s
        *) COMPREPLY=($(compgen -W "%s" -- "$2")) ;;
    esac
}
complete -o bashdefault -o default -F _vac vac
"""


def words_of(name: str) -> list[str]:
    """Return what may follow a command: its long options and choices of its arguments."""
    words = []
    for action in command_parser(name)._actions:
        words += [option for option in action.option_strings if option.startswith("--")]
        words += [] if action.option_strings else [str(choice) for choice in action.choices or ()]
    return words


def main() -> None:
    """Print it."""
    cases = [
        f'        {name}) COMPREPLY=($(compgen -W "{" ".join(words_of(name))}" -- "$2")) ;;'
        for name in COMMANDS
    ]
    sys.stdout.write(FUNCTION % ("\n".join(cases), " ".join(COMMANDS)))


if __name__ == "__main__":
    main()
