"""`hamspk prepare`: write a corpus as shards."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_channel_argument, add_rank_arguments, check_rank_arguments, count_of, given_options

if TYPE_CHECKING:
    from ..shards.manifest import Manifest
    from ..shards.planning import PrepareOptions

# Copies of values of the package, because importing the originals would import torch. A test compares them.
SHARD_FORMATS = ("parquet", "webdataset")
SHARD_CODECS = ("flac", "opus", "source")
SHARD_LAYOUTS = ("voxceleb", "librispeech", "folders")
# Options of the command that have the same name as a field of `PrepareOptions`.
SAME_FIELDS = (
    *("format", "codec", "sampling_rate", "layout", "speaker_level", "audio_column", "speaker_column", "audio_root"),
    *("split", "shards", "rows_per_group", "min_duration", "licence", "seed", "channel"),
)
UNREADABLE_SHOWN = 100
MEBIBYTE = 2**20
_PREPARE_EPILOG = (
    "SOURCE is one of the following. Several sources are combined into one corpus.\n"
    "  a folder of audio files (VoxCeleb, CN-Celeb and LibriSpeech are recognised; elsewhere, each folder at the\n"
    "    first level contains one speaker)\n"
    "  a zip or tar archive, or the first part of a split archive (vox2_dev_aac_partaa; the other parts must be in\n"
    "    the same folder)\n"
    "  a CSV file with the columns path and speaker_id; its columns start and stop select segments in seconds\n"
    "  JSON lines in the format of NeMo (audio_filepath, label or speaker, offset, duration)\n"
    "  a Kaldi folder (wav.scp, utt2spk, perhaps segments); commands in wav.scp are refused and never run\n"
    "  an audio folder of the package datasets with metadata.csv or metadata.jsonl (file_name, speaker_id)\n"
    "  Parquet files, or a data set that the package datasets can load from a folder or from the Hub\n"
    "\n"
    "To resume after an interruption, run the same command again. Files that cannot be used are left out and\n"
    "listed with the reason in unreadable.csv. `hamspk prepare --verify OUTPUT` checks finished shards.\n"
    "\n"
    "Several machines, or several jobs of a cluster, share the work with three commands. All machines must see SOURCE\n"
    "and OUTPUT under the same paths. The result is the same as that of one machine.\n"
    "  hamspk prepare SOURCE OUTPUT --plan                once, with all options of the shards\n"
    "  hamspk prepare OUTPUT --rank R --world-size N      once for each R from 0 to N - 1\n"
    "  hamspk prepare OUTPUT --finish                     once, at the end; it names the ranks that are missing\n"
    "\n"
    "Training can also read Parquet files with audio and WebDataset tars of other projects in place. It needs an\n"
    "index of them, which `hamspk prepare --index hf://datasets/USER/NAME OUTPUT` writes."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk prepare`."""
    parser.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="folder, archive, list of recordings or data set (see below)"
    )
    parser.add_argument("output", metavar="OUTPUT", help="folder for the shards")
    add = parser.add_argument
    add("--format", choices=SHARD_FORMATS, help="file format of the shards (default: parquet)")
    add(
        "--codec",
        choices=SHARD_CODECS,
        help="codec of the audio (default: flac): flac is 16 bit and lossless; opus is small, lossy and slow to write; "
        "source copies the files unchanged",
    )
    add("--sampling-rate", type=int, metavar="HZ", help="sampling rate of the audio in the shards (default: 16000)")
    add("--layout", choices=SHARD_LAYOUTS, help="naming scheme of the folders (default: recognised from the paths)")
    add(
        "--speaker-level",
        type=int,
        metavar="N",
        help="level of the folder that names the speaker, counted from 1, for --layout folders (default: 1)",
    )
    add("--audio-root", metavar="DIR", help="base folder of the paths in a list (default: the folder of the list)")
    add(
        "--audio-column",
        metavar="NAME",
        help="column of the recordings (default: the usual one of the format, such as path in CSV)",
    )
    add("--speaker-column", metavar="NAME", help="column of the speakers (default: speaker_id)")
    add_channel_argument(parser)
    add("--split", metavar="NAME", help="split of a data set (default: train)")
    add("--speakers", metavar="FILE", help="text file of the speakers to keep, one per line (default: all)")
    add("--shards", type=int, metavar="N", help="number of shards (default: follows from --shard-size)")
    add("--shard-size", type=int, metavar="MIB", help="target size of a shard in MiB (default: 256)")
    add("--rows-per-group", type=int, metavar="N", help="number of utterances in a Parquet row group (default: 64)")
    add("--min-duration", type=float, metavar="S", help="minimum duration of an utterance in seconds (default: 0.1)")
    add("--licence", metavar="TEXT", help="licence of the source, written into the manifest")
    add("--seed", type=int, metavar="N", help="random seed of the order of the utterances (default: 0)")
    add("--processes", type=int, metavar="N", help="number of worker processes (default: one per core)")
    add(
        "--index",
        action="store_true",
        help="write only an index of existing Parquet files or WebDataset tars (paths or URLs), and copy no audio",
    )
    add("--plan", action="store_true", help="plan the shards but do not make them; ranks make them later (see below)")
    add_rank_arguments(parser, "make only the shards of rank R of a plan in OUTPUT")
    add("--finish", action="store_true", help="write the manifest after all ranks have ended")
    add("--restart", action="store_true", help="remove the shards in OUTPUT first")
    add("--verify", action="store_true", help="read the finished shards again and compare them with the manifest")
    parser.epilog = _PREPARE_EPILOG


def check(arguments: argparse.Namespace) -> None:
    """Check the arguments before the corpus is read.

    Raises:
        ValueError: an argument is invalid, options contradict each other, or the list of speakers does not exist.
    """
    if arguments.processes is not None and arguments.processes < 0:
        raise ValueError(f"--processes must be at least 0 (0: no worker processes), got {arguments.processes}.")
    if arguments.index and (arguments.verify or arguments.restart):
        raise ValueError("--index copies no audio, so it cannot be combined with --verify or --restart.")
    if arguments.index and arguments.channel is not None:
        raise ValueError("--index copies no audio, so it cannot choose a --channel. Prepare the files without --index.")
    _check_step(arguments)
    if not arguments.sources and not (arguments.verify or arguments.finish or arguments.rank is not None):
        raise ValueError("Give SOURCE and OUTPUT. With --verify, --rank and --finish, OUTPUT alone is enough.")
    if arguments.speakers is not None and not Path(arguments.speakers).is_file():
        raise ValueError(f"File not found: {arguments.speakers} (--speakers).")


def _check_step(arguments: argparse.Namespace) -> None:
    """Check the arguments that divide the work among ranks.

    Raises:
        ValueError: the arguments contradict each other.
    """
    check_rank_arguments(arguments)
    steps = [f"--{name}" for name in ("plan", "finish", "index") if getattr(arguments, name)]
    steps += ["--rank"] if arguments.rank is not None else []
    if len(steps) > 1:
        raise ValueError(f"{steps[0]} and {steps[1]} are separate steps. Give one of them.")
    if arguments.verify and steps and steps[0] != "--finish":
        raise ValueError(f"{steps[0]} does not complete the shards. Use --verify at the end, to check complete shards.")
    if not steps or steps[0] in ("--plan", "--index"):
        return
    given = sorted(given_options(arguments, *SAME_FIELDS, "speakers", "shard_size"))
    if arguments.sources or given or arguments.restart:
        extra = "SOURCE" if arguments.sources else f"--{given[0].replace('_', '-')}" if given else "--restart"
        raise ValueError(
            f"{extra} belongs to the first step, `hamspk prepare SOURCE OUTPUT --plan`. With {steps[0]}, give OUTPUT "
            "alone."
        )


def run(arguments: argparse.Namespace) -> int:
    """Write the shards, print a summary, and verify the shards if requested."""
    processes = usable_cores() if arguments.processes is None else arguments.processes
    code = 0
    if arguments.plan or arguments.rank is not None:
        print(_run_step(arguments, processes))
        return code
    if arguments.sources or arguments.finish:
        print(summarise_shards(_make_shards(arguments, processes), arguments.output))
        _report_unreadable(arguments.output)
    if arguments.verify:
        from ..shards.verifying import verify_shards

        problems = verify_shards(arguments.output, processes)
        for problem in problems:
            print(problem, file=sys.stderr)
        print(f"verified: {count_of(len(problems), 'fault') if problems else 'all files agree with the manifest'}")
        code = 1 if problems else code
    return code


def _make_shards(arguments: argparse.Namespace, processes: int) -> "Manifest":
    from ..shards.indexing import index_shards
    from ..shards.preparing import finish_shards, prepare

    if arguments.finish:
        return finish_shards(arguments.output)
    if arguments.index:
        options = given_options(arguments, "audio_column", "speaker_column", "licence")
        return index_shards(arguments.sources, arguments.output, **options)
    options = _prepare_options(arguments)
    return prepare(arguments.sources, arguments.output, options, processes, restart=arguments.restart)


def _run_step(arguments: argparse.Namespace, processes: int) -> str:
    """Plan the shards, or make the shards of one rank, and return a summary."""
    from ..shards.preparing import count_shards, is_finished, make_shards, plan_shards

    made = 0
    if arguments.plan:
        options = _prepare_options(arguments)
        plan_shards(arguments.sources, arguments.output, options, restart=arguments.restart)
    else:
        made = make_shards(arguments.output, arguments.rank, arguments.world_size, processes)
    total, complete = count_shards(arguments.output)
    shards = count_of(total, "shard")
    if not made and is_finished(arguments.output):
        return f"{arguments.output}: all {shards} and the manifest are complete, so nothing was done"
    if arguments.plan:
        kept = f", and {complete} of them are complete already" if complete else ""
        return f"{arguments.output}: planned {shards}{kept}"
    own = len(range(arguments.rank, total, arguments.world_size))
    earlier = f" ({own - made} were complete already)" if made < own else ""
    rank = f"rank {arguments.rank} of {arguments.world_size}"
    return (
        f"{arguments.output}: {rank} made {made} of its {own} shards{earlier}; {complete} of all {shards} are complete"
    )


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _prepare_options(arguments: argparse.Namespace) -> "PrepareOptions":
    from ..shards.planning import PrepareOptions

    options = given_options(arguments, *SAME_FIELDS)
    if arguments.speakers is not None:
        options["speakers"] = read_speakers(arguments.speakers)
    if arguments.shard_size is not None:
        options["shard_bytes"] = arguments.shard_size * MEBIBYTE
    return PrepareOptions(**options)


def read_speakers(path: str) -> tuple[str, ...]:
    """Read the names of speakers, one per line, and return them sorted.

    Raises:
        ValueError: the file contains no name.
    """
    names = sorted({line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()} - {""})
    if not names:
        raise ValueError(f"{path} (--speakers) contains no name. Give a file with one name per line.")
    return tuple(names)


def summarise_shards(manifest: "Manifest", output: str) -> str:
    """Return a summary of the shards in one line."""
    # An index contains no durations.
    duration = f"{manifest.seconds / 3600:.2f} h, " if manifest.seconds > 0 else ""
    size = format_bytes(sum(shard.bytes for shard in manifest.shards))
    left_out = f"; {count_of(manifest.unreadable, 'file')} left out" if manifest.unreadable else ""
    return (
        f"{output}: {count_of(manifest.utterances, 'utterance')} of {count_of(len(manifest.speakers), 'speaker')}, "
        f"{duration}{size} in {count_of(len(manifest.shards), 'shard')} "
        f"({manifest.format}, {manifest.codec}){left_out}"
    )


def format_bytes(count: int) -> str:
    """Format a number of bytes in MiB, or in KiB if it is below 10 MiB: `12 MiB`, `34 KiB`."""
    return f"{count / MEBIBYTE:.0f} MiB" if count >= 10 * MEBIBYTE else f"{-(-count // 1024)} KiB"


def _report_unreadable(output: str) -> None:
    """Print the first files that were left out."""
    from ..shards.manifest import UNREADABLE_NAME, read_unreadable

    lines = read_unreadable(output)
    for path, reason in lines[:UNREADABLE_SHOWN]:
        print(f"  left out {path}: {reason}", file=sys.stderr)
    if len(lines) > UNREADABLE_SHOWN:
        print(f"  and {len(lines) - UNREADABLE_SHOWN} more, in {Path(output) / UNREADABLE_NAME}", file=sys.stderr)
