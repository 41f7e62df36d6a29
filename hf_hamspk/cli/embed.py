"""`hamspk embed`: speaker embeddings of audio files, of folders, of shards, of the files of trial lists."""

import argparse
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from ..data.corpus import AUDIO_SUFFIXES
from ..embedding import FORMATS, AudioFiles, EmbeddingParts, ShardedCorpus, Speed, extract, write_embeddings
from ..evaluation.trials import read_trials
from ..modeling_hamspk import HamSpkModel
from ..shards.decoding import AAC_SUFFIXES
from ..shards.reading import open_shards
from ..verification_hamspk import BATCH_SECONDS
from .models import add_model_arguments, load_model

PRECISIONS = ("float32", "bfloat16")
SUFFIXES = (*AUDIO_SUFFIXES, *AAC_SUFFIXES)
# Processes may end days apart: each has its own share.
LONGEST_WAIT = timedelta(days=30)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk embed`."""
    add_model_arguments(parser)
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILES",
        help="audio files, or folders to search for them; or one folder of shards, as `hamspk prepare` writes them",
    )
    parser.add_argument("--trials", nargs="+", metavar="LIST", default=[], help="the files that trial lists name")
    parser.add_argument("--audio-root", metavar="FOLDER", default=".", help="folder of the names in the trial lists")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help=f"its name ends in {', '.join(FORMATS)}, which is its format"
    )
    parser.add_argument(
        "--batch-seconds", type=float, default=BATCH_SECONDS, help="padded audio of one forward pass (%(default)g)"
    )
    parser.add_argument("--workers", type=int, default=2, help="threads that read and decode (%(default)s)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="bfloat16 is faster where the processor has it, and an embedding then depends slightly on its batch",
    )
    parser.add_argument("--compile", action="store_true", help="compile the encoder first (torch.compile)")
    parser.epilog = (
        "Files that cannot be used are skipped and reported, and the exit code is 1. What is done is kept in a folder\n"
        "beside the output, OUTPUT without its suffix and with .parts: after a kill, the same command goes on there.\n"
        "Several devices: `accelerate launch --multi_gpu -m hf_hamspk embed ...`; on CPUs\n"
        "`ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 -m hf_hamspk embed ...`."
    )


def run(arguments: argparse.Namespace) -> int:
    """Embed what can be embedded and report the rest."""
    output = Path(arguments.output)
    _check(arguments, output)
    state = _processes()
    rank, world_size = (0, 1) if state is None else (state.process_index, state.num_processes)
    device = arguments.device if state is None or arguments.device is not None else str(state.device)
    source_of, empty = _find(arguments)
    model = load_model(arguments.model, device)
    source = source_of(model.config.sampling_rate)
    about = {"model": Path(arguments.model).name, "fingerprint": model.fingerprint(), "precision": arguments.precision}
    parts = EmbeddingParts(
        output.with_suffix(".parts"),
        source.sizes,
        model.config.embedding_size,
        {"weights": about["fingerprint"], "files": source.fingerprint(), "precision": arguments.precision},
    )
    _speed_up(model, arguments.precision, arguments.compile)
    speed = extract(
        model,
        source,
        parts,
        rank=rank,
        world_size=world_size,
        batch_seconds=arguments.batch_seconds,
        workers=arguments.workers,
        progress=rank == 0,
    )
    if state is not None:
        state.wait_for_everyone()
    if rank > 0:
        return 0
    return _finish(parts, output, about, empty, speed, world_size)


def _check(arguments: argparse.Namespace, output: Path) -> None:
    if output.suffix not in FORMATS:
        raise ValueError(f"--output must end in {' or '.join(FORMATS)}, got {arguments.output}.")
    if bool(arguments.files) == bool(arguments.trials):
        raise ValueError("Give audio files, folders or shards to embed, or else trial lists with --trials.")
    if arguments.workers < 1 or not arguments.batch_seconds > 0:
        raise ValueError(
            "--workers must be at least 1 and --batch-seconds above 0, got "
            f"{arguments.workers} and {arguments.batch_seconds:g}."
        )


def _processes() -> PartialState | None:
    """What accelerate or torchrun says of this process, where it started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    return PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)


def _find(arguments: argparse.Namespace):
    """What makes the source once the sampling rate is known, and folders without audio, with why."""
    if arguments.trials:
        lists = [read_trials(path) for path in arguments.trials]
        names = sorted({name for trials in lists for name in trials.files})
        return lambda rate: AudioFiles(names, rate, arguments.audio_root), {}
    readers = [open_shards(name) for name in arguments.files]
    found = [reader for reader in readers if reader is not None]
    if found and len(arguments.files) > 1:
        raise ValueError(f"{found[0].folder} is a folder of shards, which is embedded alone: give the others apart.")
    if found:
        return lambda rate: ShardedCorpus(found[0], rate), {}
    names, empty = find_audio(arguments.files)
    return lambda rate: AudioFiles(names, rate), empty


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
            audio = [file for file in files if file.lower().endswith(SUFFIXES) and not file.startswith(".")]
            found += [os.path.join(folder, file) for file in audio]
        names |= dict.fromkeys(sorted(found))
        if not found:
            empty[name] = f"the folder holds no file that ends in {', '.join(SUFFIXES)}"
    return list(names), empty


def _speed_up(model: HamSpkModel, precision: str, compiled: bool) -> None:
    if precision == "bfloat16":
        capabilities = torch.cpu.get_capabilities()
        if model.device.type == "cpu" and not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
            print(
                "hamspk: this processor has no instructions for bfloat16 (avx512_bf16, amx_bf16): float32 is faster "
                "here",
                file=sys.stderr,
            )
        torch.nn.Module.to(model, dtype=torch.bfloat16)
    if compiled:
        model.backbone.compile(dynamic=True)
        model.pooling.compile(dynamic=True)


def _finish(
    parts: EmbeddingParts, output: Path, about: dict[str, str], empty: dict[str, str], speed: Speed, processes: int
) -> int:
    """Write the output, say what was left out and how fast it was; the exit code."""
    count = write_embeddings(parts, output, about)
    skipped = empty | parts.failures()
    audio = sum(sum(table["seconds"].to_pylist()) for table in parts.tables("seconds"))
    earlier = sum(parts.sizes) - speed.utterances if processes == 1 else 0
    parts.remove()
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    where = f"{parts.dimension} numbers each, in {output}" if count else "nothing was written"
    print(f"{count} files embedded ({audio:.1f} s of audio), {len(skipped)} skipped: {where}")
    if speed.utterances:
        of = "by the first process" if processes > 1 else f"without {earlier} embedded earlier" if earlier else ""
        print(f"{speed}{', ' + of if of else ''}")
    return 1 if skipped else 0
