"""Start the speaker centres of a new head at the mean embeddings of the speakers instead of random vectors."""

import torch
from torch import Tensor, nn

from ..geometry_hamspk import HyperbolicSimilarity, JointHead, SpeakerHead, released_radius
from ..losses.engine import head_parts


def training_embeddings(embeddings: Tensor, norm: nn.Module, is_frozen: bool) -> Tensor:
    """Convert embeddings `(N, D)` of a model in evaluation mode to the embeddings of the model in training mode.

    In training mode, the last batch normalisation uses the mean and the standard deviation of the batch. Here, all N
    embeddings are treated as one batch.

    Args:
        embeddings: embeddings of the training utterances, computed in evaluation mode.
        norm: last layer of the model.
        is_frozen: whether batch normalisation uses its running statistics in training, too.
    """
    if is_frozen or not isinstance(norm, nn.BatchNorm1d):
        return embeddings
    standard = (embeddings - embeddings.mean(0)) / (embeddings.var(0, unbiased=False) + norm.eps).sqrt()
    return (standard * norm.weight + norm.bias).detach()


@torch.no_grad()
def start_at_means(head: SpeakerHead | JointHead, embeddings: Tensor, labels: Tensor) -> None:
    """Set the direction of each centre to the mean direction of the speaker's embeddings.

    In hyperbolic heads, all centres get the largest radius. In other heads, all centres get the mean norm of the
    centres. The centre of a speaker without an embedding stays unchanged.

    Args:
        head: new head.
        embeddings: embeddings `(N, D)`.
        labels: class indices `(N,)`.
    """
    for part in head_parts(head):
        similarity = part.similarity
        weight = similarity.weight
        directions = nn.functional.normalize(embeddings.to(weight), dim=1)
        sums = torch.zeros_like(weight).index_add_(0, labels.to(weight.device), directions)
        has_mean = sums.norm(dim=1) > 0
        length = weight.norm(dim=1).mean()
        if isinstance(similarity, HyperbolicSimilarity):
            is_released = similarity.projection == "released"
            length = released_radius(similarity.initial_curvature) if is_released else similarity.clip_radius
        weight[has_mean] = length * nn.functional.normalize(sums[has_mean], dim=1)
