"""The functions of the Space: what is read, what is said, where the score is placed."""

import ast
import re
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from tiny_models import RATE

from hf_hamspk import HamSpkModel
from hf_hamspk.audio_hamspk import resample
from hf_hamspk.calibration_hamspk import OperatingPoint
from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.verification_hamspk import DIFFERENT, NOT_ENOUGH_SPEECH, SAME, Verification

HISTOGRAM = {"edges": [0.0, 1.0, 2.0, 4.0], "targets": [0, 2, 8], "impostors": [6, 4, 0]}


@pytest.fixture(scope="module")
def model(verdict, model_folder):
    return verdict.load_model(str(model_folder))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> list[str]:
    """Speech of two synthetic speakers, silence."""
    folder = tmp_path_factory.mktemp("recordings")
    waves = [make_speech(0, 0, 3.0, RATE), make_speech(1, 1, 3.0, RATE), np.zeros(RATE, dtype=np.float32)]
    for i, wave in enumerate(waves):
        soundfile.write(folder / f"{i}.wav", wave, RATE, subtype="FLOAT")
    return [str(folder / f"{i}.wav") for i in range(len(waves))]


def answer(**given) -> Verification:
    values = dict(score=0.5, normalised_score=None, log_likelihood_ratio=3.0, decision=SAME, operating_point="strict")
    values |= dict(threshold=1.0, enrolment_speech=[2.0], test_speech=3.0, warnings=[])
    return Verification(**(values | given))


def test_the_answer_is_that_of_the_model(verdict, model, recordings):
    waves = [soundfile.read(path, dtype="float32")[0] for path in recordings]
    for first, second in ((0, 1), (0, 0), (0, 2)):
        found = verdict.compare(model, recordings[first], recordings[second])
        expected = model.verifier().verify([waves[first]], waves[second], RATE)
        assert found.to_dict() == expected.to_dict()
    strict = verdict.compare(model, *recordings[:2], "strict")
    assert strict.operating_point == "strict" and strict.threshold == pytest.approx(4.595, abs=1e-3)


def test_a_model_that_nobody_calibrated_decides_nothing(verdict, recordings, model_folder):
    plain = HamSpkModel.from_pretrained(model_folder)
    plain.calibration = None
    assert verdict.points_of(plain) == []
    found = verdict.compare(plain, *recordings[:2])
    page = verdict.verdict_html(plain, found)
    assert found.decision is None and "A score, no decision" in page and "There is no decision" in page
    assert "no decisions" in verdict.describe_point(plain, None)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 2), (48000, 1), (16000, 3)])
def test_other_rates_and_channels_are_brought_to_the_models(verdict, model, recordings, tmp_path, rate, channels):
    wave = resample(make_speech(0, 1, 3.0, RATE), RATE, rate)
    path = str(tmp_path / "other.wav")
    soundfile.write(path, np.stack([wave] * channels, 1), rate, subtype="FLOAT")
    found = verdict.compare(model, recordings[0], path)
    assert found.to_dict() == model.verify(recordings[0], path).to_dict()
    assert found.score is not None


def test_what_cannot_be_read_is_said_without_its_path(verdict, model, recordings, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"no sound at all")
    soundfile.write(tmp_path / "long.flac", np.zeros(601 * 4000), 4000)
    for name, said in (("broken.wav", "cannot be decoded"), ("long.flac", "lasts 601 s; expected at most 120 s")):
        with pytest.raises(ValueError, match=f"^The test: {said}") as error:
            verdict.compare(model, recordings[0], str(tmp_path / name))
        assert "/" not in str(error.value).partition(" INPUT")[0]
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    assert verdict.compare(model, recordings[0], str(tmp_path / "empty.wav")).decision == NOT_ENOUGH_SPEECH


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {},
            [
                "ratio is 3.00",
                "20 times more probable if they are of one speaker than if they are of two",
                "reaches 1.00",
                "strict",
            ],
        ),
        (
            {"log_likelihood_ratio": -0.5, "decision": DIFFERENT},
            [
                "-0.50",
                "1.6 times more probable if they are of two speakers than if they are of one",
                "stays below 1.00",
            ],
        ),
        ({"log_likelihood_ratio": 99.0}, ["more than 1,000,000 times"]),
        (
            {"log_likelihood_ratio": None, "decision": None, "threshold": None},
            ["0.500 (cosine", "There is no decision"],
        ),
        ({"score": None, "decision": NOT_ENOUGH_SPEECH}, ["There is no score"]),
    ],
)
def test_the_meaning_is_said(verdict, model, given, said):
    text = " ".join(verdict.meaning_of(model, answer(**given)))
    for words in said:
        assert words in text


def test_the_page_holds_verdict_warnings_and_seconds(verdict, model):
    text = verdict.verdict_html(model, answer(warnings=["<b>The test</b> is noisy."], normalised_score=1.25))
    assert '<h2 class="same">Same speaker</h2>' in text
    assert "&lt;b&gt;The test&lt;/b&gt; is noisy." in text and "<b>" not in text
    assert "2.0 s" in text and "3.0 s" in text and "0.5000" in text and "1.2500" in text
    refused = verdict.verdict_html(model, answer(score=None, decision=NOT_ENOUGH_SPEECH, warnings=["Speak longer."]))
    assert '<h2 class="none">Not enough speech</h2>' in refused and "Speak longer." in refused
    assert "<script" not in verdict.error_html("<script>")


def test_an_operating_point_is_explained(verdict, model):
    assert verdict.points_of(model) == ["balanced", "strict", "screening"]
    assert "of the same speaker is 1 %." in verdict.describe_point(model, "strict")
    assert "costs 1. The log-likelihood ratio must therefore reach -2.30" in (
        verdict.describe_point(model, "screening")
    )


def test_a_useless_operating_point_has_a_warning(verdict, model_folder, recordings):
    model = HamSpkModel.from_pretrained(model_folder)
    never = OperatingPoint("never", 0.5, miss_rate=1.0, false_alarm_rate=0.0)
    model.calibration = replace(model.calibration, operating_points=(never, OperatingPoint("even", 0.5)))
    assert verdict.describe_point(model, "never").startswith("**The operating point never accepts nobody:")
    assert "**" not in verdict.describe_point(model, "even")
    assert never.flaw in verdict.verdict_html(model, verdict.compare(model, *recordings[:2], "never"))


def test_where_there_is_no_histogram_the_reason_is_said(verdict, model, model_folder, tmp_path):
    fingerprint = model.fingerprint()
    assert verdict.read_evaluation(str(tmp_path)) is None
    evaluation = verdict.read_evaluation(str(model_folder))
    assert list(verdict.histograms_of(evaluation, fingerprint)[0]) == ["test-a", "test-b"]
    for given, said in (
        (None, "has no evaluation.json"),
        (evaluation, "measured with other weights or settings"),
        ({"lists": {"test": {"eer": 0.1}}}, "contains no histogram"),
        ({}, "contains no histogram"),
    ):
        found, why = verdict.histograms_of(given, "another" if given is evaluation else fingerprint)
        assert found == {} and said in why


def test_ratios_are_placed_where_they_were_measured_with_this_calibration(verdict, model, model_folder):
    evaluation = verdict.read_evaluation(str(model_folder))
    checksum = model.calibration.to_dict()["checksum"]
    for calibration, kind in ((checksum, "log-likelihood ratio"), ("another", "cosine"), (None, "cosine")):
        found, _ = verdict.histograms_of(evaluation, model.fingerprint(), calibration)
        assert [values["scores"] for values in found.values()] == [kind, "cosine"]
    # As version 0.1.0 wrote it.
    old = {"lists": {"test": {"scores": "log-likelihood ratio", "histogram": HISTOGRAM, "raw": {"scores": "cosine"}}}}
    found, _ = verdict.histograms_of(old, model.fingerprint(), checksum)
    assert found == {"test": {"scores": "log-likelihood ratio", "histogram": HISTOGRAM}}


def test_the_score_is_placed_on_a_histogram_of_its_kind(verdict):
    ratios, scores = {"scores": "log-likelihood ratio", "histogram": HISTOGRAM}, {"scores": "cosine"}
    assert verdict.place_on(ratios, answer()) == (3.0, 1.0)
    assert verdict.place_on(scores, answer()) == (0.5, None)
    assert verdict.place_on(ratios, answer(log_likelihood_ratio=None, threshold=None)) == (None, None)
    assert "60.0 % of the pairs of one speaker scored lower" in verdict.histogram_sentence("t", ratios, answer())
    assert "There is no score" in verdict.histogram_sentence("t", ratios, answer(score=None, log_likelihood_ratio=None))
    lines = verdict.draw_histogram("t", ratios, answer()).axes[0].lines
    assert [line.get_xdata()[0] for line in lines] == [1.0, 3.0]
    assert len(verdict.draw_histogram("t", ratios).axes[0].lines) == 0


def test_shares_are_counts(verdict):
    draw = np.random.default_rng(5)
    targets, impostors = draw.normal(2, 1, 500), draw.normal(-2, 1, 700)
    edges = np.linspace(-7, 7, 57)
    counts = {
        kind: np.histogram(of, edges)[0].tolist() for kind, of in (("targets", targets), ("impostors", impostors))
    }
    for value in (*edges[1:-1:5], -99.0, 99.0):
        lower, higher = verdict.shares({"edges": edges.tolist()} | counts, value)
        assert lower == pytest.approx((targets < value).mean()) and higher == pytest.approx((impostors >= value).mean())


def test_the_space_needs_nothing_of_this_package(space):
    for path in space.glob("*.py"):
        names = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert not any(str(name).startswith("hf_hamspk") for name in names)
        assert "import hf_hamspk" not in path.read_text()


def test_the_front_matter_is_that_of_a_space(space):
    data = SpaceCard.load(space / "README.md").data
    assert data.sdk == "gradio" and (space / data.app_file).is_file() and data.license == "apache-2.0"
    assert len(data.short_description) <= 60 and re.fullmatch(r"\d+\.\d+\.\d+", data.sdk_version)
    wanted = {one.name: one for one in map(Requirement, (space / "requirements.txt").read_text().splitlines())}
    assert wanted["gradio"].specifier.contains(data.sdk_version)


def test_the_space_asks_for_the_versions_of_the_package(space):
    project = tomllib.loads((space.parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ours = [*project["dependencies"], *extras["space"], *extras["m4a"]]
    known = {one.name: one.specifier for one in map(Requirement, ours)}
    for line in (space / "requirements.txt").read_text().splitlines():
        one = Requirement(line)
        assert known[one.name] == one.specifier, one.name
