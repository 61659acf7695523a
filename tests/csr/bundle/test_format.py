"""A bundle is whole, unaltered and readable, or it is refused by the name of the file at fault."""

from __future__ import annotations

import json

import numpy as np
import pytest

from csr.bundle.format import (
    FORMAT,
    MANIFEST,
    AtlasEntry,
    AtlasSource,
    Bundle,
    ConceptReference,
    write_atlas,
    write_manifest,
    write_reference,
)
from csr.data.atomic_folder import atomic_folder
from csr.errors import BundleError
from csr.interaction.naming import BoxNaming

ABOUT = {
    "preset": "robust",
    "concepts": ("a", "b"),
    "classes": ("x", "y"),
    "channels": 1,
    "side": 32,
    "display": None,
    "height": 4,
    "width": 4,
    "per_concept": 1,
    "patch_width": 8,
    "alpha": 0.2,
    "rejection": "absent",
    "ask_margin": 0.3,
    "least_effect": 0.05,
    "abstain_below": 0.75,
    "task": "multiclass",
    "backbone": "none",
    "data": "made-up",
    "data_digest": "0" * 64,
    "code_revision": "test",
    "metrics": {"iid": {"macro_f1": 0.5}},
}
SOURCES = AtlasSource("s001", (0.0, 1.0, 2.0, 3.0), 0.9), AtlasSource("s002", (1.0, 1.0, 3.0, 3.0), 0.8)
ENTRY = AtlasEntry("a", 0, SOURCES, 0.25, 0.5, {"x": 1.0, "y": -1.0}, alive=False)
NAMING = BoxNaming(np.zeros(4), np.ones(4), np.arange(8.0).reshape(2, 4), np.array([0.5, -1e3]), 0.25)
REFERENCES = [ConceptReference("a", (0.25, 0.50005), (0.5, 0.25, 0.25)), ConceptReference("b", (), (1.0,))]
FILES = (
    "encoder.onnx",
    "reasoner.onnx",
    "atlas.json",
    "crops.npy",
    "naming.json",
    "reference.json",
    "golden.npz",
    "samples/00.png",
    "samples/samples.json",
)


@pytest.fixture
def folder(tmp_path):
    """A folder with every kind of file that a bundle holds; the graphs are stand-ins, nothing here runs them."""
    path = tmp_path / "bundle"
    (path / "samples").mkdir(parents=True)
    for name in ("encoder.onnx", "reasoner.onnx", "samples/00.png"):
        (path / name).write_bytes(name.encode() * 9)
    (path / "samples" / "samples.json").write_text(json.dumps([{"study_id": "s", "file": "00.png"}]))
    write_atlas(path, [ENTRY], np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2))
    (path / "naming.json").write_text(json.dumps(NAMING.to_json()))
    np.savez(path / "golden.npz", image=np.ones(3), expected_logits=np.zeros(2))
    write_reference(path, REFERENCES)
    write_manifest(path, **ABOUT)
    return path


def test_a_whole_bundle_opens_and_says_what_was_written(folder):
    bundle = Bundle.open(folder)
    for name, value in ABOUT.items():
        assert getattr(bundle.manifest, name) == value
    assert sorted(bundle.manifest.files) == sorted(FILES)
    assert bundle.atlas() == [ENTRY]
    assert bundle.reference() == REFERENCES
    assert bundle.naming().to_json() == NAMING.to_json()
    assert bundle.crops().tolist() == [[[[0, 1], [2, 3]]], [[[4, 5], [6, 7]]]]
    assert sorted(bundle.golden()) == ["expected_logits", "image"]
    assert bundle.samples() == [{"study_id": "s", "file": "00.png"}]


@pytest.mark.parametrize("where", [0, -1])
@pytest.mark.parametrize("name", FILES)
def test_one_altered_byte_is_refused_by_the_files_name(folder, name, where):
    content = bytearray((folder / name).read_bytes())
    content[where] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}.*altered"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_or_emptied_is_refused_by_its_name(folder, name):
    (folder / name).write_bytes(b"")
    with pytest.raises(BundleError, match=name):
        Bundle.open(folder)


@pytest.mark.parametrize("name", (*FILES, MANIFEST))
def test_a_removed_file_is_refused_by_its_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name}.*missing"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["extra.bin", "samples/99.png", ".hidden", "new/inner.json"])
def test_an_added_file_is_refused_by_its_name(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(BundleError, match=f"{name}.*not listed"):
        Bundle.open(folder)


def test_two_files_that_swapped_content_are_refused(folder):
    first, second = folder / "encoder.onnx", folder / "reasoner.onnx"
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    with pytest.raises(BundleError, match=r"encoder\.onnx"):
        Bundle.open(folder)


def test_an_altered_manifest_has_another_digest(folder):
    before = Bundle.open(folder).digest
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"alpha": 0.2', '"alpha": 0.3'))
    assert Bundle.open(folder).digest != before


def test_the_digest_depends_on_every_file(folder):
    before = Bundle.open(folder).digest
    (folder / "encoder.onnx").write_bytes(b"another graph")
    (folder / MANIFEST).unlink()
    write_manifest(folder, **ABOUT)
    assert Bundle.open(folder).digest != before


@pytest.mark.parametrize("content", ["", "{", "not json", "[]", "7", "null", "{}", '{"format": 99}', '{"format": "1"}'])
def test_a_manifest_that_is_none_is_refused_by_its_name(folder, content):
    (folder / MANIFEST).write_text(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(folder)


@pytest.mark.parametrize("found", [1, 5, 9])
def test_a_bundle_of_another_format_is_refused_with_what_to_do(folder, found):
    content = json.loads((folder / MANIFEST).read_text())
    assert content["format"] == FORMAT == 8
    (folder / MANIFEST).write_text(json.dumps(content | {"format": found}))
    with pytest.raises(BundleError, match=f"format is {found}, this version reads 6 to 8; export the bundle again"):
        Bundle.open(folder)


def test_a_bundle_of_the_format_before_thresholds_decides_at_a_half(folder):
    content = json.loads((folder / MANIFEST).read_text())
    del content["thresholds"]
    (folder / MANIFEST).write_text(json.dumps(content | {"format": 6}))
    assert Bundle.open(folder).manifest.thresholds is None


def test_thresholds_come_back_as_they_were(folder):
    (folder / MANIFEST).unlink()
    write_manifest(folder, **(ABOUT | {"task": "multilabel", "thresholds": (0.07, 0.5)}))
    assert Bundle.open(folder).manifest.thresholds == (0.07, 0.5)


@pytest.mark.parametrize("wrong", [[0.5], [0.5, 1.0], [0.0, 0.5], ["0.5", 0.5], 0.5, {"x": 0.5}, [None, 0.5]])
def test_thresholds_that_are_none_are_refused(folder, wrong):
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | {"thresholds": wrong}))
    with pytest.raises(BundleError, match=r"'thresholds' must be null or a number between 0 and 1 a class"):
        Bundle.open(folder)


def test_a_manifest_that_is_not_text_is_refused_by_its_name(folder):
    (folder / MANIFEST).write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(folder)


@pytest.mark.parametrize("key", [*ABOUT, "files", "thresholds"])
def test_a_manifest_that_lacks_a_key_is_refused_by_the_keys_name(folder, key):
    content = json.loads((folder / MANIFEST).read_text())
    del content[key]
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=f"'{key}'"):
        Bundle.open(folder)


@pytest.mark.parametrize(("key", "value"), [("files", []), ("files", None), ("concepts", None), ("classes", 3)])
def test_a_manifest_value_of_another_kind_is_refused_and_not_a_crash(folder, key, value):
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | {key: value}))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(folder)


def test_a_key_of_a_later_minor_version_is_ignored(folder):
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | {"novelty": 1}))
    assert Bundle.open(folder).manifest.alpha == 0.2


@pytest.mark.parametrize("alpha", [0.2, 0.0, {"a": 0.5, "b": 0.2}])
def test_alpha_is_a_number_or_each_concepts_own(folder, alpha):
    (folder / MANIFEST).unlink()
    write_manifest(folder, **(ABOUT | {"alpha": alpha}))
    assert Bundle.open(folder).manifest.alpha == alpha


def test_a_bundle_that_cannot_tell_what_a_box_is_about_says_so(folder):
    (folder / MANIFEST).unlink()
    (folder / "naming.json").write_text("null\n")
    write_manifest(folder, **ABOUT)
    assert Bundle.open(folder).naming() is None


@pytest.mark.parametrize("threshold", [None, 0.75])
def test_a_model_abstains_below_a_threshold_or_never(folder, threshold):
    (folder / MANIFEST).unlink()
    write_manifest(folder, **(ABOUT | {"abstain_below": threshold}))
    assert Bundle.open(folder).manifest.abstain_below == threshold


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(BundleError, match="absent"):
        Bundle.open(tmp_path / "absent")
    (tmp_path / "bundle.zip").write_bytes(b"PK")
    with pytest.raises(BundleError, match=r"bundle\.zip"):
        Bundle.open(tmp_path / "bundle.zip")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_draft_leaves_nothing_and_keeps_the_previous_bundle(folder, error):
    before = Bundle.open(folder).digest
    with pytest.raises(error), atomic_folder(folder) as draft:
        (draft / "encoder.onnx").write_bytes(b"half")
        raise error
    assert Bundle.open(folder).digest == before
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_a_finished_draft_replaces_the_previous_bundle_whole(folder):
    with atomic_folder(folder) as draft:
        (draft / "only.bin").write_bytes(b"new")
        write_manifest(draft, **ABOUT)
        assert sorted(Bundle.open(folder).manifest.files) == sorted(FILES)
    assert list(Bundle.open(folder).manifest.files) == ["only.bin"]
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
