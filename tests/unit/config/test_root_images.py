"""Which root images a machine model takes."""

from __future__ import annotations

import pytest

from vac.config.checks import image_problem
from vac.config.machinetype import MODELS, Machinetype

DIGEST = f"sha256:{'0a' * 32}"
NAMES = [
    *(
        "busybox",
        "vo/pilot",
        "vo/pilot:el9",
        "a_b/c__d/e-f--g.h:v1.2_3-X",
        "docker.io/library/busybox:stable",
    ),
    *(
        "localhost/x",
        "localhost:5000/x",
        "REGISTRY.example.org/vo/x",
        "r:5000/x:1",
        "[::1]:5000/x",
        "/vo/pilot/",
    ),
    *(f"vo/pilot@{DIGEST}", f"r.example.org/vo/pilot:1@{DIGEST}"),
]
NO_NAMES = [
    *(
        "",
        "A/B:bad:tag",
        "Vo/pilot",
        "vo/Pilot",
        "r.example.org/Vo/x",
        "vo//pilot",
        "vo/pilot:",
        "vo/pilot:-x",
    ),
    *(
        "vo/.pilot",
        "vo/pilot-",
        "a___b",
        "vo/pilot@sha256:12",
        f"vo/pilot@{DIGEST}:1",
        "vo/pi lot",
        "a" * 99 + "!",
    ),
]


def problem(model: str, image: str | None) -> str | None:
    return image_problem(Machinetype("t", machine_model=model, root_image=image))


@pytest.mark.parametrize("name", NAMES)
def test_names_of_images_are_taken(name: str) -> None:
    assert problem("docker", f"docker://{name}") is None


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name_of_an_image_is_told(name: str) -> None:
    assert "is not the name of an image" in (problem("docker", f"docker://{name}") or "")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("image", "models"),
    [
        ("docker://x", ("docker",)),
        ("https://example.org/x", ("docker", "singularity", "cernvm3", "cernvm4", "vm-raw")),
        ("oras://example.org/x", ()),
        ("file:///x", ()),
        ("/cvmfs/x.org/i", MODELS),
        ("image.tar", MODELS),
        (None, MODELS),
    ],
)
def test_each_model_takes_urls_of_its_own(model: str, image: str | None, models: tuple[str, ...]) -> None:
    found = problem(model, image)
    assert (found is None) == (model in models)
    assert found is None or f"{model} takes " in found


def test_a_password_is_not_told() -> None:
    assert "hunter2" not in (problem("bubblewrap", "https://me:hunter2@example.org/x") or "hunter2")
