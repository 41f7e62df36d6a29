"""The answer of a verifier: what it rests on, and what it says of recordings that nobody should decide on."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from parameters import thinned
from speakers import RATE, SIZE, KnownSpeakers, calibration_of, mark, say

from hf_hamspk import HamSpkConfig
from hf_hamspk.audio_hamspk import Sound, SpeechMeasures, measure_speech
from hf_hamspk.calibration_hamspk import Cohort, OperatingPoint, Quality, Scorer
from hf_hamspk.geometry_hamspk import combine_embeddings, mean_direction
from hf_hamspk.verification_hamspk import (
    DIFFERENT,
    LOW_SNR_DB,
    NOT_ENOUGH_SPEECH,
    SAME,
    SHORT_SPEECH,
    VOICE_SECONDS,
    DecisionRule,
    MeasuredRecording,
    SpeakerProfile,
    SpeakerVerifier,
    cohesion_warnings,
    measure_and_embed,
    quality_warnings,
)

ANNA, BERT = 1, 2
QUALITY = Quality(4.0, 30.0, 1.0)


@pytest.fixture(scope="module")
def voices() -> dict[str, np.ndarray]:
    return {f"{name}{i}": say(number, i) for name, number in (("anna", ANNA), ("bert", BERT)) for i in range(4)}


@pytest.fixture
def model():
    return KnownSpeakers()


@pytest.fixture
def verifier(model):
    return SpeakerVerifier(model, calibration_of(model))


def about(answer, text: str) -> list[str]:
    return [warning for warning in answer.warnings if text in warning]


def test_one_speaker_and_two(verifier, model, voices):
    same = verifier.verify([voices["anna0"]], voices["anna1"], RATE)
    other = verifier.verify([voices["anna0"]], voices["bert0"], RATE)
    assert (same.decision, other.decision) == (SAME, DIFFERENT)
    embeddings = model.embed_waveforms([voices["anna0"], voices["anna1"]])
    assert same.score == pytest.approx(float(model.score(*embeddings)), abs=1e-6)
    assert same.log_likelihood_ratio == pytest.approx(20 * same.score - 10)
    assert (same.operating_point, same.threshold, same.normalised_score) == ("balanced", 0.0, None)
    assert same.enrolment_speech == [measure_speech(voices["anna0"], RATE).speech]
    assert same.test_speech == measure_speech(voices["anna1"], RATE).speech
    assert same.to_dict()["decision"] == SAME


def test_one_pair_and_many_pairs_are_the_same_and_nothing_is_embedded_twice(verifier, model, voices):
    pairs = [([voices["anna0"], voices["anna2"]], voices["bert0"]), ([voices["bert0"]], voices["anna0"])]
    alone = [verifier.verify(*pair, RATE) for pair in pairs]
    verifier.check_voices, model.embedded = False, 0
    together = verifier.verify_pairs(pairs, RATE)
    assert model.embedded == 3
    for one, other in zip(alone, together, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        assert one.decision == other.decision


@pytest.mark.parametrize(
    ("asked", "threshold", "name"),
    [
        ({}, 0.0, "balanced"),
        ({"operating_point": "strict"}, math.log(99), "strict"),
        ({"operating_point": OperatingPoint("door", 0.1, 1.0, 10.0)}, math.log(90), "door"),
        ({"threshold": 0.3}, 0.3, None),
    ],
)
def test_where_the_decision_is_made(verifier, voices, asked, threshold, name):
    for test in ("anna1", "bert0"):
        answer = verifier.verify([voices["anna0"]], voices[test], RATE, **asked)
        assert (answer.threshold, answer.operating_point) == (pytest.approx(threshold), name)
        compared = answer.score if name is None else answer.log_likelihood_ratio
        assert answer.decision == (SAME if compared >= threshold else DIFFERENT)


def test_the_threshold_itself_is_accepted(verifier, voices):
    pair = [voices["anna0"]], voices["bert0"], RATE
    score = verifier.verify(*pair).score
    assert verifier.verify(*pair, threshold=score).decision == SAME
    assert verifier.verify(*pair, threshold=math.nextafter(score, 2)).decision == DIFFERENT
    point = OperatingPoint("own", 0.1)
    rule, above = DecisionRule(point, point.threshold), math.nextafter(point.threshold, 9)
    assert rule.accepts(-9.0, point.threshold) and not DecisionRule(point, above).accepts(9.0, point.threshold)


def test_a_rule_without_its_evidence_decides_nothing():
    point = OperatingPoint("own", 0.1)
    assert DecisionRule(point, point.threshold).accepts(0.5, None) is None
    assert DecisionRule(None, None).accepts(0.5, 3.0) is None
    assert DecisionRule(None, 0.4).accepts(0.5, None) is True
    assert DecisionRule(None, 0.4).accepts(0.3, 3.0) is False


def test_without_a_calibration_nothing_is_decided(model, voices):
    plain = SpeakerVerifier(model)
    answer = plain.verify([voices["anna0"]], voices["anna1"], RATE)
    assert answer.score > 0.9
    assert (answer.decision, answer.log_likelihood_ratio, answer.threshold) == (None, None, None)
    assert plain.verify([voices["anna0"]], voices["anna1"], RATE, threshold=0.5).decision == SAME
    for point in ("strict", OperatingPoint("own", 0.5)):
        with pytest.raises(ValueError, match="this model is not calibrated"):
            plain.verify([voices["anna0"]], voices["anna1"], RATE, operating_point=point)


# -- recordings that nobody should decide on ----------------------------------------------------------------------


def not_speech() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    time = np.arange(3 * RATE) / RATE
    return {
        "empty": np.zeros(0),
        "silence": np.zeros(3 * RATE),
        "noise": 0.1 * draw.standard_normal(3 * RATE),
        "tone": 0.3 * np.sin(2 * np.pi * 300 * time),
        "0.3 s of speech": say(ANNA, 0)[RATE : RATE + 4800],
    }


@pytest.mark.parametrize("name", not_speech())
@pytest.mark.parametrize("calibrated", thinned([True, False]))
def test_not_enough_speech(model, voices, name, calibrated):
    verifier = SpeakerVerifier(model, calibration_of(model) if calibrated else None)
    wave = not_speech()[name].astype(np.float32)
    for enrolment, test, side in ((wave, voices["anna0"], "enrolment"), (voices["anna0"], wave, "test")):
        for asked in ({}, {"threshold": -1.0}):
            answer = verifier.verify([enrolment], test, RATE, **asked)
            assert answer.decision == NOT_ENOUGH_SPEECH
            assert (answer.score, answer.log_likelihood_ratio, answer.threshold) == (None, None, None)
            assert about(answer, f"The {side} has")
    with pytest.raises(ValueError, match="Not enough speech to enrol a speaker"):
        verifier.enrol([wave], RATE)


def test_the_gate_is_the_calibrations(model, voices):
    strict = SpeakerVerifier(model, calibration_of(model, minimum_speech=30.0))
    assert strict.verify([voices["anna0"]], voices["anna1"], RATE).decision == NOT_ENOUGH_SPEECH


def test_two_people_who_take_turns(verifier, voices):
    turns = mark(np.concatenate([voices["anna0"], voices["bert0"]]), ANNA)
    turns[len(voices["anna0"]) :] += (BERT - ANNA) / 65536
    answer = verifier.verify([voices["anna1"]], turns, RATE)
    assert answer.decision in (SAME, DIFFERENT)
    assert about(answer, "The test seems to contain several voices")
    assert about(verifier.verify([turns], voices["anna1"], RATE), "The enrolment seems to contain several voices")
    alone = np.concatenate([voices["anna0"], voices["anna1"]])
    assert not about(verifier.verify([voices["anna2"]], alone, RATE), "several voices")
    unchecked = SpeakerVerifier(verifier.model, verifier.calibration, check_voices=False)
    assert not about(unchecked.verify([voices["anna1"]], turns, RATE), "several voices")


def test_voices_are_compared_only_if_two_pieces_contain_speech(verifier, voices):
    """All speech in the first half of a long recording leaves one piece, which has nothing to be compared with."""
    silence = np.zeros(5 * RATE, np.float32)
    one = mark(np.concatenate([voices["anna0"], silence]), ANNA)
    two = mark(np.concatenate([voices["anna0"], silence[:RATE], voices["anna1"], silence[:RATE]]), ANNA)
    assert measure_speech(one, RATE).speech >= 2 * VOICE_SECONDS
    ((first, second),) = measure_and_embed(verifier.model, [[Sound(one, RATE), Sound(two, RATE)]], True)
    assert first.pieces is None
    assert second.pieces is not None and len(second.pieces) >= 2
    assert not about(verifier.verify([voices["anna2"]], one, RATE), "several voices")


def test_two_people_at_once_get_a_decision_and_no_warning(verifier, voices):
    length = min(len(voices["anna0"]), len(voices["bert0"]))
    both = mark((voices["anna0"][:length] + voices["bert0"][:length]) / 2, ANNA)
    answer = verifier.verify([voices["anna1"]], both, RATE)
    assert answer.decision == SAME
    assert not about(answer, "several voices")


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [lambda w: w.copy(), lambda w: w * np.float32(0.25), lambda w: np.round(w * 2048) / 2048]
)
def test_the_same_recording_twice(verifier, voices, change):
    wave = voices["anna0"]
    again = change(wave).astype(np.float32)
    assert about(verifier.verify([wave], again, RATE), "The enrolment and the test are the same recording")
    answer = verifier.verify([voices["anna1"], wave], again, RATE)
    assert about(answer, "Enrolment recording 2 and the test are the same recording")
    assert about(
        verifier.verify([wave, again], voices["anna1"], RATE), "Enrolment recording 2 is the same recording as"
    )
    assert not about(verifier.verify([voices["anna1"]], wave, RATE), "same recording")
    profile = verifier.enrol([wave], RATE)
    assert about(verifier.verify(profile, wave, RATE), "A recording of the profile and the test are the same recording")


def test_a_clipped_recording(verifier, voices):
    loud = mark(np.clip(voices["anna0"] * 8, -0.5, 0.5), ANNA)
    answer = verifier.verify([voices["anna1"]], loud, RATE)
    assert answer.decision == SAME
    share = measure_speech(loud, RATE).clipped
    assert share > 0.01
    assert about(answer, f"The test is clipped in {share:.1%} of its samples")


def test_short_and_noisy_recordings_get_warnings(verifier, voices):
    short = voices["anna0"][: 2 * RATE]
    assert about(verifier.verify([short], voices["anna1"], RATE), "Errors are more frequent below 3 s")
    noise = np.random.default_rng(0).standard_normal(len(voices["anna0"]))
    noisy = mark(voices["anna0"] + 0.5 * np.std(voices["anna0"]) * noise, ANNA)
    assert about(verifier.verify([voices["anna1"]], noisy, RATE), "The test is noisy")


# -- several recordings, and profiles -------------------------------------------------------------------------------


def test_several_recordings_and_their_profile_are_the_same(verifier, voices):
    enrolment = [voices[f"anna{i}"] for i in range(3)]
    profile = verifier.enrol(enrolment, RATE, name="Anna")
    files, kept = (verifier.verify(side, voices["anna3"], RATE) for side in (enrolment, profile))
    assert files.score == pytest.approx(kept.score, abs=1e-6)
    assert files.enrolment_speech == pytest.approx(kept.enrolment_speech)
    assert about(files, "The enrolment has 3 recordings, but the calibration was measured with 1")
    assert (profile.name, profile.utterances, profile.fingerprint) == ("Anna", 3, verifier.fingerprint)


@pytest.mark.slow
@pytest.mark.parametrize("combine", ["mean", "length_weighted", "barycentre"])
def test_more_recordings_are_nearer_to_the_speaker(voices, combine):
    verifier = SpeakerVerifier(noisy := KnownSpeakers(noise=1.0), calibration_of(noisy))
    test = voices["anna3"]
    one = np.mean([verifier.verify([voices[f"anna{i}"]], test, RATE).score for i in range(3)])
    assert verifier.verify([voices[f"anna{i}"] for i in range(3)], test, RATE, combine=combine).score > one


def test_a_stranger_among_the_enrolment_is_named(verifier, voices):
    mixed = [voices["anna0"], voices["bert0"], voices["anna1"]]
    assert verifier.enrol(mixed, RATE).warnings == (
        "Enrolment recording 2 does not fit the other recordings and may be of another speaker. Listen to it.",
    )
    assert "do not fit each other" in verifier.enrol(mixed[:2], RATE).warnings[0]
    left_out = verifier.enrol([voices["anna0"], np.zeros(RATE, np.float32)], RATE)
    assert left_out.warnings[0] == "Enrolment recording 2 was ignored: it has only 0.0 s of speech."
    assert left_out.utterances == 1


@pytest.mark.parametrize("counts", [(2, 2), (3, 3), (5, 4)])
def test_two_speakers_with_several_recordings_each_are_noticed(model, counts):
    """Every recording fits the others, because some of them are of the same speaker."""
    draw = torch.Generator().manual_seed(0)
    speakers = torch.eye(2, SIZE).repeat_interleave(torch.tensor(counts), dim=0)
    embeddings = speakers + 0.05 * torch.randn(speakers.shape, generator=draw)
    scorer = Scorer(model, calibration_of(model, weights={"score": 8.0}, offset=-1.0))

    def found(rows):
        return cohesion_warnings(
            rows, [QUALITY] * len(rows), [str(i) for i in range(len(rows))], mean_direction, scorer
        )

    count, order = len(embeddings), torch.randperm(len(embeddings), generator=draw)
    said = f"The {count} enrolment recordings do not fit each other and may be of several speakers. Check them."
    for rows in (embeddings, embeddings[order], 100 * embeddings):
        assert found(rows) == [said]
    assert found(embeddings[: counts[0]]) == found(embeddings[counts[0] :]) == []
    assert found(embeddings[:1].expand(4, -1)) == []
    # That one of them is also unlike all others does not hide the two groups.
    embeddings[0] += 0.8 * torch.eye(1, SIZE)[0].roll(5)
    scorer = Scorer(model, calibration_of(model, weights={"score": 8.0}, offset=-3.5))
    assert found(embeddings) == found(embeddings[order]) == [said]


def test_a_ratio_of_zero_is_no_sign_of_another_speaker(model):
    """Orthogonal embeddings have the cosine 0; the evidence for another speaker begins below it."""
    embeddings, qualities = torch.eye(3, SIZE), [QUALITY] * 3
    found = []
    for offset in (0.0, -1e-6):
        scorer = Scorer(model, calibration_of(model, weights={"score": 1.0}, offset=offset))
        found.append(cohesion_warnings(embeddings, qualities, ["A", "B", "C"], mean_direction, scorer))
    assert not found[0]
    assert len(found[1]) == 1


def test_a_profile_is_combined_in_the_ball_of_the_model(model, voices):
    model.config = HamSpkConfig(head="aam", projection="curved", curvature=0.7, clip_radius=2.0)
    waves = [voices[f"anna{i}"] for i in range(3)]
    profile = SpeakerVerifier(model).enrol(waves, RATE, combine="barycentre")
    expected = combine_embeddings(model.embed_waveforms(waves), "barycentre", None, "curved", 0.7, 2.0)
    torch.testing.assert_close(profile.embedding, expected)


def test_where_warnings_about_quality_begin():
    enough = SpeechMeasures(duration=5.0, speech=SHORT_SPEECH, snr_db=LOW_SNR_DB, clipped=0.0, level_db=-20.0)
    cases = [
        ({}, ""),
        ({"speech": math.nextafter(SHORT_SPEECH, 0)}, "2.9 s"),
        ({"snr_db": math.nextafter(LOW_SNR_DB, 0)}, "10 dB"),
    ]
    for changes, sentence in cases:
        recording = MeasuredRecording("0", np.zeros(1), replace(enough, **changes), None, None, [])
        sentences = quality_warnings(recording, "The test")
        assert len(sentences) == bool(sentence) and sentence in "".join(sentences)


def test_a_profile_names_its_model_without_the_folders_of_the_machine(tmp_path, verifier, voices):
    folder = tmp_path / "my-model"
    folder.mkdir()
    for name, expected in (("owner/name", "owner/name"), (f"{folder}/", "my-model"), ("", None)):
        verifier.model.config.name_or_path = name
        assert verifier.enrol([voices["anna0"]], RATE).model_id == expected


def test_short_speech_is_among_the_problems_unless_the_caller_leaves_it_out(voices):
    wave = voices["anna0"][: 2 * RATE]
    recording = MeasuredRecording("0", wave, measure_speech(wave, RATE), None, None, [])
    assert len(quality_warnings(recording, "The test")) == 1 + len(quality_warnings(recording, "The test", False))


def test_a_profile_comes_back_as_it_was_and_belongs_to_its_model(tmp_path, verifier, voices):
    profile = verifier.enrol([voices["anna0"], voices["anna1"]], RATE, name="Anna")
    profile = replace(profile, model_id="owner/name", revision="c" * 40)
    path = tmp_path / "anna.safetensors"
    profile.save(path)
    again = SpeakerProfile.load(path, verifier.fingerprint)
    assert torch.equal(again.embedding, profile.embedding)
    for name in (
        "name",
        "seconds",
        "snr_db",
        "magnitude",
        "combine",
        "fingerprint",
        "model_id",
        "revision",
        "recordings",
    ):
        assert getattr(again, name) == getattr(profile, name)
    message = r"The profile of 'Anna' \(model owner/name\) was made with other weights \(aaaaaaaaaaaa\) than"
    with pytest.raises(ValueError, match=message):
        SpeakerProfile.load(path, "b" * 64)
    other = KnownSpeakers("b" * 64)
    with pytest.raises(ValueError, match=message):
        SpeakerVerifier(other).verify(again, voices["anna2"], RATE)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="was altered: its tensor 'embedding'"):
        SpeakerProfile.load(path)
    Cohort(torch.randn(3, SIZE), "a").save(path)
    with pytest.raises(ValueError, match="contains the tensors"):
        SpeakerProfile.load(path)


def test_a_verifier_of_normalised_scores(model, voices):
    cohort = Cohort(torch.randn(40, SIZE), model.fingerprint())
    calibration = calibration_of(
        model, weights={"score": 1.0}, offset=-3.0, normalisation="as", top=20, cohort=cohort.checksum
    )
    answer = SpeakerVerifier(model, calibration, cohort).verify([voices["anna0"]], voices["anna1"], RATE)
    assert answer.log_likelihood_ratio == pytest.approx(answer.normalised_score - 3)
    assert answer.decision == SAME


# -- all pairs ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_pairs_have_the_scores_of_single_pairs(verifier, model, voices):
    """Row against column; recordings without enough speech have no scores, and the others keep their places."""
    weights = {"score": 20.0, "log_enrolment_utterances": 1.0, "snr_max": 0.01}
    verifier = SpeakerVerifier(model, calibration_of(model, weights=weights))
    waves = [voices["anna0"], np.zeros(RATE, np.float32), voices["bert0"], voices["anna1"]]
    found = verifier.compare(waves, RATE)
    assert found.scores.shape == found.log_likelihood_ratios.shape == (4, 4)
    for i, j in np.ndindex(4, 4):
        pair = verifier.verify([waves[i]], waves[j], RATE)
        if 1 in (i, j):
            assert np.isnan(found.scores[i, j]) and np.isnan(found.log_likelihood_ratios[i, j])
        else:
            assert found.scores[i, j] == pytest.approx(pair.score, abs=1e-6)
            assert found.log_likelihood_ratios[i, j] == pytest.approx(pair.log_likelihood_ratio, abs=1e-5)
    assert found.speech == [measure_speech(wave, RATE).speech for wave in waves]
    assert about(found, "Recording 2 has 0.0 s of speech")
    plain = SpeakerVerifier(model).compare(waves[2:], RATE)
    np.testing.assert_allclose(plain.scores, found.scores[2:, 2:], atol=1e-6)
    assert plain.log_likelihood_ratios is None


def test_all_pairs_of_no_recordings_and_of_silence(verifier):
    assert verifier.compare([]).scores.shape == (0, 0)
    silent = verifier.compare([np.zeros(RATE, np.float32)] * 2, RATE)
    assert np.isnan(silent.scores).all() and np.isnan(silent.log_likelihood_ratios).all()
    with pytest.raises(ValueError, match="Recording 2"):
        verifier.compare([np.zeros(RATE, np.float32), np.full(RATE, np.nan, np.float32)], RATE)


# -- refusals -------------------------------------------------------------------------------------------------------


def test_what_is_refused(verifier, voices):
    anna = voices["anna0"]
    with pytest.raises(ValueError, match="An enrolment needs at least one recording"):
        verifier.verify([], anna, RATE)
    with pytest.raises(ValueError, match="not both"):
        verifier.verify([anna], anna, RATE, operating_point="strict", threshold=0.0)
    with pytest.raises(ValueError, match="threshold must be a finite number, got nan"):
        verifier.verify([anna], anna, RATE, threshold=math.nan)
    with pytest.raises(ValueError, match="no operating point 'lax'"):
        verifier.verify([anna], anna, RATE, operating_point="lax")
    with pytest.raises(ValueError, match="combine must be one of"):
        verifier.verify([anna], anna, RATE, combine="median")
    with pytest.raises(ValueError, match="NaN or infinite"):
        verifier.verify([anna], np.append(anna, np.float32(np.nan)), RATE)
