"""How to reach a DICOMweb node, as the configuration says it. Secrets are named there, never written."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, FilePath, field_validator, model_validator

from csr.errors import ConfigError

_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


class Secret(BaseModel):
    """Where a header's value is: in the environment variable of this name, or in this file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    env: str | None = Field(default=None, min_length=1)
    file: Path | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("give either env (a variable's name) or file (a path)")
        return self

    def read(self, where: str) -> str:
        """The value.

        Raises:
            ConfigError: it is missing, or nothing that a header can hold. The text never quotes it.
        """
        if self.env is not None:
            name, value = f"environment variable {self.env}", os.environ.get(self.env)
        else:
            name, value = f"file {self.file}", self._file_text()
        if value is None:
            raise ConfigError(f"{where}: {name} is missing; it holds the header's value")
        if not _HEADER_VALUE.fullmatch(value.strip()):
            raise ConfigError(f"{where}: {name} is empty or holds characters that a header cannot")
        return value.strip()

    def _file_text(self) -> str | None:
        try:
            return Path(str(self.file)).read_text(encoding="latin-1")  # any bytes; the pattern then decides
        except OSError:
            return None


class NodeConfig(BaseModel):
    """One node.

    Args:
        url: of the DICOMweb service, for example ``https://archive.hospital/dicom-web``.
        headers: sent with every request, for example ``Authorization``.
        timeout_s: seconds to connect, to wait for the next byte, and for an answer to arrive whole.
        ca_bundle: certificates to trust instead of the public ones.
        verify: false trusts any certificate: for a test installation only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    headers: dict[str, Secret] = {}
    timeout_s: float = Field(default=20, gt=0, le=600)
    ca_bundle: FilePath | None = None
    verify: bool = True

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http or https address")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("must not hold a user, a query or a fragment; put credentials into headers")
        return url.rstrip("/")

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, Secret]) -> dict[str, Secret]:
        if wrong := [name for name in headers if not _HEADER_NAME.fullmatch(name)]:
            raise ValueError(f"{wrong[0]!r} is not a header's name")
        return headers

    @model_validator(mode="after")
    def _check_trust(self) -> Self:
        if self.ca_bundle is not None and not self.verify:
            raise ValueError("ca_bundle and verify: false contradict each other")
        return self

    def read_headers(self, node: str) -> dict[str, str]:
        """The headers with their values.

        Raises:
            ConfigError: one is missing.
        """
        return {name: secret.read(f"DICOM node {node}, header {name}") for name, secret in self.headers.items()}
