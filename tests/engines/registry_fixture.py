"""A registry's stand-in with one image, which can stall. The protocol is OCI Distribution's (v2)."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
UNKNOWN = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'


class Registry:
    """Serves NAME:1 from a listening socket: a root file system given as tar, in one layer.

    stalling: the layer's second half is kept back until release() is called.
    """

    def __init__(self, listener: socket.socket, name: str, root: bytes, stalling: bool = False) -> None:
        self.address = "{}:{}".format(*listener.getsockname())
        self.image = f"{self.address}/{name}:1"
        self.asked: list[str] = []
        self._released = threading.Event()
        if not stalling:
            self._released.set()
        self._name = name
        self.replace(root)
        self._server = self._serve(listener)

    def replace(self, root: bytes) -> None:
        """Let the tag mean another image."""
        layer = gzip.compress(root, 1)
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [_digest(root)]},
            }
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG, "size": len(config), "digest": _digest(config)},
                "layers": [{"mediaType": LAYER, "size": len(layer), "digest": _digest(layer)}],
            }
        ).encode()
        self.digest = f"{self.address}/{self._name}@{_digest(manifest)}"
        blobs = {f"/v2/{self._name}/blobs/{_digest(blob)}": (LAYER, blob) for blob in (config, layer)}
        manifests = {
            f"/v2/{self._name}/manifests/{tag}": (MANIFEST, manifest) for tag in ("1", _digest(manifest))
        }
        self._pages = {"/v2/": ("application/json", b"{}"), **blobs, **manifests}
        self._large = f"/v2/{self._name}/blobs/{_digest(layer)}"

    def release(self) -> None:
        """Stall no more."""
        self._released.set()

    def close(self) -> None:
        """Answer nobody any more."""
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, listener: socket.socket) -> ThreadingHTTPServer:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _answer(self, *, with_body: bool) -> None:
                registry.asked.append(self.path)
                kind, body = registry._pages.get(self.path, ("application/json", UNKNOWN))
                self.send_response(404 if body == UNKNOWN else 200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Docker-Content-Digest", _digest(body))
                self.end_headers()
                if with_body:
                    half = len(body) // 2 if self.path == registry._large else len(body)
                    self.wfile.write(body[:half])
                    self.wfile.flush()
                    registry._released.wait()
                    self.close_connection = True
                    try:
                        self.wfile.write(body[half:])
                    except OSError:
                        return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server


def incompressible(size: int) -> str:
    """Text that makes a layer large."""
    return "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=size))


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
