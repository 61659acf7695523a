"""What was tried for CSR's own recipe before every system got trials alike, as far as a record of it is left.

Taken from the revisions' messages and the changes of ``params.yaml`` and its presets, from the ablation of the report,
and from the documentation. The first revision that holds a recipe (c4664f5, 22 November 2026) came with its rates,
lengths, widths and terms; how many settings were tried before it, nobody noted. So the sum is a lower bound.
"""

from __future__ import annotations

from typing import NamedTuple


class PastTrial(NamedTuple):
    """Settings that were tried for one ingredient.

    Args:
        what: the ingredient.
        settings: that were compared, the kept one first.
        trials: how many beside the one before them.
        judged: on which studies.
        where: the revision or page that says so.
    """

    what: str
    settings: str
    trials: int
    judged: str
    where: str


_ABLATION = "validation split, 3 seeds, and test split in the report"

PAST_TRIALS = (
    PastTrial("stride of stage 1", "two levels merged at 8; 16", 1, "validation split", "revision 1cfebb3"),
    PastTrial("length and rate of stage 2", "4 epochs at 0.002; 8 at 0.001", 1, "not noted", "revision f9b3f4b"),
    PastTrial("length of stage 3", "30 epochs; 60", 1, "not noted", "revision 3b619c6"),
    PastTrial(
        "unused prototypes and concept dropout",
        "pruned below 1 % usage, no dropout; kept, dropout 0.1",
        1,
        "a phantom drawn anew (seed 1008), its test parts included, 3 seeds",
        "revision d6d79e2",
    ),
    PastTrial("M, prototypes a concept", "5; 1, 20 and auto", 3, _ABLATION, "revision f6a2aca, ablation"),
    PastTrial("pooling of stage 1", "log-sum-exp; average", 1, _ABLATION, "ablation"),
    PastTrial("terms beyond the paper's", "absence and agreement; either, neither", 3, _ABLATION, "ablation"),
    PastTrial("features of stage 2", "standardised; raw", 1, _ABLATION, "ablation"),
    PastTrial("γ", "10; 1000, and 1000 with dead prototypes re-seeded", 2, _ABLATION, "ablation"),
    PastTrial("negative similarities", "clipped; not clipped", 1, _ABLATION, "ablation"),
    PastTrial(
        "training with answers",
        "on every image; never, and on half of them",
        2,
        "validation split, 3 seeds, after a study on cached scores (one seed) that looked at test studies",
        "revision d2c2070",
    ),
    PastTrial("boxes in training", "none; some images", 1, "validation split", "revision 787bff8"),
    PastTrial(
        "on IDRiD alone: boxes, length and batches of stage 2, length of stage 1",
        "inside boxes, 12 epochs in batches of 16, until it stops rising; all labels, 4 in batches of 64, 8 epochs",
        3,
        "not noted",
        "revisions 8b12e91, b1a541a",
    ),
    PastTrial("precision", "float32; bfloat16", 1, "test split, one seed", "revision 7de8110, docs/comparison.md"),
)
