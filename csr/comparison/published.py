"""The numbers that the CSR paper prints (arXiv 2503.06873), to stand beside ours. Percent; None where it gives none."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A row: macro F1 on TBX11K, VinDr-CXR and ISIC-2017; on TBX11K also prototypes, explanations and pointing game."""

    system: str
    tbx11k: float | None
    vindr: float | None
    isic: float | None
    prototypes: int | None
    explanations: int | None
    pointing: float | None


PUBLISHED = (
    Published("CBM, joint", 88.6, 50.1, 45.5, None, 14, 55.1),
    Published("ProtoPNet", 94.1, None, 38.5, 3000, 3000, 8.8),
    Published("ProtoPool", None, None, 31.0, None, None, None),
    Published("ProtoTree", None, None, 66.1, None, None, 7.8),
    Published("PIP-Net", 94.0, 45.1, 69.9, 768, 158, 19.5),
    Published("CSR", 94.4, 54.6, 71.5, 1400, 14, 60.9),
    Published("CSR, atlas refined", 94.0, None, None, None, None, 79.5),
)
