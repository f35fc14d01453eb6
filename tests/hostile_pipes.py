"""Documents of Vacuum Pipes that mean harm, or come from a broken generator, and what has to become of each.

Every document but those that are refused as a whole also holds a blameless machinetype "good", which has to
survive.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

REFUSED, LEFT_OUT, UNFIT, IGNORED = "refused", "left out", "unfit", "ignored"
"""The document as a whole; the machinetype; that too, but by the site that it doesn't suit; only the key."""
GOOD: Mapping[str, Any] = {
    "suffix": "good",
    "target_share": 1,
    "machine_model": "docker",
    "root_image": "docker://example.org/pilot:1",
    "user_data": "user_data",
}


class Hostile(NamedTuple):
    """One document."""

    content: bytes
    fate: str
    path: str
    """JSON path that is told as the place of the flaw; empty: anywhere."""


def _document(*entries: object, **more: object) -> bytes:
    return json.dumps({"machinetypes": [GOOD, *entries], **more}).encode()


def _with(key: str, value: object) -> bytes:
    """A machinetype that is right but for one option."""
    return _document({**GOOD, "suffix": "bad", key: value})


_LEFT_OUT: tuple[tuple[str, object], ...] = (
    ("user_data", "/etc/shadow"),
    ("user_data", "../x509key.pem"),
    ("user_data", ".."),
    ("user_data", "."),
    ("user_data", "files/../../x509key.pem"),
    ("user_data", "file:///etc/shadow"),
    ("user_data", "file:passwd"),
    ("user_data", "FILE:///etc/shadow"),
    ("user_data", "ftp://example.org/user_data"),
    ("user_data", "scp://root@localhost/etc/shadow"),
    ("user_data", "http:///etc/shadow"),
    ("user_data", "https://example.org/../../etc/shadow"),
    ("user_data", "https://example.org/a b"),
    ("user_data", "https://example.org/\nX-Header: 1"),
    ("user_data", "user_data\n/etc/shadow"),
    ("user_data", "user_data\u0000.txt"),
    ("user_data", "~root"),
    ("user_data", "$HOME"),
    ("user_data", "`id`"),
    ("user_data", "$(id)"),
    ("user_data", "-rf"),
    ("user_data", "x" * 100_000),
    ("user_data", ["user_data"]),
    ("user_data", {"path": "user_data"}),
    ("user_data", None),
    ("user_data", 7),
    ("user_data_file_key", "/root/.ssh/id_rsa"),
    ("user_data_file_key", "../x509key.pem"),
    ("user_data_file_key", ""),
    ("user_data_file_key", ["a"]),
    ("user_data_file_../x", "a"),
    ("user_data_file_", "a"),
    ("user_data_option_a-b", "text"),
    ("user_data_option_x\n", "text"),
    ("user_data_option_list", ["a", "b"]),
    ("user_data_option_flag", True),
    ("root_image", "/"),
    ("root_image", "/var/lib/vac"),
    ("root_image", "."),
    ("root_image", "file:///"),
    ("root_image", "/cvmfs/../etc"),
    ("root_image", "/cvmfs/"),
    ("root_image", "/cvmfs"),
    ("root_image", "/cvmfs/x;reboot"),
    ("root_image", "/cvmfsx/y"),
    ("root_image", "docker://image --privileged"),
    ("root_image", "docker://$(reboot)"),
    ("root_image", "docker:///var/run/docker.sock"),
    ("root_image", "library://image"),
    ("root_image", "shub://../image"),
    ("root_image", "a;reboot"),
    ("root_image", "a|b"),
    ("root_image", "docker://x\u202ey"),
    ("heartbeat_file", "../../../etc/cron.d/x"),
    ("heartbeat_file", "/etc/passwd"),
    ("heartbeat_file", ".."),
    ("heartbeat_file", "a/b"),
    ("cvmfs_repositories", "../../etc"),
    ("cvmfs_repositories", "grid.cern.ch/../../etc"),
    ("cvmfs_repositories", "grid.cern.ch /etc"),
    ("cvmfs_repositories", ["grid.cern.ch", "/"]),
    ("cvmfs_repositories", ["grid.cern.ch; reboot"]),
    ("cvmfs_repositories", [["grid.cern.ch"]]),
    ("cvmfs_repositories", {"grid.cern.ch": 1}),
    ("cvmfs_repositories", ["x.cern.ch"] * 101),
    ("tmp_binds", "/scratch:/etc:rw"),
    ("tmp_binds", ["/scratch /etc"]),
    ("tmp_binds", ["/../etc"]),
    ("tmp_binds", "scratch"),
    ("tmp_binds", "/a;reboot"),
    ("tmp_binds", "/$(reboot)"),
    ("tmp_binds", [1]),
    ("container_command", "/bin/sh -c reboot"),
    ("container_command", "/bin/sh;reboot"),
    ("container_command", "sh"),
    ("container_command", "/../../bin/sh"),
    ("container_command", "/`reboot`"),
    ("container_command", ["/bin/sh", "-c", "reboot"]),
    ("image_signing_dn", "(a+)+$"),
    ("image_signing_dn", ".*.*.*.*x"),
    ("image_signing_dn", "(a?)(a?)(a?)(a?)(a?)aaaaa"),
    ("image_signing_dn", "(x)\\1"),
    ("image_signing_dn", "a{1000}"),
    ("image_signing_dn", "("),
    ("image_signing_dn", "x" * 201),
    ("machine_model", "docker;reboot"),
    ("machine_model", "../driver"),
    ("machine_model", "os"),
    ("machine_model", ["docker"]),
    ("machine_model", ""),
    ("root_device", "vda'/><disk>"),
    ("root_device", "../sda"),
    ("scratch_device", "/dev/sda"),
    ("accounting_fqan", "/vo\nFQAN: /other"),
    ("accounting_fqan", "/vo\r/x"),
    ("accounting_fqan", "/vo/../other"),
    ("accounting_fqan", "/" + "x" * 100_000),
    ("accounting_fqan", ["/vo"]),
    ("target_share", -1),
    ("target_share", "NaN"),
    ("target_share", "inf"),
    ("target_share", True),
    ("target_share", 1e30),
    ("target_share", [1]),
    ("max_wallclock_seconds", 0),
    ("max_wallclock_seconds", 10**20),
    ("max_wallclock_seconds", "1e3"),
    ("max_wallclock_seconds", 600.5),
    ("max_wallclock_seconds", "six hundred"),
    ("min_processors", 0),
    ("fizzle_seconds", -600),
    ("backoff_seconds", None),
    ("user_data_proxy", "perhaps"),
    ("user_data_proxy", 2),
    ("legacy_proxy", []),
    ("suffix", ""),
    ("suffix", "../x"),
    ("suffix", "A"),
    ("suffix", "a_b"),
    ("suffix", "a b"),
    ("suffix", "a\nb"),
    ("suffix", "a\n"),
    ("suffix", "\u0430"),
    ("suffix", "x" * 101),
    ("suffix", 1),
    ("suffix", None),
    ("suffix", ["a"]),
    ("suffix", "good"),
)
_UNFIT: tuple[tuple[str, object], ...] = (
    ("min_processors", 2),
    ("disk_gb_per_processor", 10**9),
    ("suffix", "sub-x"),
    ("suffix", "x" * 99),
)
_IGNORED: tuple[tuple[str, object], ...] = (
    ("container_capabilities", "SYS_ADMIN"),
    ("container_user", "root"),
    ("container_network", "host"),
    ("container_nested", True),
    ("container_dns", "192.0.2.1"),
    ("token_dir", "/etc"),
    ("machines_dir_days", 0),
    ("machinegroup", "somebody-else"),
    ("idle_cpu_percent", 0),
    ("pipe", "other"),
    ("name", "local"),
    ("vm_model", "vm-raw"),
    ("state_dir", "/"),
    ("vacuum_pipe_url", "https://example.org/"),
    ("__class__", "x"),
    ("user_data_files", {"a": "/etc/shadow"}),
    ("max_processors ", 64),
    ("a\nb", "c"),
    ("", ""),
    ("deep", [[[[[[[[1]]]]]]]]),
)
_WHOLE: Mapping[str, tuple[bytes, str]] = {
    "nothing": (b"", "$"),
    "blanks": (b" \n\t", "$"),
    "null": (b"null", "$"),
    "a number": (b"1", "$"),
    "a text": (b'"machinetypes"', "$"),
    "a list": (_document()[len('{"machinetypes": ') : -1], "$"),
    "an empty object": (b"{}", "$"),
    "the old flat format": (json.dumps(GOOD).encode(), "$"),
    "an error in JSON": (b'{"error": "internal server error"}', "$"),
    "HTML": (b"<!DOCTYPE html><html><body>Log in</body></html>", "$"),
    "HTML after a byte order mark": (b"\xef\xbb\xbf\n<html></html>", "$"),
    "INI": (b"[machinetype x]\ntarget_share = 1\n", "$"),
    "YAML": (b"machinetypes:\n- suffix: x\n", "$"),
    "cut off": (_document()[:-5], "$"),
    "followed by rubbish": (_document() + b"}", "$"),
    "two documents": (_document() + _document(), "$"),
    "single quotes": (b"{'machinetypes': []}", "$"),
    "a trailing comma": (b'{"machinetypes": [],}', "$"),
    "a comment": (b'{"machinetypes": [] /* none */}', "$"),
    "Latin-1": (b'{"machinetypes": [], "name": "\xe9"}', "$"),
    "UTF-16": (_document().decode().encode("utf-16"), "$"),
    "NUL bytes": (b"\0" * 1000, "$"),
    "random bytes": (bytes(range(256)) * 10, "$"),
    "10 MB of blanks": (b" " * 10_000_000, "$"),
    "10 MB of types": (_document()[:-2] + b', {"suffix": "x"}' * 600_000 + b"]}", "$"),
    "10 MB in an option": (_with("user_data_option_x", "x" * 10_000_000), "$"),
    "nested lists": (b'{"machinetypes": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "$"),
    "nested objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "$"),
    "nested and cut off": (b"[" * 1_000_000, "$"),
    "nested in an option": (_with("user_data", "X").replace(b'"X"', b"[" * 40 + b"]" * 40), "$"),
    "quotes that never end": (b'{"a": "' + b'\\"' * 400_000, "$"),
    "NaN": (_with("target_share", float("nan")), "$"),
    "Infinity": (_with("target_share", float("inf")), "$"),
    "-Infinity": (_with("max_processors", float("-inf")), "$"),
    "1e999": (_with("target_share", "X").replace(b'"X"', b"1e999"), "$"),
    "a number without end": (
        _with("backoff_seconds", "X").replace(b'"X"', b"9" * 900_000),
        "$",
    ),
    "NaN where it would be ignored": (_with("unknown", [float("nan")]), "$"),
    "a key twice in the document": (
        b'{"machinetypes": [], "machinetypes": [' + json.dumps(GOOD).encode() + b"]}",
        "$",
    ),
    "a key twice in a machinetype": (
        _document()[:-3] + b', "user_data": "other"}]}',
        "$",
    ),
    "a suffix twice in a machinetype": (
        _document()[:-3] + b', "suffix": "other"}]}',
        "$",
    ),
    "half a surrogate pair": (
        _with("user_data_option_x", "\ud800"),
        "$",
    ),
    "machinetypes null": (b'{"machinetypes": null}', "$.machinetypes"),
    "machinetypes an object": (b'{"machinetypes": {"suffix": "x"}}', "$.machinetypes"),
    "machinetypes a text": (b'{"machinetypes": "x"}', "$.machinetypes"),
    "101 machinetypes": (
        json.dumps({"machinetypes": [{**GOOD, "suffix": f"t{n}"} for n in range(101)]}).encode(),
        "$.machinetypes",
    ),
}
_MORE: Mapping[str, Hostile] = {
    "a machinetype null": Hostile(_document(None), LEFT_OUT, "$.machinetypes[1]"),
    "a machinetype a text": Hostile(_document("bad"), LEFT_OUT, "$.machinetypes[1]"),
    "a machinetype a list": Hostile(_document([GOOD]), LEFT_OUT, "$.machinetypes[1]"),
    "an empty machinetype": Hostile(_document({}), LEFT_OUT, "$.machinetypes[1]"),
    "a machinetype without suffix": Hostile(_document({"target_share": 1}), LEFT_OUT, "$.machinetypes[1]"),
    "60,000 unknown keys": Hostile(_document({f"k{n}": 1 for n in range(60_000)}), LEFT_OUT, ""),
    "unknown keys around": Hostile(_document(**{"a\nb": 1, "vac_space": "x"}), IGNORED, '$["a\\nb"]'),
    **{
        f"cache_seconds {value!r}": Hostile(_document(cache_seconds=value), IGNORED, "$.cache_seconds")
        for value in (-1, "soon", None, [60], True, 1.5, 10**12, 10**9)
    },
}
CORPUS: Mapping[str, Hostile] = {
    **{f"{key} {repr(value)[:40]}": Hostile(_with(key, value), LEFT_OUT, "") for key, value in _LEFT_OUT},
    **{f"unfit {key} {repr(value)[:40]}": Hostile(_with(key, value), UNFIT, "") for key, value in _UNFIT},
    **{f"{key!r} is not a pipe's": Hostile(_with(key, value), IGNORED, "") for key, value in _IGNORED},
    **{name: Hostile(content, REFUSED, path) for name, (content, path) in _WHOLE.items()},
    **_MORE,
}
