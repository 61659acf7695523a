"""Who may ask for what: a table, read from the top, and what is not in it is the administrators'."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from serving.access.roles import Role

READS = frozenset({"GET", "HEAD"})
POSTS = frozenset({"POST"})


@dataclass(frozen=True)
class Rule:
    """One line of the table.

    Args:
        methods: of the request.
        path: a regular expression that the whole path must match.
        role: what is needed; None: nothing, it is open to strangers.
    """

    methods: frozenset[str]
    path: str
    role: Role | None

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The path's expression, compiled."""
        return re.compile(self.path)


OPEN = (
    Rule(READS, r"(/v2)?/health/(live|ready)", None),
    Rule(READS | POSTS, r"/sign-in", None),
    Rule(POSTS, r"/sign-out", None),
)
RULES = (
    *OPEN,
    Rule(READS, r"/|/page/.*|/openapi\.json", Role.READER),
    Rule(READS, r"/v1/(me|models|atlas|feedback|reviews|samples|studies|worklist|nodes)(/.*)?", Role.READER),
    Rule(POSTS, r"/v1/studies(/.+)?", Role.READER),
    Rule(POSTS, r"/v1/atlas/preview", Role.READER),
    Rule(POSTS, r"/v1/atlas/.+/review|/v1/reviews", Role.REVIEWER),
    Rule(POSTS, r"/v1/models/rollback", Role.ADMIN),
    Rule(READS, r"/v2(/models/.+)?", Role.READER),
    Rule(POSTS, r"/v2/models/.+/infer", Role.READER),
)


def needed_role(rules: Sequence[Rule], method: str, path: str) -> Role | None:
    """What a request needs by the first rule that it matches: a role, or None if it is open to strangers."""
    for rule in rules:
        if method in rule.methods and rule.pattern.fullmatch(path):
            return rule.role
    return Role.ADMIN
