"""The same recording gets the same answer at every door: the command line, the pipeline, and Python."""

import base64
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from datasets import Dataset
from strange_files import CASES, NEEDING_AV, NO_FILES, RATE, SECONDS, Case
from tiny_models import save_calibrated_model
from transformers import pipeline

import hf_hamspk.loading.models
from hf_hamspk import HamSpkModel
from hf_hamspk.__main__ import main
from hf_hamspk.audio_hamspk import InputError, Limits, MissingDecoderError
from hf_hamspk.data.corpus import check_corpus
from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.embedding import AudioFiles
from hf_hamspk.evaluation.verification import embed_files
from hf_hamspk.publishing.handler import LONGEST_SECONDS, EndpointHandler

NEEDS_AV = {case.name for case in NEEDING_AV}
NUMBERS = ("score", "normalised_score", "log_likelihood_ratio", "threshold", "test_speech")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_calibrated_model(tmp_path_factory.mktemp("doors") / "final")


@pytest.fixture(scope="module")
def model(folder) -> HamSpkModel:
    return HamSpkModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def verify(folder) -> Any:
    """The pipeline as a stranger has it, with the code that lies beside the weights."""
    return pipeline("speaker-verification", model=str(folder), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def handler(folder) -> EndpointHandler:
    return EndpointHandler(str(folder))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """A folder with an ordinary recording, to which strange ones are added when they are needed."""
    root = tmp_path_factory.mktemp("recordings")
    soundfile.write(root / "ordinary.wav", make_speech(1, 1, SECONDS + 0.1), RATE)
    return root


@pytest.fixture
def command_line(monkeypatch, capsys, folder, model) -> Callable[[str, str], Any]:
    """`hamspk verify`, in this process and with a model that is loaded already."""
    monkeypatch.setattr(hf_hamspk.loading.models, "load_model", lambda name, device: model)

    def run(enrolment: str, test: str) -> Any:
        code = main(["verify", str(folder), enrolment, test, "--json"])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        if code == 0:
            return json.loads(out)
        assert code == 2 and out == ""
        assert err.startswith("hamspk: error: ") and err.endswith("\n")
        return err[len("hamspk: error: ") : -1]

    return run


def answer_or_refusal(ask: Callable[..., Any], *words: Any) -> Any:
    """The answer as a dictionary, or the sentence of the refusal."""
    try:
        answer = ask(*words)
    except ValueError as error:
        return str(error)
    return answer if isinstance(answer, dict) else answer.to_dict()


def path_of(case: Case, root: Path) -> str:
    """The path of a case, which is written there."""
    if case.name in NEEDS_AV:
        pytest.importorskip("av")
    path = root / case.name
    if not os.path.lexists(path):
        case.write(path)
    return case.path if case.path else str(path)


def check_same(first: Any, second: Any) -> None:
    """The same refusal, or the same decision, numbers and warnings."""
    assert type(first) is type(second), (first, second)
    if isinstance(first, str):
        assert first == second
        return
    assert first.keys() == second.keys()
    for name in first:
        expected = pytest.approx(second[name], abs=1e-6) if name in NUMBERS else second[name]
        assert first[name] == expected, name


def check_expected(answer: Any, case: Case, label: str) -> None:
    """What the case says that happens, happens."""
    if case.refusal:
        assert isinstance(answer, str), answer
        assert answer.startswith(f"{label}{'' if case.name == 'unprintable' else ' '}")
        assert case.refusal in answer
        return
    assert isinstance(answer, dict), answer
    about_it = [warning for warning in answer["warnings"] if warning.startswith(label)]
    others = [warning for warning in about_it if "s of speech. Errors are more frequent below 3 s" not in warning]
    if case.warning:
        assert any(case.warning in warning for warning in about_it), about_it
    else:
        assert others == []
    assert (answer["decision"] == "not enough speech") == ("a decision needs at least" in " ".join(answer["warnings"]))


def cases(of: list[Case]) -> list:
    """As parameters, of which the fast suite tests every third that is not slow by itself."""
    quick = [one.name for one in of if not one.is_slow][::3]
    return [pytest.param(one, marks=() if one.name in quick else pytest.mark.slow, id=one.name) for one in of]


@pytest.mark.parametrize("case", cases(CASES))
def test_as_the_test(case, recordings, command_line, verify, model):
    ordinary, strange = str(recordings / "ordinary.wav"), path_of(case, recordings)
    answer = answer_or_refusal(model.verify, ordinary, strange)
    check_expected(answer, case, "The test")
    check_same(command_line(ordinary, strange), answer)
    check_same(answer_or_refusal(verify, (ordinary, strange)), answer)


ENROLMENTS = ("gsm.wav", "two-people.wav", "cut.wav", "silence.wav", "clipped.wav", "nan.wav", "text.wav", "pipe.wav")


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ENROLMENTS], ids=lambda case: case.name)
def test_as_the_enrolment(case, recordings, command_line, verify, model):
    ordinary, strange = str(recordings / "ordinary.wav"), path_of(case, recordings)
    answer = answer_or_refusal(model.verify, strange, ordinary)
    check_expected(answer, case, "The enrolment")
    check_same(command_line(strange, ordinary), answer)
    check_same(answer_or_refusal(verify, (strange, ordinary)), answer)


# Every fourth recording, and those that are refused for their content.
SENT = [
    case
    for i, case in enumerate(CASES)
    if case not in NO_FILES and not case.is_slow and (i % 4 == 0 or case.refusal or case.corpus)
]


@pytest.mark.parametrize("case", cases(SENT))
def test_as_bytes_at_the_endpoint(case, recordings, handler, model):
    ordinary, strange = str(recordings / "ordinary.wav"), path_of(case, recordings)
    sent = {"enrolment": encoded(ordinary), "test": encoded(strange)}
    # The endpoint takes less, and knows no path.
    limits = Limits(seconds=LONGEST_SECONDS)
    answer = answer_or_refusal(lambda: model.verify(ordinary, strange, limits=limits))
    expected = answer.replace(f"The test {strange}:", "The test:") if isinstance(answer, str) else answer
    check_same(answer_or_refusal(lambda: handler({"inputs": sent})), expected)


def encoded(path: str) -> str:
    """The content of a file, as it is sent."""
    return base64.b64encode(Path(path).read_bytes()).decode()


@pytest.mark.parametrize("case", cases(SENT))
def test_embedded(case, recordings, verify, model):
    path = path_of(case, recordings)
    of_pipeline = embedding_or_reason(lambda: verify(path, return_embeddings=True)["embedding"])
    of_model = embedding_or_reason(lambda: model.embed([path])[0].cpu().numpy())
    if isinstance(of_model, str):
        expected = case.refusal if case.refusal else case.corpus
        assert expected is not None and expected in of_model
        assert of_pipeline == of_model.replace("Recording 1", "The recording")
    else:
        np.testing.assert_allclose(of_pipeline, of_model, atol=1e-6)


def embedding_or_reason(embed: Callable[[], np.ndarray]) -> np.ndarray | str:
    """The embedding, or the sentence of the refusal."""
    try:
        return embed()
    except ValueError as error:
        return str(error)


def test_in_a_corpus(recordings, model):
    """Checking a corpus, embedding files and evaluation leave the same files out, for the same reasons."""
    unusable = {path_of(case, recordings): case for case in [*SENT, *NO_FILES] if case.refusal or case.corpus}
    paths = [*unusable, str(recordings / "ordinary.wav"), path_of(CASES[0], recordings)]
    checked = check_corpus(Dataset.from_dict({"path": paths, "speaker": [*("a" * len(unusable)), "b", "c"]}))
    reasons = {file.path: file.reason for file in checked.bad}
    assert reasons.keys() == unusable.keys()
    for path, case in unusable.items():
        assert (case.refusal if case.corpus is None else case.corpus) in reasons[path]
    files = AudioFiles(paths, RATE)
    assert {path: files.read(i)[0].reason for i, path in enumerate(paths[:-2])} == reasons
    assert embed_files(model, paths, progress=False).failures == reasons
    for path, reason in reasons.items():
        # Other limits hold for one recording than for one of a corpus.
        if "lasts" not in unusable[path].refusal:
            with pytest.raises(InputError) as error:
                model.embed([path])
            assert error.value.reason == reason


def test_without_pyav(monkeypatch, recordings, command_line, verify, handler, model):
    case = NEEDING_AV[0]
    ordinary, strange = str(recordings / "ordinary.wav"), path_of(case, recordings)
    # The pipeline and the endpoint run the code that lies beside the weights.
    for error in {InputError, verify.input_error, handler.pipeline.input_error}:
        monkeypatch.setattr(sys.modules[error.__module__], "av", None)
    with pytest.raises(MissingDecoderError, match=r"which soundfile does not decode\. Run `pip install av`") as error:
        model.verify(ordinary, strange)
    answer = str(error.value)
    assert command_line(ordinary, strange) == answer
    with pytest.raises(verify.input_error) as of_pipeline:
        verify((ordinary, strange))
    assert str(of_pipeline.value) == answer
    sent = {"enrolment": encoded(ordinary), "test": encoded(strange)}
    assert answer_or_refusal(lambda: handler({"inputs": sent})) == answer.replace(f" {strange}", "")
    assert AudioFiles([strange], RATE).read(0)[0].reason == error.value.reason


WARNED = ("gsm.wav", "two-people.wav", "cut.wav", "clipped.wav")


@pytest.mark.parametrize("case", [case for case in CASES if case.name in WARNED], ids=lambda case: case.name)
def test_identified_and_enrolled(case, recordings, tmp_path, command_line, verify, folder, model, capsys):
    ordinary, strange = str(recordings / "ordinary.wav"), path_of(case, recordings)
    profile = model.enrol([ordinary], name="anna")
    profile.save(tmp_path / "anna.safetensors")
    assert main(["identify", str(folder), strange, "--profiles", str(tmp_path), "--json"]) == 0
    warnings = json.loads(capsys.readouterr().out)[strange]["warnings"]
    assert warnings == model.identify(strange, [profile]).warnings
    of_pipeline = verify((ordinary, strange))["warnings"]
    about_it = [warning for warning in of_pipeline if warning.startswith("The test")]
    of_profile = [f"At the enrolment of anna: {warning}" for warning in profile.warnings]
    assert warnings[len(warnings) - len(of_profile) :] == of_profile
    warnings = warnings[: len(warnings) - len(of_profile)]
    assert [warning.replace("The recording", "The test") for warning in warnings] == about_it
    assert main(["enrol", str(folder), strange, "--name", "bert", "--profiles", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    enrolled = [line.removeprefix("  warning: ") for line in lines if line.startswith("  warning: ")]
    assert enrolled == list(model.enrol([strange]).warnings)
    assert enrolled == [warning.replace("The test", "The enrolment") for warning in about_it]
