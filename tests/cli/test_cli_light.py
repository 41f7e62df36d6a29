"""What the command line answers before it imports torch, and that its literals are those of the package."""

import argparse
import importlib
import inspect
import json
import subprocess
import sys

import pytest

from hf_hamspk.__main__ import COMMANDS
from hf_hamspk.audio_hamspk import InputError, read_sound
from hf_hamspk.calibration_hamspk import CALIBRATION_FILE
from hf_hamspk.cli import calibrate, convert, embed, options, prepare, verify
from hf_hamspk.evaluation.intervals import FEWEST_REPLICATES

HEAVY = ("torch", "transformers", "numpy", "huggingface_hub")
# Runs commands in one process and reports after each, which heavy packages are imported.
RUN = f"""
import contextlib, io, json, sys
from hf_hamspk.__main__ import main
found = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    found.append([code, [name for name in {HEAVY} if name in sys.modules], out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


def answers(*commands: list[str]) -> list[list]:
    done = subprocess.run([sys.executable, "-c", RUN, json.dumps(commands)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_and_mistakes_are_answered_without_torch(tmp_path, model_folder, audio):
    model, a, b = str(model_folder), str(audio / "a.wav"), str(audio / "b.wav")
    refused = {
        "unrecognized arguments: --tst b.wav": ["verify", model, a, "--tst", "b.wav"],
        "Recipe not found: nowhere.yaml. Expected a YAML file": ["train", "nowhere.yaml"],
        "The enrolment nowhere.wav: no such file": ["verify", model, "nowhere.wav", b],
        "Enrolment recording 2 nowhere.wav: no such file": ["verify", model, a, "nowhere.wav", "--test", b],
        "The test nowhere.wav: no such file": ["verify", model, a, "nowhere.wav"],
        "Profile not found: x.safetensors": ["verify", model, "x.safetensors", b],
        "Expected two recordings, got 1 recording": ["verify", model, a],
        "Model folder not found: ./nope": ["verify", "./nope", a, b],
        "Folder not found: nope (--profiles)": ["identify", model, a, "--profiles", "nope"],
        "Folder not found: nowhere": ["enrol", model, "nowhere", "--profiles", str(tmp_path)],
        "Trial list not found: nowhere.txt": ["embed", model, "--trials", "nowhere.txt", "--output", "e.npz"],
        "Trial list not found: nope.txt": ["calibrate", model, "nope.txt", "--audio-root", str(audio)],
        "Trial list not found: none.txt": ["evaluate", model, "none.txt", "--audio-root", str(audio)],
        "Trial list not found: null.txt": ["sweep", model, "null.txt", "--audio-root", str(audio)],
        "SOURCE not found: nowhere.": ["convert", "nowhere", str(tmp_path / "new")],
        "File not found: nobody (--speakers)": ["prepare", str(audio), "out", "--speakers", "nobody"],
        "must be a file name that ends in .onnx": ["export", model, "model.pt"],
        "--seed must be at least 0": ["demo", "--seed=-1"],
    }
    helps = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    found = answers(*helps, *refused.values())
    for words, (code, heavy, _, err) in zip(helps, found, strict=False):
        assert (code, heavy, err) == (0, [], ""), words
    for message, (code, heavy, out, err) in zip(refused, found[len(helps) :], strict=True):
        assert (code, heavy, out) == (2, [], ""), message
        assert message in err


def test_numbers_out_of_range_are_refused_without_torch(tmp_path, calibrated_folder, audio):
    model, a, b = str(calibrated_folder), str(audio / "a.wav"), str(audio / "b.wav")
    (tmp_path / "pairs.txt").write_text("1 a.wav b.wav\n")
    (tmp_path / "x.safetensors").touch()
    verify, lists = ["verify", model, a, b], [model, str(tmp_path / "pairs.txt"), "--audio-root", str(audio)]
    identify = ["identify", model, a, "--profiles", str(tmp_path)]
    refused = {
        "--prior must lie strictly between 0 and 1, got 1.5.": [*verify, "--prior", "1.5"],
        "--cost-miss must be above 0 and finite, got 0.0.": [*verify, "--prior", "0.5", "--cost-miss", "0"],
        "--cost-false-alarm must be above 0": [*verify, "--prior", "0.5", "--cost-false-alarm", "inf"],
        "--threshold must be a finite number, got nan.": [*verify, "--threshold", "nan"],
        "no operating point 'nosuch'; this calibration has balanced,": [*verify, "--operating-point", "nosuch"],
        "no operating point 'none'; this calibration has balanced,": [*identify, "--operating-point", "none"],
        "--prior must lie strictly between 0 and 1, got -1.0.": [*identify, "--prior=-1"],
        "--margin must be a finite number of at least 0, got -1.0.": [*identify, "--margin=-1"],
        "--candidates must be at least 1, got 0.": [*identify, "--candidates", "0"],
        "--replicates must be 0 or at least 100, got 5.": ["evaluate", *lists, "--replicates", "5"],
        "--replicates must be 0 or at least 100, got 99.": ["sweep", *lists, "--replicates", "99"],
        "--confidence must lie between 0 and 1, got 95.0.": ["evaluate", *lists, "--confidence", "95"],
        "--prior must lie strictly between 0 and 1, got 2.0.": ["evaluate", *lists, "--prior", "0.5", "2"],
        "--top must be at least 2, got 1.": ["calibrate", *lists, "--top", "1"],
        "--minimum-speech must be a finite number of at least 0": ["calibrate", *lists, "--minimum-speech=-1"],
    }
    for message, (code, heavy, out, err) in zip(refused, answers(*refused.values()), strict=True):
        assert (code, heavy, out) == (2, [], ""), message
        assert message in err


@pytest.mark.parametrize("content", ["{", "[]", '{"operating_points": [1]}', "[" * 100_000])
def test_a_damaged_calibration_is_left_to_the_loading_of_the_model(content, tmp_path):
    (tmp_path / "verification.json").write_text(content)
    options.check_operating_point(argparse.Namespace(model=str(tmp_path), operating_point="nosuch"))


def test_export_says_first_what_it_does(hamspk, monkeypatch, model_folder, tmp_path):
    def fail(*_):
        raise ValueError("stop")

    monkeypatch.setattr("hf_hamspk.loading.models.load_model", fail)
    code, out, err = hamspk("export", model_folder, tmp_path / "x.onnx")
    assert (code, err) == (2, "hamspk: error: stop\n")
    assert out == f"exporting {model_folder} to {tmp_path / 'x.onnx'}, and comparing the two ...\n"


def test_no_message_advises_to_delete_a_folder_that_may_contain_other_files(refusal, model_folder, audio, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "own.txt").touch()
    (tmp_path / "pairs.txt").write_text("1 a.wav b.wav\n")
    pairs = tmp_path / "pairs.txt", "--audio-root", audio
    for words in (["calibrate", model_folder, *pairs], ["demo"], ["push", model_folder, "owner/name"]):
        said = refusal(*words, "--output", tmp_path / "full")
        assert "full" in said and "folder" in said.lower()
        assert not any(word in said.lower() for word in ("delete", "remove", "empty it")), said
    assert (tmp_path / "full" / "own.txt").exists()


@pytest.mark.parametrize("name", ["nowhere.wav", "", "x" * 201, "/dev/null"])
def test_a_missing_recording_is_refused_in_the_words_of_the_reader(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    name = name if name else str(tmp_path)
    with pytest.raises(InputError) as said:
        read_sound(name, 16_000, "The test")
    with pytest.raises(ValueError) as cheap:
        options.check_recording(name, "The test")
    assert str(cheap.value) == str(said.value)


def test_choices_are_those_of_the_package():
    from hf_hamspk.audio_hamspk import MINIMUM_SPEECH
    from hf_hamspk.backends.choosing import BACKENDS, DTYPES
    from hf_hamspk.calibration_hamspk import (
        CALIBRATION_FILE,
        DEFAULT_OPERATING_POINTS,
        NORMALISATIONS,
        SMALLEST_COHORT,
    )
    from hf_hamspk.conversion import SOURCES
    from hf_hamspk.embedding import EMBEDDING_FORMATS
    from hf_hamspk.encoders_hamspk import OVERLAP_FILE
    from hf_hamspk.evaluation.intervals import FEWEST_REPLICATES
    from hf_hamspk.evaluation.model_calibration import AUTO, NONE
    from hf_hamspk.evaluation.scored_trials import QUALITY_GROUPS
    from hf_hamspk.geometry_hamspk import COMBINATIONS
    from hf_hamspk.shards import manifest
    from hf_hamspk.shards.listing import LAYOUTS
    from hf_hamspk.verification_hamspk import PROFILE_SUFFIX, REFUSE

    assert verify.COMBINE_CHOICES == COMBINATIONS
    assert options.PROFILE_EXTENSION == PROFILE_SUFFIX
    assert (AUTO, *NORMALISATIONS) == calibrate.NORMALISATION_CHOICES
    assert (AUTO, NONE, *QUALITY_GROUPS) == calibrate.QUALITY_CHOICES
    points = (f"{p.name}={p.prior:g},{p.cost_miss:g},{p.cost_false_alarm:g}" for p in DEFAULT_OPERATING_POINTS)
    assert ", ".join(points) == calibrate.DEFAULT_POINTS
    assert calibrate._STALE[0] == options.VERIFICATION_FILE == CALIBRATION_FILE
    assert (options.LEAST_TOP, options.LEAST_REPLICATES) == (SMALLEST_COHORT, FEWEST_REPLICATES)
    assert f"(default: {MINIMUM_SPEECH:g})" in help_of("calibrate")["minimum_speech"]
    assert embed.OUTPUT_FORMATS == EMBEDDING_FORMATS
    assert (embed.EMBEDDING_BACKENDS, embed.PRECISIONS) == (BACKENDS, DTYPES)
    assert tuple(manifest.FORMATS) == prepare.SHARD_FORMATS
    assert (prepare.SHARD_CODECS, prepare.SHARD_LAYOUTS) == (manifest.CODECS, LAYOUTS)
    assert tuple(SOURCES) == convert.SOURCE_KINDS
    assert convert.OVERLAP_DETECTOR_FILE == OVERLAP_FILE
    assert options.CHECKS_OF_VOICES["refuse"] == REFUSE


def help_of(command: str) -> dict[str, str]:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"hf_hamspk.cli.{command}").add_arguments(parser)
    return {action.dest: action.help for action in parser._actions if action.help is not None}


def defaults(function) -> dict[str, object]:
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


def test_defaults_in_the_help_are_those_of_the_functions():
    from hf_hamspk.calibration_hamspk import OperatingPoint
    from hf_hamspk.embedding import extract
    from hf_hamspk.shards.planning import PrepareOptions
    from hf_hamspk.verification_hamspk import SpeakerIdentifier, SpeakerVerifier

    said, given = help_of("prepare"), defaults(PrepareOptions)
    for name in (
        "format",
        "codec",
        "sampling_rate",
        "speaker_level",
        "split",
        "rows_per_group",
        "min_duration",
        "seed",
    ):
        assert f"(default: {given[name]}" in said[name], name
    assert f"(default: {given['shard_bytes'] // 2**20})" in said["shard_size"]
    for name in ("batch_seconds", "workers"):
        assert f"(default: {defaults(extract)[name]:g})" in help_of("embed")[name]
    assert f"(default: {defaults(SpeakerIdentifier.identify)['candidates']})" in help_of("identify")["candidates"]
    assert defaults(SpeakerVerifier.verify_pairs)["combine"] == "mean"
    for name in ("cost_miss", "cost_false_alarm"):
        assert f"(default: {defaults(OperatingPoint)[name]:g})" in help_of("verify")[name]


def test_the_copies_of_constants_are_equal():
    """The originals are in modules that import torch."""
    assert options.VERIFICATION_FILE == CALIBRATION_FILE
    assert options.LEAST_REPLICATES == FEWEST_REPLICATES
