"""Stage ``prepare``: the data set named in ``params.yaml``, and what readers corrected → ``data/prepared``."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from csr.data.decoded import DecodedImages
from csr.data.feedback import FeedbackSet
from csr.data.feedback.joining import join_feedback
from csr.data.phantom import generate
from csr.data.prepared import PreparedSet
from csr.data.problems import Problems
from csr.data.raw import prepare_raw
from csr.data.records import SPLITS, Collection, all_for_test
from csr.data.shards import Images
from csr.data.sources.read import SourceOptions, read_source
from csr.data.text_concepts import TextConceptConfig, concept_directions, concept_scores, fill_labels, load_encoder
from pipelines.digests import path_digest
from pipelines.feedback_set import learned_from
from pipelines.params import DataParams, Params
from pipelines.stage import PREPARED, cores, run_stage
from pipelines.tracking import STATE, log_metrics, log_table, log_tag


def prepare(params: Params) -> None:
    """Writes the prepared set and logs its size and digest."""
    data = params.data
    workers = data.workers or cores()
    folder = learned_from(data)
    feedback = FeedbackSet.open(folder) if folder else None  # before anything that takes long
    path = PREPARED if feedback is None else STATE / "uncorrected"
    if data.source == "phantom":
        collection = generate(data.phantom, data.side, path, workers, _progress)
    else:
        gpu = params.train.gpu == "auto" and torch.cuda.is_available()
        collection = prepare_real(data, path, workers, torch.device("cuda" if gpu else "cpu"))
    if feedback is not None:
        collection = _corrected(data, path, feedback)
    log_tag("data.name", collection.name)
    log_tag("data.digest", path_digest(PREPARED))
    counts = collection.studies["split"].value_counts()
    log_metrics("prepare", {"boxes": len(collection.boxes)} | {f"{split}_studies": n for split, n in counts.items()})


def _corrected(data: DataParams, uncorrected: Path, feedback: FeedbackSet) -> Collection:
    """Writes the prepared set with what readers said, and says what became of it."""
    base = PreparedSet.open(uncorrected)
    collection, joined = join_feedback(base, feedback, PREPARED, data.feedback_classes, data.near_bits)
    shutil.rmtree(uncorrected)
    log_tag("data.feedback", feedback.version)
    counts = {"added": joined.added, "relabelled": joined.relabelled, "changed": joined.changed}
    log_metrics("prepare", {f"feedback_{name}": n for name, n in counts.items()})
    log_metrics("prepare", {"feedback_left_out": joined.left_out.total()})
    print(joined.note, *(f"left out: {count} {why}" for why, count in sorted(joined.left_out.items())), sep="\n")
    return collection


def prepare_real(data: DataParams, path: Path, workers: int, place: torch.device, judging: bool = False) -> Collection:
    """Writes a real set's prepared form to ``path`` and returns its tables; an image-text encoder computes on
    ``place``.

    Args:
        judging: all studies are to be judged on, so all are put into split ``test``.

    Raises:
        DataError: naming everything that is wrong with the set; nothing is written.
    """
    problems, texts, folder = Problems(), data.text_concepts, Path(data.path)
    assert data.source != "phantom"
    shares = data.shares
    options = SourceOptions(shares, data.tbx11k, workers, data.choice, data.vindr_cxr)
    raw = read_source(data.source, folder, options, problems, _progress)
    if judging:
        raw = replace(raw, collection=all_for_test(raw.collection))
    prepare_all = partial(
        prepare_raw,
        raw,
        path,
        data.side,
        data.channels,
        workers,
        problems,
        skip_bad=data.skip_bad,
        lenient=data.lenient,
        near_bits=data.near_bits,
        display=data.display,
        progress=_progress,
        splits=("test",) if judging else SPLITS,
    )
    if texts is not None:
        prepare_all = _with_text_concepts(prepare_all, raw.collection, texts, place)
    with DecodedImages(STATE / "decoded", folder, (data.channels, data.side, data.side), data.display) as decoded:
        return prepare_all(decoded=decoded)


def _with_text_concepts(
    prepare_all: partial[Collection], collection: Collection, texts: TextConceptConfig, place: torch.device
) -> partial[Collection]:
    """The same, with the labels that an encoder gives."""
    encoder = load_encoder(texts.factory, Path(texts.checkpoint), texts.options, place)
    # before images are decoded, so that a mistake in the texts costs seconds
    directions = concept_directions(encoder, texts, collection.concepts)

    def fill(tables: Collection, images: Images) -> Collection:
        scores = concept_scores(encoder, images, tables.rows("train"), directions, texts.batch_size, _progress)
        filled, report = fill_labels(tables, scores, texts)
        for kind in ("present", "absent", "unknown"):
            log_metrics("prepare", {f"filled_{kind}": sum(getattr(concept, kind) for concept in report)})
        log_table([asdict(concept) for concept in report], "prepare/text_concepts.json")
        return filled

    return partial(prepare_all, pending=texts.concepts, finish=fill)


def _progress(items: Iterable, total: int) -> Iterable:
    return tqdm(items, "prepare", total, leave=False, mininterval=0.5, disable=None)


if __name__ == "__main__":
    run_stage("prepare", prepare)
