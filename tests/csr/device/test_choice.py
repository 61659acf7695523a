"""Where a process computes can be said once, and nothing computes elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from csr.errors import ConfigError
from csr.training.runtime import device, use_device
from tests.csr.device.test_stages import head_stage, predictions


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    yield
    use_device("auto")


def test_without_a_gpu_it_is_the_cpu():
    assert device() == torch.device("cpu")
    use_device("cpu")
    assert device() == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_refused_and_nothing_changes():
    with pytest.raises(ConfigError, match=r"device: 'cuda' is asked for, but torch finds no GPU here"):
        use_device("cuda")
    assert device() == torch.device("cpu")


@pytest.mark.parametrize("choice", ["auto", "cuda"])
def test_a_gpu_is_used(choice, accelerator):
    use_device(choice)
    assert device() == torch.device("cuda", 0)


def test_a_gpu_that_is_there_is_left_alone(stages, accelerator):
    use_device("cpu")
    assert device() == torch.device("cpu")
    head_stage(stages)
    predictions(stages)
    assert accelerator.operations == 0
    use_device("auto")
    predictions(stages)
    assert accelerator.operations > 0
