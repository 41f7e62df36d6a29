"""Folders full of other people's files: no command changes, replaces or deletes one of them."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from other_projects import small_model, weights_of, write
from parameters import thinned
from tiny_models import settle

from hf_hamspk.__main__ import COMMANDS
from hf_hamspk.data.synthetic import make_corpus
from hf_hamspk.folders.locks import lock_folder

# Names of results, of unfinished files, and others, in any folder that a command writes into.
NAMES = [
    *("thesis.txt", "notes/thesis.txt", ".hidden", "manifest.json.bak", "README", "plots/mine.png", "plots/mine.txt"),
    *("evaluation.json.bak", "report.htm", ".evaluation.json.new", "evaluation.json.tmp", "report.html.1.tmp"),
    *("x.parquet.unfinished", "x.parquet.tmp", "x.parquet.part", "x.onnx.part", "anna.safetensors.part", "x.npz.tmp"),
    *("checkpoints/checkpoint-500/model.safetensors", "epochs/notes.txt", "final.zip", "best.txt", "modules/mine.txt"),
    *("shard-1.tar", "unreadable.txt", "cohort.bin", "verification.json.part", "anna.wav", "x.parts.txt", "run.yaml"),
]
RESULTS = [
    *("evaluation.json", "report.html", "plots/det.png", "plots/scores-trials.png", "verification.json"),
    *("x.parquet", "x.safetensors", "x.npz", "x.onnx", "x.md", "x.json", "anna.safetensors", "cohort.safetensors"),
    *("x.parts/part-000000.txt", "manifest.json", "metrics.jsonl", "recipe.yaml", ".lock", "unreadable.csv"),
    *("hierarchy.json", "hierarchy.txt", "hierarchy.html", "plots/disk.png"),
    *("shard-00000-of-00001.parquet", ".progress/notes.txt", "config.json", "model.safetensors", "corpus/train.csv"),
]


def put(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"the only copy of {name}")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "c", 14, 4, 3, (1.7, 2.1), test_share=0.55)


@pytest.fixture
def model(tmp_path, model_folder) -> Path:
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.fixture
def source(tmp_path) -> Path:
    """The checkpoint of another project."""
    return write("official", tmp_path / "source", weights_of("official", settle(small_model("official"))))


def lists(corpus: Path) -> tuple:
    return corpus / "trials.txt", "--audio-root", corpus


def evaluation(model: Path, corpus: Path) -> tuple:
    return "evaluate", model, *lists(corpus), "--replicates", "0"


def sweep(model: Path, corpus: Path) -> tuple:
    return "sweep", model, *lists(corpus), "--over", "duration", "--values", "1", "--replicates", "0"


def training(corpus: Path, output: Path) -> tuple:
    tiny = ("--ecapa_channels", "16", "--ecapa_output_channels", "48", "--pooling_channels", "16", "--cpu", "true")
    data = ("--train_data", corpus / "train.csv", "--audio_root", corpus, "--batch_size", "4", "--epochs", "1")
    return "train", *data, *tiny, "--embedding_size", "16", "--output_dir", output


def study_file(corpus: Path) -> Path:
    content = {
        "recipe": {"train_data": f"{corpus}/train.csv", "audio_root": str(corpus), "cpu": True},
        "dev_trials": [f"{corpus}/trials.txt"],
        "test_trials": [f"{corpus}/trials.txt"],
        "search": {"learning_rate": [1e-3, 3e-3, "log"]},
        "tuning": {"settings": 1, "epochs": 1},
        "final": {"seeds": 1, "epochs": 1},
        "heads": {head: {"recipe": {"head": head}} for head in ("am", "ham")},
        "comparisons": {"claims": [["ham", "am"]]},
    }
    (corpus / "study.yaml").write_text(json.dumps(content))
    return corpus / "study.yaml"


# For each command, functions of (model, corpus, source, folder) that write into the folder.
INTO = {
    "train": [lambda m, c, s, f: training(c, f), lambda m, c, s, f: (*training(c, f), "--resume", "false")],
    "prepare": [
        lambda m, c, s, f: ("prepare", c / "train", f, "--processes", "0"),
        lambda m, c, s, f: ("prepare", c / "train", f, "--processes", "0", "--restart"),
        lambda m, c, s, f: ("prepare", "--index", s.parent / "*.parquet", f),
    ],
    "calibrate": [
        lambda m, c, s, f: ("calibrate", m, *lists(c), "--output", f),
        lambda m, c, s, f: ("calibrate", f, *lists(c)),
    ],
    "evaluate": [lambda m, c, s, f: (*evaluation(m, c), "--output", f), lambda m, c, s, f: evaluation(f, c)],
    "sweep": [lambda m, c, s, f: (*sweep(m, c), "--output", f), lambda m, c, s, f: sweep(f, c)],
    "embed": [
        lambda m, c, s, f, end=end: ("embed", m, c / "test", "--output", f / f"x{end}")
        for end in (".parquet", ".safetensors", ".npz")
    ],
    "verify": [lambda m, c, s, f: ("verify", m, recording(c), "--save-profile", f / "anna.safetensors")],
    "enrol": [lambda m, c, s, f: ("enrol", m, recording(c), "--name", "anna", "--profiles", f)],
    "identify": [lambda m, c, s, f: ("identify", m, recording(c), "--profiles", f)],
    "push": [lambda m, c, s, f: ("push", f, "me/mine", "--dry-run")],
    "card": [lambda m, c, s, f: ("card", m, "--output", f / "x.md"), lambda m, c, s, f: ("card", f / "x.json")],
    "export": [lambda m, c, s, f: ("export", m, f / "x.onnx")],
    "convert": [lambda m, c, s, f: ("convert", s, f)],
    "demo": [lambda m, c, s, f: ("demo", "--quick", "--output", f)],
    "doctor": [lambda m, c, s, f: ("doctor",)],
    "hierarchy": [
        lambda m, c, s, f: (
            *("hierarchy", m, c / "train.csv", "--audio-root", c, "--output", f, "--labels", "speaker_id"),
            *("--permutations", "19", "--draws", "19"),
        )
    ],
    "study": [lambda m, c, s, f: ("study", study_file(c), "--output", f)],
}
RUNS = [(command, number) for command, made in INTO.items() for number in range(len(made))]


def recording(corpus: Path) -> Path:
    return next(iter(sorted((corpus / "test").rglob("*.flac"))))


def test_every_command_is_here():
    assert INTO.keys() == COMMANDS.keys()


@pytest.mark.parametrize(("command", "number"), thinned(run for run in RUNS if run[0] != "doctor"))
def test_a_folder_of_strangers_results_is_refused_and_stays(
    hamspk, tmp_path, model, corpus, source, monkeypatch, command, number
):
    """The files have the very names of results; nothing is added either."""
    monkeypatch.chdir(tmp_path)
    folder = put(tmp_path / "theirs", [*NAMES, *RESULTS])
    before = hashes(tmp_path)
    code, _, err = hamspk(*INTO[command][number](model, corpus, source, folder))
    assert code == 2, err
    assert err.count("\n") == 1 and err.startswith("hamspk: error: "), err
    assert hashes(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(
            ("evaluate", name)
            for name in ("evaluation.json", "report.html", "plots/det.png", "plots/scores-trials.png")
        ),
        *(("sweep", name) for name in ("evaluation.json", "report.html", "plots/sweep-trials-duration.png")),
        *(("calibrate", name) for name in ("verification.json", "cohort.safetensors")),
        *(("card", name) for name in ("x.md", "x.json")),
    ],
)
def test_one_strangers_result_in_the_folder_of_the_model_is_refused(
    hamspk, tmp_path, model, corpus, monkeypatch, command, name
):
    monkeypatch.chdir(tmp_path)
    folder = put(shutil.copytree(model, tmp_path / "theirs"), [name])
    before = hashes(tmp_path)
    words = (
        ("card", model, "--output", folder / "x.md")
        if command == "card"
        else INTO[command][1](None, corpus, None, folder)
    )
    code, _, err = hamspk(*words)
    assert code == 2 and Path(name).name in err and err.count("\n") == 1, err
    assert hashes(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "number"), [run for run in RUNS if run[0] not in ("doctor", "identify", "demo", "push")]
)
def test_strangers_files_beside_the_results_stay(hamspk, tmp_path, model, corpus, source, monkeypatch, command, number):
    """The command does its work, or refuses the folder, twice; the files of others stay as they were."""
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(model, tmp_path / "theirs") if number == 1 else tmp_path / "theirs"
    if command == "card" and number == 1:
        assert hamspk("card", model, "--output", folder / "x.md")[0] == 0
    put(folder, NAMES)
    before = hashes(folder)
    needs_empty = command in ("train", "prepare", "convert", "study") or (command, number) == ("calibrate", 0)
    for _ in range(2):
        code, out, err = hamspk(*INTO[command][number](model, corpus, source, folder))
        assert code == (2 if needs_empty else 0), err + out
    after = hashes(folder)
    theirs = {name: digest for name, digest in before.items() if name in NAMES}
    assert {name: digest for name, digest in after.items() if name in NAMES} == theirs
    if needs_empty:
        assert after == before


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "prepare"])
def test_strangers_files_in_our_own_folder_stay(hamspk, tmp_path, corpus, command):
    """Files put into the folder of a run or of shards afterwards."""
    folder = tmp_path / "ours"
    words = INTO[command][0](None, corpus, tmp_path, folder)
    again = INTO[command][1](None, corpus, tmp_path, folder)
    assert hamspk(*words)[0] == 0
    added = [
        *("final/thesis.txt", "best/thesis.txt", "last/plots/x.png", "epochs/notes.txt", "checkpoints/notes.txt"),
        *("checkpoints/step-00000010/thesis.txt", "logs/notes.txt", ".progress/thesis.txt", "manifest.json.bak"),
        *("metrics.csv", "shard-00000.tar", "shard-00000-of-00001.parquet.bak", "metrics.jsonl.bak"),
    ]
    put(folder, added)
    before = hashes(folder)
    for _ in range(2):
        for one in (words, again):
            code, _, err = hamspk(*one)
            assert code == 0, err
            found = hashes(folder)
            assert {name: found.get(name) for name in added} == {name: before[name] for name in added}


@pytest.mark.parametrize(
    ("command", "lock"), [("train", ".lock"), ("prepare", ".progress/lock"), ("embed", "x.parts/.lock")]
)
def test_one_command_at_a_time_writes_a_folder(refusal, tmp_path, model, corpus, command, lock):
    folder = tmp_path / "out"
    (folder / lock).parent.mkdir(parents=True)
    with lock_folder(folder / lock, folder, f"hamspk {command}"):
        message = refusal(*INTO[command][0](model, corpus, tmp_path, folder))
    assert message.startswith(f"hamspk {command} (process {os.getpid()} on {os.uname().nodename}, started 20")
    assert "is writing into" in message
