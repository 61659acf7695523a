"""How a probability is written in a sentence."""

from __future__ import annotations


def percent(probability: float, threshold: float | None = None) -> str:
    """In whole percent. What is found from a threshold on never reads as much while it is not: thresholds are whole
    percents, and a probability just below would be rounded up to one.

    Args:
        threshold: the class's, where a study can have several.
    """
    rounded = f"{probability * 100:.0f} %"
    if threshold is not None and probability < threshold and rounded == f"{threshold * 100:.0f} %":
        return f"< {rounded}"
    return rounded
