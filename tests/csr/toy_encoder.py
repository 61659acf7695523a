"""A small image-text encoder with open_clip's interface, and images of shapes to train and to try it on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from csr.data.records import BOX_COLUMNS, Collection

SHAPES = ("square", "ring", "cross")
WORDS = ("picture", "of", "and", "nothing", *SHAPES)
SIDE = 24


def draw(present: np.ndarray, seed: int) -> np.ndarray:
    """Images N×1×S×S uint8 that show the present ones (N×3 bool) of `SHAPES`, each somewhere, on noise."""
    rng = np.random.default_rng(seed)
    images = rng.integers(20, 90, (len(present), 1, SIDE, SIDE)).astype(np.uint8)
    y, x = np.mgrid[-4:5, -4:5]
    stencils = [np.maximum(abs(x), abs(y)) <= 3, abs(np.hypot(x, y) - 3) < 1, (abs(x) < 1) | (abs(y) < 1)]
    for row, own in enumerate(present):
        for k in np.flatnonzero(own):
            top, left = rng.integers(0, SIDE - 9, 2)
            images[row, 0, top : top + 9, left : left + 9][stencils[k]] = 200
    return images


def make_shapes(train: int = 300, val: int = 60, test: int = 60, seed: int = 5) -> tuple[Collection, np.ndarray]:
    """A collection whose K = 3 concepts are the shapes, all labelled, and its images."""
    split = np.repeat(["train", "val", "test"], [train, val, test])
    present = np.random.default_rng(seed).random((len(split), len(SHAPES))) < (0.5, 0.4, 0.25)
    names = [f"s{row:03d}" for row in range(len(split))]
    studies = pd.DataFrame({"study_id": names, "image": [f"{name}.png" for name in names], "split": split})
    studies["part"], studies["label"] = split, np.where(np.arange(len(split)) % 2, "odd", "even")
    studies["patient_id"], studies["site"] = names, ""
    for k, name in enumerate(SHAPES):
        studies[f"concept:{name}"] = present[:, k].astype(np.float32)
    boxes = pd.DataFrame({name: [] for name in BOX_COLUMNS})
    return Collection("shapes", SHAPES, ("even", "odd"), studies, boxes), draw(present, seed)


class ToyEncoder(nn.Module):
    """A convolutional image tower and a bag of words, both into E = 16."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 16),
        )
        self.text = nn.EmbeddingBag(len(WORDS), 16)

    def encode_image(self, image: Tensor) -> Tensor:
        return self.image(image)

    def encode_text(self, text: Tensor) -> Tensor:
        counts = F.one_hot(text, len(WORDS) + 1)[..., 1:].sum(1).float()  # token 0 is padding
        return counts @ self.text.weight


def tokenise(texts: list[str]) -> Tensor:
    """Texts → B×8 numbers of `WORDS`, from 1; other words are left out."""
    tokens = torch.zeros(len(texts), 8, dtype=torch.long)
    for row, text in enumerate(texts):
        known = [WORDS.index(word) + 1 for word in text.split() if word in WORDS]
        tokens[row, : len(known)] = torch.tensor(known, dtype=torch.long)
    return tokens


def preprocess(picture: Image.Image) -> Tensor:
    assert picture.mode == "RGB"
    return torch.from_numpy(np.asarray(picture, np.float32).transpose(2, 0, 1) / 255)


def train_encoder(steps: int = 150, seed: int = 0) -> ToyEncoder:
    """Contrastive training on images of its own and their captions, each image with every caption equal to its own."""
    torch.manual_seed(seed)
    present = np.random.default_rng(seed).random((1500, len(SHAPES))) < 0.4
    images = torch.stack([preprocess(Image.fromarray(image[0]).convert("RGB")) for image in draw(present, seed)])
    captions = [" and ".join(np.array(SHAPES)[own]) or "nothing" for own in present]
    tokens = tokenise([f"picture of {caption}" for caption in captions])
    model = ToyEncoder()
    optimiser = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,))
        image = F.normalize(model.encode_image(images[rows]), dim=1)
        text = F.normalize(model.encode_text(tokens[rows]), dim=1)
        logits = 10 * image @ text.T
        same = (tokens[rows][:, None] == tokens[rows][None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def load(checkpoint: Path) -> tuple[ToyEncoder, object, object]:
    """The factory."""
    model = ToyEncoder()
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    return model, preprocess, tokenise
