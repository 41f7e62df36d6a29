"""Score normalisation against the formulas written as loops; the cohort and its file."""

import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from hf_hamspk.calibration_hamspk import (
    NORMALISATIONS,
    Cohort,
    apply_statistics,
    check_normalisation,
    cohort_statistics,
    load_array,
    save_array,
)

TRIALS, COHORT = 40, 60


@pytest.fixture(scope="module")
def data():
    draw = np.random.default_rng(0)
    return draw.normal(size=TRIALS), draw.normal(0.1, 0.3, (TRIALS, COHORT)), draw.normal(-0.2, 0.5, (TRIALS, COHORT))


def normalise(scores, enrolment_cohort, test_cohort, kind: str, top: int | None = None) -> torch.Tensor:
    """Scores `(N,)` normalised with the `(N, C)` scores of both sides of each trial against the cohort."""
    return apply_statistics(scores, cohort_statistics(enrolment_cohort, top), cohort_statistics(test_cohort, top), kind)


def written_out(kind: str, score: float, enrolment: np.ndarray, test: np.ndarray, top: int | None) -> float:
    """The definitions, for one trial, in plain Python."""

    def standardise(cohort) -> float:
        chosen = sorted(cohort, reverse=True)[:top] if kind == "as" else list(cohort)
        mean = sum(chosen) / len(chosen)
        deviation = (sum((value - mean) ** 2 for value in chosen) / len(chosen)) ** 0.5
        return (score - mean) / deviation

    if kind == "z":
        return standardise(enrolment)
    if kind == "t":
        return standardise(test)
    return (standardise(enrolment) + standardise(test)) / 2


@pytest.mark.parametrize(("kind", "top"), [("z", None), ("t", None), ("s", None), ("as", 2), ("as", 20), ("as", 999)])
def test_agrees_with_a_plain_loop(data, kind, top):
    scores, enrolment, test = data
    ours = normalise(*map(torch.from_numpy, data), kind, top).numpy()
    expected = [written_out(kind, *trial, top) for trial in zip(scores, enrolment, test, strict=True)]
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-10)


def test_none_changes_nothing(data):
    scores, enrolment, test = map(torch.from_numpy, data)
    assert apply_statistics(scores, cohort_statistics(enrolment), cohort_statistics(test), "none") is scores


@pytest.mark.parametrize(("kind", "top"), [("z", None), ("t", None), ("s", None), ("as", 10)])
def test_the_scale_of_the_scores_does_not_matter(data, kind, top):
    parts = [torch.from_numpy(part) for part in data]
    moved = [3 + 7 * part for part in parts]
    torch.testing.assert_close(normalise(*parts, kind, top), normalise(*moved, kind, top))


@pytest.mark.parametrize(("kind", "top"), [("s", None), ("as", 10)])
def test_symmetric_in_enrolment_and_test(data, kind, top):
    scores, enrolment, test = map(torch.from_numpy, data)
    there, back = (
        normalise(scores, enrolment, test, kind, top),
        normalise(scores, test, enrolment, kind, top),
    )
    torch.testing.assert_close(there, back)


def test_the_order_of_the_cohort_does_not_matter_and_all_of_it_is_s(data):
    scores, enrolment, test = map(torch.from_numpy, data)
    order = torch.randperm(COHORT)
    once = normalise(scores, enrolment, test, "as", 10)
    torch.testing.assert_close(once, normalise(scores, enrolment[:, order], test[:, order], "as", 10))
    whole = normalise(scores, enrolment, test, "as", COHORT)
    torch.testing.assert_close(whole, normalise(scores, enrolment, test, "s"))


def test_half_precision_is_normalised_in_float32(data):
    scores = torch.from_numpy(data[1])
    statistics = cohort_statistics(scores.to(torch.bfloat16))
    assert statistics.mean.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "top", "message"),
    [
        ("zt", None, "must be one of none, z, t, s, as, got 'zt'"),
        ("as", None, "needs top, an integer of at least 2, got None"),
        ("as", 1, "needs top, an integer of at least 2, got 1"),
        ("as", True, "needs top"),
        ("as", 2.0, "needs top"),
        ("s", 20, "top is for normalisation 'as'"),
    ],
)
def test_kinds_that_are_refused(kind, top, message):
    with pytest.raises(ValueError, match=message):
        check_normalisation(kind, top)
    for known in NORMALISATIONS:
        check_normalisation(known, 2 if known == "as" else None)


def test_scores_that_are_refused(data):
    scores, enrolment, test = map(torch.from_numpy, data)
    with pytest.raises(ValueError, match=r"shape \(40,\); expected \(embeddings, cohort\)"):
        cohort_statistics(scores)
    with pytest.raises(ValueError, match="The cohort has 1 embeddings"):
        cohort_statistics(enrolment[:, :1])
    with pytest.raises(ValueError, match="top must be at least 2, got 1"):
        cohort_statistics(enrolment, 1)
    with pytest.raises(ValueError, match="NaN or infinite"):
        cohort_statistics(torch.full((2, 3), torch.nan))
    with pytest.raises(ValueError, match="All cohort scores of embedding 0 are equal"):
        cohort_statistics(torch.ones(2, 3))
    with pytest.raises(ValueError, match="must be one of none, z, t, s, as, got 'zt'"):
        normalise(scores, enrolment, test, "zt")
    with pytest.raises(RuntimeError):
        normalise(scores, enrolment[:5], test, "s")


@pytest.fixture
def cohort():
    return Cohort(torch.randn(5, 8), "a" * 64, "five speakers")


def test_a_cohort_comes_back_as_it_was(tmp_path, cohort):
    cohort.save(tmp_path / "cohort.safetensors")
    again = Cohort.load(tmp_path / "cohort.safetensors", cohort.fingerprint)
    assert torch.equal(again.embeddings, cohort.embeddings)
    assert (again.fingerprint, again.audio, again.checksum) == (cohort.fingerprint, cohort.audio, cohort.checksum)
    assert Cohort(cohort.embeddings + 1e-3, "a").checksum != cohort.checksum
    # Saved over a file that somebody has open.
    cohort.save(tmp_path / "cohort.safetensors")


def test_a_cohort_of_another_model_is_refused(tmp_path, cohort):
    path = tmp_path / "cohort.safetensors"
    cohort.save(path)
    with pytest.raises(ValueError, match=r"safetensors was made with other weights \(aaaaaaaaaaaa\) than"):
        Cohort.load(path, "b" * 64)


def altered(path, change):
    """A file of the same description, its tensors changed."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        metadata = file.metadata()
    tensors = {name: tensor.copy() for name, tensor in load_file(path).items()}
    tensors, metadata = change(tensors, dict(metadata))
    save_file(tensors, path, metadata)


def nudge(tensors, metadata):
    tensors["embeddings"][0, 0] += 1e-3
    return tensors, metadata


def rename(tensors, metadata):
    return {"other": tensors["embeddings"]}, metadata


def relabel(tensors, metadata):
    return tensors, {"description": metadata["description"].replace("five speakers", "six speakers")}


def unlabel(tensors, metadata):
    return tensors, None


def uncheck(tensors, metadata):
    return tensors, {"description": re.sub(r'"checksum": "\w+", ', "", metadata["description"])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nudge, "was altered: its tensor 'embeddings' differs from the saved one"),
        (rename, r"contains the tensors \['other'\]; expected 'embeddings'"),
        (relabel, "was altered: its checksum does not match its values"),
        (unlabel, "cannot be read"),
        (uncheck, "has no checksum"),
    ],
)
def test_an_altered_cohort_is_refused(tmp_path, cohort, change, message):
    path = tmp_path / "cohort.safetensors"
    cohort.save(path)
    altered(path, change)
    with pytest.raises(ValueError, match=message):
        Cohort.load(path)


def test_what_is_no_cohort_is_refused(tmp_path, cohort):
    with pytest.raises(ValueError, match="There is no file"):
        Cohort.load(tmp_path / "nowhere")
    path = tmp_path / "cohort.safetensors"
    cohort.save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="cannot be read"):
        Cohort.load(path)
    save_array(path, "embeddings", np.zeros((2, 3)), {"kind": "speaker profile"})
    with pytest.raises(ValueError, match="is not a cohort file"):
        Cohort.load(path)
    array, description = load_array(path, "embeddings")
    assert (array.shape, array.dtype, description) == ((2, 3), np.float32, {"kind": "speaker profile"})
    with pytest.raises(ValueError, match=r"shape \(C, D\) with C at least 2, got \(1, 3\)"):
        Cohort(torch.zeros(1, 3), "a")
    with pytest.raises(ValueError, match="must be finite"):
        Cohort(torch.full((2, 3), torch.inf), "a")
    with pytest.raises(ValueError, match="must be finite"):
        Cohort(torch.tensor([[0.0, 1.0], [torch.nan, 2.0]]), "a")
