"""Rules about several options, or about an option and this host."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vac.config.ini import Report
from vac.config.machinetype import CONTAINER_MODELS, DOCKER, MODELS, Machinetype, reserved_paths
from vac.config.options import NO_EFFECT, declared, host_name
from vac.config.sections import Parsed, nearest
from vac.config.settings import Settings
from vac.host.facts import HostFacts
from vac.text import quoted

METRICS_MODULES = {"prometheus_client": "python3-prometheus-client", "waitress": "python3-waitress"}
"""Packages that metrics_listen needs, by Python module."""
CVMFS = "/cvmfs/"
_HOST = r"(?:localhost|\[[0-9a-fA-F:]+\]|(?=[^/]*[.:])[A-Za-z0-9][A-Za-z0-9.-]*)(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?"
    r"(?:@[A-Za-z][A-Za-z0-9+._-]*:[0-9a-fA-F]{32,})?"
)
"""An image's name: the grammar of github.com/distribution/reference."""
_TEMPLATE_OPTION = re.compile(rb"##user_data_(?:option|file)_([a-z0-9_]+)##")


def check_settings(settings: Settings, parsed: Parsed, host: HostFacts, report: Report) -> None:
    """Check [settings] beyond each option's own format."""
    _check_names(settings, parsed, host, report)
    if settings.total_processors > host.processors:
        text = (
            f"{settings.total_processors} is more than the {host.processors} logical processors "
            f"{'that VAC_ASSUME_PROCESSORS says' if host.assumed else 'of this host'}"
        )
        report.error(*parsed.where("total_processors"), text)
    _check_accounts(settings, parsed, host, report)
    pair = ("gocdb_cert_file", "gocdb_key_file")
    for present, missing in (pair, pair[::-1]):
        if present in parsed.values and missing not in parsed.values:
            text = f"is set without {missing}, so that no capacity is published: set both or none"
            report.warn(*parsed.where(present), text)
    if settings.metrics_listen is not None:
        absent = [package for module, package in METRICS_MODULES.items() if not host.module_exists(module)]
        if absent:
            text = f"{' and '.join(absent)} not installed: there will be no metrics and no status page"
            report.warn(*parsed.where("metrics_listen"), text)
    for name, option in declared(Settings).items():
        if option.no_effect and parsed.values.get(name) not in (None, getattr(Settings, name)):
            report.warn(*parsed.where(name), NO_EFFECT)


def _check_names(settings: Settings, parsed: Parsed, host: HostFacts, report: Report) -> None:
    name = settings.factory_name
    own = "factory_name" in parsed.values
    if "." not in name or not host_name(name):
        source = "" if own else " (the kernel's host name; set factory_name)"
        right = "a fully qualified host name such as vac-01.example.org"
        report.error(*parsed.where("factory_name"), f"{quoted(name)}{source} is not {right}")
    elif not own and name.startswith("localhost."):
        text = f"the kernel's host name is {name}, which names no host: set the host name, or factory_name"
        report.warn(*parsed.where("factory_name"), text)
    listed = parsed.values.get("factories", ())
    if listed and name not in full_names(listed, name):
        text = f"this factory, {name}, isn't among them; it is added. Is its name right?"
        report.warn(*parsed.where("factories"), text)


def _check_accounts(settings: Settings, parsed: Parsed, host: HostFacts, report: Report) -> None:
    if settings.slot_uids is not None:
        first, last = map(int, settings.slot_uids.split("-"))
        if last - first + 1 < settings.host_processors:
            text = f"{settings.slot_uids} has fewer than {settings.host_processors} uids, one for each slot"
            report.error(*parsed.where("slot_uids"), text)
    if settings.singularity_user is not None:
        user, uid = quoted(settings.singularity_user), host.user_id(settings.singularity_user)
        if uid is None:
            report.error(*parsed.where("singularity_user"), f"there is no account {user} on this host")
        elif uid == 0:
            text = f"{user} is root; it has to be an unprivileged account"
            report.error(*parsed.where("singularity_user"), text)


def full_names(names: tuple[str, ...], own: str) -> tuple[str, ...]:
    """Return each factory's full name once: `.` is this one, and bare names get its domain."""
    domain = own.partition(".")[2]
    full = [
        own if name == "." else f"{name}.{domain}" if domain and "." not in name else name for name in names
    ]
    return tuple(dict.fromkeys(full))


def check_machinetype(machinetype: Machinetype, settings: Settings, parsed: Parsed, report: Report) -> None:
    """Check one machinetype beyond each option's own format."""
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
        own = "max_processors" in parsed.values
        text = f"max_processors ({most}){'' if own else ', its default,'} is below min_processors ({least})"
        report.error(*parsed.where("max_processors" if own else "min_processors"), text)
    elif least > settings.processors_per_superslot:
        text = (
            f"{least} is more than processors_per_superslot ({settings.processors_per_superslot}): "
            f"no machine of this type is ever created; set processors_per_superslot to {least} or more"
        )
        report.warn(*parsed.where("min_processors"), text)
    disk, limit = machinetype.disk_gb_per_processor, settings.disk_gb_per_processor
    if limit is not None and disk is not None and disk > limit:
        text = f"{disk} is more than the {limit} of [settings]"
        if machinetype.pipe is not None and parsed.files.get("disk_gb_per_processor") == parsed.file:
            report.error(*parsed.where("disk_gb_per_processor"), f"{text}, which a pipe may lower only")
        else:
            report.warn(*parsed.where("disk_gb_per_processor"), text)


def needed_repositories(machinetype: Machinetype) -> list[str]:
    """Return the CernVM-FS repositories of containers, and the one that the image is in."""
    listed = machinetype.cvmfs_repositories if machinetype.machine_model in CONTAINER_MODELS else ()
    image = machinetype.root_image or ""
    own = image.split("/")[2:3] if image.startswith(CVMFS) else []
    return [name for name in dict.fromkeys([*listed, *own]) if name]


@dataclass(frozen=True)
class Unusable:
    """Reason why no machine of a type can be made, and the option concerned."""

    option: str
    text: str
    remedy: str
    """Advice for the experiment that publishes the type, or for its sites."""
    site: bool = False
    """True if it may be intended, since sites add to the type."""


def unusable(machinetype: Machinetype, settings: Settings) -> Unusable | None:
    """Return why no machine of this type can be made as it is configured; None if one can."""
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
    """Return why root_image can't be one of this machine model, by the option alone; None if it can or is unset."""
    image, model = machinetype.root_image or "", machinetype.machine_model
    urls = MODELS[model].image_urls
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
    """Warn if nothing would ever be created."""
    if shares_of_pipes <= 0 and not any(kind.target_share > 0 for kind in machinetypes.values()):
        found = "no machinetype has" if machinetypes else "there is no machinetype with"
        report.warn(file, "", "target_share", f"{found} a target_share above 0: nothing will be created")


def check_state_dir(settings: Settings, where: tuple[str, str, str], host: HostFacts, report: Report) -> None:
    """Warn if containers can't run their user_data where state_dir is."""
    point = host.noexec_mount(settings.state_dir)
    if point is not None:
        text = f"{settings.state_dir} is on {point}, which is mounted noexec: containers can't run their user_data; "
        report.warn(*where, f"{text}mount it with exec")


def template_mistakes(machinetype: Machinetype, content: bytes) -> Iterator[tuple[int, str]]:
    """Yield likely mistakes in a machinetype's user_data, before substitution, with the line's number."""
    defined = {*machinetype.user_data_options, *machinetype.user_data_files}
    defined |= {"x509_proxy"} if machinetype.user_data_proxy else set()
    lines = content.split(b"\n")
    if lines[0].startswith(b"#!") and lines[0].endswith(b"\r"):
        text = "ends in CR LF, as on Windows: the kernel looks for an interpreter of that name; use LF alone"
        yield 1, text
    for number, line in enumerate(lines, 1):
        for match in _TEMPLATE_OPTION.finditer(line):
            name = match[1].decode("ascii")
            if name not in defined:
                text = f"user_data_option_{name} isn't set{nearest(name, defined)}"
                yield number, f"{match[0].decode('ascii')} is removed: {text}"
