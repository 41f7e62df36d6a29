"""Makes the folder `0.1.0` beside this file: files as version 0.1.0 wrote them. `test_earlier_version.py` reads them.

It was run once, with the code of version 0.1.0 (commit 49c2765), which newer code does not replace:

    git worktree add ../old 49c2765
    PYTHONPATH=../old python tests/earlier_version/make.py

All voices are synthetic. Both models are small and were trained for a moment only.
"""

import csv
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from reading import RATE, answers, enrol, machine, numbers, read_recordings, read_shards
from safetensors.torch import save_file
from transformers import WavLMConfig

import hf_hamspk
from hf_hamspk import HamSpkConfig, HamSpkForXVector, HamSpkModel
from hf_hamspk.__main__ import main
from hf_hamspk.data.synthetic import make_corpus, make_speech
from hf_hamspk.shards.indexing import index_shards
from hf_hamspk.shards.planning import PrepareOptions
from hf_hamspk.shards.preparing import prepare

VERSION, COMMIT = "0.1.0", "49c2765"
FOLDER = Path(__file__).parent / VERSION
# Quiet recordings are small in FLAC.
LEVEL = 0.03
# Speaker and utterance of the synthesiser, and seconds.
RECORDINGS = {
    "ann-1": (1001, 1, 1.2),
    "ann-2": (1001, 2, 1.2),
    "ann-3": (1001, 3, 1.2),
    "ben-1": (1004, 1, 1.2),
    "ben-2": (1004, 2, 1.2),
    "cleo-1": (1010, 1, 1.2),
    "short": (1001, 4, 0.35),
}
# Placeholder of this folder in the index, which names shards by their whole path.
PLACE = "/PLACE"


def small_ecapa() -> HamSpkConfig:
    return HamSpkConfig(
        ecapa_channels=16,
        ecapa_output_channels=48,
        ecapa_bottleneck=8,
        ecapa_groups=4,
        pooling_channels=8,
        embedding_size=24,
        mask_mel_bins=0,
        mask_frames=0,
        num_labels=10,
    )


def small_wavlm() -> HamSpkConfig:
    off = dict.fromkeys(
        (
            "hidden_dropout",
            "attention_dropout",
            "activation_dropout",
            "feat_proj_dropout",
            "final_dropout",
            "layerdrop",
            "mask_time_prob",
            "mask_feature_prob",
        ),
        0.0,
    )
    backbone = WavLMConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        num_buckets=32,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        **off,
    )
    return HamSpkConfig(
        backbone_config=backbone,
        pooling="mhfa",
        pooling_channels=8,
        mhfa_heads=4,
        embedding_size=24,
        num_labels=10,
        projection="curved",
        curvature=1.0,
        clip_radius=4.0,
        freeze_feature_encoder=False,
        learnable_curvature=True,
        similarity="hyperbolic",
    )


def settle(model: torch.nn.Module) -> None:
    """Batch normalisation with statistics and weights that are not those of a fresh layer."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.2, generator=draw)
                module.running_var.uniform_(0.5, 1.5, generator=draw)
                module.weight.uniform_(0.5, 1.5, generator=draw)
                module.bias.normal_(0, 0.2, generator=draw)


def train(model: HamSpkForXVector, steps: int) -> None:
    """A few steps on synthetic speakers, those of the calibration and of the recordings not among them."""
    draw = np.random.default_rng(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        labels = draw.integers(10, size=24)
        waves = [make_speech(5000 + int(label), int(draw.integers(1000)), 1.0) for label in labels]
        optimiser.zero_grad()
        model(torch.tensor(np.stack(waves)), labels=torch.tensor(labels)).loss.backward()
        optimiser.step()


def make_model(name: str, config: HamSpkConfig, steps: int, corpus: Path) -> None:
    """A model with calibration and cohort in the folder of its name."""
    torch.manual_seed(0)
    model = HamSpkForXVector(config)
    settle(model)
    train(model, steps)
    folder = FOLDER / name
    model.eval().save_pretrained(folder)
    given = ["--audio-root", corpus, "--cohort", corpus / "train.csv", "--cohort-root", corpus]
    given += ["--normalisation", "as", "--top", 4, "--quality", "speech", "snr", "magnitude", "--minimum-speech", 0.6]
    if main([str(word) for word in ("calibrate", folder, corpus / "trials.txt", *given)]):
        raise SystemExit("not calibrated")


def make_recordings() -> None:
    (FOLDER / "recordings").mkdir()
    for name, spoken in RECORDINGS.items():
        sf.write(FOLDER / "recordings" / f"{name}.flac", LEVEL * make_speech(*spoken), RATE, subtype="PCM_16")


def use_model(name: str, combine: str) -> tuple[dict[str, torch.Tensor], dict]:
    """What a model says of the recordings; keeps the profiles."""
    waves = read_recordings(FOLDER / "recordings")
    tensors = {f"{name}.{key}": value for key, value in numbers(FOLDER / name, waves).items()}
    model = HamSpkModel.from_pretrained(FOLDER / name)
    profiles = enrol(model, waves, combine)
    (FOLDER / "profiles" / name).mkdir(parents=True)
    for speaker, profile in profiles.items():
        profile.save(FOLDER / "profiles" / name / f"{speaker}.safetensors")
        # As it is read: without the warnings of the enrolment.
        profiles[speaker] = type(profile).load(FOLDER / "profiles" / name / f"{speaker}.safetensors")
    said = answers(model, profiles, waves, combine)
    return tensors, {"fingerprint": model.fingerprint(), "combine": combine, "answers": said}


def make_shards(work: Path) -> dict:
    """Prepared shards, an index of them, and what is read of both."""
    source = work / "voices"
    rows = []
    for number in range(12):
        path = f"speaker{number % 3}/u{number:02d}.flac"
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        sf.write(source / path, 0.01 * make_speech(2000 + number % 3, number, 0.25), RATE, subtype="PCM_16")
        rows.append((path, f"speaker{number % 3}"))
    with open(source / "voices.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "speaker_id"), *rows])
    (source / "few.csv").write_text("\n".join((source / "voices.csv").read_text().splitlines()[:7]))
    for kind, container, table, count in (
        ("shards", "parquet", "voices.csv", 2),
        ("tars", "webdataset", "few.csv", 1),
    ):
        options = PrepareOptions(format=container, shards=count, rows_per_group=3, licence="CC0-1.0", seed=1)
        prepare([source / table], FOLDER / kind, options, progress=False)
    index_shards([str(FOLDER / "shards" / "*.parquet")], FOLDER / "index", licence="CC0-1.0", progress=False)
    read = {kind: read_shards(FOLDER / kind) for kind in ("shards", "tars", "index")}
    read["index"].pop("fingerprint")
    path = FOLDER / "index" / "manifest.json"
    text = path.read_text(encoding="utf-8").replace(str(FOLDER.resolve()), PLACE)
    if str(FOLDER) in text:
        raise SystemExit("the index names this folder")
    path.write_text(text, encoding="utf-8")
    return read


def make() -> None:
    house = Path(hf_hamspk.__file__).parent
    if hf_hamspk.__version__ != VERSION or not (house / "verifier.py").is_file():
        raise SystemExit(f"run it with version {VERSION}, not with {house}")
    torch.set_num_threads(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    expected: dict = {
        "made_with": {"hf_hamspk": VERSION, "commit": COMMIT},
        "machine": machine(),
        "code": sorted(path.name for path in house.glob("*.py") if not path.name.startswith("__")),
    }
    tensors: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as work:
        corpus = make_corpus(Path(work) / "corpus", 16, 6, 3, (1.6, 2.2), test_share=0.5)
        make_recordings()
        for name, config, steps, combine in (
            ("ecapa", small_ecapa(), 250, "mean"),
            ("wavlm", small_wavlm(), 250, "barycentre"),
        ):
            make_model(name, config, steps, corpus)
            own, expected[name] = use_model(name, combine)
            tensors |= own
        expected["shards"] = make_shards(Path(work))
    # The code is the same for both: once is enough.
    for path in (FOLDER / "wavlm").glob("*.py"):
        if path.read_bytes() != (FOLDER / "ecapa" / path.name).read_bytes():
            raise SystemExit(f"two kinds of {path.name}")
        path.unlink()
    save_file({key: value.contiguous() for key, value in tensors.items()}, FOLDER / "expected.safetensors")
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make()
