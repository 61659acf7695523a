"""``make bench-inputs``: what becomes of test studies on their way to the model, and of pictures of something else.

Every test study is changed in each way of `tests.bench.perturbations` and read as the server reads an upload: decoded,
fitted, encoded, compared with the training images, reasoned on. It was *read like the original* if the same classes
are found and no probability is off by more than `CLOSE`; it was *flagged* if the answer names a reason against it, or
the file was refused; it was *silently changed* if other classes are found without a word. Writes ``reports/inputs.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx.utils
import onnxruntime as ort
from sklearn.metrics import roc_auc_score

from csr.bundle.format import Bundle
from csr.bundle.profile import LIMIT, PARTS
from csr.data.images import Placement, to_png
from csr.data.prepared import PreparedSet
from csr.interaction.corrections import Interaction
from serving.core.decoding import study_of
from serving.core.fit import file_facts, judge
from serving.deploy import decoder
from serving.engines import OrtEngine
from serving.errors import ServingError
from serving.interfaces.schemas import Fits, Prediction
from serving.models.in_service import Model
from serving.store.studies import StoredStudy
from tests.bench.foreign import ForeignFile, foreign_files
from tests.bench.perturbations import Transformation, transformations

CLOSE = 0.02
BATCH = 16
ROUNDS = 40
_SALT = b"salt of no secret"


@dataclass(frozen=True)
class Read:
    """One file: what was said of it, or None if it was refused."""

    prediction: Prediction | None

    @property
    def flagged(self) -> bool:
        return self.prediction is None or bool(self.prediction.fits.reasons)

    @property
    def score(self) -> float:
        """Of the pixels alone; of a refused file as far out as can be."""
        return np.inf if self.prediction is None else self.prediction.fits.score


def main() -> None:
    """Runs everything and writes the report."""
    parser = argparse.ArgumentParser(prog="make bench-inputs", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("build/bundle"))
    parser.add_argument("--data", type=Path, default=Path("data/prepared"), help="the prepared set that it was made of")
    parser.add_argument("--studies", type=int, default=300, help="of the test split, that every change is made to")
    parser.add_argument("--out", type=Path, default=Path("reports/inputs.md"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # of pydicom, about files that are damaged on purpose
    bundle, data = Bundle.open(given.bundle), PreparedSet.open(given.data)
    model = Model(bundle, OrtEngine(bundle), "1")
    about = bundle.manifest
    rows = data.collection.rows("test")
    by_part = _good_scores(model, data)
    good = np.concatenate([scores.max(1) for scores in by_part.values()])
    lines = [
        "# What becomes of other inputs",
        "",
        f"`make bench-inputs` on {os.cpu_count()} cores ({platform.machine()}), bundle {bundle.digest[:12]}: "
        f"{about.data}, {about.backbone}, {about.side}². The limit was calibrated on {model.profile.images:,} training "
        f"and validation images, of which {model.profile.flagged:.1%} of those of split `val` are above it.",
        "",
        *_good_lines(by_part),
    ]
    chosen = rows[np.linspace(0, len(rows) - 1, min(given.studies, len(rows))).astype(int)]
    lines += _changed_lines(model, data, chosen, good)
    lines += _foreign_lines(model, good)
    lines += _cost_lines(bundle, model)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def read_files(model: Model, files: Sequence[bytes]) -> list[Read]:
    """Files as the server reads them, in batches."""
    stored: list[StoredStudy | None] = []
    for data in files:
        try:
            about = model.manifest
            parts = decoder.answer(
                data, "file", channels=about.channels, side=about.side, salt=_SALT, display=about.display
            )
            stored.append(study_of(json.loads(parts[0]), parts[1] if len(parts) > 1 else b""))
        except ServingError:
            stored.append(None)
    said = iter(_predictions(model, [each for each in stored if each is not None]))
    return [Read(None if each is None else next(said)) for each in stored]


def _predictions(model: Model, studies: Sequence[StoredStudy]) -> Iterator[Prediction]:
    for start in range(0, len(studies), BATCH):
        part = studies[start : start + BATCH]
        encoded = model.engine.run_encoder(np.stack([each.canvas for each in part]))
        outputs = model.engine.reason(encoded["patches"], [Interaction()] * len(part))
        for index, each in enumerate(part):
            fits = judge(
                model, encoded["fit_scores"][index], file_facts([(each.source, each.coloured)]), each.placement, "warn"
            )
            own = {name: value[index : index + 1] for name, value in outputs.items()}
            yield model.explainer.predict(own, each.placement, fits)


def same_reading(one: Prediction, other: Prediction) -> bool:
    """Whether two predictions would be read as one."""
    gaps = [abs(a.probability - b.probability) for a, b in zip(one.classes, other.classes, strict=True)]
    return set(one.found) == set(other.found) and max(gaps) <= CLOSE


def _good_scores(model: Model, data: PreparedSet) -> dict[str, np.ndarray]:
    """N×R fit scores of every test study as it is, by part of the test split."""
    rows = data.collection.rows("test")
    part = data.collection.studies["part"].to_numpy()[rows]
    return {
        name: np.concatenate([_fit_scores(model, data, own[at : at + BATCH]) for at in range(0, len(own), BATCH)])
        for name in data.collection.test_parts()
        if len(own := rows[part == name])
    }


def _fit_scores(model: Model, data: PreparedSet, rows: np.ndarray) -> np.ndarray:
    return model.engine.run_encoder(np.ascontiguousarray(data.images[rows]), ["fit_scores"])["fit_scores"]


def _grey(data: PreparedSet, row: int) -> np.ndarray:
    """H×W of a study; of one in colour its mean."""
    return np.array(data.images[row]).mean(0).round().astype(np.uint8)


def _good_lines(by_part: Mapping[str, np.ndarray]) -> list[str]:
    lines = ["| good test studies | flagged | of |", "|---|---|---|"]
    for name, scores in by_part.items():
        over = scores > LIMIT
        most = ", ".join(f"{part} {share:.1%}" for part, share in zip(PARTS, over.mean(0), strict=True) if share)
        lines.append(f"| {name} ({most or 'no part'}) | {over.any(1).mean():.1%} | {len(scores)} |")
    return [*lines, ""]


def _changed_lines(model: Model, data: PreparedSet, rows: np.ndarray, good: np.ndarray) -> list[str]:
    lines = [
        f"## {len(rows)} test studies, changed",
        "",
        "AUROC: of the score of the pixels alone, against all good test studies.",
        "",
        "| change | read like the original | flagged | silently changed | AUROC |",
        "|---|---|---|---|---|",
    ]
    greys = [_grey(data, row) for row in rows]
    originals: list[Read] = []
    worst: dict[bool, tuple[float, str]] = {True: (0.0, "none"), False: (0.0, "none")}
    for each in transformations():
        found = read_files(model, [each.make(grey) for grey in greys])
        originals = originals or found
        line, silent = _changed_line(each, originals, found, good)
        lines.append(line)
        if silent > worst[each.lossless][0]:
            worst[each.lossless] = silent, each.name
    lines += ["", "Most often silently changed:", ""]
    for lossless, (silent, name) in worst.items():
        lines.append(f"- of the {'lossless' if lossless else 'other'} changes: {name}, {silent:.1%}")
    return [*lines, ""]


def _changed_line(
    change: Transformation, originals: Sequence[Read], found: Sequence[Read], good: np.ndarray
) -> tuple[str, float]:
    like, silent = [], []
    for before, now in zip(originals, found, strict=True):
        assert before.prediction is not None
        like.append(now.prediction is not None and same_reading(before.prediction, now.prediction))
        other = now.prediction is not None and set(now.prediction.found) != set(before.prediction.found)
        silent.append(other and not now.flagged)
    flagged = np.mean([each.flagged for each in found])
    kind = "" if change.lossless else " (lossy)"
    auroc = _auroc(good, [each.score for each in found])
    text = f"| {change.name}{kind} | {np.mean(like):.1%} | {flagged:.1%} | {np.mean(silent):.1%} | {auroc:.3f} |"
    return text, float(np.mean(silent))


def _foreign_lines(model: Model, good: np.ndarray) -> list[str]:
    lines = [
        "## Pictures of something else",
        "",
        "Real files that pydicom, pydicom-data, scikit-learn and matplotlib bring. Refused are those that the server "
        "does not read. AUROC: of the score of the pixels alone, headers left out, of those that are read.",
        "",
        "| kind | files | refused | flagged | without a word | AUROC |",
        "|---|---|---|---|---|---|",
    ]
    kinds: dict[str, list[ForeignFile]] = {}
    for each in foreign_files():
        kinds.setdefault(each.kind, []).append(each)
    passed: list[str] = []
    for kind, files in sorted(kinds.items()):
        found = read_files(model, [each.data for each in files])
        refused = sum(each.prediction is None for each in found)
        silent = [file.name for file, each in zip(files, found, strict=True) if not each.flagged]
        passed += silent
        scores = [each.score for each in found if each.prediction is not None]
        auroc = f"{_auroc(good, scores):.3f}" if scores else ""
        flagged = len(files) - refused - len(silent)
        lines.append(f"| {kind} | {len(files)} | {refused} | {flagged} | {len(silent)} | {auroc} |")
    return [*lines, "", f"Without a word: {', '.join(passed) or 'none'}.", ""]


def _auroc(good: np.ndarray, other: Sequence[float]) -> float:
    scores = np.nan_to_num(np.concatenate([good, other]), posinf=1e9)
    return float(roc_auc_score(np.repeat([0, 1], [len(good), len(other)]), scores))


def _cost_lines(bundle: Bundle, model: Model) -> list[str]:
    image = {"image": bundle.golden()["image"][:1]}
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "encoder.onnx"
        onnx.utils.extract_model(str(bundle.path / "encoder.onnx"), str(bare), ["image"], ["patches"])
        without, with_it = (_session(path) for path in (bare, bundle.path / "encoder.onnx"))
        times: dict[str, list[float]] = {"without": [], "with": []}
        for _ in range(ROUNDS):  # in turn, so that a busy machine is so for both
            times["without"].append(_seconds(lambda: without.run(None, image)))
            times["with"].append(_seconds(lambda: with_it.run(None, image)))
    scores = model.engine.run_encoder(image["image"])["fit_scores"][0]
    study = StoredStudy("", image["image"][0], Placement.of(*[bundle.manifest.side] * 3))
    judged = statistics.median(_seconds(lambda: _judged(model, scores, study)) for _ in range(ROUNDS))
    before, after = statistics.median(times["without"]), statistics.median(times["with"])
    file = to_png(image["image"][0])
    whole = statistics.median(_seconds(lambda: read_files(model, [file])) for _ in range(ROUNDS))
    more = after + judged - before
    return [
        "## What it costs",
        "",
        f"Encoding one image takes {before * 1e3:.2f} ms without the scores and {after * 1e3:.2f} ms with them; what "
        f"is made of them takes {judged * 1e6:.0f} µs. That is {more / (whole - more):.1%} more for a reading of "
        f"{whole * 1e3:.1f} ms in which a file is decoded, encoded, judged, reasoned on and explained; questions and "
        f"recording come on top. Medians of {ROUNDS} turns of the processor's time on one thread.",
    ]


def _judged(model: Model, scores: np.ndarray, study: StoredStudy) -> Fits:
    return judge(model, scores, file_facts([(study.source, study.coloured)]), study.placement, "abstain")


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _seconds(call: Callable[[], object]) -> float:
    """Of the processor, whatever else the machine is busy with."""
    started = time.process_time()
    call()
    return time.process_time() - started


if __name__ == "__main__":
    main()
