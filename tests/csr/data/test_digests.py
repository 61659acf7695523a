"""Digests: they say whether anything differs, and nothing else matters."""

from __future__ import annotations

import hashlib
import shutil

from csr.data.digests import file_digest, folder_digest


def test_a_files_digest_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"what is in it")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"what is in it").hexdigest()


def test_a_folders_digest_follows_names_and_contents_and_not_where_it_lies(tmp_path):
    (tmp_path / "one/deep").mkdir(parents=True)
    (tmp_path / "one/a").write_text("x")
    (tmp_path / "one/deep/b").write_text("y")
    first = folder_digest(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert folder_digest(tmp_path / "two") == first
    (tmp_path / "two/deep/b").write_text("z")
    changed = folder_digest(tmp_path / "two")
    (tmp_path / "two/deep/b").write_text("y")
    (tmp_path / "two/a").rename(tmp_path / "two/c")
    assert len({first, changed, folder_digest(tmp_path / "two")}) == 3
