"""Embedding files and scoring trials, against the protocol written out trial by trial."""

import re

import numpy as np
import pytest
import soundfile
import torch

from hf_hamspk import HamSpkConfig, HamSpkModel
from hf_hamspk.audio_hamspk import measure_speech
from hf_hamspk.data.crops import even_segments
from hf_hamspk.evaluation.metrics import equal_error_rate, minimum_detection_cost
from hf_hamspk.evaluation.trials import Trials
from hf_hamspk.evaluation.verification import (
    PAPER_SEGMENT_SAMPLES,
    PAPER_SEGMENTS,
    EmbeddedFiles,
    embed_files,
    score_trials,
    verify_trials,
)

NAMES = [f"{i}.wav" for i in range(5)]
TRIALS = Trials(
    np.array([1, 0, 1, 0, 0]),
    ("0.wav", "0.wav", "1.wav", "2.wav", "4.wav"),
    ("1.wav", "2.wav", "3.wav", "3.wav", "0.wav"),
)


def build(similarity: str = "cosine") -> HamSpkModel:
    torch.manual_seed(0)
    return HamSpkModel(
        HamSpkConfig(
            ecapa_channels=16,
            ecapa_output_channels=48,
            pooling_channels=16,
            embedding_size=16,
            similarity=similarity,
        )
    ).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings of 0.7 to 4.3 s: shorter and longer than a segment of the protocol."""
    root = tmp_path_factory.mktemp("audio")
    for i, name in enumerate(NAMES):
        draw = np.random.default_rng(i)
        soundfile.write(root / name, 0.1 * draw.standard_normal(int(16000 * (0.7 + 0.9 * i))), 16000, subtype="FLOAT")
    return root


def waveforms(folder) -> dict[str, np.ndarray]:
    return {name: soundfile.read(folder / name, dtype="float32")[0] for name in NAMES}


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.cosine_similarity(a.double(), b.double(), dim=0).item()


def test_whole_utterances_are_scored_by_their_cosine(folder):
    model = build()
    scores = score_trials(model, TRIALS, embed_files(model, TRIALS.files, folder, progress=False))
    one_by_one = {name: model.embed([wave], 16000)[0] for name, wave in waveforms(folder).items()}
    expected = [cosine(one_by_one[a], one_by_one[b]) for a, b in zip(TRIALS.enrolment, TRIALS.test, strict=True)]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.slow
def test_paper_protocol_averages_the_whole_and_all_pairs_of_segments(folder):
    model = build()
    scores = score_trials(model, TRIALS, embed_files(model, TRIALS.files, folder, "paper", progress=False))
    waves = waveforms(folder)
    expected = []
    for a, b in zip(TRIALS.enrolment, TRIALS.test, strict=True):
        whole = cosine(*(model.embed([waves[name]], 16000)[0] for name in (a, b)))
        parts = [
            model.embed(list(even_segments(waves[name], PAPER_SEGMENT_SAMPLES, PAPER_SEGMENTS)), 16000)
            for name in (a, b)
        ]
        pairs = [cosine(x, y) for x in parts[0] for y in parts[1]]
        expected.append((whole + sum(pairs) / len(pairs)) / 2)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_hyperbolic_scores_rank_clipped_embeddings_as_cosine_does(folder):
    """All these embeddings lie on one sphere, where the distance is an increasing function of the angle."""
    orders = []
    for similarity in ("cosine", "hyperbolic"):
        model = build(similarity)
        embedded = embed_files(model, TRIALS.files, folder, progress=False)
        scores = score_trials(model, TRIALS, embedded)
        assert all(row.norm() > 0.6 for rows in embedded.embeddings.values() for row in rows)
        orders.append(np.argsort(scores).tolist())
    assert orders[0] == orders[1]


def test_result_has_the_error_rates_of_its_scores(folder):
    model = build()
    result = verify_trials(model, TRIALS, embed_files(model, TRIALS.files, folder, progress=False))
    assert result.eer == equal_error_rate(result.scores, TRIALS.labels).eer
    assert result.min_dcf[0.05] == minimum_detection_cost(result.scores, TRIALS.labels, 0.05).cost
    summary = result.summary()
    assert (summary["trials"], summary["targets"], summary["skipped_trials"]) == (5, 2, 0)


def test_shares_of_several_processes_merge_to_the_whole(folder):
    model = build()
    whole = embed_files(model, NAMES, folder, progress=False)
    parts = [embed_files(model, NAMES[rank::2], folder, progress=False) for rank in range(2)]
    merged = EmbeddedFiles().merge(parts)
    assert merged.seconds == pytest.approx(whole.seconds)
    np.testing.assert_allclose(score_trials(model, TRIALS, merged), score_trials(model, TRIALS, whole), atol=1e-6)


def test_unusable_files_are_skipped_counted_and_told(folder, tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "2.wav").write_bytes(b"no audio")
    model = build()
    embedded = embed_files(model, TRIALS.files, tmp_path, progress=False)
    result = verify_trials(model, TRIALS, embedded)
    assert (result.skipped, len(result.scores)) == (2, 3)
    assert list(result.failures) == ["2.wav"]
    targets_only = Trials(TRIALS.labels[[0, 2]], ("0.wav", "1.wav"), ("1.wav", "3.wav"))
    with pytest.raises(
        ValueError, match=re.escape("The 2 of 2 trials that can be scored do not include both target and")
    ):
        verify_trials(model, targets_only, embedded)


def test_unknown_protocol_is_refused(folder):
    with pytest.raises(ValueError, match=re.escape("protocol must be one of whole, paper, got 'half'.")):
        embed_files(build(), NAMES, folder, "half")


def test_speech_is_measured_where_asked_for(folder):
    model = build()
    assert embed_files(model, NAMES[:2], folder, progress=False).measures == {}
    embedded = embed_files(model, [*NAMES, "gone.wav"], folder, progress=False, measure=True)
    assert embedded.measures["3.wav"] == measure_speech(waveforms(folder)["3.wav"], 16000)
    assert list(embedded.measures) == NAMES
    # Noise holds no speech.
    refused = embedded.refuse_short(0.5)
    assert refused.embeddings == {}
    assert refused.failures["0.wav"] == "not enough speech: 0.00 s, at least 0.5 s are needed"
    assert "no such file" in refused.failures["gone.wav"]
    part = embedded.part(["0.wav", "gone.wav"])
    assert (list(part.embeddings), list(part.failures), list(part.measures)) == (["0.wav"], ["gone.wav"], ["0.wav"])


def test_scores_of_a_collapsed_model_are_refused(folder):
    model = build()
    embedded = EmbeddedFiles({name: torch.ones(1, 16) for name in NAMES})
    with pytest.raises(ValueError, match=r"all 5 scores are .*, so they do not rank the trials"):
        verify_trials(model, TRIALS, embedded)
