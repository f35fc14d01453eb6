"""What `vac doctor` says of CernVM-FS and of images in it: child processes look, since looking may take for ever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Optional

from vac.cli.doctor_docker import propagates
from vac.config.checks import CONTAINER_MODELS, needed_repositories
from vac.config.machinetype import Machinetype
from vac.host.probes import AT_ONCE, CVMFS, problem_of

Row = tuple[str, Optional[str], bool]
"""As doctor.Finding: what, the problem, whether it is serious."""
MOUNTS = Path("/proc/self/mountinfo")


def paths(machinetype: Machinetype) -> list[str]:
    """What this type needs below /cvmfs: repositories, and its image."""
    image = machinetype.root_image or ""
    own = [image] if image.startswith(f"{CVMFS}/") else []
    return list(dict.fromkeys([*(str(CVMFS / name) for name in needed_repositories(machinetype)), *own]))


def rows(machinetypes: Sequence[Machinetype]) -> Iterator[Row]:
    """Everything that these need; what is a path below /cvmfs and has no problem may be touched then."""
    if any(one.machine_model in CONTAINER_MODELS and one.cvmfs_repositories for one in machinetypes):
        shared = propagates(str(CVMFS), MOUNTS.read_text(errors="replace"))
        text = "isn't mounted shared: repositories mounted later stay invisible: mount --make-rshared /cvmfs"
        yield f"{CVMFS} in containers", None if shared else text, False
    wanted = list(dict.fromkeys(path for one in machinetypes for path in paths(one)))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for path, problem in zip(wanted, pool.map(problem_of, wanted)):
            yield path, problem, True
