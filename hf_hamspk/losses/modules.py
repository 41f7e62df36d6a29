"""Training losses as modules for any training loop: `loss(embeddings, labels)`.

Each module contains a head of `geometry_hamspk`, and computes the loss over blocks of speakers. Only torch is needed.
Letters: `B` batch size, `K` speakers, `D` embedding size.
"""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..geometry_hamspk import (
    MARGIN,
    OTHER_CURVATURE,
    OTHER_SCALE,
    PUBLISHED_CURVATURE,
    PUBLISHED_SCALE,
    SpeakerHead,
)
from .engine import set_class_sampling, use_blocks


class SpeakerLoss(nn.Module):
    """Base class of the losses.

    The centres of the speakers are parameters of the loss, so pass `loss.parameters()` to the optimiser as well. To
    copy the centres to a model with the same head, use `model.head.load_state_dict(loss.head.state_dict())`.

    Attributes:
        head: training head, which contains the centres.
    """

    def __init__(
        self,
        head: str,
        num_classes: int,
        embedding_size: int,
        scale: float,
        margin: float,
        class_sampling: float,
        curvature: float = OTHER_CURVATURE,
        **projection: Any,
    ):
        super().__init__()
        for name, size in (("num_classes", num_classes), ("embedding_size", embedding_size)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {size!r}.")
        self.head = SpeakerHead(head, num_classes, embedding_size, scale, margin, curvature, **projection)
        set_class_sampling(use_blocks(self.head), class_sampling)

    @property
    def margin(self) -> float:
        """Current margin. `set_margin` changes it."""
        return self.head.margin

    def set_margin(self, margin: float) -> None:
        """Set the margin, in [0, 3), for example after each epoch. On losses without a margin, this has no effect."""
        self.head.set_margin(margin)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean loss, a scalar.

        The computation is in float32 (in float64 for float64 embeddings), also under autocast.

        Args:
            embeddings: embeddings `(B, D)` of any norm.
            labels: target speakers `(B,)`, integers in [0, K).

        Raises:
            ValueError: a shape or the type of the labels is wrong, or a label is out of range (checked only on a CPU).
        """
        self._check(embeddings)
        speakers = len(self.head.similarity.weight)
        if labels.shape != embeddings.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(
                f"Expected labels of shape ({embeddings.shape[0]},) with an integer type, got the shape "
                f"{tuple(labels.shape)} and {labels.dtype}. Use one speaker number for each embedding."
            )
        # On a GPU, the check of the values would have to wait for the device.
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            smallest, largest = int(labels.min()), int(labels.max())
            if not 0 <= smallest <= largest < speakers:
                raise ValueError(
                    f"Expected labels from 0 to {speakers - 1}, got labels from {smallest} to {largest}. Number the "
                    "speakers from 0, and create the loss with their number as num_classes."
                )
        return cast(Tensor, self.head(embeddings, labels.long(), return_logits=False).loss)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Compute the scaled logits `(B, K)` of embeddings `(B, D)`, without margin, for example for the accuracy."""
        self._check(embeddings)
        return cast(Tensor, self.head(embeddings).logits)

    def _check(self, embeddings: Tensor) -> None:
        size = self.head.similarity.weight.shape[1]
        if embeddings.ndim != 2 or embeddings.shape[0] < 1 or embeddings.shape[1] != size:
            raise ValueError(
                f"Expected embeddings of shape (B, {size}) with B at least 1, got {tuple(embeddings.shape)}. Remove "
                "other dimensions with squeeze or flatten, or create the loss with another embedding_size."
            )

    def extra_repr(self) -> str:
        """Return the settings for printing."""
        speakers, size = self.head.similarity.weight.shape
        return f"num_classes={speakers}, embedding_size={size}, scale={self.head.scale:g}, margin={self.margin:g}"


class HamSoftmaxLoss(SpeakerLoss):
    """HAM-Softmax (Fang and He 2026, arXiv 2601.19709): logits from Poincaré distances, with an additive margin.

    Example:
        ```python
        loss = HamSoftmaxLoss(num_classes=1211, embedding_size=192)
        embeddings, labels = torch.randn(8, 192, requires_grad=True), torch.randint(1211, (8,))
        loss(embeddings, labels).backward()
        ```

    Args:
        num_classes: number K of training speakers.
        embedding_size: embedding size D.
        margin: margin that is added to the distance to the target centre, in [0, 3).
        scale: factor of the logits, above 0.
        curvature: curvature `c`; in the paper, 3 for HAM and 5 for H-Softmax. With the projection `"released"`, it must
            be above 1 and determines the largest radius of the embeddings and centres in the ball.
        projection: `"released"` (norms are clipped, as for the published results) or `"curved"` (exponential map at
            the origin of the ball with the curvature `-c`). `geometry_hamspk` explains both.
        clip_radius: norm to which longer features are clipped before the exponential map of `"curved"`.
        learnable_curvature: whether the curvature is a learned parameter. This needs the projection `"curved"`.
        class_sampling: fraction of the speakers in the loss of each training step, in (0, 1]; see `set_class_sampling`.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = MARGIN,
        scale: float = OTHER_SCALE,
        curvature: float = OTHER_CURVATURE,
        projection: str = "released",
        clip_radius: float = 1.0,
        learnable_curvature: bool = False,
        class_sampling: float = 1.0,
    ):
        super().__init__(
            "ham",
            num_classes,
            embedding_size,
            scale,
            margin,
            class_sampling,
            curvature,
            projection=projection,
            clip_radius=clip_radius,
            learnable_curvature=learnable_curvature,
        )


class HSoftmaxLoss(SpeakerLoss):
    """H-Softmax (Fang and He 2026, arXiv 2601.19709): logits from Poincaré distances, without margin.

    Example:
        ```python
        loss = HSoftmaxLoss(num_classes=10, embedding_size=192)
        loss(torch.randn(8, 192), torch.randint(10, (8,)))
        ```

    The arguments are explained in `HamSoftmaxLoss`.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        scale: float = OTHER_SCALE,
        curvature: float = PUBLISHED_CURVATURE["h"],
        projection: str = "released",
        clip_radius: float = 1.0,
        learnable_curvature: bool = False,
        class_sampling: float = 1.0,
    ):
        super().__init__(
            "h",
            num_classes,
            embedding_size,
            scale,
            0.0,
            class_sampling,
            curvature,
            projection=projection,
            clip_radius=clip_radius,
            learnable_curvature=learnable_curvature,
        )


class SoftmaxLoss(SpeakerLoss):
    """Softmax over the linear logits `scale (W x + b)`.

    Example:
        ```python
        loss = SoftmaxLoss(num_classes=10, embedding_size=192)
        loss(torch.randn(8, 192), torch.randint(10, (8,)))
        ```

    Args:
        num_classes: number K of training speakers.
        embedding_size: embedding size D.
        scale: factor of the logits, above 0; 30 for the head `scaled_softmax`.
        class_sampling: fraction of the speakers in the loss of each training step, in (0, 1]; see `set_class_sampling`.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        scale: float = PUBLISHED_SCALE["softmax"],
        class_sampling: float = 1.0,
    ):
        super().__init__("softmax", num_classes, embedding_size, scale, 0.0, class_sampling)


class NormalizedSoftmaxLoss(SpeakerLoss):
    """Softmax over scaled cosines, without margin.

    Example:
        ```python
        loss = NormalizedSoftmaxLoss(num_classes=10, embedding_size=192)
        loss(torch.randn(8, 192), torch.randint(10, (8,)))
        ```

    Args:
        num_classes: number K of training speakers.
        embedding_size: embedding size D.
        scale: factor of the cosines, above 0.
        class_sampling: fraction of the speakers in the loss of each training step, in (0, 1]; see `set_class_sampling`.
    """

    def __init__(self, num_classes: int, embedding_size: int, scale: float = OTHER_SCALE, class_sampling: float = 1.0):
        super().__init__("normalized_softmax", num_classes, embedding_size, scale, 0.0, class_sampling)


class _CosineMarginLoss(SpeakerLoss):
    """Base class of the losses with a margin on cosines. In each subclass, `kind` is the name of the head."""

    kind: ClassVar[str]

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = MARGIN,
        scale: float = OTHER_SCALE,
        class_sampling: float = 1.0,
    ):
        super().__init__(self.kind, num_classes, embedding_size, scale, margin, class_sampling)


class AMSoftmaxLoss(_CosineMarginLoss):
    """AM-Softmax (Wang et al. 2018): scaled cosines, with a margin subtracted from the cosine to the target centre.

    Example:
        ```python
        loss = AMSoftmaxLoss(num_classes=10, embedding_size=192)
        loss(torch.randn(8, 192), torch.randint(10, (8,)))
        ```

    Args:
        num_classes: number K of training speakers.
        embedding_size: embedding size D.
        margin: margin that is subtracted from the cosine to the target centre, in [0, 3).
        scale: factor of the cosines, above 0.
        class_sampling: fraction of the speakers in the loss of each training step, in (0, 1]; see `set_class_sampling`.
    """

    kind = "am"


class AAMSoftmaxLoss(_CosineMarginLoss):
    """AAM-Softmax (Deng et al. 2019): scaled cosines, with a margin added to the angle to the target centre.

    Example:
        ```python
        loss = AAMSoftmaxLoss(num_classes=10, embedding_size=192)
        loss(torch.randn(8, 192), torch.randint(10, (8,)))
        ```

    Args:
        num_classes: number K of training speakers.
        embedding_size: embedding size D.
        margin: margin that is added to the angle to the target centre, in radians, in [0, 3).
        scale: factor of the cosines, above 0.
        class_sampling: fraction of the speakers in the loss of each training step, in (0, 1]; see `set_class_sampling`.
    """

    kind = "aam"


class RealAMSoftmaxLoss(_CosineMarginLoss):
    """Real AM-Softmax (Li et al. 2022, arXiv 2110.09116): AM-Softmax that sets the logits of easy impostors to 0.

    An impostor is easy if its logit is below the target logit with margin. The code of the HAM-Softmax paper contains
    this form of AM-Softmax.

    Example:
        ```python
        loss = RealAMSoftmaxLoss(num_classes=10, embedding_size=192)
        loss(torch.randn(8, 192), torch.randint(10, (8,)))
        ```

    Args:
        num_classes: number K of training speakers.
        embedding_size: embedding size D.
        margin: margin that is subtracted from the cosine to the target centre, in [0, 3).
        scale: factor of the cosines, above 0.
        class_sampling: fraction of the speakers in the loss of each training step, in (0, 1]; see `set_class_sampling`.
    """

    kind = "ram"
