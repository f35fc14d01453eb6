"""Machines' contexts are made in threads of their own: servers of templates may be slow, and a key takes its time."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from itertools import islice
from typing import Callable, Union

from vac.config.checks import template_mistakes
from vac.context.user_data import ContextError, ContextRequest, Templates, load_template, substitute, values

MOST_MISTAKES = 5
"""So many of a template's mistakes are told."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ContextMade:
    """A machine's user_data, all values put in."""

    name: str
    """Of the slot."""
    uuid: str
    user_data: bytes = field(repr=False)
    mistakes: str = ""
    """What is probably wrong in the template."""


@dataclass(frozen=True)
class ContextFailed:
    """It can't be made."""

    name: str
    uuid: str
    reason: str


ContextMessage = Union[ContextMade, ContextFailed]
Run = Callable[[Callable[[], object]], None]


def in_thread(work: Callable[[], object]) -> None:
    """Have it done in the background."""
    threading.Thread(target=work, name="background", daemon=True).start()


class Contexts:
    """Makes user_data in the background; post takes each ContextMessage, from another thread."""

    def __init__(self, post: Callable[[ContextMessage], object], run: Run = in_thread) -> None:
        self._post = post
        self._run = run
        self._templates = Templates()

    def start(self, wanted: ContextRequest) -> None:
        """Begin with one; never blocks."""
        self._run(lambda: self._post(self._make(wanted)))

    def _make(self, wanted: ContextRequest) -> ContextMessage:
        try:
            template, url = load_template(wanted, self._templates)
            content = substitute(template, values(wanted, url))
            found = islice(template_mistakes(wanted.machinetype, template), MOST_MISTAKES)
            mistakes = "; ".join(f"line {line}: {text}" for line, text in found)
            return ContextMade(wanted.name, wanted.uuid, content, mistakes)
        except ContextError as error:
            return ContextFailed(wanted.name, wanted.uuid, str(error))
        except Exception as error:
            log.exception("%s: unexpected error while its user_data was made", wanted.name)
            return ContextFailed(wanted.name, wanted.uuid, f"unexpected {type(error).__name__} (see the log)")
