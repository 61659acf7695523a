"""HAProxy as it stands before the replicas: what Ray writes into its configuration, and what Ray has no setting for.

Ray writes the configuration anew whenever replicas come or go, and then starts what `BINARY` names with it. That is our
`launcher` here: it adds to what Ray wrote, and becomes HAProxy. The lines that it adds

- name the client to the replicas (``X-Forwarded-For``), which limits on wrong keys go by;
- cut off whoever takes longer than `HEADERS_S` to send a request's headers;
- refuse what HTTP refuses (1.1 without ``Host``), and Ray's own routes, which answer without a key;
- end TLS, if there is a certificate, for HTTP and gRPC alike;
- keep HAProxy's pages of numbers to the address that the server listens on, and its administration to this user.

This file knows nothing but the standard library: it is run at every start of HAProxy.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import ssl
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
HEADERS_S = 10
RAYS_ROUTES = "/-/"  # health and routes of Ray Serve
NO_HOST = "an HTTP/1.1 request names its Host"
_RAYS_CALLS = "/ray.serve.RayServeAPIService/"
_SECTIONS = {"global", "http_frontend", "prometheus", "stats"}
_MARK = "    # from here on by serving.deploy.haproxy"
_UNIMPLEMENTED = 12  # of gRPC


def adapted(configuration: str, host: str, certificate: Path | None = None) -> str:
    """Ray's configuration of HAProxy with what is ours; one that has it already stays as it is.

    Args:
        configuration: as Ray writes it.
        host: that HTTP is served at; ``*`` is every address.
        certificate: a PEM file of the certificate's chain and its key; None for plain HTTP.

    Raises:
        ValueError: it is none that Ray wrote, or is of a version of Ray that writes it in another way.
    """
    if _MARK in configuration:
        return configuration
    sections = re.split(r"^(?=\S)", configuration, flags=re.MULTILINE)
    changed = [_section(each, host, certificate) for each in sections]
    if missing := _SECTIONS - {_name(each) for each in sections}:
        raise ValueError(f"Ray's configuration of HAProxy has no {', '.join(sorted(missing))}")
    return "".join(changed)


def _name(section: str) -> str:
    """What stands behind ``frontend`` or ``listen``; of other sections, their kind."""
    return re.sub(r"^(frontend|listen) ", "", section.partition("\n")[0]).strip()


def _section(section: str, host: str, certificate: Path | None) -> str:
    tls = f" ssl crt {certificate} ssl-min-ver TLSv1.2" if certificate else ""
    limits = ["option forwardfor", f"timeout http-request {HEADERS_S}s"]
    match _name(section):
        case "http_frontend":
            return _bound(section, tls, *limits, *_HTTP_REFUSALS)
        case "grpc_frontend":
            over = _replaced(r" proto h2", f"{tls} alpn h2", section) if tls else section
            return _bound(over, "", *limits, _GRPC_REFUSAL)
        case "prometheus" | "stats":
            return _replaced(r"bind \S*:", f"bind {host}:", section)
        case "global":
            return _replaced(r"mode \d+ level", "mode 600 level", section)
    return section


def _replaced(pattern: str, text: str, section: str) -> str:
    """The section with ``text`` in place of the first that fits; what was to be closed must not stay open unseen."""
    changed, count = re.subn(pattern, lambda _: text, section, count=1)
    if not count:
        raise ValueError(f"Ray's configuration of HAProxy has no {pattern!r} in {_name(section)}")
    return changed


def _bound(section: str, suffix: str, *lines: str) -> str:
    """A frontend with more words on its line ``bind``, and more lines below."""
    below = "".join(f"\n    {line}" for line in lines)
    changed, count = re.subn(
        r"^( +bind .*)$", lambda found: f"{found[1]}{suffix}\n{_MARK}{below}", section, count=1, flags=re.MULTILINE
    )
    if not count:
        raise ValueError(f"Ray's configuration of HAProxy binds {_name(section)} to no address")
    return changed


def _refusal(status: int, code: str, message: str, condition: str) -> str:
    """A line that answers in the form of `serving.access.refusals`."""
    body = json.dumps({"error": {"code": code, "message": message}})
    headers = "hdr X-Content-Type-Options nosniff hdr Cache-Control no-store"
    return f"http-request return status {status} content-type application/json {headers} string '{body}' if {condition}"


_HTTP_REFUSALS = (
    _refusal(400, "bad_request", NO_HOST, "HTTP_1.1 !{ req.hdr(host) -m found }"),
    _refusal(404, "not_found", "Not Found", f"{{ path,url_dec -m beg {RAYS_ROUTES} }}"),
)
_GRPC_REFUSAL = (
    f"http-request return status 200 content-type application/grpc hdr grpc-status {_UNIMPLEMENTED}"
    f" hdr grpc-message 'no such method' if {{ path,url_dec -m beg {_RAYS_CALLS} }}"
)


@contextlib.contextmanager
def launcher(binary: str, host: str, certificate: Path | None = None, key: Path | None = None) -> Iterator[Path]:
    """A program that Ray can start in HAProxy's place, for as long as the block runs.

    Args:
        binary: HAProxy itself.
        host: that HTTP is served at.
        certificate, key: PEM files; None for plain HTTP.

    Raises:
        OSError: the certificate or its key cannot be read.
        ValueError: they do not belong together, or are no PEM files.
    """
    with tempfile.TemporaryDirectory(prefix="csr-haproxy-") as folder:
        words = [sys.executable, "-m", __name__, binary, "*" if host in ("0.0.0.0", "::") else host]
        if certificate is not None and key is not None:
            words.append(str(_joined(certificate, key, Path(folder) / "tls.pem")))
        else:
            words.append("")
        program = Path(folder) / "haproxy"
        program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        program.chmod(0o700)
        yield program


def _joined(certificate: Path, key: Path, file: Path) -> Path:
    """Both in one file, as HAProxy wants them."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise ValueError(f"{certificate} and {key}: are no certificate and its key ({error.reason})") from None
    file.touch(mode=0o600)
    file.write_bytes(certificate.read_bytes().rstrip() + b"\n" + key.read_bytes())
    return file


def main(words: Sequence[str]) -> None:
    """Adapts the configuration that HAProxy is to start with, and becomes HAProxy.

    Args:
        words: HAProxy, the host, the certificate or '', and then what Ray passes to HAProxy.
    """
    binary, host, certificate, *rest = words
    file = Path(rest[rest.index("-f") + 1])
    file.write_text(adapted(file.read_text(), host, Path(certificate) if certificate else None))
    os.execv(binary, [binary, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
