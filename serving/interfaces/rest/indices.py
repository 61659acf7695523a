"""Numbers in a path that are places in a list."""

from __future__ import annotations

from starlette.convertors import IntegerConvertor, register_url_convertor

INDEX = "index"  # the convertor's name in a path


class _Index(IntegerConvertor):
    """Starlette's own convertor fails at a number of thousands of digits."""

    regex = "[0-9]{1,9}"


register_url_convertor(INDEX, _Index())
