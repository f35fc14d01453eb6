"""Which root images a machine model can take, from the option alone: nothing is looked at. Pure."""

from __future__ import annotations

import re

from vac.config.machinetype import Machinetype
from vac.config.values import quoted

DOCKER = "docker://"
_WEB = ("http://", "https://")
_URLS = {"docker": (DOCKER, *_WEB), "bubblewrap": ()}
"""By machine model, how URLs of its images begin; of all others as in _WEB."""
_HOST = r"(?:localhost|\[[0-9a-fA-F:]+\]|(?=[^/]*[.:])[A-Za-z0-9][A-Za-z0-9.-]*)(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?"
    r"(?:@[A-Za-z][A-Za-z0-9+._-]*:[0-9a-fA-F]{32,})?"
)
"""An image's name: the grammar of github.com/distribution/reference."""


def image_problem(machinetype: Machinetype) -> str | None:
    """In words, why root_image can't be one of this machine model; None if it can, or if there is none."""
    image, model = machinetype.root_image or "", machinetype.machine_model
    urls = _URLS.get(model, _WEB)
    if "://" in image and not image.startswith(urls):
        right = f"{' and '.join(urls)} URLs and paths only" if urls else "paths only"
        return f"{model} takes {right} as root_image, not {quoted(image)}"
    if image.startswith(DOCKER) and not _REFERENCE.fullmatch(image[len(DOCKER) :].strip("/")):
        right = "docker://NAME or docker://REGISTRY/NAME, NAME in lower case, perhaps with :TAG or @DIGEST"
        return f"{quoted(image)} is not the name of an image for root_image; {right} would be right"
    return None
