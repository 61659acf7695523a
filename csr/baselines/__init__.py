"""The systems CSR is compared with: one a file, behind one protocol."""

from csr.baselines.black_box import black_box
from csr.baselines.cbm import joint_cbm
from csr.baselines.protocol import Baseline, Outcome

BASELINES: dict[str, Baseline] = {"cbm_joint": joint_cbm, "black_box": black_box}

__all__ = ["BASELINES", "Baseline", "Outcome"]
