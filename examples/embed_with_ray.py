"""Embed recordings on a Ray cluster with Ray Data. Each actor loads the model once.

    python examples/embed_with_ray.py MODEL FILES... --output FOLDER [--actors 8] [--gpus-per-actor 1]

FILES are audio files and folders, or one list of recordings (CSV, JSON lines of NeMo, a Kaldi folder). All machines
must see them under the same paths. The output is a folder of Parquet files with the columns name, seconds, embedding
and reason; recordings that cannot be used have a reason instead of an embedding. `hamspk embed --rank` needs no Ray,
resumes after an interruption, and writes the same bytes as one machine. This script writes the rows in any order.
"""

import argparse
from typing import Any

import numpy as np
import ray

from hf_hamspk.data.fitting import embed_what_fits
from hf_hamspk.embedding.finding import find_source
from hf_hamspk.embedding.sources import AudioFiles
from hf_hamspk.loading.models import load_model


class Embedder:
    """Actor that reads and embeds batches of recordings."""

    def __init__(self, model: str, root: str, device: str | None, batch_seconds: float):
        self.model = load_model(model, device)
        self.root, self.batch_seconds = root, batch_seconds

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        rate = self.model.config.sampling_rate
        source = AudioFiles([str(name) for name in batch["name"]], rate, self.root)
        read = [source.read(piece)[0] for piece in range(len(source.names))]
        good = [one for one in read if one.waveform is not None]
        found = embed_what_fits(
            self.model, [one.waveform for one in good if one.waveform is not None], self.batch_seconds
        )
        embeddings = {one.name: vector for one, vector in zip(good, found, strict=True) if vector is not None}
        return {
            "name": [one.name for one in read],
            "seconds": [0.0 if one.waveform is None else len(one.waveform) / rate for one in read],
            "embedding": [embeddings[one.name].tolist() if one.name in embeddings else [] for one in read],
            "reason": [
                "" if one.name in embeddings else "too little memory" if one.reason is None else one.reason
                for one in read
            ],
        }


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model that all machines see, or its name on the Hub")
    parser.add_argument("files", nargs="+", help="audio files and folders, or one list of recordings")
    parser.add_argument("--output", required=True, help="new folder for Parquet files, or a URL like s3://bucket/name")
    parser.add_argument("--actors", type=int, default=1, help="number of processes that embed (default: 1)")
    parser.add_argument(
        "--gpus-per-actor", type=float, default=0.0, help="number of GPUs for each actor (default: 0, CPUs only)"
    )
    parser.add_argument("--batch-files", type=int, default=64, help="recordings per call of an actor (default: 64)")
    parser.add_argument("--batch-seconds", type=float, default=120.0, help="seconds of audio per pass (default: 120)")
    return parser


def main() -> None:
    """Embed the recordings that the command line names."""
    parser = make_parser()
    arguments = parser.parse_args()
    source = find_source(arguments.files).open(16_000)
    if not isinstance(source, AudioFiles):
        parser.error("this script cannot embed a folder of shards; use `hamspk embed` with --rank")
    names = ray.data.from_items([{"name": name} for name in source.names])
    device = "cuda" if arguments.gpus_per_actor else "cpu"
    rows = names.map_batches(
        Embedder,  # pyright: ignore[reportArgumentType]
        fn_constructor_args=(arguments.model, str(source.root), device, arguments.batch_seconds),
        batch_size=arguments.batch_files,
        concurrency=arguments.actors,
        num_gpus=arguments.gpus_per_actor,
    )
    rows.write_parquet(arguments.output)


if __name__ == "__main__":
    main()
