"""What the factory tells drivers to hide from machines."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.simulated import one_type
from tests.unit.factory.conftest import MakeWorld


def test_machines_are_kept_from_the_configuration_and_from_the_tokens_of_all_types(
    make_world: MakeWorld,
) -> None:
    others = one_type("b", token_dir=Path("/srv/tokens/b"), target_share=0.0)
    world = make_world(one_type("a"), others)
    world.start()
    state = world.factory.state
    read = dataclasses.replace(world.configuration(), files=("/etc/vac.conf", "site.conf"))
    state.configuration = world._configuration = read
    world.run(60)
    assert world.made
    wanted = {Path("/etc/vac.conf"), Path("site.conf").absolute(), Path("/srv/tokens/b")}
    assert set(world.made[0].hidden) == wanted
