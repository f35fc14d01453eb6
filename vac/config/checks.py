"""Rules that concern several options, or an option and this host (sources: the reference's own words)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vac.config.files import Report
from vac.config.machinetype import Machinetype, reserved_paths
from vac.config.options import NO_EFFECT, declared
from vac.config.sections import Parsed
from vac.config.settings import Settings
from vac.config.values import host_name
from vac.host.facts import HostFacts
from vac.host.probes import CVMFS
from vac.text import quoted

METRICS_MODULES = {"prometheus_client": "python3-prometheus-client", "waitress": "python3-waitress"}
"""What metrics_listen needs, by Python module: the package."""
CONTAINER_MODELS = ("docker", "singularity", "bubblewrap")
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


def check_settings(settings: Settings, parsed: Parsed, host: HostFacts, report: Report) -> None:
    """Everything about [settings] that isn't one option's own format."""
    if "." not in settings.factory_name or not host_name(settings.factory_name):
        source = "" if "factory_name" in parsed.values else " (the kernel's host name; set factory_name)"
        right = "a fully qualified host name such as vac-01.example.org"
        text = f"{quoted(settings.factory_name)}{source} is not {right}"
        report.error(*parsed.where("factory_name"), text)
    if settings.total_processors > host.processors:
        text = (
            f"{settings.total_processors} is more than the {host.processors} logical processors "
            f"{'that VAC_ASSUME_PROCESSORS says' if host.assumed else 'of this host'}"
        )
        report.error(*parsed.where("total_processors"), text)
    _check_user(settings, parsed, host, report)
    if "volume_group" in parsed.values and not host.volume_group_exists(settings.volume_group or ""):
        text = (
            f"there is no LVM volume group {quoted(settings.volume_group or '')}; leave it out to use files"
        )
        report.error(*parsed.where("volume_group"), text)
    pair = ("gocdb_cert_file", "gocdb_key_file")
    missing = [name for name in pair if name not in parsed.values]
    if len(missing) == 1:
        present = pair[1 - pair.index(missing[0])]
        report.error(*parsed.where(present), f"is set without {missing[0]}: set both or none")
    if settings.metrics_listen is not None:
        absent = [package for module, package in METRICS_MODULES.items() if not host.module_exists(module)]
        if absent:
            text = f"{' and '.join(absent)} not installed: there will be no metrics and no status page"
            report.warn(*parsed.where("metrics_listen"), text)
    for name, option in declared(Settings).items():
        if option.no_effect and parsed.values.get(name) not in (None, getattr(Settings, name)):
            report.warn(*parsed.where(name), NO_EFFECT)


def _check_user(settings: Settings, parsed: Parsed, host: HostFacts, report: Report) -> None:
    if settings.slot_uids is not None:
        first, last = map(int, settings.slot_uids.split("-"))
        if last - first + 1 < settings.host_processors:
            text = f"{settings.slot_uids} has fewer than {settings.host_processors} uids, one for each slot"
            report.error(*parsed.where("slot_uids"), text)
    user = settings.singularity_user
    if user is None:
        return
    uid = host.user_id(user)
    if uid is None:
        report.error(*parsed.where("singularity_user"), f"there is no account {quoted(user)} on this host")
    elif uid == 0:
        text = f"{quoted(user)} is root; it has to be an unprivileged account"
        report.error(*parsed.where("singularity_user"), text)


def check_machinetype(machinetype: Machinetype, settings: Settings, parsed: Parsed, report: Report) -> None:
    """Everything about one [machinetype NAME] that isn't one option's own format."""
    _check_sizes(machinetype, settings, parsed, report)
    least, most = machinetype.min_wallclock_seconds, machinetype.max_wallclock_seconds
    if least > most:
        text = f"{least} is more than max_wallclock_seconds ({most}): no machine can live so long"
        report.warn(*parsed.where("min_wallclock_seconds"), text)
    elif settings.processors_per_superslot > 1 and least == most:
        text = (
            f"equals max_wallclock_seconds ({most}), which is its default: no machine of this type can "
            f"ever join a superslot that has begun; set a smaller one"
        )
        report.warn(*parsed.where("min_wallclock_seconds"), text)
    if machinetype.heartbeat_seconds and not machinetype.heartbeat_file:
        report.warn(*parsed.where("heartbeat_seconds"), "means nothing without heartbeat_file")
    if machinetype.idle_cpu_percent is None and "idle_seconds" in parsed.values:
        report.warn(*parsed.where("idle_seconds"), "means nothing without idle_cpu_percent")
    if machinetype.legacy_proxy and not machinetype.user_data_proxy:
        report.warn(*parsed.where("legacy_proxy"), "means nothing without user_data_proxy = yes")


def _check_sizes(machinetype: Machinetype, settings: Settings, parsed: Parsed, report: Report) -> None:
    least, most = machinetype.min_processors, machinetype.max_processors
    if most < least:
        default = "" if "max_processors" in parsed.values else ", its default,"
        which = "max_processors" if "max_processors" in parsed.values else "min_processors"
        report.error(
            *parsed.where(which), f"max_processors ({most}){default} is below min_processors ({least})"
        )
    elif least > settings.processors_per_superslot:
        text = (
            f"{least} is more than processors_per_superslot ({settings.processors_per_superslot}): "
            f"no machine of this type is ever created; set processors_per_superslot to {least} or more"
        )
        report.warn(*parsed.where("min_processors"), text)
    disk, limit = machinetype.disk_gb_per_processor, settings.disk_gb_per_processor
    if limit is not None and disk is not None and disk > limit:
        text = f"{disk} is more than the {limit} of [settings], which it may lower only"
        report.error(*parsed.where("disk_gb_per_processor"), text)


def needed_repositories(machinetype: Machinetype) -> list[str]:
    """The CernVM-FS repositories of containers, and the one that the image is in."""
    listed = machinetype.cvmfs_repositories if machinetype.machine_model in CONTAINER_MODELS else ()
    image = machinetype.root_image or ""
    own = image.split("/")[2:3] if image.startswith(f"{CVMFS}/") else []
    return [name for name in dict.fromkeys([*listed, *own]) if name]


@dataclass(frozen=True)
class Unusable:
    """Why no machine can be made of a type, in words, and the option that it is about."""

    option: str
    text: str
    remedy: str
    """What the experiment that publishes the type, or its sites, would have to do."""
    site: bool = False
    """May it be meant so, sites adding to it?"""


def unusable(machinetype: Machinetype, settings: Settings) -> Unusable | None:
    """Why no machine of this type can be made as it is configured; None if one can."""
    model = machinetype.machine_model
    add = "sites would have to add it"
    if model == "singularity" and settings.singularity_user is None:
        text = "machine_model = singularity needs singularity_user in [settings], an unprivileged account"
        return Unusable("machine_model", text, add, site=True)
    if not machinetype.root_image:
        return Unusable("root_image", f"machine_model = {model} needs a root_image", add, site=True)
    if problem := image_problem(machinetype):
        return Unusable("root_image", problem, "no site can make a machine of it")
    if model not in CONTAINER_MODELS:
        return None
    if machinetype.image_signing_dn:
        text = f"signatures of {model} images (image_signing_dn) can't be checked, only VMs'"
        return Unusable("image_signing_dn", text, "leave it out, or no site makes machines of this type")
    if paths := reserved_paths(model, machinetype.tmp_binds):
        text = f"{', '.join(paths)} of tmp_binds can't be fresh directories in a {model} machine"
        return Unusable("tmp_binds", text, "leave them out, or no site makes machines of this type")
    if not machinetype.user_data and machinetype.container_command == "/user_data":
        text = "container_command is /user_data, and there is no user_data"
        return Unusable("user_data", text, add, site=True)
    return None


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


def check_shares(
    machinetypes: Mapping[str, Machinetype], shares_of_pipes: float, file: str, report: Report
) -> None:
    """Warn when nothing would ever be created."""
    if shares_of_pipes <= 0 and not any(kind.target_share > 0 for kind in machinetypes.values()):
        which = "no machinetype has" if machinetypes else "there is no machinetype with"
        report.warn(file, "", "target_share", f"{which} a target_share above 0: nothing will be created")
