"""Small sets in the layouts in which three publishers ship theirs, with pictures that carry what is to be learned.

Written by hand from the readers' docstrings; the quirks of each layout have tests of their own in
``tests/csr/data/sources``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from csr.data.sources.isic2017 import CONCEPTS
from csr.data.sources.vindr_cxr import DISEASES, FINDINGS
from tests.csr.data.test_images import dicom
from tests.csr.data.test_leaks import picture

NOWHERE = ("", "", "", "")


def scene(number: int, side: int, patches: list[tuple[int, int]]) -> np.ndarray:
    """side×side uint8: a picture of its own with a bright square of a quarter's side at each (column, row)."""
    pixels = (picture(number, side)[0] * 0.5).astype(np.uint8)
    for column, row in patches:
        pixels[row : row + side // 4, column : column + side // 4] += 120
    return pixels


def write_tbx11k(folder: Path, train: int = 36, val: int = 12, side: int = 64) -> Path:
    """Classes in turn; two findings of the user's table, the official box around the one that only ``tb`` shows."""
    for name in ("lists", "annotations/json", "imgs/health", "imgs/sick", "imgs/tb"):
        (folder / name).mkdir(parents=True)
    table, number = [], 0
    for split, count in (("train", train), ("val", val)):
        names, images, boxes = [], [], []
        for _ in range(count):
            label = ("health", "sick", "tb")[number % 3]
            name = f"{label}/{number:04d}.png"
            corner = (side // 8 + number % 5, side // 2)
            patches = {"health": [], "sick": [(side // 2, side // 8)], "tb": [corner]}[label]
            Image.fromarray(scene(number, side, patches)).save(folder / "imgs" / name)
            names.append(name)
            images.append({"id": number + 1, "file_name": name, "width": side, "height": side})
            if label == "tb":
                box = [*map(float, corner), side / 4, side / 4]
                boxes.append({"id": number + 1, "image_id": number + 1, "category_id": 1, "bbox": box})
            table.append(
                {"image": name, "concept:cavity": int(label == "tb"), "concept:effusion": int(label == "sick")}
            )
            number += 1
        (folder / "lists" / f"TBX11K_{split}.txt").write_text("\n".join(names) + "\n")
        content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "ActiveTuberculosis"}]}
        (folder / "annotations/json" / f"TBX11K_{split}.json").write_text(json.dumps(content))
    pd.DataFrame(table).to_csv(folder / "concepts.csv", index=False)
    return folder


def write_isic2017(folder: Path, train: int = 24, val: int = 9, test: int = 9, side: int = 64) -> Path:
    """Diagnoses and features in turn; superpixels are sixteen squares."""
    number = 0
    rows, columns = np.mgrid[0:side, 0:side] * 4 // side
    superpixels = np.stack([4 * rows + columns, 0 * rows, 0 * rows], -1).astype(np.uint8)
    for part, count in (("Training", train), ("Validation", val), ("Test_v2", test)):
        data, truth = folder / f"ISIC-2017_{part}_Data", folder / f"ISIC-2017_{part}_Part2_GroundTruth"
        data.mkdir(parents=True)
        truth.mkdir()
        lines = ["image_id,melanoma,seborrheic_keratosis"]
        for _ in range(count):
            study, kind, cell = f"ISIC_{number:07d}", number % 3, number % 16
            shown = {
                name: [int(kind == k % 3 and place == cell) for place in range(16)] for k, name in enumerate(CONCEPTS)
            }
            grey = scene(number, side, [(cell % 4 * side // 4, cell // 4 * side // 4)])
            colours = np.stack([grey if channel == kind else grey // 2 for channel in range(3)], -1)
            Image.fromarray(colours).save(data / f"{study}.jpg", quality=95)
            Image.fromarray(superpixels).save(data / f"{study}_superpixels.png")
            (truth / f"{study}_features.json").write_text(json.dumps(shown))
            lines.append(f"{study},{float(kind == 0)},{float(kind == 2)}")
            number += 1
        (folder / f"ISIC-2017_{part}_Part3_GroundTruth.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_vindr_cxr(folder: Path, train: int = 40, test: int = 12, side: int = 64) -> Path:
    """PhysioNet's edition: three readers who agree in training, one voice in the test part; two findings and two
    diagnoses go together, the others nobody has."""
    for name in ("train", "test", "annotations"):
        (folder / name).mkdir(parents=True)
    number = 0
    for split, count, readers in (("train", train, ("R1", "R2", "R3")), ("test", test, ("",))):
        labels, boxes = [], []
        for _ in range(count):
            image, has = f"{number:08x}", (number % 2 == 0, number % 4 < 2)
            places = ((side // 8, side // 2), (side // 2, side // 8))
            shown = [place for place, there in zip(places, has, strict=True) if there]
            pixels = scene(number, side, shown).astype(np.uint16) * 16
            (folder / split / f"{image}.dicom").write_bytes(dicom(pixels, BitsStored=12, HighBit=11))
            names = [name for name, there in zip(("Consolidation", "Nodule/Mass"), has, strict=True) if there]
            said = {*names, *(("Pneumonia",) if has[0] else ()), *(("Lung tumor",) if has[1] else ())}
            for reader in readers:
                about = {"image_id": image} | ({"rad_id": reader} if reader else {})
                labels.append(
                    about | {name: int(name in said or (name == "No finding" and not said)) for name in LABELS}
                )
                for name, (x, y) in zip(names, shown, strict=True):
                    boxes.append(about | dict(zip(BOX, (name, x, y, x + side // 4, y + side // 4), strict=True)))
                if not names:
                    boxes.append(about | dict(zip(BOX, ("No finding", *NOWHERE), strict=True)))
            number += 1
        pd.DataFrame(labels).to_csv(folder / f"annotations/image_labels_{split}.csv", index=False)
        pd.DataFrame(boxes).to_csv(folder / f"annotations/annotations_{split}.csv", index=False)
    return folder


LABELS = (*FINDINGS, *DISEASES)
BOX = ("class_name", "x_min", "y_min", "x_max", "y_max")
