"""Who asks, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What one may do; each role includes those before it."""

    READER = "reader"
    REVIEWER = "reviewer"
    ADMIN = "admin"

    def allows(self, needed: Role) -> bool:
        """Whether who has this role may do what needs that one."""
        return _RANK[self] >= _RANK[needed]


_RANK = {role: rank for rank, role in enumerate(Role)}


@dataclass(frozen=True)
class Actor:
    """Who asks.

    Args:
        id: of the key, or the pseudonym again where there is none.
        name: the pseudonym that the ledger keeps: ``key:<name>`` or ``oidc:<16 hex digits>``.
    """

    id: str
    name: str
    role: Role

    @property
    def by_key(self) -> bool:
        """Whether an API key says who this is, or a provider's token."""
        return self.id != self.name
