"""`vac user-data`, `cernvm-signature`, `proxy-init` and `squid-conf`: what machines are given, made or checked by hand.

The libraries for certificates and downloads are imported when one of these runs.
"""

from __future__ import annotations

import argparse
import re
import secrets
import socket
import stat
import sys
import time
import uuid
from pathlib import Path

from vac.cli import common
from vac.cli.common import CommandFailed
from vac.config.checks import template_mistakes
from vac.config.load import ConfigurationError
from vac.config.settings import Settings
from vac.machines.files import write_atomic
from vac.machines.layout import StateDir, slot_name
from vac.text import utc_time

PROXY_SECONDS = 12 * 3600


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the arguments of one of these commands."""
    if name == "user-data":
        parser.add_argument("machinetype", metavar="MACHINETYPE")
        help_text = "with the values of user_data_option_XXX, user_data_file_XXX and the proxy, instead of their sizes"
        parser.add_argument("--secrets", action="store_true", help=help_text)
    elif name == "cernvm-signature":
        parser.add_argument("image", type=Path, metavar="IMAGE")
        help_text = "regular expression that the DN has to match, as image_signing_dn; default: any"
        parser.add_argument("--dn", default="", type=_regex, metavar="REGEX", help=help_text)
        help_text = "trusted CAs; default: /etc/grid-security/certificates"
        parser.add_argument("--ca-directory", type=Path, metavar="DIR", help=help_text)
    elif name == "squid-conf":
        help_text = "Squid's configuration without the factories"
        parser.add_argument("source", type=Path, metavar="IN", help=help_text)
        parser.add_argument("target", type=Path, metavar="OUT", help="the file to write")
    else:
        help_text = "certificate, perhaps a proxy with its chain, in PEM"
        parser.add_argument("-c", "--cert", type=Path, required=True, metavar="CERT", help=help_text)
        help_text = "its key, without a password"
        parser.add_argument("-k", "--key", type=Path, required=True, metavar="KEY", help=help_text)
        help_text = "a Globus legacy proxy instead of RFC 3820"
        parser.add_argument("-l", "--legacy", action="store_true", help=help_text)
    commands = {"user-data": run_user_data, "cernvm-signature": run_signature, "squid-conf": run_squid_conf}
    parser.set_defaults(run=commands.get(name, run_proxy))


def run_user_data(arguments: argparse.Namespace) -> None:
    """Print user_data byte for byte."""
    from vac.context import user_data

    configuration = common.configuration(arguments)
    kind, settings = configuration.machinetypes.get(arguments.machinetype), configuration.settings
    if kind is None:
        known = " ".join(configuration.machinetypes) or "none"
        raise CommandFailed(f"vac: no machinetype {arguments.machinetype} is configured; there are: {known}")
    now = time.time()
    wanted = user_data.ContextRequest(
        kind,
        settings,
        slot_name(settings.factory_name, 0),
        str(uuid.uuid4()),
        StateDir(settings.state_dir).machinetype(kind.pipe or kind.name),
        now,
        now + kind.max_wallclock_seconds,
    )
    try:
        template, url = user_data.load_template(wanted)
        values = user_data.values(wanted, url)
        content = user_data.substitute(template, values if arguments.secrets else user_data.masked(values))
    except user_data.ContextError as error:
        raise CommandFailed(f"vac: {kind.name}: {error}") from None
    for line, text in template_mistakes(kind, template):
        print(f"vac: warning: user_data: line {line}: {text}", file=sys.stderr)
    sys.stdout.flush()
    sys.stdout.buffer.write(content)


def run_signature(arguments: argparse.Namespace) -> int:
    """Print DN, dates and verdict; return 1 if the signature doesn't count."""
    from vac.context.certificates import shown_name, validity
    from vac.context.downloads import GRID_CERTIFICATES
    from vac.context.signatures import SignatureRefused, judge, read_signature

    try:
        signer = read_signature(arguments.image)
        start, end = validity(signer.certificate)
        print(f"signed by:  {shown_name(signer.certificate)}")
        print(f"valid:      {utc_time(start)} to {utc_time(end)}")
        if signer.metadata_problem:
            print(f"warning:    the image's metadata can't be read: {signer.metadata_problem}")
        judge(signer, arguments.dn, arguments.ca_directory or GRID_CERTIFICATES, time.time())
    except SignatureRefused as refusal:
        print(f"verdict:    refused: {refusal}")
        return 1
    except OSError as error:
        raise CommandFailed(f"vac: {arguments.image} can't be read: {error.strerror}") from None
    print("verdict:    good")
    return 0


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from error
    return text


def run_proxy(arguments: argparse.Namespace) -> None:
    """Print the proxy."""
    from vac.context.certificates import CertificateError, proxy_from_files

    now, name = time.time(), str(secrets.randbits(63))
    try:
        proxy = proxy_from_files(
            arguments.cert, arguments.key, name, now=now, end=now + PROXY_SECONDS, legacy=arguments.legacy
        )
        if stat.S_IMODE(arguments.key.stat().st_mode) & 0o077:
            print(f"vac: warning: others can read {arguments.key}: chmod 600 it", file=sys.stderr)
    except (CertificateError, OSError) as error:
        raise CommandFailed(f"vac: {error}") from None
    sys.stdout.write(proxy.decode("ascii"))


def run_squid_conf(arguments: argparse.Namespace) -> int:
    """Write OUT if it changes; return 1 if it doesn't. Raises CommandFailed with exit code 2."""
    try:
        settings = common.configuration(arguments).settings
        content = squid_conf(arguments.source.read_bytes(), settings)
        target = arguments.target.resolve()
        if target == arguments.source.resolve():
            raise OSError("IN and OUT are the same file")
        if not target.exists():
            write_atomic(target, content, tmp=target.parent)
        elif content == target.read_bytes():
            return 1
        else:
            found = target.stat()
            owner, mode = (found.st_uid, found.st_gid), stat.S_IMODE(found.st_mode)
            write_atomic(target, content, tmp=target.parent, mode=mode, owner=owner)
    except ConfigurationError as error:
        raise CommandFailed("\n".join(f"vac: {problem}" for problem in error.problems), 2) from None
    except OSError as error:
        raise CommandFailed(f"vac squid-conf: {error}", 2) from None
    return 0


def squid_conf(source: bytes, settings: Settings) -> bytes:
    """Return Squid's configuration with this space's factories as clients and, but for this one, as sibling caches.

    Raises OSError if not even one factory's address can be found.
    """
    lines: list[str] = []
    for name in settings.factories:
        try:
            address = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
        except OSError as error:
            print(f"vac squid-conf: {name} is left out: {error.strerror}", file=sys.stderr)
            continue
        lines.append(f"acl localnet src {address}/32\n")
        if name != settings.factory_name:
            lines.append(f"cache_peer {address} sibling 3128 3130 default\n")
    if not lines:
        raise OSError("no factory's address can be found")
    end = b"" if not source or source.endswith(b"\n") else b"\n"
    return source + end + "".join(lines).encode("ascii")
