"""Which property of a speaker determines the radius of its centre? Utterances are taken away or repeated at random.

    python examples/studies/radii.py MODEL TABLE.csv --audio-root AUDIO --output FOLDER

The encoder and the pooling of MODEL stay as they are, and the pooled statistics of random crops are computed once. For
each head and seed, a new embedding layer and a new head are trained on them twice: on all utterances, and on utterances
that depend on the arm that each speaker is assigned to at random, among the speakers with the same --group:

    all         all utterances
    few         --keep random utterances
    repeated    the same number of random utterances, each repeated so often that the rows are about as many as in `all`
    similar     the utterances whose embeddings are most similar to their mean
    different   the utterances whose embeddings are least similar to their mean

Both trainings of a speaker have the same seed, so the difference of the radii is the effect of the arm. It is compared
with the differences in the arm `all` by permutations of the arms. Speakers with fewer than twice --keep utterances keep
all, and are in no arm. --shape also prints the shape and the dendrograms of each head; see `hamspk hierarchy`.
"""

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_hamspk import HamSpkConfig, HamSpkModel
from hf_hamspk.data.audio import read_utterance
from hf_hamspk.hierarchy import HierarchySettings, analyse
from hf_hamspk.hierarchy.measures import permutation_p_value
from hf_hamspk.hierarchy.points import Space, centre_weights, space_of, unit
from hf_hamspk.hierarchy.recordings import EmbeddedRecordings, LabelledTable, read_labelled_table
from hf_hamspk.loading.models import load_model
from hf_hamspk.networks_hamspk import make_head
from hf_hamspk.study.controls import use_control

ARMS = ("all", "few", "repeated", "similar", "different")
# Fields of the configuration, control and space of each head. `curved` has the logits of `ham` at 0 and 90 degrees.
HEADS: dict[str, tuple[dict[str, Any], str | None, str | None]] = {
    "softmax": ({"head": "softmax"}, None, None),
    "am": ({"head": "am"}, None, None),
    "ham": ({"head": "ham"}, None, None),
    "curved": (
        {"head": "ham", "projection": "curved", "curvature": 1.0, "scale": 18.6, "margin": 0.32},
        None,
        None,
    ),
    "exponential": ({"head": "ham"}, "exponential", "free"),
    "horosphere": ({"head": "ham"}, "horosphere", "free"),
    "radial_margin": ({"head": "ham"}, "radial_margin", "free"),
}
BATCH, RATE_DECAY = 64, 0.95


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Find out what determines the radii of centres.")
    parser.add_argument("model", help="folder of a trained model")
    parser.add_argument("table", help="list of recordings with path and speaker_id")
    parser.add_argument("--audio-root", required=True)
    parser.add_argument("--output", required=True, help="folder for radii.json")
    parser.add_argument(
        "--group", default="corpus", help="column; arms are assigned among speakers with the same value"
    )
    parser.add_argument("--labels", nargs="*", default=[], help="columns for --shape")
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=["ham", "curved", "exponential", "softmax"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--keep", type=int, default=4, help="utterances that are kept in all arms but `all`")
    parser.add_argument("--crops", type=int, default=8, help="random crops of each utterance")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a crop")
    parser.add_argument("--permutations", type=int, default=999)
    parser.add_argument("--draws", type=int, default=99, help="random sets of points for --shape")
    parser.add_argument("--shape", action="store_true", help="measure the hierarchy of each head, with the first seed")
    return parser.parse_args(words)


class Pooled:
    """Pooled statistics of the utterances of a table: `crops` `(N, R, S)` and `whole` `(N, S)`."""

    def __init__(self, model: HamSpkModel, table: LabelledTable, options: argparse.Namespace):
        kept: list[torch.Tensor] = []
        hook = model.pooling.register_forward_hook(lambda module, inputs, output: kept.append(output.detach()))
        rate, draw = model.config.sampling_rate, np.random.default_rng(0)
        length, crops, whole, seconds = int(options.seconds * rate), [], [], []
        for name in table.names:
            wave = read_utterance(Path(options.audio_root) / name, rate).waveform
            seconds.append(len(wave) / rate)
            long = np.tile(wave, -(-length // len(wave)))
            starts = draw.integers(0, len(long) - length + 1, options.crops)
            batch = torch.from_numpy(np.stack([long[start : start + length] for start in starts]))
            for waves, found in ((batch, crops), (torch.from_numpy(wave)[None], whole)):
                with torch.inference_mode():
                    model(waves)
                found.append(kept.pop())
        hook.remove()
        self.crops, self.whole, self.seconds = torch.stack(crops), torch.cat(whole), np.array(seconds)


class EmbeddingLayer(nn.Module):
    """The layers of a model between the pooling and the embedding, with new weights."""

    def __init__(self, model: HamSpkModel):
        super().__init__()
        parts = [copy.deepcopy(part) for part in (model.pooled_norm, model.projection, model.embedding_norm)]
        for part in parts:
            if not isinstance(part, nn.Identity):
                part.reset_parameters()
        self.parts = nn.Sequential(*parts)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.parts(pooled)


def train(
    model: HamSpkModel, pooled: Pooled, labels: torch.Tensor, rows: np.ndarray, head: str, seed: int, options: Any
) -> tuple[np.ndarray, np.ndarray, Space]:
    """Train a layer and a head on rows of utterances; return embeddings of all utterances, centres and their space."""
    torch.manual_seed(seed)
    fields, control, space = HEADS[head]
    size = model.config.embedding_size
    values: dict[str, Any] = fields | {"num_labels": int(labels.max()) + 1, "embedding_size": size}
    config = HamSpkConfig(**values)
    layer, classifier = EmbeddingLayer(model), make_head(config)
    use_control(classifier, control)
    optimizer = torch.optim.Adam(
        [*layer.parameters(), *classifier.parameters()], lr=options.learning_rate, weight_decay=2e-5
    )
    draw = np.random.default_rng(seed)
    for _ in range(options.epochs):
        order = draw.permutation(rows)
        # A last batch of one row is left out, because batch normalisation needs two.
        for first in range(0, len(order) - 1, BATCH):
            batch = torch.from_numpy(order[first : first + BATCH])
            crops = pooled.crops[batch, torch.from_numpy(draw.integers(0, options.crops, len(batch)))]
            loss = classifier(layer(crops), labels[batch]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= RATE_DECAY
    with torch.inference_mode():
        embeddings = layer.eval()(pooled.whole).double().numpy()
    return embeddings, centre_weights(classifier), space_of(config, space)


def assign(groups: Sequence[str], counts: np.ndarray, keep: int, seed: int) -> np.ndarray:
    """Return the arm of each speaker: a number of `ARMS`, or -1 for a speaker with too few utterances."""
    draw, arms = np.random.default_rng(seed), np.full(len(counts), -1)
    for group in sorted(set(groups)):
        able = [i for i, one in enumerate(groups) if one == group and counts[i] >= 2 * keep]
        arms[draw.permutation(able).astype(int)] = np.arange(len(able)) % len(ARMS)
    return arms


def rows_of(arm: int, own: np.ndarray, closeness: np.ndarray, keep: int, draw: np.random.Generator) -> list[int]:
    """Return the rows of a speaker in an arm; `closeness` is the cosine of each utterance to the speaker's mean."""
    chosen = {"few": draw.permutation(own), "repeated": draw.permutation(own), "similar": own[np.argsort(-closeness)]}
    chosen["different"] = own[np.argsort(closeness)]
    name = ARMS[arm] if arm >= 0 else "all"
    if name == "all":
        return own.tolist()
    kept = chosen[name][:keep].tolist()
    return kept * round(len(own) / keep) if name == "repeated" else kept


def compare(differences: np.ndarray, arms: np.ndarray, permutations: int) -> list[dict[str, Any]]:
    """Return for each arm the mean difference of the radii, and the p-value of its contrast with the arm `all`."""
    draw, rows = np.random.default_rng(0), []
    for number, name in enumerate(ARMS):
        own, base = differences[arms == number], differences[arms == 0]
        row: dict[str, Any] = {"arm": name, "speakers": len(own), "difference": float(own.mean())}
        if number:
            both = np.concatenate([own, base])
            drawn = []
            for _ in range(permutations):
                mixed = draw.permutation(both)
                drawn.append(mixed[: len(own)].mean() - mixed[len(own) :].mean())
            row["effect"] = float(own.mean() - base.mean())
            row["p"] = permutation_p_value(row["effect"], drawn, "both")
        rows.append(row)
    return rows


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    model = load_model(options.model, "cpu")
    columns = list(dict.fromkeys([options.group, *options.labels]))
    table = read_labelled_table(options.table, columns)
    speakers, of_speaker = np.unique(table.speakers, return_inverse=True)
    counts = np.bincount(of_speaker)
    groups = [table.labels[options.group][int(np.argmax(of_speaker == i))] for i in range(len(speakers))]
    pooled, labels = Pooled(model, table, options), torch.from_numpy(of_speaker)
    print(f"pooled statistics of {len(table.names)} utterances of {len(speakers)} speakers", file=sys.stderr)
    everything, result = np.arange(len(of_speaker)), {"options": vars(options), "heads": {}}
    for head in options.heads:
        radii: dict[str, list[np.ndarray]] = {"before": [], "after": [], "arms": []}
        for seed in range(options.seeds):
            embeddings, centres, space = train(model, pooled, labels, everything, head, seed, options)
            arms, draw = assign(groups, counts, options.keep, seed), np.random.default_rng(seed)
            rows = []
            for speaker in range(len(speakers)):
                own = np.flatnonzero(of_speaker == speaker)
                directions = unit(embeddings[own])
                rows += rows_of(arms[speaker], own, directions @ unit(directions.mean(0)), options.keep, draw)
            _, changed, _ = train(model, pooled, labels, np.array(rows), head, seed, options)
            for name, values in (("before", space.radii(centres)), ("after", space.radii(changed)), ("arms", arms)):
                radii[name].append(values)
            if options.shape and seed == 0:
                found = EmbeddedRecordings(table, embeddings, pooled.seconds, np.full(len(of_speaker), np.nan), {})
                own_centres = dict(zip(map(str, speakers), centres, strict=True))
                settings = HierarchySettings(tuple(columns), options.group, options.permutations, options.draws)
                result["heads"].setdefault(head, {})["hierarchy"] = analyse(found, own_centres, space, settings).record
        before, after, arms = (np.concatenate(radii[name]) for name in ("before", "after", "arms"))
        rows = compare(after - before, arms, options.permutations)
        result["heads"].setdefault(head, {})["arms"] = rows
        result["heads"][head]["radius"] = {
            group: float(before[np.tile(np.array(groups) == group, options.seeds)].mean())
            for group in sorted(set(groups))
        }
        print_head(head, result["heads"][head])
        Path(options.output).mkdir(parents=True, exist_ok=True)
        Path(options.output, "radii.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def print_head(head: str, found: dict[str, Any]) -> None:
    """Print the radii by group and the effects of the arms."""
    radii = ", ".join(f"{name} {value:.4f}" for name, value in found["radius"].items())
    print(f"\n{head}: radius of the centres: {radii}")
    for row in found["arms"]:
        change = f"{row['speakers']:4} speakers, difference {row['difference']:+.4f}"
        effect = f", effect {row['effect']:+.4f}, p {row['p']:.3f}" if "p" in row else ""
        print(f"  {row['arm']:10} {change}{effect}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
