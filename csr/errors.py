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
