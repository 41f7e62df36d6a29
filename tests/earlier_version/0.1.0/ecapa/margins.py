"""Margins on the target of a head: none, additive, angular, and the hinged one of Real AM-Softmax.

Letters: `B` batch, `K` speakers.
"""

import math

import torch
from torch import Tensor


def add_angle(cosine: Tensor, margin: float) -> Tensor:
    """`cos(angle + margin)`, continued by `cosine - margin sin(margin)` past `angle = pi - margin`.

    Args:
        cosine: any shape, range [-1, 1].
        margin: radians, in [0, pi).
    """
    # Rounding may push 1 - cos^2 below 0, and the slope of the square root is infinite there.
    sine = (1 - cosine.square()).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
    shifted = cosine * math.cos(margin) - sine * math.sin(margin)
    past_turn = cosine <= math.cos(math.pi - margin)
    return torch.where(past_turn, cosine - margin * math.sin(math.pi - margin), shifted)


def add_margin(target: Tensor, kind: str, margin: float) -> Tensor:
    """The similarity to the own centre, made harder.

    Args:
        target: any shape.
        kind: `"none"`, `"additive"`, `"angular"` or `"real"`.
        margin: at least 0, in units of the similarity (radians for `"angular"`).
    """
    if kind == "none":
        return target
    return add_angle(target, margin) if kind == "angular" else target - margin


def apply_margin(similarity: Tensor, labels: Tensor, kind: str, margin: float, scale: float) -> Tensor:
    """Scaled logits with the margin on the target.

    Args:
        similarity: `(B, K)`.
        labels: `(B,)`, in [0, K).
        kind, margin: as in `add_margin`.
        scale: positive.

    Returns:
        `(B, K)` logits.
    """
    if kind == "none":
        return scale * similarity
    index = labels[:, None]
    target = add_margin(similarity.gather(1, index), kind, margin)
    logits = scale * similarity.scatter(1, index, target)
    if kind == "real":
        logits = logits.masked_fill(logits < scale * target, 0.0)
    return logits
