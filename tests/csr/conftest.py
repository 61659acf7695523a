"""What the tests of the method share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as the ones here spend their time waiting for threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def short_bottlenecks() -> Iterator[None]:
    """Bottlenecks on the few studies of a test have their epochs, not as many steps as on a real set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("csr.baselines.protocol.LEAST_STEPS", 1)
        yield
