"""Time of embedding with CAM++ and ResNet34, compared with the classes of 3D-Speaker and WeSpeaker.

    python tests/benchmarks/benchmark_encoders.py [--speakerlab WHEEL] [--wespeaker CHECKOUT] [--seconds 3 10]

Features to embeddings in evaluation mode, with equal weights, in turns in one process; the embeddings are compared
first. CAM++ is the class of `speakerlab-slim` (`pip download --no-deps speakerlab-slim` gives the wheel, which is
imported as it is), ResNet34 the class of a checkout of WeSpeaker. On a machine that others use, `--threads 1 --clock
processor` counts processor time.
"""

import argparse
import importlib
import statistics
import sys
import types
from collections.abc import Callable
from pathlib import Path

import rivals
import torch
from torch import Tensor, nn

from hf_hamspk import HamSpkConfig, HamSpkModel
from hf_hamspk.conversion.campplus import convert_campplus_state_dict
from hf_hamspk.conversion.wespeaker import convert_wespeaker_resnet

BOUND, FRAMES_PER_SECOND, LARGEST_ERROR = 1.0, 100, 1e-4
CAMPPLUS = {"backbone": "campplus", "normalize_pooled": False, "pooling_smallest_variance": 1e-12}
RESNET = {"backbone": "resnet", "normalize_pooled": False, "normalize_embedding": False, "embedding_size": 256}
RESNET |= {"pooling_variance_offset": 1e-7, "pooling_smallest_variance": 1e-7}

Encoder = Callable[[Tensor], Tensor]


def settled_planes(model: nn.Module) -> nn.Module:
    """Statistics of batch normalisation as after some training, also of planes."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return rivals.settled(model)


def campplus(wheel: Path) -> tuple[Encoder, Encoder]:
    """Our CAM++ and the class of speakerlab-slim, with equal weights."""
    sys.path.insert(0, str(wheel))
    theirs = settled_planes(importlib.import_module("speakerlab.models.campplus.DTDNN").CAMPPlus(80, 192))
    ours = HamSpkModel(HamSpkConfig(**CAMPPLUS)).eval()
    ours.load_state_dict(convert_campplus_state_dict(theirs.state_dict()))
    return embedder(ours), theirs


def resnet(checkout: Path) -> tuple[Encoder, Encoder]:
    """Our ResNet34 and the class of WeSpeaker, with equal weights."""
    for name in ("wespeaker", "wespeaker.models"):
        module = types.ModuleType(name)
        module.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = module
    module = importlib.import_module("wespeaker.models.resnet")
    theirs = settled_planes(module.ResNet34(80, 256, pooling_func="TSTP", two_emb_layer=False))
    ours = HamSpkModel(HamSpkConfig(**RESNET)).eval()
    ours.load_state_dict(convert_wespeaker_resnet(theirs.state_dict()))
    return embedder(ours), lambda x: theirs(x)[-1]


def embedder(model: HamSpkModel) -> Encoder:
    """Features `(B, T, F)` to embeddings, as the other classes take them."""
    return lambda x: model.embedding_norm(model.projection(model.pooled_norm(model.pooling(model.backbone(x.mT)))))


def compare(pair: tuple[Encoder, Encoder], batch: int, seconds: float, arguments) -> tuple[dict, float]:
    """Seconds of each in each round, and how many times as long as ours the other takes."""
    x = torch.randn(batch, round(seconds * FRAMES_PER_SECOND), rivals.MEL_BINS)
    with torch.inference_mode():
        ours, theirs = (encode(x) for encode in pair)
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        assert error < LARGEST_ERROR, error
        works = {"hf_hamspk": lambda: pair[0](x), "theirs": lambda: pair[1](x)}
        times = rivals.take_turns(works, arguments.rounds, arguments.clock)
    return times, rivals.ratios(times, "hf_hamspk")["theirs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speakerlab", type=Path, help="wheel of speakerlab-slim; without it, CAM++ is left out")
    parser.add_argument("--wespeaker", type=Path, help="checkout of WeSpeaker; without it, ResNet34 is left out")
    parser.add_argument("--seconds", type=float, nargs="+", default=[3.0, 10.0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    rivals.add_conditions(parser)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rivals.use_conditions(arguments)
    pairs = {}
    if arguments.speakerlab is not None:
        pairs["CAM++", "speakerlab-slim"] = campplus(arguments.speakerlab)
    if arguments.wespeaker is not None:
        pairs["ResNet34", "WeSpeaker"] = resnet(arguments.wespeaker)
    print(f"features to embeddings, float32, {rivals.conditions_in_words(arguments)}")
    rows = []
    for (name, rival), pair in pairs.items():
        for batch in arguments.batches:
            for seconds in arguments.seconds:
                times, ratio = compare(pair, batch, seconds, arguments)
                ours = statistics.median(times["hf_hamspk"])
                print(f"{name:<10}{batch:>3} x {seconds:g} s{1000 * ours:>9.0f} ms   {rival} {ratio:.2f} x")
                what = f"embedding with {name}, {batch} x {seconds:g} s"
                rows.append({"what": what, "rival": rival, "ratio": ratio, "bound": BOUND})
    rivals.write_json(arguments.json, "encoders", {"conditions": rivals.conditions(arguments), "rows": rows})


if __name__ == "__main__":
    main()
