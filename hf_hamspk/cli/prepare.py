"""`hamspk prepare`: shards of a corpus."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..data.audio import MIN_DURATION
from ..shards.indexing import index_shards
from ..shards.listing import LAYOUTS
from ..shards.manifest import CODECS, FORMATS, UNREADABLE_NAME, Manifest, read_unreadable
from ..shards.planning import PrepareOptions
from ..shards.preparing import prepare
from ..shards.verifying import verify_shards

EPILOG = """\
A source is a folder of audio (VoxCeleb, CN-Celeb and LibriSpeech are recognised; else the first level of folders is the
speaker), a zip or tar or the parts of one as downloaded (vox2_dev_aac_partaa finds the others beside it), a CSV file
(path,speaker_id), Parquet files, or a folder or Hub repository of `datasets`. Several sources become one corpus.

Ended at any moment, the same command goes on. Files that cannot be used are left out and listed with the reason in
unreadable.csv, and the exit code is 1. `hamspk prepare --verify OUTPUT` reads finished shards again.

Shards that others made, Parquet files with audio or WebDataset tars, can be trained on as they are: `hamspk prepare
--index hf://datasets/USER/NAME OUTPUT` writes an index of them and copies no audio.
"""
FILES_SHOWN = 5
MEBIBYTE = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk prepare`."""
    default = PrepareOptions()
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="what to make shards of")
    parser.add_argument("output", metavar="OUTPUT", help="folder for the shards")
    parser.add_argument("--format", choices=FORMATS, default=default.format, help="default: %(default)s")
    parser.add_argument(
        "--codec",
        choices=CODECS,
        default=default.codec,
        help="flac (16 bit, lossless), opus (small, lossy, slow) or source (files as they are); default: %(default)s",
    )
    parser.add_argument(
        "--sampling-rate", type=int, default=default.sampling_rate, metavar="HZ", help="default: %(default)s"
    )
    parser.add_argument("--layout", choices=LAYOUTS, help="how paths name speakers (default: recognised)")
    parser.add_argument(
        "--speaker-level",
        type=int,
        default=default.speaker_level,
        metavar="N",
        help="under the layout folders, which folder of a path is the speaker (default: %(default)s, the first)",
    )
    parser.add_argument("--audio-root", metavar="DIR", help="folder that the paths of a CSV file are relative to")
    parser.add_argument("--audio-column", metavar="NAME", help="of a CSV file (default: path) or data set")
    parser.add_argument("--speaker-column", metavar="NAME", help="of a CSV file (default: speaker_id) or data set")
    parser.add_argument("--split", default=default.split, help="of a data set (default: %(default)s)")
    parser.add_argument("--speakers", metavar="FILE", help="keep only the speakers in this file, one in a line")
    parser.add_argument("--shards", type=int, metavar="N", help="how many (default: by size, a multiple of 8)")
    parser.add_argument(
        "--shard-size",
        type=int,
        default=default.shard_bytes // MEBIBYTE,
        metavar="MIB",
        help="wanted size of a shard in MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--rows-per-group",
        type=int,
        default=default.rows_per_group,
        metavar="N",
        help="utterances in a row group of Parquet (default: %(default)s)",
    )
    parser.add_argument(
        "--min-duration",
        type=float,
        default=MIN_DURATION,
        metavar="S",
        help="leave out what is shorter (%(default)s s)",
    )
    parser.add_argument("--licence", default="", metavar="TEXT", help="of the source; written into the manifest")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the order (default: %(default)s)")
    parser.add_argument("--processes", type=int, metavar="N", help="worker processes (default: one for each core)")
    parser.add_argument(
        "--index",
        action="store_true",
        help="only write an index of Parquet files or WebDataset tars (paths or addresses), and stream them from there",
    )
    parser.add_argument("--restart", action="store_true", help="first remove the shards that OUTPUT holds")
    parser.add_argument("--verify", action="store_true", help="read everything again at the end")
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Prepare, say what came of it, and verify where that was asked for."""
    processes = usable_cores() if arguments.processes is None else arguments.processes
    if processes < 0:
        raise ValueError(f"--processes must be at least 0 (0: no worker processes), got {processes}.")
    code = 0
    if arguments.sources and arguments.index:
        if arguments.verify or arguments.restart:
            raise ValueError("--index copies no audio, so it goes with neither --verify nor --restart.")
        columns = (arguments.audio_column, arguments.speaker_column)
        manifest = index_shards(arguments.sources, arguments.output, *columns, licence=arguments.licence)
        print(summary(manifest, arguments.output))
        code = 1 if _report_unreadable(arguments.output) else 0
    elif arguments.sources:
        manifest = prepare(
            arguments.sources, arguments.output, _options(arguments), processes, restart=arguments.restart
        )
        print(summary(manifest, arguments.output))
        code = 1 if _report_unreadable(arguments.output) else 0
    elif arguments.index or not arguments.verify:
        raise ValueError("give SOURCE and OUTPUT; OUTPUT alone is for --verify.")
    if arguments.verify:
        problems = verify_shards(arguments.output, processes)
        for problem in problems:
            print(problem, file=sys.stderr)
        print(f"verified: {f'{len(problems)} faults' if problems else 'every file is as the manifest says'}")
        code = 1 if problems else code
    return code


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _options(arguments: argparse.Namespace) -> PrepareOptions:
    return PrepareOptions(
        format=arguments.format,
        codec=arguments.codec,
        sampling_rate=arguments.sampling_rate,
        layout=arguments.layout,
        speaker_level=arguments.speaker_level,
        audio_column=arguments.audio_column,
        speaker_column=arguments.speaker_column,
        audio_root=arguments.audio_root,
        split=arguments.split,
        speakers=None if arguments.speakers is None else read_speakers(arguments.speakers),
        shards=arguments.shards,
        shard_bytes=arguments.shard_size * MEBIBYTE,
        rows_per_group=arguments.rows_per_group,
        min_duration=arguments.min_duration,
        licence=arguments.licence,
        seed=arguments.seed,
    )


def read_speakers(path: str) -> tuple[str, ...]:
    """The names in a file, one in a line, sorted.

    Raises:
        ValueError: there is no such file, or it names nobody.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path} (--speakers).")
    names = sorted({line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()} - {""})
    if not names:
        raise ValueError(f"{path} (--speakers) names no speaker; give one name in a line.")
    return tuple(names)


def summary(manifest: Manifest, output: str) -> str:
    """What was made, in one line."""
    # An index does not know it.
    duration = f"{manifest.seconds / 3600:.2f} h, " if manifest.seconds > 0 else ""
    size = sum(shard.bytes for shard in manifest.shards)
    return (
        f"{output}: {manifest.utterances} utterances of {len(manifest.speakers)} speakers, {duration}"
        f"{size / MEBIBYTE:.0f} MiB in {len(manifest.shards)} shards "
        f"({manifest.format}, {manifest.codec}); {manifest.unreadable} files left out"
    )


def _report_unreadable(output: str) -> Sequence[tuple[str, str]]:
    lines = read_unreadable(output)
    for path, reason in lines[:FILES_SHOWN]:
        print(f"  left out {path}: {reason}", file=sys.stderr)
    if len(lines) > FILES_SHOWN:
        print(f"  and {len(lines) - FILES_SHOWN} more, in {Path(output) / UNREADABLE_NAME}", file=sys.stderr)
    return lines
