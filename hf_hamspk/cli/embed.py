"""`hamspk embed`: compute embeddings of audio files, folders, shards, or the recordings in trial lists."""

import argparse
import os
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.corpora import is_table
from ..files.recordings import FolderContents, describe_ignored
from ..files.tables import join_segment, split_segment
from ..folders.recognising import check_replaceable, is_embeddings_file
from ..loading.names import check_model
from .options import (
    add_channel_argument,
    add_model_arguments,
    add_rank_arguments,
    add_segments_argument,
    add_table_arguments,
    check_rank_arguments,
    check_trial_lists,
    count_of,
    find_segments,
    given_options,
    table_columns,
)

if TYPE_CHECKING:
    from accelerate import PartialState

    from ..embedding import EmbeddingParts, Speed
    from ..embedding.sources import Source
    from ..modeling_hamspk import HamSpkModel, SpeakerModelMixin

# Copies of values of the package, because importing the originals would import torch. A test compares them.
OUTPUT_FORMATS = (".parquet", ".safetensors", ".npz")
EMBEDDING_BACKENDS = ("auto", "torch", "onnx", "openvino")
PRECISIONS = ("auto", "float32", "bfloat16", "int8")
# Longest wait of the first process for the others. Each embeds its own share, so they may finish days apart.
LONGEST_WAIT = timedelta(days=30)

_EMBED_EPILOG = (
    "Recordings that cannot be used are skipped and reported. The exit code is 1 if nothing was embedded, or if\n"
    "one of FILES does not exist or contains no audio. Until the command ends, the finished embeddings are kept\n"
    "in a folder beside the output, with the suffix .parts. To resume after an interruption, run the same command\n"
    "again.\n"
    "\n"
    "On several GPUs: `accelerate launch --multi_gpu -m hf_hamspk embed ...`\n"
    "On several CPU processes: `ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 -m hf_hamspk embed ...`\n"
    "\n"
    "Several machines, or several jobs of a cluster, share the work if they see the same files and the folder of\n"
    "the output. Run the same command with `--rank R --world-size N` for each R from 0 to N - 1, and then once\n"
    "with `--finish`, which names the ranks that are missing."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk embed`."""
    add_model_arguments(parser)
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILES",
        help="audio files and folders to search for audio files, or one folder of shards from `hamspk prepare`, or one "
        "list of recordings: a CSV file with the column path and perhaps speaker_id, start and stop; JSON lines in "
        "the format of NeMo; or a Kaldi folder",
    )
    parser.add_argument(
        "--trials", nargs="+", metavar="LIST", default=[], help="trial lists whose recordings are embedded"
    )
    parser.add_argument(
        "--audio-root",
        metavar="FOLDER",
        help="base folder of the paths in the trial lists or the list of recordings (default: the working directory "
        "for trial lists, the folder of the list of recordings)",
    )
    add_table_arguments(parser)
    add_segments_argument(parser, "each segment is embedded, with the name PATH#t=START,END")
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help=f"file for the embeddings; its suffix chooses the format: {', '.join(OUTPUT_FORMATS)}; with "
        "--rank and --finish also a URL that fsspec can write, such as s3://bucket/voices.parquet",
    )
    parser.add_argument(
        "--batch-seconds", type=float, metavar="S", help="seconds of padded audio per forward pass (default: 120)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="number of threads that read and decode audio (default: 2)"
    )
    _add_backend_arguments(parser)
    add_channel_argument(parser)
    parser.add_argument("--compile", action="store_true", help="compile the encoder first, with torch.compile")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="replace an existing file of embeddings, even if it was made from other recordings, by another model, or "
        "in another precision",
    )
    add_rank_arguments(parser, "embed only the share of rank R, and leave the output to --finish")
    parser.add_argument("--finish", action="store_true", help="write the output after all ranks have ended")
    parser.epilog = _EMBED_EPILOG


def _add_backend_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=EMBEDDING_BACKENDS,
        help="software that computes the embeddings on a CPU, one recording at a time: torch, onnx (needs "
        "`pip install 'hf_hamspk[onnx]'`) or openvino (`pip install 'hf_hamspk[openvino]'`); auto measures the "
        "installed ones on this machine and takes the fastest (default: the model itself, in batches, also on a GPU)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="number format of the computation (default: float32); bfloat16 is faster on processors that support it; "
        "with --backend, auto measures both and takes the faster one; int8 needs --int8-file",
    )
    parser.add_argument(
        "--int8-file", metavar="FILE.onnx", help="file of `hamspk export MODEL FILE.onnx --int8 RECORDINGS`"
    )


def _check_backend(arguments: argparse.Namespace) -> None:
    """Raise ValueError if --backend, --precision, --int8-file and other options do not match."""
    backend, precision = arguments.backend, arguments.precision
    if (precision == "int8") != (arguments.int8_file is not None):
        raise ValueError("--precision int8 and --int8-file FILE.onnx belong together. Give both or neither.")
    if precision == "int8" and backend in (None, "torch"):
        raise ValueError("--precision int8 needs --backend onnx, openvino or auto.")
    if precision == "auto" and backend is None:
        raise ValueError("--precision auto needs --backend, for example --backend auto.")
    if backend == "onnx" and precision == "bfloat16":
        raise ValueError("--backend onnx has no bfloat16 on a CPU. Use --backend torch or openvino.")
    if "auto" in (backend, precision) and (arguments.rank is not None or arguments.finish):
        raise ValueError("All ranks need the same backend and precision. Name them instead of auto.")
    if arguments.compile and backend is not None:
        raise ValueError("--compile works only without --backend. Remove one of the two.")
    if arguments.int8_file is not None and not os.path.isfile(arguments.int8_file):
        raise ValueError(f"File not found: --int8-file {arguments.int8_file}.")


def check(arguments: argparse.Namespace) -> None:
    """Check the arguments and the input files before torch is imported.

    Raises:
        ValueError: an argument is invalid, or an input does not exist.
    """
    if Path(arguments.output).suffix not in OUTPUT_FORMATS:
        raise ValueError(f"--output must end in {' or '.join(OUTPUT_FORMATS)}, got {arguments.output}.")
    if bool(arguments.files) == bool(arguments.trials):
        raise ValueError("Give either FILES (audio files, folders or shards) or trial lists with --trials.")
    given = given_options(arguments, "workers", "batch_seconds")
    if given.get("workers", 1) < 1 or not given.get("batch_seconds", 1) > 0:
        raise ValueError(
            "--workers must be at least 1 and --batch-seconds above 0, got "
            f"{' and '.join(f'{value:g}' for value in given.values())}."
        )
    tables = [name for name in arguments.files if is_table(name)]
    if tables and len(arguments.files) > 1:
        raise ValueError(f"{tables[0]} is a table. Embed its recordings in a separate command, without other FILES.")
    if arguments.files and not any(os.path.exists(split_segment(name)[0]) or "://" in name for name in arguments.files):
        raise ValueError(f"File or folder not found: {', '.join(arguments.files[:3])}.")
    check_rank_arguments(arguments)
    _check_backend(arguments)
    if "://" in arguments.output and arguments.rank is None and not arguments.finish:
        raise ValueError(
            f"--output {arguments.output} is a URL. Run the command with --rank 0 --world-size 1, and then again with "
            "--finish."
        )
    if arguments.rank is not None and arguments.finish:
        raise ValueError("--rank and --finish are separate steps. Give one of them.")
    if (arguments.rank is not None or arguments.finish) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "torchrun and accelerate set the rank themselves. Remove --rank and --finish, or start without them."
        )
    check_trial_lists(arguments.trials)
    if arguments.segments is not None:
        if arguments.trials or arguments.audio_root is not None:
            raise ValueError("--segments works only with recordings given as FILES. Remove --trials and --audio-root.")
        arguments.segments = find_segments(arguments)
    if "://" not in arguments.output:
        check_replaceable(Path(arguments.output), is_embeddings_file, "a file of embeddings")
    check_model(arguments.model)


def run(arguments: argparse.Namespace) -> int:
    """Embed all usable files, write the output, and report the skipped files."""
    if arguments.rank is not None:
        return _embed_rank(arguments)
    if arguments.finish:
        return _finish_ranks(arguments)
    state = _process_state()
    with ExitStack() as lock:
        _lock_parts(Path(arguments.output).with_suffix(".parts"), lock, state)
        return _embed_and_write(arguments, state)


def _embed_rank(arguments: argparse.Namespace) -> int:
    """Embed the share of one rank, and print its speed."""
    from ..embedding import embed_share

    model, source, missing = _load(arguments, arguments.device)
    if not sum(source.sizes):
        _print_skipped(missing)
        print(f"nothing to embed: {', '.join(map(str, arguments.files[:3]))} contains no recordings")
        return 1
    model, label = _prepare(arguments, model)
    if not arguments.replace and _is_finished(arguments, model, source, label):
        return 0
    _check_output(arguments, model, source, label)
    options = given_options(arguments, "batch_seconds", "workers")
    place = arguments.output, arguments.rank, arguments.world_size
    speed = embed_share(model, source, *place, label, **options)
    _print_skipped(missing | speed.skipped)
    share = f"{count_of(speed.utterances - len(speed.skipped), 'file')} embedded, {len(speed.skipped)} skipped"
    print(f"{arguments.output}: rank {arguments.rank} of {arguments.world_size}: {share}")
    if speed.audio_seconds:
        print(speed)
    return 1 if missing else 0


def _finish_ranks(arguments: argparse.Namespace) -> int:
    """Write the output after all ranks have ended, and return the exit code."""
    from ..embedding import Speed
    from ..embedding.sharing import complete_parts

    model, source, missing = _load(arguments, arguments.device)
    model, label = _prepare(arguments, model)
    if _is_finished(arguments, model, source, label):
        return 0
    # The ranks have checked whether the output may be replaced.
    with complete_parts(model, source, arguments.output, label) as parts:
        return _write_output(parts, arguments.output, _about(arguments, model, source, label), missing, Speed(), 0)


def _is_finished(arguments: argparse.Namespace, model: "SpeakerModelMixin", source: "Source", label: str) -> bool:
    """Return whether the output is complete, so that a rank and the last step have nothing to do, and print it."""
    from ..embedding.sharing import count_finished

    count = count_finished(model, source, arguments.output, label)
    if count is None:
        return False
    print(
        f"{arguments.output} already has {count_of(count, 'embedding')} of these recordings by this model, so nothing "
        "was done. To embed them again, for example because recordings changed, give --replace to each rank."
    )
    return True


def _check_output(arguments: argparse.Namespace, model: "SpeakerModelMixin", source: "Source", label: str) -> None:
    from ..embedding.sharing import check_output_of

    # At a URL, no file is replaced.
    if not arguments.replace and "://" not in arguments.output:
        check_output_of(model, source, arguments.output, label)


def _print_skipped(skipped: dict[str, str]) -> None:
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason or 'no such file or folder'}", file=sys.stderr)


def _load(arguments: argparse.Namespace, device: str | None) -> "tuple[HamSpkModel, Source, dict[str, str]]":
    """Return the model, the source, and the reasons for skipping FILES (see `_find_source`)."""
    from ..loading.models import load_model

    source_of, missing = _find_source(arguments)
    model = load_model(arguments.model, device)
    return model, source_of(model.config.sampling_rate), missing


def _about(arguments: argparse.Namespace, model: "SpeakerModelMixin", source: "Source", label: str) -> dict[str, str]:
    """Return the metadata that the output stores."""
    from ..embedding.sharing import describe_embeddings

    return describe_embeddings(model, source, label, Path(arguments.model).name)


def _lock_parts(folder: Path, lock: ExitStack, state: "PartialState | None") -> None:
    """Lock the folder of the unfinished embeddings on the first process.

    Raises:
        ValueError: another command embeds into the folder, or it contains other files. All processes raise the error.
    """
    from ..embedding.parts import lock_parts

    if state is None:
        lock.enter_context(lock_parts(folder))
        return
    from accelerate.utils import broadcast_object_list

    reason = [""]
    if state.process_index == 0:
        try:
            lock.enter_context(lock_parts(folder))
        except ValueError as error:
            reason = [str(error)]
    broadcast_object_list(reason)
    if reason[0]:
        raise ValueError(reason[0])


def _embed_and_write(arguments: argparse.Namespace, state: "PartialState | None") -> int:
    from ..embedding import extract
    from ..embedding.sharing import change_precision, open_embedding_parts

    output = arguments.output
    rank, world_size = (0, 1) if state is None else (state.process_index, state.num_processes)
    device = arguments.device if state is None or arguments.device is not None else str(state.device)
    model, source, missing = _load(arguments, device)
    model, label = _prepare(arguments, model)
    _check_output(arguments, model, source, label)
    about = _about(arguments, model, source, label)
    parts = open_embedding_parts(model, source, output, label)
    change_precision(model, label)
    options = given_options(arguments, "batch_seconds", "workers")
    speed = extract(model, source, parts, rank=rank, world_size=world_size, progress=rank == 0, **options)
    if state is not None:
        state.wait_for_everyone()
    if rank > 0:
        return 0
    return _write_output(parts, output, about, missing, speed, world_size)


def _process_state() -> "PartialState | None":
    """Return accelerate's state of this process; None unless accelerate or torchrun started several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)


def _find_source(arguments: argparse.Namespace) -> tuple[Any, dict[str, str]]:
    """Find the utterances to embed.

    Returns:
        A function that takes a sampling rate in Hz and returns the source of the utterances, and a dictionary that
        maps each of FILES that does not exist or contains no audio to the reason for skipping it.
    """
    from ..embedding import AudioFiles
    from ..embedding.finding import find_source
    from ..evaluation.trials import read_trials

    if arguments.trials:
        lists = [read_trials(path) for path in arguments.trials]
        names = sorted({name for trials in lists for name in trials.files})
        root = "." if arguments.audio_root is None else arguments.audio_root
        return lambda rate: AudioFiles(names, rate, root, channel=arguments.channel), {}
    if arguments.segments is not None:
        names = [join_segment(one.recording, one.segment) for one in arguments.segments]
        who = [one.speaker for one in arguments.segments]
        return lambda rate: AudioFiles(names, rate, speakers=who if any(who) else None, channel=arguments.channel), {}
    found = find_source(arguments.files, arguments.audio_root, arguments.channel, **table_columns(arguments))
    print_contents(found.contents)
    return found.open, found.missing


def print_contents(contents: FolderContents) -> None:
    """Print the files and folders that were not read to stderr."""
    for remark in describe_ignored(contents.ignored):
        print(remark, file=sys.stderr)
    for name, reason in contents.skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)


def _prepare(arguments: argparse.Namespace, model: "HamSpkModel") -> "tuple[SpeakerModelMixin, str]":
    """Return the model that embeds, and the name of its computation, which must not change in a run.

    The choice by `auto` is printed to stderr. It is not a part of the name, because an interrupted run may resume with
    another backend. The embeddings of the backends agree.
    """
    import torch

    from ..backends import with_backend
    from ..backends.choosing import has_bfloat16

    backend, precision = arguments.backend, arguments.precision
    if precision == "bfloat16" and model.device.type == "cpu" and not has_bfloat16():
        print(
            "hamspk: warning: float32 is faster on this processor, because it has no bfloat16 instructions "
            "(avx512_bf16, amx_bf16)",
            file=sys.stderr,
        )
    if arguments.compile:
        model.backbone.compile(dynamic=True)
        model.pooling.compile(dynamic=True)
    if backend is None:
        return model, precision
    if model.device.type != "cpu":
        raise ValueError(
            f"--backend {backend} is for CPUs, but the model is on {model.device}. Add --device cpu, or remove "
            "--backend."
        )
    threads = torch.get_num_threads()
    fast = with_backend(model, backend, precision, arguments.int8_file, threads, at_once=threads)
    if "auto" in (backend, precision):
        print(fast.choice, file=sys.stderr)
    named = "" if backend == "auto" else f", {backend}"
    return fast, f"{fast.choice.dtype}{named}"


def _write_output(
    parts: "EmbeddingParts",
    output: str,
    about: dict[str, str],
    missing: dict[str, str],
    speed: "Speed",
    processes: int,
) -> int:
    """Write the output, report the skipped files and the speed, and return the exit code."""
    from ..embedding.sharing import write_output

    count = write_output(parts, output, about)
    skipped = missing | parts.failures()
    audio = sum(sum(table["seconds"].to_pylist()) for table in parts.tables("seconds"))
    earlier = sum(parts.sizes) - speed.utterances if processes == 1 else 0
    parts.remove()
    _print_skipped(skipped)
    also = f", {len(skipped)} skipped" if skipped else ""
    if count:
        embedded = f"{count_of(count, 'file')} embedded ({audio:.1f} s of audio)"
        print(f"{embedded}{also}: {parts.dimension} numbers each, in {output}")
    else:
        print(f"nothing embedded{also}; {output} was not written")
    if speed.audio_seconds:
        note = (
            ", by the first process"
            if processes > 1
            else f", not counting {earlier} files embedded earlier"
            if earlier
            else ""
        )
        print(f"{speed}{note}")
    return 0 if count and not missing else 1
