"""JSON in which every key is there once, and every number is one.

The standard leaves open what a key means that is there twice, and parsers differ: what one of them checked may not be
what the next one acts on. So it is refused.
"""

from __future__ import annotations

import json
from typing import Any

import jiter

_SHOWN = 200  # characters of what is wrong: keys may be of any length


def parse(text: bytes) -> Any:
    """What a JSON text says.

    Raises:
        json.JSONDecodeError: it is none (NaN and Infinity are none), or has a key twice.
    """
    try:
        return jiter.from_json(text, catch_duplicate_keys=True, allow_inf_nan=False)
    except ValueError as error:
        raise json.JSONDecodeError(str(error)[:_SHOWN], "", 0) from None
