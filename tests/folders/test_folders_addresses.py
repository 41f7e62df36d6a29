"""Addresses of databases of speakers."""

import pytest

from hf_hamspk.folders.addresses import is_store


def test_a_mistyped_address_is_not_the_path_of_a_folder():
    assert is_store("lancedb://speakers") and is_store("postgresql://anna@host/voices") and is_store("postgres://h/v")
    for folder in ("profiles/", "C:\\profiles", "a:b/", "lancedb/profiles"):
        assert not is_store(folder)
    for mistyped in ("lancedb:speakers", "LanceDB://speakers", "lance://speakers", "Postgres:/voices", "s3://bucket/p"):
        with pytest.raises(ValueError, match="Expected a folder, lancedb://FOLDER or postgresql://USER@HOST/NAME, got"):
            is_store(mistyped)
