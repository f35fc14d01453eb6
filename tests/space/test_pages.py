"""The status pages of five real factories in a real browser: narrow and wide, light and dark, hostile texts, axe-core.

VAC_PICTURES names a directory for pictures of all pages.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.factory_fixture import AT_ONCE, Kind
from tests.space.browser import Browser, browser
from tests.space.space_fixture import Space, SpaceFactory, space_of

pytestmark = [pytest.mark.engine, pytest.mark.slow]

FACTORIES, PROCESSORS, PORT = 5, 6, 9995
WIDTHS = (400, 800, 1280)
HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&amp;\x1b[31m\u202e"
)
UNBROKEN = "x" * 240
KINDS = {
    "atlas": Kind("sleep 3600", {"target_share": 3, "machine_model": "bubblewrap"}),
    "lhcb": Kind("sleep 3600", {"target_share": 2, "max_processors": 2}),
    "quick": Kind("sleep 4; echo '200 Success' >/tmp/joboutputs/shutdown_message", {"target_share": 1}),
    "hostile": Kind(
        f"cat >/tmp/joboutputs/shutdown_message <<'E'\n600 {HOSTILE}\nE\nsleep 1", {"target_share": 1}
    ),
    "unbroken-" + "long" * 10: Kind(
        f"echo '600 {UNBROKEN}' >/tmp/joboutputs/shutdown_message", {"target_share": 1}
    ),
    "docked": Kind(
        "exit 7", {"target_share": 1, "machine_model": "docker", "root_image": "docker://no/where"}
    ),
}


@pytest.fixture(scope="module")
def space() -> Iterator[Space]:
    """Five factories with a past, one of which drains; a sixth is listed and never answers."""
    with space_of(FACTORIES, PROCESSORS) as space:
        absent = f"f6.{space.domain}"
        listed = " ".join([*(factory.name for factory in space.factories), absent])
        space.configure(
            KINDS,
            {},
            factories=listed,
            udp_timeout_seconds=2,
            machines_per_cycle=AT_ONCE,
            metrics_listen=f"0.0.0.0:{PORT}",
            docker_host=f"unix:///no/<b>{UNBROKEN}</b>",
        )
        for number, factory in enumerate(space.factories):
            invent_history(factory, number)
            factory.start_vacd()
        space.factories[1].vac("drain", "--reason", HOSTILE)
        for factory in space.factories:
            space.wait_for(lambda f=factory: f.status().decision_time, "it has decided")  # type: ignore[misc]
        hostile = space.factories[0]
        space.wait_for(
            lambda: (
                {"hostile", "atlas", "quick"}
                <= {one.machinetype for one in hostile.lives() if one.finished or one.machinetype == "atlas"}
            ),
            "hostile machines have ended",
        )
        yield space


def invent_history(factory: SpaceFactory, seed: int) -> None:
    """Write ends of a week, from which the page makes its curves."""
    rng, now, lines = random.Random(seed), time.time(), []
    for number in range(400):
        ended = now - 7 * 86400 * (1 - number / 400) - rng.uniform(0, 3600)
        kind, message = rng.choice(
            [
                ("atlas", "200 Success"),
                ("lhcb", None),
                ("quick", "300 No work"),
                ("gone<b>", f"600 {HOSTILE}"),
            ]
        )
        lines.append(
            {
                "machine": f"{factory.short}-{number % PROCESSORS:02}.{factory.name.partition('.')[2]}",
                "machinetype": kind,
                "directory": f"{number}_{kind}_x",
                "started": ended - rng.uniform(0, 150000),
                "ended": ended,
                "uuid": f"u{number}",
                "processors": 1,
                "hs06": 10.0,
                "message": message,
            }
        )
    factory.state.prepare()
    factory.state.history.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def window(space: Space) -> Iterator[Browser]:
    with browser(space.factories[0].host.inside()) as opened:
        yield opened


def paths(factory: SpaceFactory) -> list[str]:
    kinds = ("hostile", "atlas") if factory.short == "f1" else ()
    return [
        "/",
        f"/machine/{factory.short}-00.{factory.name.partition('.')[2]}",
        *(f"/machinetype/{one}" for one in kinds),
    ]


def axe() -> str:
    """The source of axe-core."""
    found = importlib.util.find_spec("axe_core_python")
    assert found is not None and found.submodule_search_locations, "pip install axe-core-python"
    return Path(
        os.environ.get("VAC_AXE") or Path(found.submodule_search_locations[0], "axe.min.js")
    ).read_text()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_their_window_and_are_accessible(
    space: Space, window: Browser, width: int, dark: bool
) -> None:
    source = axe()
    for number, factory in enumerate(space.factories, 1):
        for place, path in enumerate(paths(factory)):
            window.load(f"http://10.77.0.{number}:{PORT}{path}", width, dark)
            if pictures := os.environ.get("VAC_PICTURES"):
                name = f"{factory.short}-{place}-{width}-{'dark' if dark else 'light'}.png"
                window.picture(Path(pictures) / name)
            overflowing = window.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert overflowing <= 0, f"{path} is {overflowing} pixels wider than {width}"
            assert window.evaluate("document.title").startswith((factory.short, "hostile", "atlas"))
            assert window.evaluate("document.querySelectorAll('script, img, b, iframe').length") == 0
            window.evaluate(source)
            found = window.evaluate("axe.run().then(found => found.violations)")
            told = [
                (one["id"], one["help"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found
            ]
            assert told == [], path


def test_hostile_texts_are_shown_as_text(space: Space, window: Browser) -> None:
    window.load(f"http://10.77.0.2:{PORT}/", 800, False)
    assert "<script>document.title='owned'</script><img src=x" in window.evaluate("document.body.innerText")
    window.load(f"http://10.77.0.1:{PORT}/machinetype/hostile", 800, False)
    text = window.evaluate("document.body.innerText")
    assert "600 <script>document.title='owned'</script>" in text
    assert "\x1b" not in text and "\u202e" not in text
