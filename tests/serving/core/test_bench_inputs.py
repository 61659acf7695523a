"""The input bench (`tests.bench.inputs`) reads files as the server does."""

from __future__ import annotations

import numpy as np
import pytest

from csr.bundle.format import Bundle
from serving.deploy.service import Service
from serving.engines import OrtEngine
from serving.models.in_service import Model
from tests.bench.inputs import read_files, same_reading
from tests.serving.conftest import add, png


def test_files_are_read_as_the_server_reads_them(service: Service, bundle: Bundle, sample: bytes) -> None:
    model = Model(bundle, OrtEngine(bundle), "1")
    constant = png(np.full((64, 64), 7, np.uint8))
    first, refused, again = read_files(model, [sample, constant, sample])
    assert refused.prediction is None and refused.flagged
    assert first.prediction is not None and again.prediction is not None
    assert same_reading(first.prediction, again.prediction)
    served = add(service.plane, sample).prediction
    assert same_reading(first.prediction, served)
    assert first.prediction.fits.score == pytest.approx(served.fits.score, abs=0.02)
    assert first.flagged == bool(served.fits.reasons)
