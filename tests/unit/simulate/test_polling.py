"""What simulated factories know of each other is what the daemon would know."""

from __future__ import annotations

import random

from tests.unit.simulate.made import scenario
from vac.scheduling.model import Occupied
from vac.scheduling.space import view
from vac.simulate.nodes import make_nodes
from vac.simulate.polling import Polling
from vac.simulate.scenario import Hardware

NOW = 1.6e9


def test_a_factory_with_absurdly_many_processors_is_seen_as_the_daemon_would_see_it() -> None:
    hardware = {"plain": Hardware(part=4), "absurd": Hardware(part=1, processors=100_000)}
    made = scenario(hardware=hardware, factories=5)
    nodes = make_nodes(made, NOW)
    polling = Polling(made, nodes, random.Random(1))
    for number, node in enumerate(nodes):
        node.up = True
        node.begin(number, Occupied("atlas", node.settings.total_processors // 2, NOW, None, NOW + 86400))
        polling.started(node)
    for node in nodes:
        polling.ask(node, NOW)[1]()
        right = view(
            node.name,
            node.factories,
            {one.name: one.reports(NOW) for one in nodes},
            {one.name: one.capacity_hs06 for one in nodes},
            NOW,
        )
        assert right.capacity_hs06 == 5 * 640
        assert right.types["atlas"].running_hs06 == 4 * 320 + 640
        assert node.view == right
