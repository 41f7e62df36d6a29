"""Time of embedding a folder of recordings, against SpeechBrain's `encode_batch` and WeSpeaker's way, file by file.

    python tests/benchmarks/benchmark_embedding.py --wespeaker CHECKOUT [--utterances 2000] [--channels 1024]

Recordings of 2 to 23 s (8 s in the mean) are written as FLAC, of noise or cut from `--speech`, and dealt to rounds. In
each round every contender embeds the same files, decoding included: this package as `hamspk embed` does; SpeechBrain
file by file and in padded batches of 16; WeSpeaker as its command line does, `torchaudio.compliance.kaldi.fbank` and
the encoder file by file (decoded by soundfile, as here everybody's files are). All in float32, with the same number of
threads and the same allocator; SpeechBrain needs `pip install speechbrain`. The ratio is the median over the rounds.
`--backends` chooses how our model runs: hf_hamspk (without a backend), or BACKEND:DTYPE, for example torch:bfloat16 or
onnx:int8 (quantised with 24 of the recordings). How many times as fast as WeSpeaker each is, is printed as well.
`--lengths` measures single utterances of so many seconds, too. Our model has WeSpeaker's weights where there is a
checkout, and the largest difference of the embeddings is printed.

On a machine that others use, `--threads 1 --clock processor` counts processor time, decoding included, instead.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import rivals
import soundfile as sf
import torch
from torch import nn

from hf_hamspk.backends import quantise_onnx, with_backend
from hf_hamspk.embedding import AudioFiles, EmbeddingParts, extract, write_embeddings

RATE = 16_000
SHORTEST, LONGEST, MEAN = 2.0, 23.0, 8.0
SPEECHBRAIN_BATCH, CALIBRATING = 16, 24
# Our model without a backend.
PLAIN = "hf_hamspk"
BOUNDS = {"speechbrain": 1.3, "wespeaker": 1.3}


def make_recordings(folder: Path, count: int, speech: Path | None) -> tuple[list[Path], float]:
    """FLAC files of mixed lengths, and their seconds together."""
    draw = np.random.default_rng(0)
    seconds = np.clip(SHORTEST + draw.exponential(MEAN - SHORTEST, count), SHORTEST, LONGEST)
    source = 0.05 * draw.standard_normal(round(60 * RATE))
    if speech is not None:
        files = sorted(speech.rglob("*.flac"))
        chosen = [files[i] for i in draw.permutation(len(files))[:100]]
        source = np.concatenate([sf.read(file)[0] for file in chosen])
    paths = []
    for i, length in enumerate((seconds * RATE).astype(int)):
        start = int(draw.integers(len(source) - length))
        paths.append(folder / f"{i:05d}.flac")
        sf.write(paths[-1], source[start : start + length], RATE)
    return paths, float(seconds.sum())


def wespeaker_file(encoder: nn.Module, path: Path) -> torch.Tensor:
    """As `Speaker.extract_embedding` of WeSpeaker's command line."""
    from torchaudio.compliance import kaldi

    samples = torch.from_numpy(sf.read(path, dtype="float32")[0])[None] * 32768
    features = kaldi.fbank(
        samples, num_mel_bins=80, frame_length=25, frame_shift=10, sample_frequency=RATE, window_type="hamming"
    )
    return encoder((features - features.mean(0))[None])[-1][0]


def speechbrain_classifier(encoder: nn.Module):
    """The interface that SpeechBrain's users have, with the features of its VoxCeleb recipe."""
    from speechbrain.inference.classifiers import EncoderClassifier
    from speechbrain.lobes.features import Fbank
    from speechbrain.processing.features import InputNormalization

    modules = {
        "compute_features": Fbank(n_mels=80),
        "mean_var_norm": InputNormalization(norm_type="sentence", std_norm=False),
        "embedding_model": encoder,
        "classifier": nn.Identity(),
    }
    return EncoderClassifier(modules=modules, hparams={"label_encoder": None})


def speechbrain_batches(classifier, paths: list[Path], size: int) -> None:
    for first in range(0, len(paths), size):
        waves = [torch.from_numpy(sf.read(path, dtype="float32")[0]) for path in paths[first : first + size]]
        lengths = torch.tensor([len(wave) for wave in waves])
        padded = nn.utils.rnn.pad_sequence(waves, batch_first=True)
        classifier.encode_batch(padded, lengths / lengths.max())


def embed_ours(model, paths: list[Path], folder: Path) -> None:
    source = AudioFiles([str(path) for path in paths], RATE)
    parts = EmbeddingParts(folder / "e.parts", source.sizes, rivals.EMBEDDING, {})
    extract(model, source, parts, progress=False)
    write_embeddings(parts, folder / "e.parquet", {"fingerprint": "", "precision": ""})
    parts.remove()


def in_backend(model, backend: str, dtype: str, folder: Path):
    """Our model in a backend; int8 is quantised with the recordings in the folder."""
    if dtype != "int8":
        return with_backend(model, backend, dtype, at_once=torch.get_num_threads())
    waves = [sf.read(path, dtype="float32")[0] for path in sorted(folder.rglob("*.flac"))[:CALIBRATING]]
    found = quantise_onnx(model, folder / f"{backend}.onnx", waves)
    print(f"{backend}:{dtype}: cosine with float32 {found['smallest']:.6f} or more, median {found['median']:.6f}")
    return with_backend(model, backend, dtype, folder / f"{backend}.onnx", at_once=torch.get_num_threads())


def contenders(arguments, folder: Path) -> dict:
    """What each does with a list of files."""
    torch.manual_seed(0)
    theirs = rivals.wespeaker_encoder(arguments.wespeaker, arguments.channels) if arguments.wespeaker else None
    model = rivals.our_model(arguments.channels, theirs)
    works = {}
    for name in arguments.backends:
        if name == PLAIN:
            works[name] = lambda paths: embed_ours(model, paths, folder)
            continue
        fast = in_backend(model, *name.split(":"), folder)
        print(f"{name}: {fast.choice}")
        works[name] = lambda paths, fast=fast: embed_ours(fast, paths, folder)
    if arguments.compile:
        compiled = rivals.our_model(arguments.channels, theirs)
        compiled.backbone.compile(dynamic=True)
        compiled.pooling.compile(dynamic=True)
        works["hf_hamspk compiled"] = lambda paths: embed_ours(compiled, paths, folder)
    if arguments.bfloat16:
        half = nn.Module.to(rivals.our_model(arguments.channels, theirs), torch.bfloat16)
        works["hf_hamspk bfloat16"] = lambda paths: embed_ours(half, paths, folder)
    if theirs is not None:
        works["wespeaker"] = lambda paths: [wespeaker_file(theirs, path) for path in paths]
    encoder = rivals.speechbrain_encoder(arguments.channels)
    if encoder is not None:
        classifier = speechbrain_classifier(encoder)
        works["speechbrain"] = lambda paths: speechbrain_batches(classifier, paths, 1)
        works["speechbrain batches"] = lambda paths: speechbrain_batches(classifier, paths, SPEECHBRAIN_BATCH)
    return works, model, theirs


def differences(model, theirs, paths: list[Path]) -> dict[str, float]:
    """Largest difference of embeddings, relative to their root mean square: by batching, and to WeSpeaker's."""
    waves = [sf.read(path, dtype="float32")[0] for path in paths]
    together = model.embed(waves, RATE)
    size = together.square().mean().sqrt()
    alone = torch.cat([model.embed([wave], RATE) for wave in waves])
    found = {"alone and in a batch": float((alone - together).abs().max() / size)}
    if theirs is not None:
        others = torch.stack([wespeaker_file(theirs, path) for path in paths])
        found["ours and WeSpeaker's"] = float((others - together).abs().max() / size)
    return found


def over_length(works: dict, folder: Path, arguments) -> dict[str, dict[float, float]]:
    """Median milliseconds of one utterance, by contender and seconds of audio."""
    curves: dict[str, dict[float, float]] = {name: {} for name in works if "batches" not in name}
    for seconds in arguments.lengths:
        path = folder / "one.flac"
        sf.write(path, 0.05 * np.random.default_rng(0).standard_normal(round(seconds * RATE)), RATE)
        times = rivals.take_turns(
            {name: partial(works[name], [path]) for name in curves}, arguments.rounds, arguments.clock
        )
        for name, seconds_taken in times.items():
            curves[name][seconds] = 1000 * float(np.median(seconds_taken))
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wespeaker", type=Path, help="checkout of WeSpeaker; without it, it is left out")
    parser.add_argument("--speech", type=Path, help="folder of FLAC files to cut the recordings from")
    parser.add_argument("--utterances", type=int, default=100)
    parser.add_argument("--part", type=int, nargs=2, metavar=("K", "N"), default=(0, 1), help="only part K of N")
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="our encoder compiled, too")
    parser.add_argument("--bfloat16", action="store_true", help="our encoder in bfloat16, too")
    parser.add_argument(
        "--backends",
        nargs="*",
        default=[PLAIN],
        metavar="BACKEND:DTYPE",
        help=f"our model in backends; {PLAIN} is without one",
    )
    rivals.add_conditions(parser)
    parser.add_argument("--lengths", type=float, nargs="*", default=[], help="seconds of single utterances to time")
    parser.add_argument("--plots", type=Path, help="folder for the plot of time against length")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rivals.use_conditions(arguments)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        folder = Path(scratch)
        (folder / "audio").mkdir()
        paths, seconds = make_recordings(folder / "audio", arguments.utterances, arguments.speech)
        number, count = arguments.part
        paths = paths[number::count]
        seconds = sum(sf.info(path).duration for path in paths)
        with torch.inference_mode(False), torch.no_grad():
            # The exporter of PyTorch refuses tensors of the inference mode.
            works, model, theirs = contenders(arguments, folder)
        found = differences(model, theirs, paths[:8])
        for work in works.values():
            work(paths[:2])
        times: dict[str, list[float]] = {name: [] for name in works}
        for number in range(arguments.rounds):
            print(
                f"round {number + 1} of {arguments.rounds}", {k: round(sum(v), 2) for k, v in times.items()}, flush=True
            )
            own = paths[number :: arguments.rounds]
            turns = {name: partial(work, own) for name, work in works.items()}
            for name, spent in rivals.take_turns(turns, 1, arguments.clock, warm_up=0).items():
                times[name] += spent
        curves = over_length(works, folder, arguments)
    factors = rivals.ratios(times, next(iter(times)))
    print(
        f"{len(paths)} recordings, {seconds:.0f} s, ECAPA-TDNN of {arguments.channels} channels, float32, "
        f"{rivals.conditions_in_words(arguments)}"
    )
    for name, spent in times.items():
        factor = f"{factors[name]:>8.2f} x the first" if name in factors else ""
        print(f"{name:<22}{len(paths) / sum(spent):>8.1f} utterances/s{seconds / sum(spent):>8.1f} x real time{factor}")
    if "wespeaker" in times:
        against = {name: np.array(times["wespeaker"]) / np.array(spent) for name, spent in times.items()}
        for name, of_rounds in against.items():
            print(
                f"{name:<22}{np.median(of_rounds):>8.2f} x as fast as wespeaker ({min(of_rounds):.2f} to "
                f"{max(of_rounds):.2f} by round)"
            )
    for name, value in found.items():
        print(f"largest difference, {name}: {value:.1e}")
    for name, points in curves.items():
        print(f"{name:<22}" + ", ".join(f"{length:g} s: {value:.0f} ms" for length, value in points.items()))
    if arguments.lengths and arguments.plots:
        rivals.plot(arguments.plots / "embedding_length.png", "One utterance", "seconds of audio", "ms", curves)
    rows = [
        {"what": f"embedding {len(paths)} recordings, C={arguments.channels}", "rival": name, "ratio": factor}
        | ({"bound": BOUNDS[name]} if name in BOUNDS else {})
        for name, factor in factors.items()
    ]
    rivals.write_json(
        arguments.json,
        "embedding",
        {
            "conditions": rivals.conditions(arguments) | {"utterances": len(paths), "audio_seconds": seconds},
            "rows": rows,
            "seconds": times,
            "differences": found,
            "milliseconds_by_length": curves,
        },
    )


if __name__ == "__main__":
    main()
