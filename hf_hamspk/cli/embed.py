"""`hamspk embed`: speaker embeddings of audio files."""

import argparse
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ..data.corpus import AUDIO_SUFFIXES
from ..evaluation.verification import embed_files
from .models import add_model_arguments, load_model

FORMATS = (".npz", ".safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk embed`."""
    add_model_arguments(parser)
    parser.add_argument("files", nargs="+", metavar="FILES", help="audio files, or folders to search for them")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="embeddings.npz or embeddings.safetensors, by file name"
    )
    parser.epilog = "Files that cannot be used are skipped and reported, and the exit code is 1."


def run(arguments: argparse.Namespace) -> int:
    """Embed what can be embedded and report the rest."""
    output = Path(arguments.output)
    if output.suffix not in FORMATS:
        raise ValueError(f"--output must end in {' or '.join(FORMATS)}, got {arguments.output}.")
    names, skipped = find_audio(arguments.files)
    model = load_model(arguments.model, arguments.device)
    embedded = embed_files(model, names)
    skipped |= embedded.failures
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    embeddings = {name: rows[0].numpy() for name, rows in embedded.embeddings.items()}
    if embeddings:
        save_embeddings(embeddings, output)
        where = f"{model.config.embedding_size} numbers each, in {output}"
    else:
        where = "nothing was written"
    print(f"{len(embeddings)} files embedded ({embedded.seconds:.1f} s of audio), {len(skipped)} skipped: {where}")
    return 1 if skipped else 0


def find_audio(given: list[str]) -> tuple[list[str], dict[str, str]]:
    """Distinct audio files, in the order given, folders searched in sorted order; and folders without any, with why."""
    names: dict[str, None] = {}
    empty = {}
    for name in given:
        if not Path(name).is_dir():
            names[name] = None
            continue
        found = []
        for folder, _, files in os.walk(name, followlinks=True):
            # macOS leaves "._name.wav" files that hold no audio.
            audio = [file for file in files if file.lower().endswith(AUDIO_SUFFIXES) and not file.startswith(".")]
            found += [os.path.join(folder, file) for file in audio]
        names |= dict.fromkeys(sorted(found))
        if not found:
            empty[name] = f"the folder holds no file that ends in {', '.join(AUDIO_SUFFIXES)}"
    return list(names), empty


def save_embeddings(embeddings: dict[str, np.ndarray], output: Path) -> None:
    """Write float32 arrays `(D,)` by name, as `.npz` or `.safetensors`; parent folders are made."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".safetensors":
        save_file(embeddings, output)
        return
    # np.savez takes the names as keyword arguments, where "file" is taken.
    with zipfile.ZipFile(output, "w") as archive:
        for name, embedding in embeddings.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, embedding)
