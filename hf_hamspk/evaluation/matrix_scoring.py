"""Score many trials with matrix products, in blocks of limited size.

Every utterance is embedded and normalised once, even if it occurs in many trials. The cosine score of a trial is then
an inner product. The published protocol averages the cosine score of the whole utterances and the mean cosine score
over all pairs of segments. This average is also a single inner product, because the mean of all inner products between
two sets of vectors is the inner product of their means.

The shapes in this module use these letters: `U` is the number of utterances, `S` the number of embeddings of each
utterance (row 0 is the whole utterance, the other rows are its segments), `D` the embedding size, `N` the number of
trials, and `E` the size of the compared vectors.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..calibration_hamspk import SpeakerModel
from ..geometry_hamspk import normalize

# Largest count of numbers in a block: 64 MiB in float32 for the cosine, 128 MiB in float64 for distances.
MOST_NUMBERS = 1 << 24
# Scoring a pair by selecting its two rows takes about this many times as long as scoring it in a matrix product.
GATHERING_COST = 32


def score_pairs(
    model: SpeakerModel,
    embeddings: Tensor,
    enrolment: NDArray[np.integer],
    test: NDArray[np.integer],
    mean: Tensor | None = None,
) -> NDArray[np.float64]:
    """Score the trials of a list.

    If the list contains a large part of all pairs of its utterances, all pairs are scored with matrix products and the
    scores of the trials are selected. Otherwise only the pairs of the trials are scored.

    Args:
        model: model whose similarity is used, which is the cosine or minus the hyperbolic distance.
        embeddings: `(U, S, D)`, embeddings of the utterances.
        enrolment: `(N,)`, index into `embeddings` of the enrolment of each trial.
        test: `(N,)`, index into `embeddings` of the test utterance of each trial.
        mean: `(D,)`, vector that is subtracted from every embedding before scoring, such as the mean of the cohort;
            None subtracts nothing.

    Returns:
        The scores, `(N,)` float64. Without segments (`S` is 1), these are the scores of the whole utterances. With
        segments, each score is the average of the score of the whole utterances and the mean score over all pairs of
        segments.

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
            "embeddings must have the shape (utterances, embeddings per utterance, embedding size) without zeros, got "
            f"{tuple(embeddings.shape)}."
        )
    if mean is not None and mean.shape != embeddings.shape[2:]:
        raise ValueError(f"mean must have shape {tuple(embeddings.shape[2:])}, got {tuple(mean.shape)}.")


def _prepare_embeddings(model: SpeakerModel, embeddings: Tensor, mean: Tensor | None) -> Tensor:
    """Subtract the mean and prepare the embeddings `(U, S, D)` for the similarity of the model.

    Returns:
        For the cosine, vectors `(U, 1, E)` whose inner products are the scores. `E` is `D`, or `2 D` if the utterances
        have segments. For the hyperbolic distance, the embeddings `(U, S, D)` in float64.
    """
    if mean is not None:
        embeddings = embeddings - mean
    if model.config.similarity != "cosine":
        # A distance near 0 is the root of a small difference of large numbers. In float32, the error can reach 1e-3.
        return embeddings.double()
    units = normalize(embeddings.float())
    if units.shape[1] == 1:
        return units
    # The average needs the factor 1/2. Each of the two vectors of an inner product is multiplied by its square root.
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
    """Yield the score matrix between `left` and `right` in blocks of rows, each with the index of its first row."""
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
