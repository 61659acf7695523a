"""The gates' file: what is a gate, and that a file of another form is refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from csr.errors import ConfigError
from pipelines.promotion.gates import load_gates

ROOT = Path(__file__).parents[3]


def test_the_shipped_gates_are_those_that_the_issue_of_a_release_needs() -> None:
    gates = load_gates(ROOT / "infra/promotion.yaml").gates
    named = {(gate.measure, gate.part, gate.by) for gate in gates}
    assert named >= {
        ("macro_f1", "*", None),
        ("macro_f1", "*", "class"),
        ("macro_f1", "*", "site"),
        ("calibration_error", "*", None),
        ("pointing", "*", None),
        ("answer_gain", "*", None),
        ("accuracy", "readings", None),
        ("unlike", "readings", None),
        ("encode_ms", "*", None),
        ("bundle_mb", "*", None),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("gates: [{measure: auroc, floor: 1}]", r"gates\.0\.floor"),
        ("gates: [{measure: auroc}]", "needs a limit, a margin or both"),
        ("gates: [{measure: speed, limit: 1}]", r"gates\.0\.measure"),
        ("gates: [{measure: auroc, limit: 1, by: class}]", "by: class goes with macro_f1"),
        ("gates: [{measure: encode_ms, margin: 0.2}]", "a factor on the champion's, at least 1"),
        ("gates: [{measure: bundle_mb, limit: 1, part: iid}]", "costs are of a bundle and have no part"),
        ("gates: [{measure: pointing, limit: 0.3, part: readings}]", "readings have no pointing"),
        ("gates: []\nerror: 0.7", "error"),
        ("gates: []\njudging: {uses: 0}", r"judging\.uses"),
        ("gates: [", "is not YAML"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "gates.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_gates(tmp_path / "gates.yaml")


def test_without_gates_nothing_is_promoted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing; promotion needs gates"):
        load_gates(tmp_path / "none.yaml")
