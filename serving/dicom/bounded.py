"""Bounds what a DICOM node can make this server wait for and hold; `requests` bounds neither."""

from __future__ import annotations

import io
import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from serving.errors import TooLargeError

_CHUNK = 1 << 16


class BoundedAdapter(HTTPAdapter):
    """Reads every answer whole, within a number of bytes and of seconds.

    Args:
        limit: bytes, after decompression.
        within_s: seconds from the answer's first byte to its last; `requests` bounds each wait for the next one only.
    """

    def __init__(self, limit: int, within_s: float) -> None:
        super().__init__(max_retries=0)
        self._limit = limit
        self._within_s = within_s

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        request.headers.pop("Host", None)  # dicomweb-client's lacks the port; http.client gives the right one
        response = super().send(request, *args, **kwargs)
        deadline = time.monotonic() + self._within_s
        body = io.BytesIO()
        while part := response.raw.read1(_CHUNK, decode_content=True):
            body.write(part)
            if body.tell() > self._limit:
                response.raw.close()
                raise TooLargeError(f"the DICOM node's answer is over this server's limit of {self._limit:,} bytes")
            if time.monotonic() > deadline:
                response.raw.close()
                raise requests.ReadTimeout("the answer trickles")
        response.raw.close()
        body.seek(0)
        response.raw = body
        kind = response.headers.get("Content-Type", "")
        if "json" in kind:
            response.headers["Content-Type"] = kind.partition(";")[0]  # dicomweb-client knows it without charset only
        return response
