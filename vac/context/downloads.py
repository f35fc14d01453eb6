"""Downloads over http and https by libcurl (PycURL): small documents, and images kept in state_dir/imagecache.

Trusted CAs: the system's or those of SSL_CERT_FILE, and /etc/grid-security/certificates. A cached image's mtime is the
server's Last-Modified, its atime the last request for it.
"""

from __future__ import annotations

import contextlib
import email.utils
import enum
import hashlib
import io
import logging
import math
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

import vac
from vac.config.pipe_document import LARGEST_BYTES
from vac.logs import OnChange
from vac.text import without_url_secrets

if TYPE_CHECKING:
    import pycurl

log = logging.getLogger(__name__)

GRID_CERTIFICATES = Path("/etc/grid-security/certificates")
SYSTEM_CERTIFICATES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/ca-bundle.pem"),
)
"""CA files of the distributions: a PycURL from a wheel doesn't know the host's."""
_PROXY_PORT = 1080
"""Default of libcurl."""
LEFT_FREE_BYTES = 2 * 1000**3
"""Space of the file system that pipes' images leave free; below half of it nothing is created."""
ROOM_LOOK_BYTES = 16 * 1024**2
"""Free space is checked again after each part of an image of this size."""
_GB = 1000**3
_LONGEST_NAME = 255
_DAY_SECONDS = 86400
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype\s+html|html)\b", re.IGNORECASE)
_UNTRUSTED = "isn't trusted"
_REFUSED_CERTIFICATES = {
    **dict.fromkeys((0, 1, 62), f"{_UNTRUSTED} for this host: it belongs to another one"),
    9: "is not valid yet, or one of its CA's isn't",
    10: "has expired, or one of its CA's has",
    18: f"{_UNTRUSTED}: it is self-signed",
    **dict.fromkeys((19, 20, 21), f"{_UNTRUSTED}: its CA is unknown here"),
}
"""By X509_V_ERR code of OpenSSL; libcurl itself checks the name (0 and 1)."""


class DownloadFailed(OSError):
    """Reason of a failed download, without passwords.

    passing: the server is unavailable for now, which doesn't invalidate an existing copy.
    """

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


@dataclass(frozen=True)
class Limits:
    """Limits of a download. Its total time is unlimited as long as it makes progress."""

    largest_bytes: int = 50 * 1024**3
    slowest_bytes_per_second: int = 1000
    slow_seconds: int = 60
    """Longest time below that rate, from the beginning."""
    connect_seconds: int = 30
    redirects: int = 10


class Local(enum.Enum):
    """Use of loopback and link-local addresses, where services trust this host."""

    ALLOWED = "allowed"
    NOT_BY_REDIRECT = "not by redirect"
    REFUSED = "refused"


@dataclass
class Answer:
    """A server's answer, the last one after redirects.

    write takes the body piece by piece. get() raises its OSError.
    """

    write: Callable[[bytes], int]
    status: int = 0
    last_modified: str = ""
    length: int = 0
    """Content-Length; 0 if the server doesn't send it."""
    begun: bool = field(default=False, init=False)
    refusal: OSError | None = field(default=None, init=False)
    _size: int = field(default=0, init=False)

    def header(self, line: bytes) -> None:
        """Take one header line; those of redirects come first."""
        text = line.decode("latin-1").strip()
        self.begun = True
        if text.startswith("HTTP/"):
            self.last_modified, self.length = "", 0
            return
        name, _, value = text.partition(":")
        if name.lower() == "last-modified":
            self.last_modified = value.strip()
        elif name.lower() == "content-length" and value.strip().isdecimal():
            self.length = int(value)

    def body(self, piece: bytes, largest_bytes: int) -> int:
        """Take the next piece of the body. Return the number of bytes taken, 0 to end the transfer."""
        try:
            self._size += len(piece)
            if self._size > largest_bytes:
                raise DownloadFailed(f"larger than {largest_bytes} bytes")
            self.write(piece)
        except OSError as error:
            self.refusal = error
            return 0
        return len(piece)

    def date(self) -> float | None:
        """Return Last-Modified in Unix seconds; None without a valid one."""
        try:
            return email.utils.parsedate_to_datetime(self.last_modified).timestamp()
        except (TypeError, ValueError, OverflowError):
            return None


def get(
    url: str,
    answer: Answer,
    limits: Limits,
    *,
    known_time: float | None = None,
    head: bool = False,
    local: Local = Local.ALLOWED,
) -> None:
    """Send one GET (or HEAD). The answer's status is then 200, or 304 if unchanged since known_time.

    Blocks. Raises DownloadFailed, and errors of the answer's functions.
    """
    try:
        import pycurl
    except ImportError as error:
        raise DownloadFailed(f"{error}; install python3-pycurl") from error
    curl = pycurl.Curl()
    opened = contextlib.ExitStack()
    try:
        _set_up(pycurl, curl, limits)
        if local is not Local.ALLOWED:
            curl.setopt(pycurl.OPENSOCKETFUNCTION, _SocketGuard(answer, local, pycurl.SOCKET_BAD, opened))
        headers = [f"User-Agent: Vac {vac.__version__}"]
        if known_time is not None:
            headers.append(f"If-Modified-Since: {email.utils.formatdate(known_time, usegmt=True)}")
        curl.setopt(pycurl.URL, url.encode("utf-8", "surrogateescape"))
        curl.setopt(pycurl.NOBODY, int(head))
        curl.setopt(pycurl.HTTPHEADER, headers)
        curl.setopt(pycurl.HEADERFUNCTION, answer.header)
        curl.setopt(pycurl.WRITEFUNCTION, lambda piece: answer.body(piece, limits.largest_bytes))
        curl.perform()
        answer.status = curl.getinfo(pycurl.RESPONSE_CODE)
    except pycurl.error as error:
        if answer.refusal is not None:
            raise answer.refusal from error
        raise _explained(pycurl, curl, error.args[0], limits) from error
    finally:
        curl.close()
        opened.close()
    if answer.status != 200 and (known_time is None or answer.status != HTTPStatus.NOT_MODIFIED):
        raise DownloadFailed(f"the server answers with status {answer.status} instead of 200")


class _SocketGuard:
    """Opens libcurl's sockets, except to local addresses: on each hop, after resolution. Proxies are exempt."""

    def __init__(self, answer: Answer, local: Local, refused: int, opened: contextlib.ExitStack) -> None:
        """opened: gets the sockets, of which libcurl makes duplicates."""
        self._opened = opened
        self._answer = answer
        self._local = local
        self._refused = refused
        self._allowed = {address for proxy in getproxies().values() for address in _addresses(proxy)}

    def __call__(self, purpose: int, address: Any) -> socket.socket | int:
        """Return a socket for an address of libcurl, or its code for none."""
        host, port = address.addr[0], address.addr[1]
        host = host.decode() if isinstance(host, bytes) else host
        if self._local is Local.NOT_BY_REDIRECT and not self._answer.begun:
            self._allowed.add((host, port))  # the server that was asked for may redirect to itself
        if is_local(host) and (host, port) not in self._allowed:
            self._answer.refusal = DownloadFailed(f"{host} is a local address, which a pipe may not use")
            return self._refused
        return self._opened.enter_context(socket.socket(address.family, address.socktype, address.protocol))


def is_local(host: str) -> bool:
    """Return whether an address leads to this host or its link."""
    address = ip_address(host.partition("%")[0])
    address = (address.version == 6 and address.ipv4_mapped) or address
    return address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast


def _addresses(proxy: str) -> set[tuple[str, int]]:
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or _PROXY_PORT, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return set()
    return {(str(entry[4][0]), int(entry[4][1])) for entry in found}


def document(url: str, limits: Limits, local: Local = Local.ALLOWED) -> bytes:
    """Return the content of a small file, fetched anew. Blocks; raises DownloadFailed."""
    content = io.BytesIO()
    get(url, Answer(content.write), limits, local=local)
    return content.getvalue()


def fetch_pipe(url: str) -> bytes:
    """Return the document of a Vacuum Pipe, unchecked. Blocks; raises DownloadFailed.

    The site has configured the URL, but its publisher decides its redirects.
    """
    return document(url, Limits(largest_bytes=LARGEST_BYTES), local=Local.NOT_BY_REDIRECT)


def is_html(content: bytes) -> bool:
    """Return whether this is a web page, as portals and proxies send in place of files."""
    return _HTML.match(content) is not None


def _set_up(api: Any, curl: pycurl.Curl, limits: Limits) -> None:
    web = api.PROTO_HTTP | api.PROTO_HTTPS
    options = {
        api.NOSIGNAL: 1,
        api.PROTOCOLS: web,
        api.REDIR_PROTOCOLS: web,
        api.FOLLOWLOCATION: 1,
        api.MAXREDIRS: limits.redirects,
        api.FAILONERROR: 1,
        api.ENCODING: "identity",  # decodes a body that a server encodes nevertheless
        api.MAXFILESIZE_LARGE: limits.largest_bytes,
        api.LOW_SPEED_LIMIT: limits.slowest_bytes_per_second,
        api.LOW_SPEED_TIME: limits.slow_seconds,
        api.CONNECTTIMEOUT: limits.connect_seconds,
        api.SSL_VERIFYPEER: 1,
        api.SSL_VERIFYHOST: 2,
    }
    chosen = os.environ.get("SSL_CERT_FILE")
    trusted = Path(chosen) if chosen else next(filter(Path.exists, SYSTEM_CERTIFICATES), None)
    if trusted is not None:
        options[api.CAINFO] = str(trusted)
    if GRID_CERTIFICATES.is_dir():
        options[api.CAPATH] = str(GRID_CERTIFICATES)
    for option, value in options.items():
        curl.setopt(option, value)


def _explained(api: Any, curl: pycurl.Curl, code: int, limits: Limits) -> DownloadFailed:
    """Return the reason of a failed transfer. libcurl's own texts may quote URLs and are not used."""
    if code == api.E_HTTP_RETURNED_ERROR:
        status = curl.getinfo(api.RESPONSE_CODE)
        passing = status >= 500 or status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
        return DownloadFailed(f"the server answers with status {status}", passing=passing)
    if code == api.E_PEER_FAILED_VERIFICATION:
        result = curl.getinfo(api.SSL_VERIFYRESULT) if "OpenSSL" in api.version else -1
        problem = _REFUSED_CERTIFICATES.get(result, f"{_UNTRUSTED} for this host")
        return DownloadFailed(f"the server's certificate {problem}", passing=True)
    refused = {
        api.E_UNSUPPORTED_PROTOCOL: "the URL, or its redirect, is neither http nor https",
        api.E_TOO_MANY_REDIRECTS: f"redirected more than {limits.redirects} times",
        api.E_FILESIZE_EXCEEDED: f"larger than {limits.largest_bytes} bytes",
        api.E_URL_MALFORMAT: "not a URL",
        api.E_BAD_CONTENT_ENCODING: "the server sends a Content-Encoding that wasn't requested",
    }
    if code in refused:
        return DownloadFailed(refused[code])
    secure = curl.getinfo(api.EFFECTIVE_URL).lower().startswith("https:")
    connected = curl.getinfo(api.APPCONNECT_TIME if secure else api.CONNECT_TIME) > 0
    slow = f"too slow: {limits.slow_seconds} s at less than {limits.slowest_bytes_per_second} bytes/s"
    reasons = {
        api.E_COULDNT_RESOLVE_HOST: "unknown host, or DNS unavailable",
        api.E_COULDNT_RESOLVE_PROXY: "unknown host of the proxy",
        api.E_COULDNT_CONNECT: "connection refused or host unreachable",
        api.E_SSL_CONNECT_ERROR: "TLS handshake failed",
        api.E_SSL_CACERT_BADFILE: "the file of trusted CAs can't be read",
        api.E_OPERATION_TIMEDOUT: slow if connected else "connection timed out",
        api.E_PARTIAL_FILE: "the server ended the transfer early",
        api.E_RECV_ERROR: "connection lost",
        api.E_GOT_NOTHING: "the server closed the connection without an answer",
    }
    return DownloadFailed(reasons.get(code, f"transfer failed with libcurl's error {code}"), passing=True)


class ImageCache:
    """Copies of images by URL. All methods may be called from any thread.

    Unfinished downloads are in another directory of the same file system.

    named: returns URLs with the pipe that names them, "" for the site itself; without it all are the site's. Images
    that pipes name may not come from local addresses, and together, with copies that nobody names, take most_bytes()
    at most; those of one pipe half of that.
    """

    def __init__(
        self,
        directory: Path,
        unfinished: Path,
        limits: Limits | None = None,
        named: Callable[[], Mapping[str, str]] | None = None,
        most_bytes: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._directory = directory
        self._unfinished = unfinished
        self._limits = limits or Limits()
        self._named = named
        self._most_bytes = most_bytes
        self._downloading: dict[Path, str] = {}
        """Pipe by unfinished file."""
        self._lock = threading.Lock()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._changes = OnChange(log)

    def path(self, url: str) -> Path:
        """Return the path for the copy of this URL."""
        name = quote(without_url_secrets(url), safe="", errors="surrogateescape")
        query = url.partition("?")[2]
        if query:
            digest = hashlib.sha256(query.encode("utf-8", "surrogateescape")).hexdigest()
            name = f"{name}-{digest[:32]}"
        if len(name) > _LONGEST_NAME:
            digest = hashlib.sha256(name.encode()).hexdigest()
            name = f"{name[: _LONGEST_NAME - len(digest) - 1]}-{digest}"
        return self._directory / name

    def fetch(self, url: str) -> Path:
        """Return the path of a copy as new as the server's; of an older copy while the server is unavailable.

        Blocks during the download. Raises DownloadFailed, and OSError if the copy can't be written.
        """
        path = self.path(url)
        with self._lock:
            lock = self._locks[path.name]
        with lock:
            try:
                modified_time = self._bring_up_to_date(url, path)
            except DownloadFailed as error:
                if not error.passing or not path.exists():
                    raise
                text = f"image {without_url_secrets(url)}: using the cached copy: {error}"
                self._changes.say(url, text, logging.WARNING)
                modified_time = path.stat().st_mtime
            else:
                self._changes.clear(url)
            os.utime(path, (time.time(), modified_time))
        return path

    def expire(self, used_urls: Iterable[str], now: float, days: float) -> None:
        """Remove copies that no used URL has and that were not requested for this many days; now in Unix seconds."""
        used = {self.path(url).name for url in used_urls}
        for path in sorted(self._directory.iterdir()):
            try:
                if path.name not in used and now - path.stat().st_atime > days * _DAY_SECONDS:
                    path.unlink(missing_ok=True)
                    log.info("image %s: removed from the cache, unused for %g days", path.name, days)
            except OSError as error:
                self._changes.say(path, f"{path} can't be removed: {error.strerror}", logging.WARNING)

    def _bring_up_to_date(self, url: str, path: Path) -> float:
        """Download the image unless the copy has the server's date. Return its Last-Modified, Unix seconds."""
        known_time = path.stat().st_mtime if path.exists() else None
        descriptor, temporary = tempfile.mkstemp(dir=self._unfinished, prefix="image-")
        pipe = "" if self._named is None else self._named().get(url, url)
        if pipe:
            self._downloading[Path(temporary)] = pipe
        try:
            with os.fdopen(descriptor, "wb") as file:

                def write(piece: bytes) -> int:
                    if not file.tell():
                        _required_date(answer)
                        self._make_room(pipe, answer.length)
                    elif file.tell() % ROOM_LOOK_BYTES + len(piece) >= ROOM_LOOK_BYTES:
                        self._make_room(pipe)
                    return file.write(piece)

                answer = Answer(write)
                self._get(url, answer, known_time=known_time)
                if answer.status == HTTPStatus.NOT_MODIFIED and known_time is not None:
                    if self._server_date(url, answer) in (None, known_time):
                        return known_time
                    self._get(url, answer)
                modified_time = _required_date(answer)
                file.flush()
                os.fchmod(descriptor, 0o644)  # hypervisors don't read it as root
                os.utime(temporary, (time.time(), modified_time))
                os.fsync(descriptor)
            Path(temporary).replace(path)
        finally:
            self._downloading.pop(Path(temporary), None)
            Path(temporary).unlink(missing_ok=True)
        return modified_time

    def _make_room(self, pipe: str, more_bytes: int = 0) -> None:
        """Remove copies of no machinetype, as far as space is needed; raise DownloadFailed if that isn't enough.

        more_bytes: still to come. The site's own images, of pipe "", get the space that they need.
        """
        if not pipe or self._named is None:
            return
        with self._lock:
            owners = {self.path(url): owner for url, owner in self._named().items()} | self._downloading
            copies = {
                path: path.stat()
                for path in [*self._directory.iterdir(), *self._downloading]
                if path.exists()
            }
            total = more_bytes + sum(copy.st_size for path, copy in copies.items() if owners.get(path) != "")
            own = more_bytes + sum(copy.st_size for path, copy in copies.items() if owners.get(path) == pipe)
            free = shutil.disk_usage(self._directory).free - more_bytes
            most = self._most_bytes()
            for path in sorted(copies.keys() - owners.keys(), key=lambda path: copies[path].st_atime):
                if total <= most and free >= LEFT_FREE_BYTES:
                    break
                path.unlink(missing_ok=True)
                log.info(
                    "image %s: removed from the cache, as space is needed and no machinetype names it",
                    path.name,
                )
                total -= copies[path].st_size
                free += copies[path].st_size
        for used, limit, whose in ((own, most / 2, f"pipe {pipe}"), (total, most, "all pipes")):
            if used > limit:
                text = f"images of {whose} would take more than {limit / _GB:.1f} GB; see pipe_images_gb"
                raise DownloadFailed(text, passing=True)
        if free < LEFT_FREE_BYTES:
            text = f"only {LEFT_FREE_BYTES / _GB:.0f} GB or less would be left free in {self._directory}"
            raise DownloadFailed(text, passing=True)

    def _server_date(self, url: str, unchanged: Answer) -> float | None:
        """Return the date of a 304 answer, by HEAD if it has none: an image may have been replaced by an older one."""
        if not unchanged.last_modified:
            with contextlib.suppress(DownloadFailed):  # a server without HEAD
                self._get(url, unchanged, head=True)
        return unchanged.date()

    def _get(self, url: str, answer: Answer, **options: Any) -> None:
        own = self._named is None or self._named().get(url) == ""
        local = Local.ALLOWED if own else Local.REFUSED
        get(url, answer, self._limits, local=local, **options)


def _required_date(answer: Answer) -> float:
    date = answer.date()
    if date is None:
        raise DownloadFailed("the server sends no Last-Modified date, which updates of images depend on")
    return date
