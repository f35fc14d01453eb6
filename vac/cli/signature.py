"""`vac cernvm-signature IMAGE`: who has signed an image, and would it be used."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from vac.context.downloads import GRID_CERTIFICATES


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    text = "tell who has signed a CernVM image, and whether the signature counts; exit status 1 if not"
    command = commands.add_parser("cernvm-signature", help=text, description=text)
    command.add_argument("image", type=Path, metavar="IMAGE")
    dn_help = "what the DN has to match, as image_signing_dn; default: any"
    command.add_argument("--dn", default="", type=_regex, metavar="REGEX", help=dn_help)
    ca_help = "trusted CAs, default %(default)s"
    command.add_argument("--ca-directory", type=Path, default=GRID_CERTIFICATES, metavar="DIR", help=ca_help)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print DN, dates and verdict. The library is loaded here: all other commands start faster without it."""
    from vac.context.certificates import moment, shown_name, validity
    from vac.context.signatures import SignatureRefused, judge, read_signature

    try:
        signer = read_signature(arguments.image)
        start, end = validity(signer.certificate)
        print(f"signed by:  {shown_name(signer.certificate)}")
        print(f"valid:      {moment(start)} to {moment(end)}")
        if signer.metadata_problem:
            print(f"warning:    the image's metadata can't be read: {signer.metadata_problem}")
        judge(signer, arguments.dn, arguments.ca_directory, time.time())
    except SignatureRefused as refusal:
        print(f"verdict:    refused: {refusal}")
        return 1
    except OSError as error:
        print(f"vac: {arguments.image} can't be read: {error.strerror}", file=sys.stderr)
        return 1
    print("verdict:    good")
    return 0


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from error
    return text
