"""The encoder's scores reach the label-free CBM: of training and validation images, of described concepts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from csr.baselines.protocol import ExperimentContext
from csr.data.text_concepts import TextConcept, TextConceptConfig
from csr.errors import ConfigError
from csr.network.concept_model import ConceptModelConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from pipelines.comparison.label_free import with_text_scores
from pipelines.params import Params
from tests.csr.synthetic import CONCEPTS, make_collection, make_prepared


class Brightness(nn.Module):
    """An image's direction is how bright it is; a text's is its length."""

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([images.mean((1, 2, 3)), torch.ones(len(images))], 1)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.ones(len(tokens)), tokens.float()], 1)


def brightness(checkpoint: Path) -> tuple[nn.Module, object, object]:
    def preprocess(picture):
        return torch.from_numpy(np.array(picture, np.float32)).permute(2, 0, 1) / 255

    return Brightness(), preprocess, lambda texts: torch.tensor([len(text) for text in texts])


def test_scores_are_cosines_where_the_encoder_was_asked_and_unknown_elsewhere(tmp_path: Path) -> None:
    data = make_prepared(tmp_path / "prepared", make_collection())
    config = ConceptTrainingConfig(model=ConceptModelConfig("test_convnext", stride=8, context=16, width=6))
    (tmp_path / "weights").touch()
    described = {CONCEPTS[1]: TextConcept(("a",)), CONCEPTS[0]: TextConcept(("abc",))}
    texts = TextConceptConfig(f"{__name__}:brightness", str(tmp_path / "weights"), described)
    params = replace(Params("robust"), data=replace(Params("robust").data, source="table", text_concepts=texts))
    scores = with_text_scores(ExperimentContext(data, config, SilentCallbacks()), params).text_scores
    assert scores is not None and scores.shape == (len(data.images), len(CONCEPTS))
    rows = np.isin(data.collection.studies["split"], ["train", "val"])
    asked = np.isin(CONCEPTS, list(described))
    np.testing.assert_array_equal(~np.isnan(scores), np.outer(rows, asked))
    light = np.array([data.images[row].mean() / 255 for row in range(len(data.images))])
    for name, length in ((CONCEPTS[1], 1), (CONCEPTS[0], 3)):
        cosine = (light + length) / np.hypot(light, 1) / np.hypot(1, length)
        np.testing.assert_allclose(scores[rows, CONCEPTS.index(name)], cosine[rows], atol=1e-4)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    data = make_prepared(tmp_path / "prepared", make_collection())
    texts = TextConceptConfig(f"{__name__}:brightness", str(tmp_path / "nothing"), {CONCEPTS[0]: TextConcept()})
    params = replace(Params("robust"), data=replace(Params("robust").data, source="table", text_concepts=texts))
    config = ConceptTrainingConfig(model=ConceptModelConfig("test_convnext"))
    with pytest.raises(ConfigError, match=r"data\.text_concepts\.checkpoint: no file"):
        with_text_scores(ExperimentContext(data, config, SilentCallbacks()), params)
