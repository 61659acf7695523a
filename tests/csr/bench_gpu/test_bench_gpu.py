"""The measurement for a GPU, on the CPU in a tiny size: all of it runs, and its floors are counted right."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from csr.bench_gpu.__main__ import main
from csr.bench_gpu.floors import PASSES_OF_ADAMW, Rates, count_step, measure_rates
from csr.bench_gpu.sections import TINY


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> dict:
    file = tmp_path_factory.mktemp("bench") / "gpu.json"
    main(["--tiny", "--device", "cpu", "--out", str(file)])
    return json.loads(file.read_text())


def test_every_part_is_measured_and_names_the_device(document):
    assert not document["left_out"] and document["header"]["device"].endswith("CPU")
    names = "\n".join(each["name"] for each in document["rows"])
    for part in (
        "product of matrices, torch.float32",
        "copy",
        *(rf"{backbone} at 64², (floor|stage 1|peak memory)" for backbone, *_ in TINY.networks),
        "stage 1, loop",
        "stage 2, one epoch, 96 images, 12 prototypes",
        "stage 3, one epoch, 96 images, 12 prototypes",
        "similarity maps",
        "phantom of 60 images of 64²: stage 1, loop",
    ):
        assert re.search(f"^{part}", names, re.M), part
    by_name = {each["name"]: each for each in document["rows"]}
    for each in document["rows"]:
        assert min(each["rounds"]) > 0
        if each["ratio_to"]:
            assert each["ratio"] == pytest.approx(each["median"] / by_name[each["ratio_to"]]["median"])


def test_without_time_everything_is_left_out_with_its_reason(tmp_path, capsys):
    main(["--tiny", "--device", "cpu", "--seconds", "0", "--out", str(tmp_path / "gpu.json")])
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert [each["name"] for each in document["rows"]] == ["product of matrices, torch.float32", "copy"]
    left_out = {each["name"]: each["reason"] for each in document["left_out"]}
    assert {"loop", "stages 2 and 3", "similarity maps", "phantom"} < set(left_out)
    assert set(left_out.values()) == {"its time was up before it began"}
    assert "left out: loop: its time was up before it began" in capsys.readouterr().out


def test_a_step_is_counted_as_by_hand():
    model, images = nn.Linear(4, 3, bias=False), torch.randn(5, 4)
    optimiser = torch.optim.AdamW(model.parameters())

    def step() -> None:
        optimiser.zero_grad()
        model(images).sum().backward()
        optimiser.step()

    forward = 2 * 5 * 4 * 3  # and as much again for the weights' gradient; the images have none
    assert count_step(model, step) == (2 * forward, 2 * 5 * 4 * 4 + PASSES_OF_ADAMW * 3 * 4 * 4)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_convolutions_of_groups_are_counted_as_by_hand(groups):
    model, images = nn.Conv2d(6, 6, 3, padding=1, groups=groups, bias=False), torch.randn(2, 6, 8, 8)
    flops, _ = count_step(model, lambda: model(images.requires_grad_()).sum().backward())
    forward = 2 * (2 * 6 * 8 * 8) * (6 // groups * 3 * 3)
    assert flops == 3 * forward  # the gradients of images and weights are as dear


def test_the_floor_is_the_dearer_of_arithmetic_and_traffic():
    rates = Rates(flops=100.0, bytes=10.0)
    assert rates.seconds(200.0, 5.0) == 2.0 and rates.seconds(200.0, 50.0) == 5.0


def test_rates_of_this_machine_are_those_of_a_processor():
    rates = measure_rates(torch.device("cpu"), torch.float32, 256, 2**20, repeats=3)
    assert 1e8 < rates.flops < 1e14 and 1e7 < rates.bytes < 1e13
