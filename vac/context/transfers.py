"""One GET over http or https by libcurl (PycURL), with certificate checks, limits, and a reason when it fails.

Whom is trusted: the system's CAs, or those of SSL_CERT_FILE in the environment, and what is in
/etc/grid-security/certificates. Codes of failed checks are OpenSSL's X509_V_ERR_…; a libcurl with another TLS library
gives the general reason.
"""

from __future__ import annotations

import email.utils
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import vac

if TYPE_CHECKING:
    import pycurl

GRID_CERTIFICATES = Path("/etc/grid-security/certificates")
SYSTEM_CERTIFICATES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/ca-bundle.pem"),
)
"""Where distributions keep the CAs they trust: a PycURL from a wheel doesn't know the host's."""
_TIMED_OUT_STATUS = 408
_TOO_MANY_STATUS = 429
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype\s+html|html)\b", re.IGNORECASE)
_REFUSED_CERTIFICATES = {
    **dict.fromkeys((0, 1, 62), "isn't to be trusted for this host: it is another's"),
    9: "is not valid yet, or one of its CA's isn't",
    10: "has expired, or one of its CA's has",
    18: "isn't to be trusted: it is its own CA",
    **dict.fromkeys((19, 20, 21), "isn't to be trusted: nobody here trusts its CA"),
}
"""By result; 0 and 1 are left when it is libcurl itself that has found the name to be wrong."""
_REFUSED_CERTIFICATE = "isn't to be trusted for this host"


class DownloadFailed(OSError):
    """Why there is no such file, for people and without passwords.

    passing: the server can't serve now, which says nothing against a copy that there is.
    """

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


@dataclass(frozen=True)
class Limits:
    """What a download may take. There is no limit on its time as long as it gets on."""

    largest_bytes: int = 50 * 1024**3
    slowest_bytes_per_second: int = 1000
    slow_seconds: int = 60
    """How long it may be slower than that, from the beginning."""
    connect_seconds: int = 30
    redirects: int = 10


@dataclass
class Answer:
    """What a server answers: the last of its answers if it redirects.

    write takes the body piece by piece; begin is called before the first. Either may raise OSError, which get() raises.
    """

    write: Callable[[bytes], int]
    begin: Callable[[Answer], object] = lambda answer: None
    status: int = 0
    last_modified: str = ""
    refusal: OSError | None = field(default=None, init=False)
    _size: int = field(default=0, init=False)

    def header(self, line: bytes) -> None:
        """One line of a header. The headers of redirects come before that of what is wanted."""
        text = line.decode("latin-1").strip()
        if text.startswith("HTTP/"):
            self.last_modified = ""
            return
        name, _, value = text.partition(":")
        if name.lower() == "last-modified":
            self.last_modified = value.strip()

    def body(self, piece: bytes, largest_bytes: int) -> int:
        """The next piece of the body. Gives how many bytes were taken: 0 ends the transfer."""
        try:
            if not self._size:
                self.begin(self)
            self._size += len(piece)
            if self._size > largest_bytes:
                raise DownloadFailed(f"larger than {largest_bytes} bytes")
            self.write(piece)
        except OSError as error:
            self.refusal = error
            return 0
        return len(piece)


def get(
    url: str,
    answer: Answer,
    limits: Limits,
    *,
    known_time: float | None = None,
    ca_file: Path | None = None,
) -> None:
    """One GET into the answer, which afterwards has status 200; or 304 if it hasn't changed since known_time.

    ca_file: the CAs that are trusted beside GRID_CERTIFICATES; None: the system's. Blocks. Raises DownloadFailed, and
    what the answer's functions raise.
    """
    try:
        import pycurl
    except ImportError as error:
        raise DownloadFailed(f"{error}; install python3-pycurl") from error
    curl = pycurl.Curl()
    try:
        _set_up(pycurl, curl, limits, ca_file)
        headers = [f"User-Agent: Vac {vac.__version__}"]
        if known_time is not None:
            headers.append(f"If-Modified-Since: {email.utils.formatdate(known_time, usegmt=True)}")
        curl.setopt(pycurl.URL, url.encode("utf-8", "surrogateescape"))
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
    if answer.status != 200 and (known_time is None or answer.status != 304):
        raise DownloadFailed(f"the server answers with status {answer.status} instead of 200")


def document(url: str, limits: Limits, ca_file: Path | None = None) -> bytes:
    """The whole content of a small file, fetched anew. Blocks; raises DownloadFailed."""
    pieces: list[bytes] = []

    def take(piece: bytes) -> int:
        pieces.append(piece)
        return len(piece)

    get(url, Answer(take), limits, ca_file=ca_file)
    return b"".join(pieces)


def is_html(content: bytes) -> bool:
    """Is it a web page, as portals and proxies give in place of what was asked for?"""
    return _HTML.match(content) is not None


def _set_up(api: Any, curl: pycurl.Curl, limits: Limits, ca_file: Path | None) -> None:
    web = api.PROTO_HTTP | api.PROTO_HTTPS
    options = {
        api.NOSIGNAL: 1,
        api.PROTOCOLS: web,
        api.REDIR_PROTOCOLS: web,
        api.FOLLOWLOCATION: 1,
        api.MAXREDIRS: limits.redirects,
        api.FAILONERROR: 1,
        api.MAXFILESIZE_LARGE: limits.largest_bytes,
        api.LOW_SPEED_LIMIT: limits.slowest_bytes_per_second,
        api.LOW_SPEED_TIME: limits.slow_seconds,
        api.CONNECTTIMEOUT: limits.connect_seconds,
        api.SSL_VERIFYPEER: 1,
        api.SSL_VERIFYHOST: 2,
    }
    trusted = ca_file or _system_certificates()
    if trusted is not None:
        options[api.CAINFO] = str(trusted)
    if GRID_CERTIFICATES.is_dir():
        options[api.CAPATH] = str(GRID_CERTIFICATES)
    for option, value in options.items():
        curl.setopt(option, value)


def _system_certificates() -> Path | None:
    chosen = os.environ.get("SSL_CERT_FILE")
    return Path(chosen) if chosen else next(filter(Path.exists, SYSTEM_CERTIFICATES), None)


def _explained(api: Any, curl: pycurl.Curl, code: int, limits: Limits) -> DownloadFailed:
    """The one reason for a transfer's failure. libcurl's own texts may quote URLs, and are not used."""
    if code == api.E_HTTP_RETURNED_ERROR:
        status = curl.getinfo(api.RESPONSE_CODE)
        passing = status >= 500 or status in (_TIMED_OUT_STATUS, _TOO_MANY_STATUS)
        return DownloadFailed(f"the server answers with status {status}", passing=passing)
    if code == api.E_PEER_FAILED_VERIFICATION:
        return DownloadFailed(f"the server's certificate {_certificate_problem(api, curl)}", passing=True)
    refused = {
        api.E_UNSUPPORTED_PROTOCOL: "the URL, or where it redirects to, is neither http nor https",
        api.E_TOO_MANY_REDIRECTS: f"redirected more than {limits.redirects} times, as if in a circle",
        api.E_FILESIZE_EXCEEDED: f"larger than {limits.largest_bytes} bytes",
        api.E_URL_MALFORMAT: "not a URL",
    }
    if code in refused:
        return DownloadFailed(refused[code])
    secure = curl.getinfo(api.EFFECTIVE_URL).lower().startswith("https:")
    connected = curl.getinfo(api.APPCONNECT_TIME if secure else api.CONNECT_TIME) > 0
    slow = f"too slow: {limits.slow_seconds} s at less than {limits.slowest_bytes_per_second} bytes/s"
    reasons = {
        api.E_COULDNT_RESOLVE_HOST: "there is no such host, or the name service can't tell",
        api.E_COULDNT_RESOLVE_PROXY: "the proxy's name isn't known",
        api.E_COULDNT_CONNECT: "the server can't be connected to",
        api.E_SSL_CONNECT_ERROR: "no TLS connection to the server comes about",
        api.E_SSL_CACERT_BADFILE: "the file of trusted CAs can't be read",
        api.E_OPERATION_TIMEDOUT: slow if connected else "no connection to the server comes about in time",
        api.E_PARTIAL_FILE: "the server has cut the transfer off",
        api.E_RECV_ERROR: "the connection to the server broke",
        api.E_GOT_NOTHING: "the server has closed the connection without an answer",
    }
    return DownloadFailed(reasons.get(code, f"the transfer failed with libcurl's error {code}"), passing=True)


def _certificate_problem(api: Any, curl: pycurl.Curl) -> str:
    """What is wrong with the server's certificate."""
    if "OpenSSL" not in api.version:
        return _REFUSED_CERTIFICATE
    return _REFUSED_CERTIFICATES.get(curl.getinfo(api.SSL_VERIFYRESULT), _REFUSED_CERTIFICATE)
