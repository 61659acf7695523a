"""The errors that csr raises for what a person can mend: bad input, bad configuration, a diverged run."""

from __future__ import annotations


class CSRError(Exception):
    """One clear sentence: what is wrong, where (file, row, key), what to do."""


class DataError(CSRError):
    """A data set that cannot be used as it is."""


class ConfigError(CSRError):
    """A parameter that cannot be used as it is."""


class ImageError(CSRError):
    """Bytes that are not an image this project reads."""


class BundleError(CSRError):
    """A bundle that is incomplete, altered or of another format."""


class TrainingError(CSRError):
    """A training run that cannot go on, for example because its loss is not a number."""


def cause_of(error: BaseException) -> str:
    """What an exception of another library says, on one line: of a list under a heading its items."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = ["; ".join(lines[1:])]
    return " ".join(lines).rstrip(":. ") or type(error).__name__
