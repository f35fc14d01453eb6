"""`vac proxy-init -c CERT -k KEY`: a limited X.509 proxy as machines get them, on standard output."""

from __future__ import annotations

import argparse
import secrets
import stat
import sys
import time
from pathlib import Path

PROXY_SECONDS = 12 * 3600


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    text = "make a limited X.509 proxy that lasts 12 hours; proxy, key and chain come on standard output"
    command = commands.add_parser("proxy-init", help=text, description=text)
    help_of_cert = "certificate, perhaps a proxy with its chain, in PEM"
    command.add_argument("-c", "--cert", type=Path, required=True, metavar="CERT", help=help_of_cert)
    command.add_argument(
        "-k", "--key", type=Path, required=True, metavar="KEY", help="its key, without a password"
    )
    command.add_argument(
        "-l", "--legacy", action="store_true", help="a Globus legacy proxy instead of RFC 3820"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the proxy. The library is loaded here: all other commands start faster without it."""
    from vac.context.proxies import ProxyRefused, proxy_from_files

    now, name = time.time(), str(secrets.randbits(63))
    try:
        proxy = proxy_from_files(
            arguments.cert, arguments.key, name, now=now, end=now + PROXY_SECONDS, legacy=arguments.legacy
        )
        if stat.S_IMODE(arguments.key.stat().st_mode) & 0o077:
            print(f"vac: warning: others can read {arguments.key}: chmod 600 it", file=sys.stderr)
    except (ProxyRefused, OSError) as error:
        print(f"vac: {error}", file=sys.stderr)
        return 1
    sys.stdout.write(proxy.decode("ascii"))
    return 0
