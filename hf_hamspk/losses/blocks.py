"""Forward and backward pass of the loss over blocks of centres. The module `fused` explains the method.

Letters: `B` batch size, `K` speakers, `N` centres of a block, `D` embedding size, `A` columns of a lifted vector.

Let `t` be the logit of the target speaker of an utterance, `z` the logits of the impostor speakers, and
`S = sum exp z` the sum over the impostors. The loss is `log(1 + exp(log S - t))`. Let `q = S / (S + exp t)`, the total
probability that the head assigns to the impostors. The derivative of the loss is `q exp(z) / S` with respect to the
logit `z` of an impostor, and `-q` with respect to `t`. No step subtracts nearly equal numbers.

The logits of a block are stored in bits, `z / log 2`, because powers of 2 are faster to compute than exponentials. The
rows of lifted vectors and of their gradients are aligned to cache lines (`new_rows`) for faster matrix products.
"""

from typing import Any

import torch
from torch import Tensor

from ..geometry_hamspk import add_margin
from .lifting import (
    BITS_PER_NAT,
    HeadSettings,
    PairDistance,
    Radial,
    curvature_gradient,
    fixed_shift,
    lift_centres,
    lift_embeddings,
    new_rows,
    pair_distance,
    pull_back,
    pull_back_pairs,
    radial_parts,
    target_similarity,
)
from .sharding import CentreShard, largest_over_ranks, sum_over_ranks

# Number of logits in a block, B x N. A block should fit into the cache of a CPU, or be large enough to occupy a GPU.
CPU_BLOCK, GPU_BLOCK = 1 << 19, 1 << 24
SMALLEST_BLOCK = 64
ROOT_OF_TWO = 2**0.5


class BlockwiseLoss:
    """Forward and backward pass of the loss over blocks of centres, and the state that both passes need.

    Args:
        settings: settings of the head.
        curvature: fixed curvature of a hyperbolic similarity; None if the curvature is learned, or for other
            similarities.
        chosen: ascending row numbers of the centres that are used in the loss; None for all rows.
        shard: rows of the centres that this rank stores; None if it stores all.
        kept_bytes: largest memory, in bytes, for derivatives of logits that are kept for the backward pass.
    """

    needs_grad = True

    def __init__(
        self,
        settings: HeadSettings,
        curvature: float | None,
        chosen: Tensor | None,
        shard: CentreShard | None,
        kept_bytes: int,
    ):
        self.settings, self.fixed_curvature, self.chosen, self.shard = settings, curvature, chosen, shard
        self.kept_bytes = kept_bytes
        # Number that is subtracted from every logit. If it is None, `running` is subtracted instead: the largest logit
        # of each row so far, in bits.
        self.shift = fixed_shift(settings, curvature)
        self.kept: dict[int, Tensor] = {}
        # Buffers that all blocks reuse.
        self.scratch: dict[str, Tensor] = {}
        self.pairs: PairDistance | None = None
        # Value of `running` at each block.
        self.running_at: dict[int, Tensor] = {}

    # -- forward ----------------------------------------------------------------------------------------------------

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, curvature: Tensor | None, labels: Tensor
    ) -> Tensor:
        c = self.fixed_curvature if curvature is None else curvature.detach()
        self.places = self._places(labels, weight)
        own_rows, batch = weight.detach().index_select(0, self.local).to(x.dtype), x.shape[0]
        pairs = torch.cat([x, own_rows])
        pair_radial, self.radial = radial_parts((pairs, self._taking_part(weight)), x.dtype, c, self.settings)
        self.x_radial = _part(pair_radial, slice(0, batch))
        if self.settings.kind == "hyperbolic" and curvature is None and pair_radial is not None:
            self._fixed_target(pairs, pair_radial)
        else:
            self._target(x, own_rows, bias, curvature)
        self.lifted = lift_embeddings(x, self.x_radial, 0.0 if self.shift is None else self.shift, self.settings)
        entries = CPU_BLOCK if x.device.type == "cpu" else GPU_BLOCK
        self.block = max(SMALLEST_BLOCK, entries // max(batch, 1))
        self.count = len(weight) if self.chosen is None else len(self.chosen)
        self.keep = self.kept_bytes // (batch * self.block * x.element_size()) if batch and self.needs_grad else 0
        self.total, self.grad = x.new_zeros(batch), new_rows(batch, self.lifted.shape[1], x).zero_()
        self.distance_sum = None if curvature is None else x.new_zeros(batch)
        self.running = self.target_logit * BITS_PER_NAT if self.shift is None else None
        for number, span in enumerate(self._spans()):
            lifted = self._lift(weight, bias, span)
            derivative = self._derivative(number, lifted)
            if self.needs_grad:
                self.grad.addmm_(derivative, lifted)
            if number < self.keep:
                self.kept[number] = derivative
        self.scratch.clear()
        return self._losses()

    def _places(self, labels: Tensor, weight: Tensor) -> Tensor:
        """Return the positions of the labels among the chosen rows, or -1 if another rank stores the centre."""
        self.own, self.local = None, labels
        if self.shard is not None:
            local = labels - self.shard.first
            self.own = (local >= 0) & (local < weight.shape[0])
            self.local = local.clamp(0, weight.shape[0] - 1)
        places = self.local if self.chosen is None else torch.searchsorted(self.chosen, self.local)
        return self._fill_remote(places, -1)

    def _fill_remote(self, values: Tensor, other: float) -> Tensor:
        """Return `values` `(B,)`, with `other` in place of the values of utterances whose centre is on another rank."""
        return values if self.own is None else values.where(self.own, other)

    def _fixed_target(self, pairs: Tensor, radial: Radial) -> None:
        """Compute the target logits of a hyperbolic head with fixed curvature, without an autograd graph.

        Raises:
            ValueError: the margin is angular, but distances need an additive margin.
        """
        if self.settings.margin_kind == "angular":
            raise ValueError("An angular margin needs a cosine head. Choose an additive margin for a hyperbolic head.")
        self.pairs = pair_distance(pairs, radial)
        similarity = self.pairs.distance * (-self._distance_scale() / self.settings.scale)
        self._share_target(add_margin(similarity, self.settings.margin_kind, self.settings.margin))

    def _target(self, x: Tensor, rows: Tensor, bias: Tensor | None, curvature: Tensor | None) -> None:
        """Compute the target similarity with margin, and keep the autograd graph for the backward pass."""
        with torch.enable_grad():
            own_bias = None if bias is None else bias.detach()[self.local].to(x.dtype)
            inputs = [x.detach(), rows, own_bias, None if curvature is None else curvature.detach()]
            for tensor in inputs:
                if tensor is not None:
                    tensor.requires_grad_(self.needs_grad)
            c = self.fixed_curvature if curvature is None else inputs[3]
            similarity = target_similarity(inputs[0], rows, own_bias, c, self.settings)
            similarity = add_margin(similarity, self.settings.margin_kind, self.settings.margin)
        self.target = inputs, similarity
        self._share_target(similarity)

    def _share_target(self, similarity: Tensor) -> None:
        known = self._fill_remote(similarity.detach(), 0.0)
        self.target_logit = self.settings.scale * sum_over_ranks(known, self.shard)

    def _taking_part(self, tensor: Tensor, span: slice = slice(None)) -> Tensor:
        return tensor[span] if self.chosen is None else tensor[self.chosen[span]]

    def _spans(self) -> list[slice]:
        """Return the blocks as slices of the chosen rows."""
        return [slice(start, min(start + self.block, self.count)) for start in range(0, self.count, self.block)]

    def _lift(self, weight: Tensor, bias: Tensor | None, span: slice) -> Tensor:
        """Return the lifted centres `(N, A)` of a block in a buffer that the next call overwrites."""
        dtype = self.lifted.dtype
        rows = self._taking_part(weight, span).to(dtype)
        block_bias = None if bias is None else self._taking_part(bias, span).to(dtype)
        lifted = self._lifted_scratch(rows.shape[0])
        lift_centres(rows, block_bias, _part(self.radial, span), lifted)
        return lifted

    def _lifted_scratch(self, count: int) -> Tensor:
        """Return a buffer `(count, A)` for the lifted centres of a block or for their gradient. All blocks use it."""
        if "lifted" not in self.scratch:
            self.scratch["lifted"] = new_rows(min(self.block, self.count), self.lifted.shape[1], self.lifted)
        return self.scratch["lifted"][:count]

    def _block_scratch(self, name: str, columns: int) -> Tensor:
        """Return the buffer `name` as `(B, columns)`. All blocks use the same memory."""
        batch = self.lifted.shape[0]
        if name not in self.scratch:
            self.scratch[name] = self.lifted.new_empty(batch * min(self.block, self.count))
        return self.scratch[name][: batch * columns].view(batch, columns)

    def _derivative(self, number: int, lifted: Tensor, again: bool = False) -> Tensor:
        """Compute the exponentials of the logits of block `number`, and their derivatives.

        Unless `again` is True, the exponentials are also added to the sums of the forward pass.

        Returns:
            The derivatives `(B, N)` with respect to the products of lifted vectors, up to a constant factor.
        """
        columns = lifted.shape[0]
        is_kept = number < self.keep and not again
        product = torch.mm(self.lifted, lifted.mT, out=None if is_kept else self._block_scratch("product", columns))
        if self.settings.kind == "hyperbolic":
            self._mark(product, number, torch.inf)
            sinh = to_distance(product, self._block_scratch("sinh", columns))
            distance = product.clone() if self.distance_sum is not None and not again else None
            logits = product.mul_(-BITS_PER_NAT * self._distance_scale())
            masked = None
        else:
            sinh, distance, logits = None, None, product
            masked = self._hinge(logits)
            self._mark(logits, number, -torch.inf)
        exponentials = self._exponentials(number, logits, again)
        if not again:
            self.total += exponentials.sum(1)
            if distance is not None and self.distance_sum is not None:
                # The distance of a target was set to infinity, so its exponential is 0.
                self.distance_sum += (exponentials * distance.clamp_max_(torch.finfo(distance.dtype).max)).sum(1)
        if sinh is not None:
            return exponentials.div_(sinh)
        return exponentials if masked is None else exponentials.masked_fill_(masked, 0.0)

    def _mark(self, block: Tensor, number: int, value: float) -> None:
        """Write `value` to the target entries of `block` `(B, N)`, which is block number `number`."""
        columns = block.shape[1]
        if self.own is None and number == 0 and columns == self.count:
            block.scatter_(1, self.places[:, None], value)
            return
        places = self.places - number * self.block
        inside = ((places >= 0) & (places < columns))[:, None]
        index = places.clamp(0, columns - 1)[:, None]
        block.scatter_(1, index, block.gather(1, index).masked_fill_(inside, value))

    def _distance_scale(self) -> float | Tensor:
        """Return the factor `s f` that converts distances in the unit ball to negative logits; see `lifting`."""
        if self.settings.projection == "released":
            return self.settings.scale
        c = self.target[0][3] if self.fixed_curvature is None else self.fixed_curvature
        return self.settings.scale * (c.detach() if isinstance(c, Tensor) else c) ** -0.5

    def _hinge(self, logits: Tensor) -> Tensor | None:
        """If the margin kind is "real", set the logits of easy impostors to 0.

        An impostor is easy if its logit is below the target logit with margin.

        Returns:
            The mask `(B, N)` of the easy impostors; None for other margin kinds.
        """
        if self.settings.margin_kind != "real":
            return None
        shift = 0.0 if self.shift is None else self.shift
        easy = logits < (self.target_logit - shift).mul_(BITS_PER_NAT)[:, None]
        logits.masked_fill_(easy, -shift * BITS_PER_NAT)
        return easy

    def _exponentials(self, number: int, logits: Tensor, again: bool) -> Tensor:
        if self.running is None:
            if self.settings.kind == "hyperbolic" and self.shift:
                logits.sub_(self.shift * BITS_PER_NAT)
            return logits.exp2_()
        if not again:
            largest = torch.maximum(self.running, logits.amax(1))
            self._shrink(self.running, largest)
            self.running = self.running_at[number] = largest
        return logits.sub_(self.running_at[number][:, None]).exp2_()

    def _shrink(self, shift: Tensor, larger: Tensor) -> None:
        """Rescale the sums of exponentials when `larger` replaces `shift`. Both are `(B,)`, in bits."""
        factor = (shift - larger).exp2_()
        self.total *= factor
        self.grad *= factor[:, None]
        if self.distance_sum is not None:
            self.distance_sum *= factor

    def _losses(self) -> Tensor:
        shift: float | Tensor = 0.0 if self.shift is None else self.shift
        if self.running is not None:
            largest = largest_over_ranks(self.running.clone(), self.shard)
            self._shrink(self.running, largest)
            self.running, shift = largest, largest / BITS_PER_NAT
        total = sum_over_ranks(self.total, self.shard)
        # Logarithm of the odds of the impostors against the target. Without impostors, it is minus infinity, and the
        # loss is 0.
        odds = total.log() + shift - self.target_logit
        self.wrong = odds.sigmoid()
        self.total = total.clamp_min(torch.finfo(total.dtype).tiny)
        return torch.logaddexp(odds, torch.zeros_like(odds))

    # -- backward ---------------------------------------------------------------------------------------------------

    def backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, curvature: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Compute the gradients of embeddings, centres, bias and curvature from the gradient `(B,)` of the losses."""
        self.wrong_grad = grad * self.wrong
        factor = self.wrong_grad / self.total
        if self.settings.kind == "hyperbolic":
            factor = factor * (self._distance_scale() * -(ROOT_OF_TWO**-1))
        grad_x, x_parts = self._embeddings_gradient(factor, x)
        grad_weight, grad_bias, parts = self._centres_gradient(factor, weight, bias)
        self.scratch.clear()
        target_x, target_rows, target_bias, target_c = self._target_gradient()
        grad_x.add_(target_x)
        grad_weight.index_add_(0, self.local, target_rows.to(grad_weight.dtype))
        if grad_bias is not None:
            grad_bias.index_add_(0, self.local, target_bias.to(grad_bias.dtype))
        if curvature is None:
            return grad_x, grad_weight, grad_bias, None
        grad_c = self._scale_gradient(curvature) + target_c
        for radial, given in ((self.x_radial, x_parts), (self.radial, parts)):
            if radial is not None and given is not None:
                grad_c = grad_c + curvature_gradient(radial, given[0], given[1], curvature, self.settings)
        return grad_x, grad_weight, grad_bias, sum_over_ranks(grad_c, self.shard)

    def _target_gradient(self) -> list[Any]:
        """Compute the gradients of embedding, centre, bias and curvature through the target similarity."""
        # If the target centre is on another rank, the similarity was computed with an arbitrary centre of this rank.
        given = self._fill_remote(self.wrong_grad, 0.0)
        if self.pairs is not None:
            return [*pull_back_pairs(given * self._distance_scale(), self.pairs), None, None]
        inputs, similarity = self.target
        given = -self.settings.scale * given
        wanted = [tensor for tensor in inputs if tensor is not None]
        found = iter(torch.autograd.grad(similarity, wanted, given, retain_graph=True))
        return [None if tensor is None else next(found) for tensor in inputs]

    def _embeddings_gradient(self, factor: Tensor, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Compute the gradient of the embeddings through the impostor logits.

        Returns:
            The gradient of the embeddings `(B, D)`, and the gradients of the lengths and of the time parts of the
            lifted embeddings, `(B,)` each.
        """
        size = x.shape[1]
        # The first D columns of a lifted embedding are `-X` (hyperbolic), or the embedding or its direction times `s`.
        hyperbolic = self.settings.kind == "hyperbolic"
        space_scale = -1.0 if hyperbolic else self.settings.scale
        space = self.grad[:, :size] * (factor * space_scale)[:, None]
        if self.x_radial is None:
            return space, (space, space)
        time = self.grad[:, size:].sum(1).mul_(factor) if hyperbolic else torch.zeros_like(factor)
        out = torch.empty_like(x)
        return out, (pull_back(space, time, x, self.x_radial, out), time)

    def _centres_gradient(
        self, factor: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Compute the gradients of centres and bias through the impostor logits.

        Returns:
            The gradient of the centres, the gradient of the bias (or None), and, if the curvature is learned, a tensor
            `(2, rows)` with the gradients of the lengths and the time parts of the lifted centres (otherwise None).
        """
        direct = self.chosen is None and weight.dtype == factor.dtype
        grad_weight = torch.empty_like(weight) if direct else torch.zeros_like(weight)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        size = weight.shape[1]
        parts = None if self.distance_sum is None else factor.new_zeros(2, self.count)
        if self.settings.kind != "hyperbolic":
            # Products with the lifted embeddings are logits in bits.
            factor = factor / BITS_PER_NAT
        batch, columns = self.lifted.shape
        weighted = torch.mul(self.lifted, factor[:, None], out=new_rows(batch, columns, factor))
        for number, span in enumerate(self._spans()):
            derivative = self.kept.pop(number, None)
            if derivative is None:
                derivative = self._derivative(number, self._lift(weight, bias, span), again=True)
            given = weighted
            if self.running is not None:
                given = weighted * (self.running_at[number] - self.running).exp2_()[:, None]
            lifted_grad = torch.mm(derivative.mT, given, out=self._lifted_scratch(derivative.shape[1]))
            rows = self._taking_part(weight, span).to(factor.dtype)
            out = grad_weight[span] if direct else torch.empty_like(rows)
            radial = _part(self.radial, span)
            if radial is None:
                out.copy_(lifted_grad[:, :size])
                if grad_bias is not None:
                    self._put(grad_bias, span, lifted_grad[:, size])
            else:
                # For a cosine, the last column is the gradient of a constant, and `pull_back` multiplies it by 0.
                time = lifted_grad[:, -1]
                length = pull_back(lifted_grad[:, :size], time, rows, radial, out)
                if parts is not None:
                    parts[0, span], parts[1, span] = length, time
            if not direct:
                self._put(grad_weight, span, out)
        return grad_weight, grad_bias, parts

    def _put(self, grad: Tensor, span: slice, values: Tensor) -> None:
        """Write `values`, the gradient of one block of the chosen rows, to `grad`."""
        if self.chosen is None:
            grad[span] = values.to(grad.dtype)
        else:
            grad[self.chosen[span]] = values.to(grad.dtype)

    def _scale_gradient(self, curvature: Tensor) -> Tensor:
        """Compute the gradient of a learned curvature through the scale factor of the distances."""
        with torch.enable_grad():
            c = curvature.detach().requires_grad_()
            factor = c**-0.5
        distances = self.total.new_zeros(()) if self.distance_sum is None else self.distance_sum / self.total
        given = -self.settings.scale * (self.wrong_grad * distances).sum()
        return torch.autograd.grad(factor, c, given)[0]


def to_distance(u: Tensor, out: Tensor) -> Tensor:
    """Convert `u = cosh d - 1` to the distance `d`, in place.

    If `u` is smaller than its rounding error, the gradient is only noise. Therefore `u` is set to at least half the
    machine epsilon. This bounds the derivative, as in `geometry_hamspk.arcosh1p`.

    Args:
        u: tensor of any shape; overwritten with `d`.
        out: buffer of the same shape for the result.

    Returns:
        `sinh d / sqrt(2)`, written to `out`.
    """
    u.clamp_min_(torch.finfo(u.dtype).eps / 2)
    # sinh^2 = u (u + 2)
    sinh = torch.addcmul(u, u, u, value=0.5, out=out).sqrt_()
    # log is faster than log1p. For small distances, it has the same absolute rounding error as for distances near 1.
    u.add_(sinh, alpha=ROOT_OF_TWO).add_(1).log_()
    return sinh


def _part(radial: Radial | None, span: slice) -> Radial | None:
    return None if radial is None else radial[span]
