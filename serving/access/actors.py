"""Roles, and who acts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Role(IntEnum):
    """What somebody may do; each may what those before it may.

    reader: read studies, correct predictions. reviewer: judge prototypes. admin: see metrics and everything else.
    """

    reader = 1
    reviewer = 2
    admin = 3


@dataclass(frozen=True)
class Actor:
    """Somebody who proved who they are.

    Args:
        name: a pseudonym, as the ledger and the logs show it: ``key:<name>`` or ``oidc:<digest>``.
        role: what they may do.
    """

    name: str
    role: Role
