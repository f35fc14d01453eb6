"""What `vac doctor` looks at for virtual machines, once libvirt answers. It changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Optional

from vac.config.settings import Settings
from vac.drivers.base import EngineUnavailable

Row = tuple[str, Optional[str], bool]
"""What is looked at, what is wrong with it, and whether machines can't be made as long as it is so."""


def vm_findings(model: str, settings: Settings) -> Iterator[Row]:
    """What machines of this VM model need of this host."""
    from vac.drivers.libvirt_api import Connection
    from vac.drivers.libvirt_volumes import group_in_use
    from vac.drivers.libvirt_xml import FILTER

    connection = Connection(settings.libvirt_uri, settings.vm_domain_type)
    try:
        with connection.use("doctor") as libvirt:
            found = connection.hypervisor(libvirt)
    except EngineUnavailable as error:
        yield f"hypervisor for {model}", str(error), True
        return
    finally:
        connection.close()
    slow = "no hardware support (see /dev/kvm and the BIOS): they will be very slow"
    yield (
        f"{model} runs as domain type {found.domain_type}",
        slow if found.domain_type == "qemu" else None,
        False,
    )
    unfiltered = f"libvirt has no filter {FILTER}: install its default network filters"
    yield "VMs can't use each other's addresses", None if found.filtering else unfiltered, False
    group = group_in_use(settings)
    needed = {"qemu-img": "qemu-utils (EL9: qemu-img)"} if model == "vm-raw" else {}
    if group is not None:
        needed |= dict.fromkeys(("vgs", "lvs", "lvcreate", "lvremove"), "lvm2")
    for program, package in needed.items():
        yield program, None if shutil.which(program) else f"isn't there: install {package}", True
