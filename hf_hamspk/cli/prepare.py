"""`hamspk prepare`: shards of a corpus."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .options import count_of, given_options

if TYPE_CHECKING:
    from ..shards.manifest import Manifest
    from ..shards.planning import PrepareOptions

# Those of the package, which a test compares.
SHARD_FORMATS = ("parquet", "webdataset")
SHARD_CODECS = ("flac", "opus", "source")
SHARD_LAYOUTS = ("voxceleb", "librispeech", "folders")
# Options of the command that are fields of `PrepareOptions` by the same name.
SAME_FIELDS = (
    *("format", "codec", "sampling_rate", "layout", "speaker_level", "audio_column", "speaker_column", "audio_root"),
    *("split", "shards", "rows_per_group", "min_duration", "licence", "seed"),
)
UNREADABLE_SHOWN = 5
MEBIBYTE = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk prepare`."""
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="what to make shards of")
    parser.add_argument("output", metavar="OUTPUT", help="folder for the shards")
    add = parser.add_argument
    add("--format", choices=SHARD_FORMATS, help="container of the shards (default: parquet)")
    add(
        "--codec",
        choices=SHARD_CODECS,
        help="flac (16 bit, lossless), opus (small, lossy, slow) or source (files as they are) (default: flac)",
    )
    add("--sampling-rate", type=int, metavar="HZ", help="of the audio in the shards (default: 16000)")
    add("--layout", choices=SHARD_LAYOUTS, help="how paths name speakers (default: recognised)")
    add(
        "--speaker-level",
        type=int,
        metavar="N",
        help="with --layout folders: which folder of a path is the speaker, counted from 1 (default: 1)",
    )
    add("--audio-root", metavar="DIR", help="folder that the paths of a CSV file are relative to (default: its own)")
    add("--audio-column", metavar="NAME", help="of a CSV file or data set (default: path, or the audio column)")
    add("--speaker-column", metavar="NAME", help="of a CSV file or data set (default: speaker_id)")
    add("--split", metavar="NAME", help="of a data set (default: train)")
    add("--speakers", metavar="FILE", help="keep only the speakers in this file, one per line")
    add("--shards", type=int, metavar="N", help="how many (default: by size, a multiple of 8)")
    add("--shard-size", type=int, metavar="MIB", help="wanted size of a shard in MiB (default: 256)")
    add("--rows-per-group", type=int, metavar="N", help="utterances in a row group of Parquet (default: 64)")
    add("--min-duration", type=float, metavar="S", help="leave out shorter utterances (default: 0.1 s)")
    add("--licence", metavar="TEXT", help="licence of the source, written into the manifest")
    add("--seed", type=int, metavar="N", help="of the order of the utterances (default: 0)")
    add("--processes", type=int, metavar="N", help="worker processes (default: one for each core)")
    add(
        "--index",
        action="store_true",
        help="only write an index of Parquet files or WebDataset tars (paths or addresses), and stream them from there",
    )
    add("--restart", action="store_true", help="first remove the shards in OUTPUT")
    add("--verify", action="store_true", help="read everything again at the end")
    parser.epilog = (
        "A source is a folder of audio (VoxCeleb, CN-Celeb and LibriSpeech are recognised; else the first level of\n"
        "folders is the speaker), a zip or tar or its parts as downloaded (vox2_dev_aac_partaa finds the others\n"
        "beside it), a CSV file (path,speaker_id), Parquet files, or a folder or Hub repository of `datasets`.\n"
        "Several sources become one corpus.\n"
        "\n"
        "After an interruption the same command continues. Files that cannot be used are left out and listed with\n"
        "the reason in unreadable.csv, and the exit code is 1. `hamspk prepare --verify OUTPUT` reads finished shards\n"
        "again.\n"
        "\n"
        "Shards from elsewhere, Parquet files with audio or WebDataset tars, can be used for training as they are:\n"
        "`hamspk prepare --index hf://datasets/USER/NAME OUTPUT` writes an index of them and copies no audio."
    )


def check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before the corpus is read."""
    if arguments.processes is not None and arguments.processes < 0:
        raise ValueError(f"--processes must be at least 0 (0: no worker processes), got {arguments.processes}.")
    if arguments.index and (arguments.verify or arguments.restart):
        raise ValueError("--index copies no audio, so it goes with neither --verify nor --restart.")
    if not arguments.sources and (arguments.index or not arguments.verify):
        raise ValueError("Give SOURCE and OUTPUT; OUTPUT alone is for --verify.")
    if arguments.speakers is not None and not Path(arguments.speakers).is_file():
        raise ValueError(f"There is no file {arguments.speakers} (--speakers).")


def run(arguments: argparse.Namespace) -> int:
    """Prepare, print a summary, and verify if asked to."""
    processes = usable_cores() if arguments.processes is None else arguments.processes
    code = 0
    if arguments.sources:
        print(summarise_shards(_make_shards(arguments, processes), arguments.output))
        code = 1 if _report_unreadable(arguments.output) else 0
    if arguments.verify:
        from ..shards.verifying import verify_shards

        problems = verify_shards(arguments.output, processes)
        for problem in problems:
            print(problem, file=sys.stderr)
        print(f"verified: {count_of(len(problems), 'fault') if problems else 'every file is as the manifest says'}")
        code = 1 if problems else code
    return code


def _make_shards(arguments: argparse.Namespace, processes: int) -> "Manifest":
    from ..shards.indexing import index_shards
    from ..shards.preparing import prepare

    if arguments.index:
        options = given_options(arguments, "audio_column", "speaker_column", "licence")
        return index_shards(arguments.sources, arguments.output, **options)
    options = _prepare_options(arguments)
    return prepare(arguments.sources, arguments.output, options, processes, restart=arguments.restart)


def usable_cores() -> int:
    """Cores that this process may use."""
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
    """The names in a file, one per line, sorted.

    Raises:
        ValueError: it names nobody.
    """
    names = sorted({line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()} - {""})
    if not names:
        raise ValueError(f"{path} (--speakers) names no speaker; give one name per line.")
    return tuple(names)


def summarise_shards(manifest: "Manifest", output: str) -> str:
    """What was made, in one line."""
    # An index does not know durations.
    duration = f"{manifest.seconds / 3600:.2f} h, " if manifest.seconds > 0 else ""
    size = sum(shard.bytes for shard in manifest.shards)
    left_out = f"; {count_of(manifest.unreadable, 'file')} left out" if manifest.unreadable else ""
    return (
        f"{output}: {count_of(manifest.utterances, 'utterance')} of {count_of(len(manifest.speakers), 'speaker')}, "
        f"{duration}{size / MEBIBYTE:.0f} MiB in {count_of(len(manifest.shards), 'shard')} "
        f"({manifest.format}, {manifest.codec}){left_out}"
    )


def _report_unreadable(output: str) -> bool:
    """Print some of the files that were left out; returns whether there are any."""
    from ..shards.manifest import UNREADABLE_NAME, read_unreadable

    lines = read_unreadable(output)
    for path, reason in lines[:UNREADABLE_SHOWN]:
        print(f"  left out {path}: {reason}", file=sys.stderr)
    if len(lines) > UNREADABLE_SHOWN:
        print(f"  and {len(lines) - UNREADABLE_SHOWN} more, in {Path(output) / UNREADABLE_NAME}", file=sys.stderr)
    return bool(lines)
