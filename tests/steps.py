"""Steps of a factory's work: before and after each change of vac.machines.files, and before each effect of the table.

A test that puts a function there can look at the disk, let a step fail, or end the process.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Callable

from vac.factory.effects import Effects
from vac.lifecycle.table import Effect
from vac.machines import files

Look = Callable[[str, Path], object]
"""Called with a step's name and the path that it changes."""
STEPS = {
    "write_new": ("write", "written"),
    "make_directory": ("mkdir", "made"),
    "rename": ("rename", "renamed"),
    "append_line": ("append", "appended"),
    "remove": ("remove", "removed"),
    "set_mtime": ("set mtime", "mtime set"),
    "remove_tree": ("remove tree", "tree removed"),
}


def at_files(put: Callable[[object, str, object], object], look: Look) -> None:
    """Call look before and after each change of the disk. One that fails, or finds all done, has no step after it.

    put: setattr, or a MonkeyPatch's.
    """
    for name in STEPS:
        put(files, name, _watched(name, getattr(files, name), look))


def _watched(name: str, change: Callable[..., None], look: Look) -> Callable[..., None]:
    before, after = STEPS[name]

    @functools.wraps(change)
    def watched(path: Path, *arguments: Any, **options: Any) -> None:
        changed = arguments[0] if name == "rename" else path
        look(before, changed)
        made = name == "make_directory" and path.is_dir()
        change(path, *arguments, **options)
        if not made:
            look(after, changed)

    return watched


def at_effects(put: Callable[[object, str, object], object], look: Callable[[str, str], object]) -> None:
    """Call look with the effect and the slot's name before each effect."""
    for effect in Effect:
        name = f"_{effect.name.lower()}"
        put(Effects, name, _announced(effect, getattr(Effects, name), look))


def _announced(
    effect: Effect, carry_out: Callable[..., Any], look: Callable[[str, str], object]
) -> Callable[..., Any]:
    @functools.wraps(carry_out)
    def announced(self: Effects, slot: Any, taken: Any) -> Any:
        look(effect.value, slot.name)
        return carry_out(self, slot, taken)

    return announced
