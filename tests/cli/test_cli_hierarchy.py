"""The command `hamspk hierarchy`."""

import json

import pytest
from chords import write_chords

from hf_hamspk.cli.hierarchy import FEWEST, SPACE_NAMES
from hf_hamspk.hierarchy.analysis import FEWEST_DRAWS
from hf_hamspk.hierarchy.points import SPACES

QUICK = ("--permutations", "19", "--draws", "19")


def test_copied_values_are_those_of_the_package():
    assert SPACE_NAMES == SPACES and FEWEST == FEWEST_DRAWS


@pytest.mark.slow
def test_the_command_writes_and_prints_a_report(hamspk, model_folder, tmp_path):
    root = write_chords(tmp_path)
    words = ("hierarchy", model_folder, root / "train.csv", "--audio-root", root / "audio", *QUICK)
    code, out, err = hamspk(*words, "--output", tmp_path / "report")
    assert code == 0, err
    record = json.loads((tmp_path / "report" / "hierarchy.json").read_text())
    assert record["model"]["space"]["name"] == "released" and record["counts"]["speakers"] >= 4
    assert "Shape of the distances" in out and "hierarchy.html" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--within", "corpus"), "--within must be one of --labels, got 'corpus'"),
        (("--permutations", "3"), "--permutations must be at least 19"),
        (("--draws", "1"), "--draws must be at least 19"),
    ],
)
def test_invalid_options_are_refused(refusal, model_folder, tmp_path, words, message):
    table = tmp_path / "t.csv"
    table.write_text("path,speaker_id\n")
    assert message in refusal("hierarchy", model_folder, table, "--output", tmp_path / "out", *words)


def test_a_missing_table_and_a_file_as_output_are_refused(refusal, model_folder, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "Table not found" in refusal("hierarchy", model_folder, tmp_path / "no.csv", "--output", tmp_path / "out")
    message = refusal("hierarchy", model_folder, tmp_path / "file", "--output", tmp_path / "file")
    assert "--output must be a folder" in message
