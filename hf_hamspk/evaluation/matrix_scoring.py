"""Score many trials with products of matrices, in blocks of bounded memory.

Every file is embedded and normalised once, even if many trials use it; a cosine score is then an inner product. The
published protocol averages the cosine of the whole utterances and the mean cosine over all pairs of segments. This
average is also one inner product, because the mean of the products of all pairs is the product of the means.

Letters: `U` utterances, `S` embeddings of each utterance (row 0 is the whole utterance, the other rows are its
segments), `D` embedding size, `N` trials, `E` size of the compared vectors.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..calibration_hamspk import SpeakerModel
from ..geometry_hamspk import normalize

# Numbers held at once beside the embeddings and the result: 64 MiB of float32 for cosine, twice that for distances.
MOST_NUMBERS = 1 << 24
# For each score, gathering two rows takes about thirty times as long as a product of matrices.
GATHERING_COST = 32


def score_pairs(
    model: SpeakerModel,
    embeddings: Tensor,
    enrolment: NDArray[np.integer],
    test: NDArray[np.integer],
    mean: Tensor | None = None,
) -> NDArray[np.float64]:
    """Score the trials of a list.

    If the list contains a large part of all pairs of its files, the scores are selected from products of matrices.
    Otherwise the embeddings of each trial are gathered.

    Args:
        model: model whose similarity is used: cosine, or minus the hyperbolic distance.
        embeddings: `(U, S, D)`, embeddings of the utterances, each utterance once.
        enrolment: `(N,)`, index into `embeddings` of the enrolment of each trial.
        test: `(N,)`, index into `embeddings` of the test of each trial.
        mean: `(D,)`, vector subtracted from every embedding first, such as the mean of the cohort; None subtracts
            nothing.

    Returns:
        The scores, `(N,)` float64. Without segments (`S` is 1) they are the scores of the whole utterances. With
        segments they are the mean of this score and of the mean score over all pairs of segments.

    Raises:
        ValueError: the shapes do not match, or an index is out of range.
    """
    _check_embeddings(embeddings, mean)
    sides = [torch.as_tensor(np.asarray(side, dtype=np.int64)) for side in (enrolment, test)]
    if sides[0].shape != sides[1].shape or sides[0].ndim != 1:
        raise ValueError(
            "enrolment and test must be one-dimensional and have the same length, got shapes "
            f"{tuple(sides[0].shape)} and {tuple(sides[1].shape)}."
        )
    if len(sides[0]) == 0:
        return np.empty(0)
    lowest, highest = int(torch.stack(sides).min()), int(torch.stack(sides).max())
    if lowest < 0 or highest >= len(embeddings):
        raise ValueError(f"Indices of trials must lie between 0 and {len(embeddings) - 1}, got {lowest} to {highest}.")
    prepared = _prepare_embeddings(model, embeddings, mean)
    (rows, row), (columns, column) = (side.unique(return_inverse=True) for side in sides)
    if len(row) * GATHERING_COST < len(rows) * len(columns):
        scores = _score_gathered(model, prepared, *sides)
    else:
        scores = torch.empty(len(row), dtype=prepared.dtype)
        order = row.argsort()
        for start, block in _score_blocks(model, prepared[rows], prepared[columns]):
            within = slice(*torch.searchsorted(row[order], torch.tensor([start, start + len(block)])).tolist())
            chosen = order[within]
            scores[chosen] = block[row[chosen] - start, column[chosen]]
    return scores.double().numpy()


def _check_embeddings(embeddings: Tensor, mean: Tensor | None) -> None:
    if embeddings.ndim != 3 or 0 in embeddings.shape:
        raise ValueError(
            f"embeddings must have the shape (utterances, embeddings of each, size), got {tuple(embeddings.shape)}."
        )
    if mean is not None and mean.shape != embeddings.shape[2:]:
        raise ValueError(f"mean must have shape {tuple(embeddings.shape[2:])}, got {tuple(mean.shape)}.")


def _prepare_embeddings(model: SpeakerModel, embeddings: Tensor, mean: Tensor | None) -> Tensor:
    """Subtract the mean; for cosine, normalise `(U, S, D)` to `(U, 1, E)`; for distances, convert to float64."""
    if mean is not None:
        embeddings = embeddings - mean
    if model.config.similarity != "cosine":
        # A distance near 0 is the root of a small difference of large numbers: float32 would be off by up to 1e-3.
        return embeddings.double()
    units = normalize(embeddings.float())
    if units.shape[1] == 1:
        return units
    # The factor 1/2 of the average, shared between the two sides of the product.
    parts = [units[:, 0], units[:, 1:].mean(1)]
    return torch.cat(parts, dim=-1)[:, None] * math.sqrt(0.5)


def _score_gathered(model: SpeakerModel, prepared: Tensor, enrolment: Tensor, test: Tensor) -> Tensor:
    size = max(1, MOST_NUMBERS // (2 * prepared[0].numel() * max(1, prepared.shape[1] - 1)))
    scores = []
    for a, b in zip(enrolment.split(size), test.split(size), strict=True):
        left, right = prepared[a], prepared[b]
        if model.config.similarity == "cosine":
            scores.append(torch.linalg.vecdot(left[:, 0], right[:, 0]))
            continue
        score = model.score(left[:, 0], right[:, 0])
        if prepared.shape[1] > 1:
            score = (score + model.score_matrix(left[:, 1:], right[:, 1:]).mean((-2, -1))) / 2
        scores.append(score)
    return torch.cat(scores)


def _score_blocks(model: SpeakerModel, left: Tensor, right: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the scores of all pairs of prepared embeddings in blocks of rows, each with the index of its first row."""
    segments = max(1, left.shape[1] - 1)
    rows = max(1, MOST_NUMBERS // (len(right) * segments**2))
    for start in range(0, len(left), rows):
        block = left[start : start + rows]
        if model.config.similarity == "cosine":
            yield start, block[:, 0] @ right[:, 0].mT
            continue
        scores = model.score_matrix(block[:, 0], right[:, 0])
        if left.shape[1] > 1:
            of_segments = model.score_matrix(block[:, 1:].flatten(0, 1), right[:, 1:].flatten(0, 1))
            of_segments = of_segments.unflatten(0, (-1, segments)).unflatten(2, (-1, segments)).mean((1, 3))
            scores = (scores + of_segments) / 2
        yield start, scores
