"""Files that decisions rest on: what was saved comes back, and any change is noticed."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hf_hamspk.audio_hamspk import is_number
from hf_hamspk.calibration_hamspk import (
    CHECKSUM,
    array_checksum,
    check_dict,
    dict_checksum,
    is_same_model,
    load_array,
    save_array,
)

VALUES = {"b": [1, 2.5, None], "a": {"y": "ü", "x": True}}


def test_a_dictionary_has_one_checksum_in_any_order():
    assert dict_checksum(VALUES) == dict_checksum(dict(reversed(VALUES.items())))
    assert dict_checksum(VALUES) == dict_checksum(VALUES | {CHECKSUM: "0"})
    check_dict(VALUES | {CHECKSUM: dict_checksum(VALUES)}, "file")


@pytest.mark.parametrize("change", [{"b": [1, 2.5]}, {"a": {}}, {"c": 0}], ids=str)
def test_any_change_of_a_dictionary_is_noticed(change):
    sealed = VALUES | {CHECKSUM: dict_checksum(VALUES)}
    with pytest.raises(ValueError, match="file was altered: its checksum does not match its values"):
        check_dict(sealed | change, "file")
    with pytest.raises(ValueError, match="file has no checksum"):
        check_dict(VALUES, "file")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_json_has_not_are_refused(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        dict_checksum({"a": value})


def test_an_arrays_checksum_is_of_values_type_and_shape():
    array = np.arange(6, dtype=np.float32)
    assert array_checksum(array) == array_checksum(np.arange(12, dtype=np.float32)[::2] / 2)
    others = (array.reshape(2, 3), array.astype(np.float64), array + 1)
    assert array_checksum(array) not in {array_checksum(other) for other in others}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a.safetensors"
    save_array(path, "embeddings", np.linspace(0, 1, 6).reshape(2, 3), {"model": "abc", "speakers": 2})
    return path


def test_an_array_comes_back_with_its_description(saved):
    array, described = load_array(saved, "embeddings")
    assert array.dtype == np.float32 and described == {"model": "abc", "speakers": 2}
    np.testing.assert_array_equal(array, np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3))
    assert [path.name for path in saved.parent.iterdir()] == ["a.safetensors"]


def rewrite(path, array, description):
    save_file({"embeddings": array}, path, {"description": json.dumps(description)})


def description_of(path) -> dict:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["description"])


def test_a_changed_value_or_word_is_noticed(saved):
    array, description = load_file(saved)["embeddings"], description_of(saved)
    rewrite(saved, array + np.float32(1e-6), description)
    with pytest.raises(ValueError, match="'embeddings' differs from the saved one"):
        load_array(saved, "embeddings")
    rewrite(saved, array, description | {"model": "abd"})
    with pytest.raises(ValueError, match="was altered"):
        load_array(saved, "embeddings")


def test_what_is_no_such_file_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        load_array(tmp_path / "absent", "embeddings")
    with pytest.raises(ValueError, match=r"contains the tensors \['embeddings'\]; expected 'cohort'"):
        load_array(saved, "cohort")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="cannot be read"):
        load_array(tmp_path / "text", "embeddings")
    rewrite(saved, np.zeros(2, np.float32), [1])
    with pytest.raises(ValueError, match="with a description"):
        load_array(saved, "embeddings")
    save_array(saved, "embeddings", np.array([1.0, np.nan]), {})
    with pytest.raises(ValueError, match="expected finite float32 values"):
        load_array(saved, "embeddings")


@pytest.mark.parametrize("value", [0, -1.5, 10**300])
def test_numbers(value):
    assert is_number(value)


@pytest.mark.parametrize("value", [True, None, "1", math.nan, math.inf, 10**400, 1j])
def test_what_is_no_number(value):
    assert not is_number(value)


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [("a-1", "a-1", True), ("a-1", "a-2", False), ("a-1", "b-1", False), ("a", "a-1", True), ("a", "b", False)],
)
def test_two_fingerprints_are_of_one_model_if_weights_and_known_settings_are_equal(first, second, is_same):
    assert is_same_model(first, second) == is_same_model(second, first) == is_same
