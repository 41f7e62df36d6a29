"""Time, memory and precision of the training heads, forward and backward, against AM-Softmax and other forms.

    python tests/benchmarks/benchmark_head.py [--parts time memory precision growth] [--json FILE] [--plots FOLDER]

Interleaved rounds in one process; each ratio is that of the medians against eager AM-Softmax (normalise, one matrix
product, cross-entropy) in the same run. Yardsticks: the same and HAM, both compiled (`--compile`), AM in the blocked
form of this package, the plain form of HAM, the released formula (a tensor of batch x speakers x dimension; run at an
eighth of the batch and its time multiplied by eight), and with `--wespeaker CHECKOUT` that project's AM head. Peak
memory is that of a fresh process, beyond what it holds before the step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import rivals
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_hamspk.geometry_hamspk import SpeakerHead, arcosh1p, project, score
from hf_hamspk.losses import set_class_sampling, use_blocks

DIMENSION, SHARE, SCALE, MARGIN, CURVATURE = 192, 8, 30.0, 0.2, 3.0
MEGABYTE = 1 << 20
TIMED = (1211, 5994, 17982, 100_000)
GROWTH = (1000, 10_000, 100_000, 1_000_000)
# What is wanted of the time of a rival divided by HAM's, by speakers.
BOUNDS = {
    ("AM eager", 1211): 1.0,
    ("AM eager", 17982): 1 / 0.8,
    ("AM eager", 100_000): 1 / 0.6,
    ("released formula", 5994): 100.0,
}
COMPILED_BOUNDS = {"AM eager": 1.0, "AM compiled": 1 / 1.1}
BATCHES = (64, 128, 256, 512)


def eager_am(embeddings: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
    """AM-Softmax as everybody writes it."""
    cosine = F.normalize(embeddings) @ F.normalize(centres).mT
    target = cosine.gather(1, labels[:, None]) - MARGIN
    return F.cross_entropy(SCALE * cosine.scatter(1, labels[:, None], target), labels)


def released_formula(embeddings: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
    """HAM at c = 3, m = 0.2, s = 30, written as the definition reads."""
    radius = (1 - 1e-5) / 3**0.5

    def clip(v: Tensor) -> Tensor:
        return v * (radius / v.norm(dim=-1, keepdim=True).clamp_min(1e-5)).clamp_max(1)

    x, w = clip(embeddings)[:, None], clip(centres)[None]
    squares = (x - w).square().sum(-1)
    distances = torch.acosh(1 + 2 * squares / ((1 - x.square().sum(-1)) * (1 - w.square().sum(-1))).clamp_min(1e-5))
    return F.cross_entropy(-SCALE * (distances + MARGIN * F.one_hot(labels, len(centres))), labels)


def make_head(name: str, speakers: int) -> SpeakerHead:
    """A head whose centres are as large as in the middle of training."""
    head = SpeakerHead(name, speakers, DIMENSION, SCALE, MARGIN, CURVATURE)
    with torch.no_grad():
        head.similarity.weight.normal_(0, 0.1)
    use_blocks(head)
    return head


def works(speakers: int, batch: int, arguments: argparse.Namespace) -> dict[str, tuple[Callable[[], Tensor], int]]:
    """What is timed by name: the loss, and what its time is multiplied by."""
    x, y = torch.randn(batch, DIMENSION, requires_grad=True), torch.randint(speakers, (batch,))
    am, ham, part = (make_head(name, speakers) for name in ("am", "ham", "ham"))
    set_class_sampling(part, 0.1)
    centres = am.similarity.weight
    found: dict[str, tuple[Callable[[], Tensor], int]] = {
        "AM eager": (lambda: eager_am(x, centres, y), 1),
        "AM blocked": (lambda: am(x, y).loss, 1),
        "HAM": (lambda: ham(x, y).loss, 1),
        "HAM plain": (lambda: ham.plain_loss(x, y), 1),
        "HAM, 10 % of the speakers": (lambda: part(x, y).loss, 1),
    }
    if arguments.compile:
        compiled = torch.compile(eager_am)
        found["AM compiled"] = (lambda: compiled(x, centres, y), 1)
        our_compiled = torch.compile(ham)
        found["HAM compiled"] = (lambda: our_compiled(x, y).loss, 1)
    if arguments.wespeaker is not None:
        projections = rivals.wespeaker_projections(arguments.wespeaker)
        theirs = projections.AddMarginProduct(DIMENSION, speakers, scale=SCALE, margin=MARGIN)
        found["AM of WeSpeaker"] = (lambda: F.cross_entropy(theirs(x, y), y), 1)
    if speakers <= TIMED[1]:
        few = batch // SHARE
        found["released formula"] = (
            lambda: released_formula(x[:few], ham.similarity.weight, y[:few]),
            SHARE,
        )
    return found


def timed(named: dict[str, tuple[Callable[[], Tensor], int]], rounds: int, clock: str) -> dict[str, float]:
    """Median seconds of one forward and backward pass of each, in interleaved rounds after one to warm up."""
    now = rivals.CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in named}
    for number in range(rounds + 1):
        for name, (work, times) in named.items():
            # The slow one is steady.
            if name == "released formula" and number > 2:
                continue
            start = now()
            loss = work()
            loss.backward()
            seconds[name].append((now() - start) * times)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def time_part(arguments: argparse.Namespace) -> dict:
    results = {}
    for speakers in arguments.speakers:
        medians = timed(works(speakers, arguments.batch, arguments), arguments.rounds, arguments.clock)
        base = medians["AM eager"]
        print(f"\nbatch {arguments.batch}, {speakers} speakers, {torch.get_num_threads()} threads, float32")
        for name, median in medians.items():
            print(f"  {name:<28}{1000 * median:>10.1f} ms{median / base:>10.2f} x AM eager")
        results[speakers] = {name: {"seconds": m, "ratio": m / base} for name, m in medians.items()}
    return results


# --- memory, of a fresh process


def measure_step(name: str, speakers: int, batch: int) -> None:
    """Print the peak of one training step beyond what was held before, less the gradient of the centres, as JSON."""
    small = make_head("am" if name == "AM eager" else "ham", 100)
    head = make_head("am" if name == "AM eager" else "ham", speakers)
    centres = head.similarity.weight

    def loss(module: SpeakerHead, x: Tensor, y: Tensor) -> Tensor:
        if name == "AM eager":
            return eager_am(x, module.similarity.weight, y)
        return module.plain_loss(x, y) if name == "HAM plain" else module(x, y).loss

    # Libraries that load and threads that start are not the step's.
    loss(small, torch.randn(4, DIMENSION, requires_grad=True), torch.arange(4)).backward()
    x, y = torch.randn(batch, DIMENSION, requires_grad=True), torch.randint(speakers, (batch,))
    before, start = rivals.forget_peak(), time.perf_counter()
    value = loss(head, x, y)
    value.backward()
    seconds = time.perf_counter() - start
    peak = rivals.memory_of("VmHWM")
    gradient = centres.numel() * centres.element_size()
    torch.optim.SGD([centres], 0.1).step()
    finite = bool(torch.isfinite(centres).all())
    facts = {"beyond_mb": (peak - before - gradient) / MEGABYTE, "gradient_mb": gradient / MEGABYTE}
    print(json.dumps(facts | {"seconds": seconds, "loss": value.item(), "step_is_finite": finite}))


def step_of(name: str, speakers: int, batch: int) -> dict:
    command = [sys.executable, __file__, "--step", name, str(speakers), str(batch)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_part(arguments: argparse.Namespace) -> dict:
    results: dict = {"speakers": {}, "batch": {}}
    print(f"\npeak memory of a step beyond the centres and their gradient, batch {arguments.batch}, MB")
    for name, most in (("HAM", 1_000_000), ("AM eager", 100_000), ("HAM plain", 100_000)):
        for speakers in (17_982, 100_000, 1_000_000):
            if speakers <= most:
                facts = step_of(name, speakers, arguments.batch)
                results["speakers"].setdefault(name, {})[speakers] = facts
                print(f"  {name:<12}{speakers:>10} speakers{facts['beyond_mb']:>10.0f}{facts['seconds']:>8.1f} s")
    for name in ("HAM", "AM eager"):
        for batch in BATCHES:
            results["batch"].setdefault(name, {})[batch] = step_of(name, 17_982, batch)["beyond_mb"]
    torch.manual_seed(0)
    head, x, y = make_head("ham", 17_982), torch.randn(arguments.batch, DIMENSION), torch.arange(arguments.batch)
    blocked, whole = head(x, y).loss.item(), head.plain_loss(x, y).item()
    results["blocked_loss"], results["unblocked_loss"] = blocked, whole
    print(f"  17982 speakers: loss {blocked:.7f} in blocks, {whole:.7f} without; difference {abs(blocked - whole):.1e}")
    return results


# --- precision


def rounded(v: Tensor, kind: str) -> Tensor:
    """Operands of a matrix product as the hardware takes them."""
    if kind == "bf16":
        return v.bfloat16().to(v.dtype)
    if kind == "tf32":
        return ((v.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return v


def rounded_loss(x: Tensor, w: Tensor, y: Tensor, kind: str) -> Tensor:
    """HAM with the operands of its product rounded and the target exact."""
    (px, _), (pw, _) = project(x, "released", 3.0, 1.0), project(w, "released", 3.0, 1.0)
    lx, lw = px.conformal * px.position, pw.conformal * pw.position
    # X0 = conformal - 1.
    tx, tw = px.conformal - 1, (pw.conformal - 1).mT
    product = (lx + (rounded(lx, kind) - lx).detach()) @ (lw + (rounded(lw, kind) - lw).detach()).mT
    distances = arcosh1p((tx * tw - product - 1).clamp_min(0))
    return loss_of_odds(-distances, score(x, w[y], "hyperbolic", "released", 3.0, 1.0), y)


def exact_loss(head: SpeakerHead, x: Tensor, y: Tensor) -> Tensor:
    """HAM of similarities that are computed in the precision of the head."""
    similarity = head.similarity(x, y)
    return loss_of_odds(similarity, similarity.gather(1, y[:, None])[:, 0], y)


def loss_of_odds(similarity: Tensor, own: Tensor, y: Tensor) -> Tensor:
    """From the odds of the impostors: `cross_entropy` rounds a loss far below 1 to 0, and half of its gradient."""
    impostors = (SCALE * similarity).scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return F.softplus(impostors - SCALE * (own - MARGIN), threshold=1e3).mean()


def precision_part(arguments: argparse.Namespace) -> dict:
    results: dict = {}
    print(
        "\nrelative error against float64, batch 64, 2,000 speakers: loss, gradient of the embeddings, of the centres"
    )
    for case in ("start of training", "middle of training", "on the own centre", "confusable speakers"):
        for name, errors in precision_of(case).items():
            print(f"  {case:<22}{name:<26}" + "".join(f"{error:>12.1e}" for error in errors))
            results.setdefault(case, {})[name] = errors
    return results


def precision_of(case: str) -> dict[str, list[float]]:
    """Relative errors of loss and both gradients, by form."""
    torch.manual_seed(0)
    head, y = make_head("ham", 2000), torch.randint(2000, (64,))
    weight = head.similarity.weight
    with torch.no_grad():
        if case == "start of training":
            weight.mul_(1e-2)
        if case == "confusable speakers":
            weight.copy_(weight[0] + 1e-3 * torch.randn(2000, DIMENSION))
    apart = {"start of training": 1.0, "middle of training": 0.1}.get(case, 1e-4)
    x = weight.detach()[y] + apart * torch.randn(64, DIMENSION)
    exact = make_head("ham", 2000).double()
    exact.similarity.weight.data.copy_(weight.detach())

    def run(loss: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        value = loss(x)
        return [value.detach().double(), *(g.double() for g in torch.autograd.grad(value, (x, weight)))]

    true = run(lambda x: exact_loss(exact, x, y), x.double(), exact.similarity.weight)
    forms = {
        "float32 (this package)": run(lambda x: head(x, y).loss, x, weight),
        "TF32 product": run(lambda x: rounded_loss(x, weight, y, "tf32"), x, weight),
        "bf16 product": run(lambda x: rounded_loss(x, weight, y, "bf16"), x, weight),
    }
    return {
        name: [float((a - b).norm() / b.norm()) for a, b in zip(values, true, strict=True)]
        for name, values in forms.items()
    }


# --- growth


def growth_part(arguments: argparse.Namespace) -> dict:
    results: dict = {}
    for speakers in GROWTH:
        medians: dict[str, float] = {}
        for name in ("AM eager", "HAM", "HAM, 10 % of the speakers"):
            # One after the other, because the centres of a million speakers and their gradient have 1.5 GB.
            work = growth_work(name, speakers, arguments.batch)
            medians |= timed({name: (work, 1)}, 2 if speakers > 100_000 else 5, arguments.clock)
            del work
        print(f"\n{speakers} speakers: " + ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in medians.items()))
        for name, seconds in medians.items():
            results.setdefault(name, {})[speakers] = seconds
    return results


def growth_work(name: str, speakers: int, batch: int) -> Callable[[], Tensor]:
    """The loss of one head, with centres of its own."""
    x, y = torch.randn(batch, DIMENSION, requires_grad=True), torch.randint(speakers, (batch,))
    head = make_head("am" if name == "AM eager" else "ham", speakers)
    if name == "AM eager":
        return lambda: eager_am(x, head.similarity.weight, y)
    if name != "HAM":
        set_class_sampling(head, 0.1)
    return lambda: head(x, y).loss


def draw(results: dict, folder: Path) -> None:
    if "growth" in results:
        title = "A training step of the head: forward and backward"
        rivals.plot(folder / "head-time.png", title, "speakers", "seconds", results["growth"])
    if "memory" in results:
        title = "MB beyond centres and gradient, 17,982 speakers"
        rivals.plot(folder / "head-memory.png", title, "batch", "MB", results["memory"]["batch"])


def rows_of(results: dict) -> list[dict]:
    """How many times as long as HAM the others take, for `run_all.py`."""
    rows = []
    for speakers, found in results.get("time", {}).items():
        for name in ("AM eager", "AM compiled", "AM of WeSpeaker", "HAM plain", "released formula"):
            if name in found:
                ratio = found[name]["seconds"] / found["HAM"]["seconds"]
                row = {"what": f"HAM, {speakers} speakers", "rival": name, "ratio": ratio}
                rows.append(row | ({"bound": BOUNDS[name, speakers]} if (name, speakers) in BOUNDS else {}))
        for name in ("AM eager", "AM compiled"):
            if "HAM compiled" in found:
                ratio = found[name]["seconds"] / found["HAM compiled"]["seconds"]
                row = {"what": f"HAM compiled, {speakers} speakers", "rival": name, "ratio": ratio}
                rows.append(row | {"bound": COMPILED_BOUNDS[name]})
    return rows


PARTS = {"time": time_part, "memory": memory_part, "precision": precision_part, "growth": growth_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--speakers", type=int, nargs="+", default=list(TIMED))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--compile", action="store_true", help="add AM-Softmax and HAM compiled (needs a C++ compiler)")
    parser.add_argument("--wespeaker", type=Path, help="checkout of WeSpeaker")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--plots", type=Path, help="draw growth and memory into this folder")
    rivals.add_conditions(parser)
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step is not None:
        measure_step(arguments.step[0], int(arguments.step[1]), int(arguments.step[2]))
        return
    rivals.use_conditions(arguments)
    print(rivals.conditions_in_words(arguments))
    results = {part: PARTS[part](arguments) for part in arguments.parts}
    content = {"conditions": rivals.conditions(arguments), "rows": rows_of(results), **results}
    rivals.write_json(arguments.json, "head", content)
    if arguments.plots is not None:
        draw(results, arguments.plots)


if __name__ == "__main__":
    main()
