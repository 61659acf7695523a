"""What is added to the configuration of HAProxy; that HAProxy then does so is tested with the server itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.deploy.haproxy import adapted

RAYS = """global
    stats socket /run/admin.sock mode 666 level admin
defaults
    mode http
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
    acl routes path -i /-/routes
backend default_backend
    mode http
frontend grpc_frontend
    bind 127.0.0.1:9000 proto h2
    mode http
listen stats
  bind *:8404
"""


def test_what_is_added_stands_before_what_ray_answers() -> None:
    lines = adapted(RAYS, "127.0.0.1").splitlines()
    http, backend = lines.index("frontend http_frontend"), lines.index("backend default_backend")
    frontend = [line.strip() for line in lines[http:backend]]
    assert frontend[1] == "bind 127.0.0.1:8000" and frontend[3:5] == ["option forwardfor", "timeout http-request 10s"]
    assert [line.split()[:4] for line in frontend[5:7]] == [
        ["http-request", "return", "status", each] for each in ("400", "404")
    ]
    assert frontend[7] == "acl routes path -i /-/routes"
    assert "    bind 127.0.0.1:9101" in lines and "  bind 127.0.0.1:8404" in lines
    assert "    stats socket /run/admin.sock mode 600 level admin" in lines
    assert lines[backend : backend + 2] == ["backend default_backend", "    mode http"]


def test_tls_is_ended_for_both_protocols() -> None:
    lines = adapted(RAYS, "*", Path("/x/tls.pem")).splitlines()
    assert "    bind 127.0.0.1:8000 ssl crt /x/tls.pem ssl-min-ver TLSv1.2" in lines
    assert "    bind 127.0.0.1:9000 ssl crt /x/tls.pem ssl-min-ver TLSv1.2 alpn h2" in lines
    assert "    bind *:9101" in lines


def test_what_is_there_is_not_added_again() -> None:
    once = adapted(RAYS, "127.0.0.1")
    assert adapted(once, "127.0.0.1") == once


@pytest.mark.parametrize("gone", ["frontend http_frontend", "listen stats"])
def test_a_configuration_without_a_section_is_refused(gone: str) -> None:
    with pytest.raises(ValueError, match="Ray's configuration of HAProxy has no"):
        adapted(RAYS.replace(gone, "backend other"), "127.0.0.1")


@pytest.mark.parametrize("gone", ["bind 127.0.0.1:8000", " proto h2", "bind :9101", "mode 666 ", "bind *:8404"])
def test_a_line_that_is_to_be_changed_and_is_not_there_is_refused(gone: str) -> None:
    with pytest.raises(ValueError, match="Ray's configuration of HAProxy"):
        adapted(RAYS.replace(gone, ""), "127.0.0.1", Path("/x/tls.pem"))
