"""Two processes that share each batch learn what one learns alone: real ones, over gloo, on made-up data.

What differs is rounding: sums are added up in another order. Adam magnifies it, for it divides gradients by their size:
where one is nothing but rounding, so is the direction of its step. So that no mistake can hide behind that, stage 1's
network computes in float64 here, though not its loss: losses then agree to 1e-7 and weights to 3e-7, those of stage 2,
in float32, to 3e-6 and 1e-7. In float32 three epochs of stage 1 agree to 2e-4 in their losses; single weights differ
by 0.04. Where each process has its own BatchNorm, augmentation or count of known labels, losses differ by 0.06 or more.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn

from csr.data.prepared import PreparedSet
from csr.errors import ConfigError, CSRError
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.rebuild import concept_model_checkpoint
from csr.training import concepts as stage1
from csr.training import runtime
from csr.training.augmentation import AugmentConfig, Draws, augment
from csr.training.batch_norm import shared_batch_norm
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from csr.training.loop import Task, fit
from csr.training.prototypes import PrototypeConfig, train_prototypes
from tests.csr.synthetic import CONCEPTS, corrected, make_cache, make_collection, make_prepared, with_labels

PROCESSES = 2
NET = ConceptModelConfig("test_resnet", stride=8, context=16, width=16)
STAGE1 = ConceptTrainingConfig(
    NET, AugmentConfig(rotate=10, shift=0.1, flip=True), epochs=3, batch_size=8, precision="float32"
)
STAGE2 = PrototypeConfig(per_concept=3, width=8, blocks=1, epochs=3, batch_size=10, reseed=True, precision="float32")
TOLERANCE = 2e-5  # of weights, and relative of every logged number


def one_sided(collection):
    """The collection with most labels unknown in every other study: a process's share of a batch knows more or less."""
    labels = collection.concept_labels()
    labels[::2, 1:] = np.nan
    return with_labels(collection, labels)


def doubled(*given: Any) -> ConceptModel:
    """A concept model in float64; see above."""
    return ConceptModel(*given).double()


def trainings(folder: Path) -> dict[str, Any]:
    """Everything that is trained in one process and in two: name → weights and history."""
    data = PreparedSet.open(folder / "prepared")
    cache = make_cache(data.collection)
    pretrained = replace(STAGE1, model=replace(NET, checkpoint=str(folder / "body.pth")), freeze=1, backbone_rate=0.5)
    stopped = replace(STAGE1, epochs=6, patience=1, least_rise=0.05, keep="best", clip=0.5, accumulate=2, batch_size=4)
    found = {}
    spoken, odd = replace(STAGE1, feedback_weight=2.0), replace(STAGE1, batch_size=7)
    for name, config in (
        ("concepts", STAGE1),
        ("frozen", pretrained),
        ("stopped", stopped),
        ("corrected", spoken),
        ("odd", odd),
    ):
        callbacks = SilentCallbacks()
        own = PreparedSet.open(folder / "corrected") if name == "corrected" else data
        model = train_concepts(own, config, callbacks)
        found[name] = (concept_model_checkpoint(model)["weights"], callbacks.history)
    said = PreparedSet.open(folder / "corrected").collection
    for name, collection, config in (
        ("prototypes", data.collection, STAGE2),
        ("paper", data.collection, replace(STAGE2, absence=0.0, agreement=0.0)),
        ("weighed", said, replace(STAGE2, feedback_weight=2.0)),
        ("odd prototypes", data.collection, replace(STAGE2, batch_size=7)),
    ):
        callbacks = SilentCallbacks()
        found[name] = (train_prototypes(collection, cache, config, callbacks).state_dict(), callbacks.history)
    return found


def work(rank: int, folder: Path) -> None:
    """What each of the processes does; its answers go into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    answers: dict[str, Any] = {"validated": []}
    original = stage1.image_batches

    def watched(data, rows, batch_size):
        if data.path.name == "prepared":
            answers["validated"].append(rows)
        return original(data, rows, batch_size)

    stage1.image_batches, stage1.ConceptModel = watched, doubled
    answers["trainings"] = trainings(folder)
    answers["normal"] = normalise(rank)
    answers["gathered"] = runtime.gather(torch.arange(3 - 2 * rank) + 10 * rank)
    for name, run in (("too few", too_few), ("one NaN", one_nan)):
        try:
            run(folder, rank)
        except CSRError as error:
            answers[name] = f"{type(error).__name__}: {error}"
    torch.save(answers, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def normalise(rank: int | None = None) -> dict[str, Tensor]:
    """A BatchNorm layer of its own on a batch, or a process's uneven part of it: results and gradients."""
    torch.manual_seed(0)
    layers = nn.Sequential(timm.layers.BatchNormAct2d(3), nn.BatchNorm2d(3, affine=False, momentum=0.3))
    images, weights = torch.randn(7, 3, 4, 5) * 3 + 5, torch.randn(7, 3, 4, 5)
    part = slice(None) if rank is None else slice(0, 5) if rank == 0 else slice(5, 7)
    images = images[part].requires_grad_(True)
    with shared_batch_norm():
        out = layers(images)
    (out * weights[part]).sum().backward()
    buffers = {name: value.clone() for name, value in layers.state_dict().items()}
    gradients = {name: value.grad for name, value in layers.named_parameters()}
    return {"out": out.detach(), "images": images.grad, "gradients": gradients, "buffers": buffers}


def too_few(folder: Path, rank: int) -> None:
    train_concepts(PreparedSet.open(folder / "prepared"), replace(STAGE1, batch_size=1), SilentCallbacks())


def one_nan(folder: Path, rank: int) -> None:
    """The loss of the second process alone is no number, at the very end."""
    model, step = nn.Linear(1, 1), iter(range(10))

    def terms(rows: np.ndarray) -> dict[str, Tensor]:
        factor = torch.nan if rank == 1 and next(step) == 4 else 1.0
        return {"own": model.weight.sum() * factor}

    config = ConceptTrainingConfig(epochs=1, batch_size=2)
    fit(Task("concepts", model, np.arange(10), terms, lambda epoch: {}), config, SilentCallbacks())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    collection = one_sided(make_collection(train=45, val=17))
    make_prepared(folder / "prepared", collection)
    drawn = [(f"s{row:03d}", "finding", CONCEPTS[0], 0.0, 4.0, 9.0, 12.0) for row in range(0, 20, 3)]
    drawn += [(f"s{row:03d}", "ignore", None, 20.0, 20.0, 30.0, 30.0) for row in range(0, 20, 2)]
    make_prepared(folder / "corrected", corrected(collection, 20, wrong=4), drawn=drawn)
    torch.manual_seed(3)
    torch.save(timm.create_model("test_resnet", num_classes=0, in_chans=1).state_dict(), folder / "body.pth")
    return folder


@pytest.fixture(scope="module")
def alone(folder) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage1, "ConceptModel", doubled)
        return trainings(folder)


@pytest.fixture(scope="module")
def together(folder) -> list[dict[str, Any]]:
    """The answers of both processes."""
    torch.multiprocessing.spawn(work, (folder,), PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


TRAINED = pytest.mark.parametrize(
    "name", ["concepts", "frozen", "stopped", "corrected", "odd", "prototypes", "paper", "weighed", "odd prototypes"]
)


@TRAINED
def test_two_processes_have_the_loss_curve_of_one(alone, together, name):
    for expected, *found in zip(alone[name][1], *(each["trainings"][name][1] for each in together), strict=True):
        assert found[0] == pytest.approx(found[1], nan_ok=True)
        assert found[0] == pytest.approx(expected, rel=TOLERANCE, abs=1e-6, nan_ok=True)


@TRAINED
def test_two_processes_have_the_weights_of_one_under_the_same_names(alone, together, name):
    expected = alone[name][0]
    for each in together:
        found = each["trainings"][name][0]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=TOLERANCE, rtol=TOLERANCE, msg=key)


def test_every_study_is_validated_by_one_process(folder, together):
    val = PreparedSet.open(folder / "prepared").collection.rows("val")
    looked = list(zip(*(each["validated"] for each in together), strict=True))
    assert len(looked) > 2 * STAGE1.epochs
    for first, second in looked:
        assert len(first) < len(second) == 9
        np.testing.assert_array_equal(np.concatenate([first, second]), val)


def test_batch_norm_over_uneven_parts_is_that_of_the_whole_batch(together):
    expected, found = normalise(), [each["normal"] for each in together]
    for key in ("out", "images"):
        torch.testing.assert_close(torch.cat([each[key] for each in found]), expected[key], atol=1e-5, rtol=1e-5)
    for name, value in expected["gradients"].items():  # the loss is a sum here, so gradients add up
        torch.testing.assert_close(sum(each["gradients"][name] for each in found), value, atol=1e-4, rtol=1e-5)
    for each in found:
        for name, value in expected["buffers"].items():
            torch.testing.assert_close(each["buffers"][name], value, msg=name)


def test_rows_are_gathered_in_the_order_of_the_ranks(together):
    assert all(each["gathered"].tolist() == [0, 1, 2, 10] for each in together)


def test_a_batch_with_fewer_images_than_processes_is_refused_by_every_process(together):
    for each in together:
        assert each["too few"].startswith("ConfigError: concepts.batch_size: 1 images, of all workers together, are")


def test_a_loss_that_is_no_number_in_one_process_ends_all_alike(together):
    for each in together:
        assert each["one NaN"].startswith("TrainingError: the loss became nan in epoch 0; lower concepts.learning_rate")


# without a second process


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 3, 12, 31])
def test_parts_of_all_processes_are_everything_once(monkeypatch, processes, count):
    monkeypatch.setattr(runtime, "world_size", lambda: processes)
    parts = []
    for rank in range(processes):
        monkeypatch.setattr(runtime, "rank", lambda rank=rank: rank)
        parts.append(np.arange(count)[runtime.own_part(count)])
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_means_over_parts_average_to_the_mean_over_all_that_counts(monkeypatch):
    counted = torch.tensor([True, True, False, True, False, False])
    values = torch.tensor([1.0, 2.0, 50.0, 6.0, 50.0, 50.0])
    monkeypatch.setattr(runtime, "world_size", lambda: 3)
    parts = [slice(0, 2), slice(2, 4), slice(4, 6)]
    means = [1.5, 6.0, 0.0]  # the last has nothing that counts
    shares = [mean * runtime.share_of_mean(counted, part) for mean, part in zip(means, parts, strict=True)]
    assert sum(shares) / 3 == pytest.approx(float(values[counted].mean()))
    assert runtime.share_of_mean(torch.zeros(6, dtype=torch.bool), parts[0]) == 0


@pytest.mark.parametrize("parts", [[slice(0, 5)], [slice(0, 3), slice(3, 5)], [slice(0, 1), slice(1, 2), slice(2, 5)]])
def test_an_image_changes_alike_whatever_part_of_the_batch_is_looked_at(parts):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (5, 1, 16, 16), dtype=torch.uint8)

    def changed(part: slice) -> Tensor:
        draws = Draws(5, part, torch.Generator().manual_seed(4))
        return augment(images[part], STAGE1.augment, draws=draws)

    whole = changed(slice(None))
    assert torch.equal(torch.cat([changed(part) for part in parts]), whole)
    assert not torch.equal(whole, images)


@pytest.mark.parametrize(("workers", "fits"), [(0, True), (1, True), (3, True), (8, True), (9, False), (16, False)])
def test_a_batch_has_an_image_for_each_worker(workers, fits):
    if fits:
        runtime.check_share(8, workers, "prototypes")
        return
    with pytest.raises(ConfigError, match=rf"prototypes\.batch_size: 8 images.* the {workers} workers .*fewer workers"):
        runtime.check_share(8, workers, "prototypes")
