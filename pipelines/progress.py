"""Progress bars in the terminal; none where the output goes to a file."""

from __future__ import annotations

from collections.abc import Iterable

from tqdm import tqdm

from csr.training.callbacks import Item, SilentCallbacks
from csr.training.runtime import rank


class ProgressBars(SilentCallbacks):
    """Shows a bar for each loop, on rank 0."""

    def track(self, items: Iterable[Item], total: int, description: str) -> Iterable[Item]:
        return tqdm(items, description, total, leave=False, mininterval=0.5, disable=True if rank() else None)
