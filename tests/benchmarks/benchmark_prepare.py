"""Rates and sizes of `hamspk prepare`, from which the time and disk for a corpus follow; and the cost of long listings.

Run `python tests/benchmarks/benchmark_prepare.py`: utterances of 8 s, VoxCeleb's mean, from m4a, WAV and FLAC to each
codec, in one process and one thread, the kinds taking turns; CPU time, so that
other work on the machine matters little, and the best of three rounds. `--speech DIR` takes FLAC
files of real speech in place of synthetic voices, whose size is not that of real ones. `--listing N` lists a zip and a
folder of N empty files and tells the time and the peak of memory.
"""

import argparse
import io
import itertools
import os
import resource
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import av
import numpy as np
import soundfile as sf

from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.shards.encoding import encode_file, to_16_bit
from hf_hamspk.shards.listing import Listing
from hf_hamspk.shards.planning import Plan, PrepareOptions, save_plan, survey
from hf_hamspk.shards.sources import list_archive, list_folder

RATE = 16_000
SECONDS = 8.0
AAC_BITS = 64_000


def m4a(samples: np.ndarray) -> bytes:
    """AAC at the bit rate of VoxCeleb2's files."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        stream.bit_rate = AAC_BITS
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return buffer.getvalue()


def sound(samples: np.ndarray, kind: str) -> bytes:
    """WAV or FLAC."""
    buffer = io.BytesIO()
    sf.write(buffer, samples, RATE, format=kind, subtype="PCM_16")
    return buffer.getvalue()


def recordings(count: int, speech: str | None) -> list[np.ndarray]:
    """`count` recordings of 8 s, int16."""
    length = round(SECONDS * RATE)
    if speech is None:
        return [to_16_bit(make_speech(speaker, 0, SECONDS)) for speaker in range(count)]
    joined: list[np.ndarray] = []
    rest = np.zeros(0, np.int16)
    for path in sorted(Path(speech).rglob("*.flac")):
        rest = np.concatenate([rest, sf.read(path, dtype="int16")[0]])
        while len(rest) >= length and len(joined) < count:
            joined.append(rest[:length])
            rest = rest[length:]
        if len(joined) == count:
            break
    return joined


def measure_rates(count: int, speech: str | None) -> None:
    """Print utterances per second and bytes per second of audio."""
    waves = recordings(count, speech)
    sources = {"m4a": [m4a(wave) for wave in waves]}
    sources |= {kind.lower(): [sound(wave, kind) for wave in waves] for kind in ("WAV", "FLAC")}
    codecs = ("flac", "opus", "source")
    best: dict[tuple[str, str], float] = {}
    sizes: dict[tuple[str, str], int] = {}
    for _, (kind, files), codec in itertools.product(range(3), sources.items(), codecs):
        part = files[: max(1, count // 8)] if codec == "opus" else files
        start = time.process_time()
        encoded = [encode_file(content, f"x.{kind}", codec, RATE, 0.1) for content in part]
        seconds = (time.process_time() - start) / len(part)
        best[kind, codec] = min(seconds, best.get((kind, codec), np.inf))
        sizes[kind, codec] = sum(len(each.content) for each in encoded) / len(part)
    print(f"{'from':<6}{'to':<8}{'CPU ms':>9}{'utt per s':>13}{'x real time':>13}{'bytes per s of audio':>22}")
    for kind, codec in best:
        cost = best[kind, codec]
        print(
            f"{kind:<6}{codec:<8}{1000 * cost:>9.2f}{1 / cost:>13.0f}{SECONDS / cost:>13.0f}"
            f"{sizes[kind, codec] / SECONDS:>22.0f}"
        )


def measure_listing(count: int) -> None:
    """Print time and memory for `count` files, each listing in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        with zipfile.ZipFile(Path(folder) / "a.zip", "w") as archive:
            for number in range(count):
                name = f"dev/aac/id{number % 6000:05d}/videovideo{number // 60:06d}/{number:05d}.m4a"
                archive.writestr(name, b"x")
        for number in range(count):
            path = root / f"id{number % 6000:05d}/videovideo{number // 6000 % 24:06d}"
            if number < 6000 * 24:
                path.mkdir(parents=True)
            (path / f"{number:07d}.m4a").touch()
        for kind, source in (("zip", Path(folder) / "a.zip"), ("folder", root)):
            sys.stdout.flush()
            if os.fork() == 0:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                start = time.perf_counter()
                listing = Listing()
                if kind == "zip":
                    list_archive(listing, [source])
                else:
                    list_folder(listing, source)
                listed = time.perf_counter()
                found = survey(listing, PrepareOptions())
                ordered = time.perf_counter()
                plan = Plan(found.table, listing.containers, 8, "x", found.fingerprint, PrepareOptions(), [])
                save_plan(plan, Path(folder))
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                print(
                    f"{kind}: {len(found.table)} files, listed in {listed - start:.1f} s, put in order in "
                    f"{ordered - listed:.1f} s, {peak / 1024:.0f} MiB more than before, table "
                    f"{found.table.nbytes / 2**20:.0f} MiB",
                    flush=True,
                )
                os._exit(0)
            os.wait()


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=64, help="recordings")
    parser.add_argument("--speech", help="folder of real speech, FLAC")
    parser.add_argument("--listing", type=int, help="number of files to list")
    arguments = parser.parse_args()
    if arguments.listing is not None:
        measure_listing(arguments.listing)
    else:
        measure_rates(arguments.count, arguments.speech)


if __name__ == "__main__":
    main()
