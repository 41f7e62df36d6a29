"""Several utterances as one: laws of the three ways, the barycentre against a generic optimiser, the profile file."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from hf_hamspk.calibration_hamspk import save_array
from hf_hamspk.geometry_hamspk import (
    COMBINATIONS,
    barycentre,
    combine_embeddings,
    distance,
    karcher_mean,
    mean_direction,
    project,
    score,
)
from hf_hamspk.verification_hamspk import PROFILE_KIND, SpeakerProfile, leave_one_out_scores

BALLS = {
    "released": ("released", 3.0, 1.0),
    "curved": ("curved", 0.7, 1.0),
    "far out": ("curved", 4.0, 2.5),
}
every_ball = pytest.mark.parametrize("ball", BALLS)
every_way = pytest.mark.parametrize("combine", COMBINATIONS)


def drawn(count: int, size: int = 6, seed: int = 0) -> torch.Tensor:
    """Embeddings of one speaker: around a point, inside the reach of every ball."""
    generator = torch.Generator().manual_seed(seed)
    return 0.15 + 0.05 * torch.randn(count, size, generator=generator, dtype=torch.float64)


def combined(embeddings: torch.Tensor, combine: str, seconds=None, ball=("released", 3.0, 1.0)) -> torch.Tensor:
    seconds = [1.0] * len(embeddings) if seconds is None else seconds
    return combine_embeddings(embeddings, combine, seconds, *ball)


def spread(point: torch.Tensor, embeddings: torch.Tensor, ball, weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum of squared distances, up to the square of the factor of the curvature."""
    here, _ = project(point, *ball)
    there, _ = project(embeddings, *ball)
    return (weights * distance(here, there).square()).sum()


@every_ball
@pytest.mark.parametrize("weighted", [False, True])
def test_the_barycentre_minimises_the_squared_distances(ball, weighted):
    """A generic optimiser, started elsewhere, ends there."""
    settings, embeddings = BALLS[ball], drawn(5)
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0], dtype=torch.float64) if weighted else torch.ones(5).double()
    ours = barycentre(embeddings, *settings, weights if weighted else None)
    point = embeddings[0].clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [point], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def step() -> torch.Tensor:
        optimiser.zero_grad()
        loss = spread(point, embeddings, settings, weights)
        loss.backward()
        return loss

    optimiser.step(step)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(ours, point.detach(), atol=1e-6, rtol=0)
    least = spread(ours, embeddings, settings, weights)
    for direction in torch.eye(6, dtype=torch.float64):
        for sign in (-1e-3, 1e-3):
            assert spread(ours + sign * direction, embeddings, settings, weights) > least


@pytest.mark.parametrize("norm", [1.0, 2.0, 3.0, 5.0])
def test_the_barycentre_of_points_far_apart(norm):
    """In all directions, as far as float32 reaches: too large a step would overshoot and never arrive."""
    ball, directions = ("curved", 1.0, 5.0), torch.randn(5, 6, generator=torch.Generator().manual_seed(1)).double()
    embeddings, weights = norm * torch.nn.functional.normalize(directions, dim=1), torch.ones(5).double()
    mean = barycentre(embeddings, *ball).requires_grad_()
    spread(mean, embeddings, ball, weights).backward()
    assert mean.grad is not None and mean.grad.norm() < 1e-8
    # Few steps suffice.
    points, _ = project(embeddings, *ball)
    found, further = (karcher_mean(points, weights, steps=steps).position for steps in (60, 500))
    torch.testing.assert_close(found, further, atol=1e-9, rtol=0)


def test_the_barycentre_by_default_is_that_of_the_released_ball():
    embeddings = drawn(3)
    expected = barycentre(embeddings, "released", 3.0, 1.0)
    torch.testing.assert_close(combine_embeddings(embeddings, "barycentre"), expected, atol=0, rtol=0)
    curved = combine_embeddings(9 * embeddings, "barycentre", projection="curved", curvature=0.7)
    torch.testing.assert_close(curved, barycentre(9 * embeddings, "curved", 0.7, 1.0), atol=0, rtol=0)


@every_way
def test_one_utterance_is_itself(combine):
    embedding = drawn(1)
    torch.testing.assert_close(combined(embedding, combine), embedding[0])


@every_ball
def test_one_point_is_its_own_barycentre(ball):
    embedding = drawn(1)
    torch.testing.assert_close(barycentre(embedding, *BALLS[ball]), embedding[0])
    torch.testing.assert_close(barycentre(embedding.repeat(4, 1), *BALLS[ball]), embedding[0])


@every_way
def test_the_order_does_not_matter(combine):
    embeddings, seconds = drawn(6), [1.0, 5.0, 2.0, 3.0, 0.5, 9.0]
    order = [3, 0, 5, 1, 4, 2]
    torch.testing.assert_close(
        combined(embeddings[order], combine, [seconds[i] for i in order]), combined(embeddings, combine, seconds)
    )


@every_way
def test_a_rotation_goes_through(combine):
    embeddings = drawn(4)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    turned = combined(embeddings @ rotation, combine)
    torch.testing.assert_close(turned, combined(embeddings, combine) @ rotation)


def test_of_two_points_the_barycentre_is_in_the_middle():
    for ball in BALLS.values():
        embeddings = drawn(2)
        middle = barycentre(embeddings, *ball)
        halves = -score(middle, embeddings, "hyperbolic", *ball)
        whole = -score(embeddings[0], embeddings[1], "hyperbolic", *ball)
        torch.testing.assert_close(halves, (whole / 2).expand(2), atol=1e-7, rtol=0)


def test_weights_are_utterances():
    """Weight 2 is the utterance twice; weight 0 is none."""
    embeddings = drawn(3)
    twice = torch.cat([embeddings, embeddings[:1]])
    weights = torch.tensor([2.0, 1.0, 1.0])
    torch.testing.assert_close(mean_direction(embeddings, weights), mean_direction(twice))
    for ball in BALLS.values():
        torch.testing.assert_close(barycentre(embeddings, *ball, weights), barycentre(twice, *ball))
    torch.testing.assert_close(combined(embeddings, "length_weighted", [4.0, 2.0, 2.0]), mean_direction(twice))
    torch.testing.assert_close(
        mean_direction(embeddings, torch.tensor([0.0, 1.0, 1.0])), mean_direction(embeddings[1:])
    )


def test_the_mean_keeps_the_mean_norm():
    embeddings = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    torch.testing.assert_close(mean_direction(embeddings), torch.tensor([1.0, 1.0]) * 4 / math.sqrt(2))


@every_way
@pytest.mark.parametrize("equal", [False, True], ids=["apart", "coinciding"])
def test_gradients_are_finite(combine, equal):
    embeddings = (drawn(1).repeat(3, 1) if equal else drawn(3)).float().requires_grad_()
    combined(embeddings, combine).sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.abs().max() > 0


def test_half_precision_gives_float32():
    for combine in COMBINATIONS:
        assert combined(drawn(3).half(), combine).dtype == torch.float32


def test_cohesion_finds_the_stranger():
    embeddings = torch.cat([drawn(4), -drawn(1)])
    fits = leave_one_out_scores(embeddings, mean_direction, lambda a, b: score(a, b, "cosine", "released", 3.0, 1.0))
    assert int(fits.argmin()) == 4
    assert fits[:4].min() > 0.5 > 0 > fits[4]
    expected = torch.nn.functional.cosine_similarity(mean_direction(embeddings[1:]), embeddings[0], dim=0)
    torch.testing.assert_close(fits[0], expected)


def test_bad_input_is_refused():
    good = drawn(2)
    cases = [
        (lambda: combined(good[:0], "mean"), "N at least 1"),
        (lambda: combined(good[0], "barycentre"), "N at least 1"),
        (lambda: combined(good, "median"), "combine must be one of"),
        (lambda: combine_embeddings(good, "length_weighted"), "needs the seconds"),
        (lambda: combined(good, "length_weighted", [1.0]), "Expected 2 weights"),
        (lambda: combined(good, "length_weighted", [0.0, 0.0]), "not all of them 0"),
        (lambda: combined(good, "length_weighted", [-1.0, 2.0]), "at least 0"),
        (lambda: mean_direction(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), "cancel"),
        (lambda: leave_one_out_scores(good[:1], mean_direction, lambda a, b: a @ b), "at least 2 utterances"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def profile(**fields) -> SpeakerProfile:
    values = {
        "name": "anna",
        "embedding": drawn(1)[0],
        "seconds": (3.0, 4.5),
        "snr_db": 21.0,
        "magnitude": 1.25,
        "combine": "barycentre",
        "fingerprint": "a" * 64,
        "model_id": "owner/model",
        "revision": "0123abc",
        "recordings": ("1" * 64, "2" * 64),
    }
    return SpeakerProfile(**(values | fields))


@pytest.mark.parametrize("warnings", [(), ("The enrolment is clipped.", "The enrolment is noisy: ä")])
def test_a_profile_comes_back_as_it_was(tmp_path, warnings):
    before = profile(warnings=warnings)
    before.save(tmp_path / "anna.safetensors")
    after = SpeakerProfile.load(tmp_path / "anna.safetensors", "a" * 64)
    for field in dataclasses.fields(SpeakerProfile):
        if field.name != "embedding":
            assert getattr(after, field.name) == getattr(before, field.name), field.name
    assert torch.equal(after.embedding, before.embedding)
    assert (after.utterances, after.quality.speech, after.quality.utterances) == (2, 7.5, 2)


def test_a_profile_of_another_model_or_altered_is_refused(tmp_path):
    path = tmp_path / "anna.safetensors"
    profile().save(path)
    with pytest.raises(ValueError, match=r"of 'anna' \(model owner/model\) was .* \(a{12}\) than .* \(b{12}\)"):
        SpeakerProfile.load(path, "b" * 64)
    content = path.read_bytes()
    for place in (content.index(b"barycentre"), len(content) - 2):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"altered|cannot be read"):
            SpeakerProfile.load(path)
    path.write_bytes(content[:50])
    with pytest.raises(ValueError, match="cannot be read"):
        SpeakerProfile.load(path)
    with pytest.raises(ValueError, match="There is no file"):
        SpeakerProfile.load(tmp_path / "nobody.safetensors")


@pytest.mark.parametrize("warnings", ["abc", [1], ["\x1b[2J"], {"a": 1}, None])
def test_damaged_warnings_of_a_profile_are_refused(tmp_path, warnings):
    vars(before := profile())["warnings"] = warnings
    path = tmp_path / "anna.safetensors"
    description = {name: x for name, x in vars(before).items() if name != "embedding"} | {"kind": PROFILE_KIND}
    save_array(path, "embedding", before.embedding.numpy(), description)
    with pytest.raises(ValueError, match="is not a speaker profile"):
        SpeakerProfile.load(path)


def test_a_profile_holds_what_it_must():
    for fields, message in (
        ({"embedding": drawn(2)}, "one finite embedding"),
        ({"embedding": torch.tensor([np.nan])}, "one finite embedding"),
        ({"seconds": ()}, "at least one utterance"),
        ({"snr_db": math.inf}, "finite seconds, SNR and magnitude"),
        ({"combine": "median"}, "combine must be"),
    ):
        with pytest.raises(ValueError, match=message):
            profile(**fields)


def test_a_missing_folder_is_named_and_the_working_directory_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = "Folder not found: {}. Create it before anna.safetensors is saved there."
    for folder in (tmp_path / "no", "no/where"):
        with pytest.raises(ValueError) as raised:
            profile().save(f"{folder}/anna.safetensors")
        assert str(raised.value) == said.format(folder)
    profile().save("anna.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["anna.safetensors"]
