"""Files of weights: plain, of a stated format, and refused with a sentence where they are something else."""

from __future__ import annotations

import pytest
import torch

from csr.errors import DataError
from csr.network.checkpoint import FORMAT, read_checkpoint, write_checkpoint
from csr.network.prototypes import PrototypeModel, prototype_model_checkpoint
from csr.network.trained import TrainedCSR


def content():
    return prototype_model_checkpoint(PrototypeModel(features=4, concepts=2, per_concept=3, width=5, blocks=1))


def test_what_was_written_comes_back(tmp_path):
    written = content()
    write_checkpoint(written, tmp_path / "model.pt")
    read = read_checkpoint(tmp_path / "model.pt", "prototype model")
    assert read["config"] == written["config"] and read["format"] == FORMAT
    assert read["weights"].keys() == written["weights"].keys()
    assert all(torch.equal(read["weights"][name], value) for name, value in written["weights"].items())


def test_a_checkpoint_of_another_kind_is_named(tmp_path):
    write_checkpoint(content(), tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"model\.pt: holds a prototype model, not a trained CSR"):
        TrainedCSR.load(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"config": {}, "weights": {}}, "no format number"),  # as versions before the first format wrote them
        ({"format": FORMAT + 1, "kind": "trained CSR"}, f"format {FORMAT + 1}, this version reads format {FORMAT}"),
        (torch.zeros(3), "no format number"),
    ],
)
def test_files_of_other_versions_are_refused_with_what_to_do(given, reason, tmp_path):
    torch.save(given, tmp_path / "model.pt")
    with pytest.raises(DataError, match=rf"{reason}.*dvc repro"):
        read_checkpoint(tmp_path / "model.pt", "trained CSR")


def test_a_pickled_module_is_never_unpickled(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(DataError, match="is no checkpoint of plain weights"):
        read_checkpoint(tmp_path / "model.pt", "trained CSR")


@pytest.mark.parametrize("data", [b"", b"not a zip file", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint_is_refused(data, tmp_path):
    (tmp_path / "model.pt").write_bytes(data)
    with pytest.raises(DataError, match="is no checkpoint of plain weights"):
        read_checkpoint(tmp_path / "model.pt", "trained CSR")
