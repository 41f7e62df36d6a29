"""Training samples per second of one core, and memory, of streamed shards and of two other ways to read the same audio.

    python tests/benchmarks/benchmark_streaming.py [--speech FOLDER] [--wespeaker CHECKOUT] [--utterances 1000]

Utterances of 8 s, crops of 3 s, batches of 128, augmentation on (`Augmentation(0.6)` without babble, for which the
other two have no utterances at hand). Every reader runs an epoch in a process of its own on one core, the rounds
interleaved; figures are medians of the CPU time from the first sample to the last, all threads together.

- `ours`: `StreamedBatches`.
- `datasets`: `load_dataset(..., streaming=True).shuffle(buffer_size=1000)`, decoding off; soundfile, PyAV for m4a.
- `wespeaker`: the reader of WeSpeaker's shards, its own `wespeaker.dataset.dataset.Dataset` with its defaults (a
  buffer of 2,500 decoded waveforms) from the tars that its tool makes, without speed perturbation and features. Its
  `torchaudio.load` needs torchcodec; here soundfile and PyAV take its place. It needs a checkout, lmdb and kaldiio.
- `tar`, where one of these is missing: the same pipeline written anew after its description.

Without `--speech` the audio is synthetic. `--memory` compares the peak on corpora of about 3 and 12 GB.
"""

import argparse
import io
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import types
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rivals import write_json

from hf_hamspk.data import Augmentation, SpeakerCrops, make_speech, random_crop, read_utterance
from hf_hamspk.shards.encoding import Encoded, encode_waveform
from hf_hamspk.shards.manifest import Manifest, shard_name
from hf_hamspk.shards.reading import ShardReader
from hf_hamspk.shards.streaming import ShardUtterances, StreamedBatches
from hf_hamspk.shards.writing import ParquetShard, TarShard

RATE, SECONDS, CROP_SECONDS, BATCH = 16_000, 8, 3, 128
CROP = CROP_SECONDS * RATE
SPEAKERS, SHARDS, DISTINCT_OPUS = 100, 8, 50
AUGMENTATION = Augmentation(0.6, ("noise", "reverb", "band", "equaliser", "gain"))
SUFFIXES = {"flac": ".flac", "opus": ".opus", "m4a": ".m4a"}
FORMATS = {"flac parquet": ("flac", "parquet"), "opus parquet": ("opus", "parquet"), "flac tar": ("flac", "webdataset")}
FORMATS |= {"m4a tar": ("m4a", "webdataset")}
RIVAL_TARS = {f"{codec} tar": codec for codec in SUFFIXES}
# Both larger than what the shuffling keeps in memory (256 MB of audio).
SIZES = {"1x": 24, "4x": 96}


# -- the corpora ------------------------------------------------------------------------------------------------------


def recordings(speech: Path | None, count: int) -> Iterator[np.ndarray]:
    """`count` waveforms of 8 s, pieces of real speech laid end to end or synthetic."""
    draws = np.random.default_rng(0)
    if speech is None:
        whole = [make_speech(number % SPEAKERS, number, SECONDS) for number in range(min(count, 200))]
    else:
        files = sorted(path for path in speech.rglob("*") if path.suffix in (".wav", ".flac"))
        draws.shuffle(files)
        pieces, samples = [], 0
        for file in files:
            pieces.append(read_utterance(file).waveform)
            samples += len(pieces[-1])
            if samples > count * SECONDS * RATE:
                break
        whole = [np.concatenate(pieces)]
    for _ in range(count):
        yield random_crop(whole[int(draws.integers(len(whole)))], SECONDS * RATE, draws)


def encode_m4a(waveform: np.ndarray) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ipod") as file:
        stream = file.add_stream("aac", rate=RATE, layout="mono")
        stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return buffer.getvalue()


def write_corpus(folder: Path, contents: list[bytes], codec: str, container: str) -> None:
    folder.mkdir()
    shards = []
    for number in range(SHARDS):
        path = folder / shard_name(number, SHARDS, container)
        temporary = folder / "unfinished"
        writer = ParquetShard(path, temporary, RATE, 64) if container == "parquet" else TarShard(path, temporary)
        for utterance in range(number, len(contents), SHARDS):
            encoded = Encoded(contents[utterance], SUFFIXES[codec], SECONDS * RATE, RATE)
            writer.add(f"{utterance:06d}", f"s{utterance % SPEAKERS:03d}", encoded)
        shards.append(writer.finish())
    write_manifest(folder, shards, codec, container)


def write_manifest(folder: Path, shards: list[Any], codec: str, container: str) -> None:
    names = [f"s{number:03d}" for number in range(SPEAKERS)]
    rows = sum(shard.rows for shard in shards)
    each = [rows // SPEAKERS + (number < rows % SPEAKERS) for number in range(SPEAKERS)]
    codec = codec if codec in ("flac", "opus") else "source"
    manifest = Manifest(container, codec, RATE, "", "", shards, names, each, rows, float(SECONDS * rows), 0)
    (folder / "manifest.json").write_text(manifest.to_json())


def write_corpora(root: Path, speech: Path | None, count: int) -> None:
    waveforms = list(recordings(speech, count))
    flac = [encode_waveform(waveform, RATE, "flac") for waveform in waveforms]
    # Encoding Opus takes 0.2 s each.
    opus = [encode_waveform(waveform, RATE, "opus") for waveform in waveforms[:DISTINCT_OPUS]]
    contents = {
        "flac": flac,
        "opus": [opus[i % len(opus)] for i in range(count)],
        "m4a": list(map(encode_m4a, waveforms)),
    }
    for name, (codec, container) in FORMATS.items():
        write_corpus(root / name.replace(" ", "-"), contents[codec], codec, container)
    write_corpus(root / "opus-tar", contents["opus"], "opus", "webdataset")
    for name, codec in RIVAL_TARS.items():
        write_rival_tars(root / f"wespeaker-{name.replace(' ', '-')}", contents[codec], codec)
    for name, times in SIZES.items():
        repeat_corpus(root / "flac-parquet", root / f"flac-parquet-{name}", times)
        repeat_corpus(root / "flac-tar", root / f"flac-tar-{name}", times)
        repeat_rival_tars(root / "wespeaker-flac-tar", root / f"wespeaker-flac-tar-{name}", times)


def write_rival_tars(folder: Path, contents: list[bytes], codec: str) -> None:
    """Tars as WeSpeaker's `make_shard_list.py` writes them: `KEY.spk`, then the audio."""
    folder.mkdir()
    for number in range(SHARDS):
        with tarfile.open(folder / f"shards_{number:09d}.tar", "w") as tar:
            for utterance in range(number, len(contents), SHARDS):
                members = {".spk": f"s{utterance % SPEAKERS:03d}".encode(), SUFFIXES[codec]: contents[utterance]}
                for suffix, content in members.items():
                    member = tarfile.TarInfo(f"{utterance:06d}{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def repeat_corpus(source: Path, target: Path, times: int) -> None:
    """The same shards many times over, by links."""
    target.mkdir()
    manifest = Manifest.from_json((source / "manifest.json").read_bytes())
    shards = []
    for copy in range(times):
        for shard in manifest.shards:
            names = [shard.file] if shard.index is None else [shard.file, shard.index]
            for name in names:
                os.link(source / name, target / f"{copy}-{name}")
            index = None if shard.index is None else f"{copy}-{shard.index}"
            shards.append(type(shard)(**vars(shard) | {"file": f"{copy}-{shard.file}", "index": index}))
    write_manifest(target, shards, manifest.codec, manifest.format)


def repeat_rival_tars(source: Path, target: Path, times: int) -> None:
    target.mkdir()
    for copy in range(times):
        for path in source.glob("*.tar"):
            os.link(path, target / f"{copy}-{path.name}")


# -- the readers ------------------------------------------------------------------------------------------------------


def ours(folder: Path) -> Iterator[torch.Tensor]:
    utterances = ShardUtterances(ShardReader(folder))
    label_of = {speaker: label for label, speaker in enumerate(utterances.speakers)}
    crops = SpeakerCrops(utterances, label_of, CROP, 0, augmentation=AUGMENTATION)
    for batch in StreamedBatches(crops, BATCH):
        yield batch["input_values"]


def plain_datasets(folder: Path) -> Iterator[torch.Tensor]:
    import datasets

    # Its end-of-stream pause of 5 s is left out of the comparison.
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    is_parquet = any(folder.glob("*.parquet"))
    files = sorted(map(str, folder.glob("*.parquet" if is_parquet else "*.tar")))
    if is_parquet:
        stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
        stream = stream.cast_column("audio", datasets.Audio(decode=False)).select_columns(["audio", "speaker"])
        column = "audio"
    else:
        with tarfile.open(files[0]) as tar:
            column = next(iter(tar)).name.rsplit(".", 1)[1]
        text, binary = datasets.Value("string"), datasets.Value("binary")
        facts = {"speaker": text, "duration": datasets.Value("float64"), "samples": datasets.Value("int64")}
        features = datasets.Features({column: binary, "json": facts, "__key__": text, "__url__": text})
        stream = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True, features=features)
    draws = np.random.default_rng(0)
    contents = (row[column] for row in stream.shuffle(seed=0, buffer_size=1000))
    bare = (content["bytes"] if isinstance(content, dict) else content for content in contents)
    yield from batched(crop_of(decode(content), draws) for content in bare)


def tar_pipeline(folder: Path) -> Iterator[torch.Tensor]:
    shuffler, draws = random.Random(0), np.random.default_rng(0)
    files = sorted(folder.glob("*.tar"))
    shuffler.shuffle(files)

    def samples() -> Iterator[tuple[np.ndarray, str]]:
        for file in files:
            with open(file, "rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as tar:
                waveform = None
                for member in tar:
                    content = tar.extractfile(member).read()
                    if member.name.endswith(".json"):
                        yield waveform, json.loads(content)["speaker"]
                    else:
                        waveform = random_crop(decode(content), min(SECONDS * RATE, 2**30), draws)

    def shuffled(items: Iterable[Any], size: int = 2500) -> Iterator[Any]:
        buffer: list[Any] = []
        for item in items:
            buffer.append(item)
            if len(buffer) >= size:
                shuffler.shuffle(buffer)
                yield from buffer
                buffer = []
        shuffler.shuffle(buffer)
        yield from buffer

    yield from batched(crop_of(waveform, draws) for waveform, _ in shuffled(samples()))


def wespeaker(folder: Path) -> Iterator[torch.Tensor]:
    import torchaudio

    # Its __init__ imports what its command line needs.
    package = types.ModuleType("wespeaker")
    package.__path__ = [str(Path(os.environ["WESPEAKER"]) / "wespeaker")]
    sys.modules["wespeaker"] = package
    from wespeaker.dataset.dataset import Dataset  # pyright: ignore[reportMissingImports]

    torchaudio.load = lambda file: (torch.from_numpy(decode(file.read()))[None], RATE)
    tars = folder.with_name(f"wespeaker-{folder.name}")
    with tempfile.NamedTemporaryFile("w", suffix=".list") as lines:
        lines.write("\n".join(map(str, sorted(tars.glob("*.tar")))))
        lines.flush()
        # 297 frame shifts and a frame are 3 s.
        settings = {"frontend": "wave", "wave_args": {"frame_shift": 10, "frame_length": 30}, "num_frms": 298}
        settings |= {"shuffle": True, "shuffle_args": {"shuffle_size": 2500}, "speed_perturb": False, "aug_prob": 0.0}
        labels = {f"s{number:03d}": number for number in range(SPEAKERS)}
        samples = Dataset("shard", lines.name, settings, labels, repeat_dataset=False)
    samples.set_epoch(0)
    draws = np.random.default_rng(0)
    yield from batched(AUGMENTATION(sample["wav"][0].numpy(), draws) for sample in samples)


def decode(content: bytes) -> np.ndarray:
    """Whole, mono. The checks of `read_utterance` are left out: the others have none."""
    if content[4:8] == b"ftyp":
        return read_utterance(content).waveform
    import soundfile

    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


def crop_of(waveform: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    return AUGMENTATION(random_crop(waveform, CROP, draws), draws)


def batched(crops: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
    kept: list[np.ndarray] = []
    for crop in crops:
        kept.append(crop)
        if len(kept) == BATCH:
            yield torch.from_numpy(np.stack(kept))
            kept = []
    if kept:
        yield torch.from_numpy(np.stack(kept))


READERS = {"ours": ours, "datasets": plain_datasets, "tar": tar_pipeline, "wespeaker": wespeaker}


# -- measuring --------------------------------------------------------------------------------------------------------


def measure(reader: str, folder: Path) -> None:
    """One epoch; called in a process of its own."""
    torch.set_num_threads(1)
    batches = READERS[reader](folder)
    AUGMENTATION(np.ones(CROP, np.float32), np.random.default_rng(0))
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    cpu, wall = time.process_time(), time.perf_counter()
    samples = sum(len(batch) for batch in batches)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    json.dump({"samples": samples, "cpu": cpu, "wall": wall, "peak": peak}, sys.stdout)


def run(reader: str, folder: Path, core: int) -> dict[str, float]:
    words = [sys.executable, __file__, "--reader", reader, "--folder", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def compare(root: Path, rounds: int, core: int) -> list[dict]:
    """Print the speeds, and return the ratios."""
    cases = [("ours", name) for name in FORMATS] + [("datasets", name) for name in FORMATS]
    rival = "wespeaker" if "WESPEAKER" in os.environ else "tar"
    cases += [(rival, name) for name in RIVAL_TARS]
    found: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            row = run(case[0], root / case[1].replace(" ", "-"), core)
            found[case].append(row)
            print(f"round {number + 1}: {case[0]} {case[1]} {row['samples'] / row['cpu']:.0f} samples/s", flush=True)
    print(f"{'reader':10} {'shards':14} {'samples/s':>10} {'wall':>7} {'peak MB':>8}")
    speed = {}
    for (reader, name), rows in found.items():
        speed[reader, name] = statistics.median(row["samples"] / row["cpu"] for row in rows)
        wall = statistics.median(row["samples"] / row["wall"] for row in rows)
        peak = statistics.median(row["peak"] for row in rows) / 1e6
        print(f"{reader:10} {name:14} {speed[reader, name]:10.0f} {wall:7.0f} {peak:8.0f}")
    ratios = []
    for codec in SUFFIXES:
        mine = max(value for (reader, name), value in speed.items() if reader == "ours" and codec in name)
        best = max(value for (reader, name), value in speed.items() if reader != "ours" and codec in name)
        print(f"{codec}: ours {mine:.0f}, best of the others {best:.0f}, ratio {mine / best:.2f}")
        ratios.append({"what": f"crops from shards, {codec}", "rival": "best of the others", "ratio": mine / best})
    return ratios


def compare_memory(root: Path, core: int) -> None:
    for reader, corpus in (
        ("ours", "flac-parquet"),
        ("ours", "flac-tar"),
        ("wespeaker" if "WESPEAKER" in os.environ else "tar", "flac-tar"),
        ("datasets", "flac-parquet"),
    ):
        peaks = {name: run(reader, root / f"{corpus}-{name}", core)["peak"] / 1e6 for name in SIZES}
        sizes = ", ".join(f"{name} {peak:.0f} MB" for name, peak in peaks.items())
        print(f"{reader:10} {corpus:14} {sizes}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, help="folder of recordings to cut the utterances from")
    parser.add_argument("--wespeaker", type=Path, help="checkout of WeSpeaker")
    parser.add_argument("--utterances", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", type=Path, help="write the ratios there")
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reader is not None:
        measure(arguments.reader, arguments.folder)
        return
    missing = [name for name in ("lmdb", "kaldiio") if find_spec(name) is None]
    if arguments.wespeaker is not None and missing:
        print(f"WeSpeaker's reader is left out, because it needs `pip install {' '.join(missing)}`.")
    elif arguments.wespeaker is not None:
        os.environ["WESPEAKER"] = str(arguments.wespeaker.resolve())
    with tempfile.TemporaryDirectory() as root:
        write_corpora(Path(root), arguments.speech, arguments.utterances)
        if arguments.memory:
            compare_memory(Path(root), arguments.core)
        else:
            rows = compare(Path(root), arguments.rounds, arguments.core)
            write_json(arguments.json, "streaming", {"rows": rows})


if __name__ == "__main__":
    main()
