"""``infra/promotion.yaml``: what a candidate must show, checked once into typed objects."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from csr.errors import ConfigError

GATES_FILE = Path("infra/promotion.yaml")
READINGS = "readings"  # in the place of a test part: the readings that people signed
EVERY = "*"
Measured = Literal[
    "macro_f1", "auroc", "calibration_error", "pointing", "answer_gain", "accuracy", "unlike", "encode_ms", "bundle_mb"
]
COSTS = ("encode_ms", "bundle_mb")  # of a bundle, on no study


class Gate(BaseModel):
    """One condition.

    Args:
        measure: see `pipelines.promotion.measures.MEASURES`; ``encode_ms`` is the time to encode one image, and
            ``bundle_mb`` the size of all files.
        part: a part of the judging set, each of them (``*``), or ``readings``.
        by: judge every class, or every site, by itself.
        limit: the worst value that a candidate may have.
        margin: how much worse than the champion it may be; of the costs a factor on the champion's.
        least: studies that a class or site must have to be judged by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    measure: Measured
    part: str = EVERY
    by: Literal["class", "site"] | None = None
    limit: float | None = None
    margin: float | None = Field(default=None, ge=0)
    least: int = Field(default=50, ge=1)

    @model_validator(mode="after")
    def _says_something(self) -> Gate:
        if self.limit is None and self.margin is None:
            raise ValueError("needs a limit, a margin or both")
        if self.by == "class" and self.measure != "macro_f1":
            raise ValueError("by: class goes with macro_f1, of which it is the F1 of each class")
        if self.measure in COSTS and (self.by, self.part) != (None, EVERY):
            raise ValueError("costs are of a bundle and have no part")
        if self.measure in COSTS and self.margin is not None and self.margin < 1:
            raise ValueError("margin: of a cost it is a factor on the champion's, at least 1")
        if self.measure in ("pointing", "answer_gain") and self.part == READINGS:
            raise ValueError(f"part: readings have no {self.measure}")
        return self


class JudgingRule(BaseModel):
    """Which studies are judged on.

    Args:
        uses: decisions that a judging set is good for; then the next one is taken.
        phantom_studies: of each half that is drawn where the data set is the phantom.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    uses: int = Field(default=10, ge=1)
    phantom_studies: int = Field(default=1000, ge=20)


class Gates(BaseModel):
    """The whole file.

    Args:
        error: chance that a candidate which is worse by a margin, or at a limit, passes that gate.
        draws: of the bootstrap.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    gates: list[Gate]
    error: float = Field(default=0.05, gt=0, lt=0.5)
    draws: int = Field(default=2000, ge=100)
    golden_tolerance: float = 1e-3
    judging: JudgingRule = JudgingRule()


def load_gates(file: Path = GATES_FILE) -> Gates:
    """Raises:
    ConfigError: the file is missing or not of the documented form.
    """
    try:
        return Gates.model_validate(yaml.safe_load(file.read_text()))
    except FileNotFoundError:
        raise ConfigError(f"{file}: missing; promotion needs gates") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is not YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
