"""`hamspk evaluate` and `hamspk embed`."""

import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import torch
from safetensors.numpy import load_file
from tiny_models import RATE, cosine, noises

from hf_hamspk import HamSpkModel
from hf_hamspk.__main__ import main
from hf_hamspk.cli import evaluate as cli_evaluate
from hf_hamspk.cli import sweep as cli_sweep
from hf_hamspk.data.audio import read_utterance
from hf_hamspk.data.conditions import SWEEPS
from hf_hamspk.evaluation import evaluating, sweep
from hf_hamspk.evaluation.evaluating import Evaluation
from hf_hamspk.evaluation.results import EvaluationRecord, record_folder
from hf_hamspk.evaluation.trials import OFFICIAL_LISTS
from hf_hamspk.evaluation.verification import PRIORS, PROTOCOLS
from hf_hamspk.loading.models import load_model

TRIALS = "1 a.wav b.wav\n0 a.wav c.wav\n1 c.wav d.wav\n0 b.wav d.wav\n"


def write(folder, name: str, text: str):
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.slow
def test_table_numbers_report_and_plots(tmp_path, hamspk, model_folder, audio):
    first = write(tmp_path, "first.txt", TRIALS)
    second = write(tmp_path, "second.txt", "1 a.wav b.wav\n0 a.wav d.wav\n0 a.wav silence.wav\n")
    folder = tmp_path / "new" / "evaluation"
    code, out, _ = hamspk(
        *("evaluate", model_folder, first, second, "--audio-root", audio, "--prior", 0.01, 0.5, "--output", folder)
    )
    assert code == 0
    head = re.sub(" +", " ", out.splitlines()[0])
    assert head == "trial list scores trials skipped speakers EER % threshold minDCF(0.01) minDCF(0.5) minCllr"
    assert out.splitlines()[1].split()[:5] == ["first", "cosine", "4", "0", "?"]
    assert out.splitlines()[2].split()[:5] == ["second", "cosine", "2", "1", "?"]
    assert "first: no intervals: The speakers cannot be derived from the file names" in out
    assert "1 files could not be used" in out
    assert "silence.wav: holds no sound" in out

    record = EvaluationRecord.read(folder / "evaluation.json")
    assert (record.lists["first"]["protocol"], record.model["similarity"]) == ("whole", "cosine")
    assert record.model["name"] == model_folder.name
    assert record.lists["first"]["unusable_files"] == {}
    assert list(record.lists["second"]["unusable_files"]) == ["silence.wav"]
    assert list(record.lists["first"]["min_dcf"]) == ["0.01", "0.5"]
    assert "<h2>Error rates</h2>" in (folder / "report.html").read_text(encoding="utf-8")
    plots = sorted(file.name for file in (folder / "plots").iterdir())
    assert plots == ["det.png", "scores-first.png", "scores-second.png"]
    text = "".join(file.read_text(encoding="utf-8") for file in (folder / "evaluation.json", folder / "report.html"))
    assert str(tmp_path) not in text and str(audio) not in text


@pytest.fixture
def people(tmp_path, audio):
    """Recordings of ten people, three each, all pairs of them, and a table."""
    names = [f"{person}/{take}.wav" for person in "abcdefghij" for take in range(3)]
    wave = sf.read(audio / "a.wav")[0]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        own = 0.2 * np.sin(np.arange(8000) * (0.05 + 0.02 * (number // 3)))
        sf.write(tmp_path / name, own + 0.1 * wave[500 * number : 500 * number + 8000], RATE)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    write(tmp_path, "all.txt", "".join(f"{int(a[0] == b[0])} {a} {b}\n" for a, b in pairs))
    write(tmp_path, "table.csv", "path,gender\n" + "".join(f"{n},{'f' if n < 'e' else 'm'}\n" for n in names))
    return tmp_path


@pytest.mark.slow
def test_intervals_groups_and_another_model(people, hamspk, model_folder):
    words = ("evaluate", model_folder, people / "all.txt", "--audio-root", people, "--replicates", 100)
    code, out, _ = hamspk(
        *(*words, "--metadata", people / "table.csv", "--group-by", "gender", "--output", people / "out"),
        *("--compare", model_folder),
    )
    assert code == 0
    record = EvaluationRecord.read(people / "out" / "evaluation.json")
    values = record.lists["all"]
    assert (values["trials"], values["speakers"], values["replicates"]) == (435, 10, 100)
    assert values["eer_interval"][0] <= values["eer"] <= values["eer_interval"][1]
    assert list(values["groups"]) == ["gender f", "gender m"]
    # The same weights, so no difference at all.
    assert values["compared"]["model"]["fingerprint"] == record.fingerprint
    numbers = values["compared"]["numbers"]
    assert numbers["eer"]["difference"] == 0.0 and numbers["eer"]["p_value"] == 1.0
    assert list(numbers) == ["eer", "minDCF(0.01)", "minDCF(0.05)"]
    for part in ("Values in brackets are 95 % intervals from 100 resamplings", "gender f", "difference"):
        assert part in out


def test_the_choices_and_defaults_of_the_help_are_those_of_the_package(capsys):
    assert cli_evaluate.PROTOCOL_NAMES == PROTOCOLS and tuple(OFFICIAL_LISTS) == cli_evaluate.LIST_NAMES
    assert cli_sweep.SWEEP_NAMES == SWEEPS
    settings = evaluating.EvaluationSettings()
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    defaults = (" ".join(f"{prior:g}" for prior in PRIORS), settings.replicates, settings.confidence)
    assert all(f"(default: {default})" in told for default in defaults)
    assert inspect.signature(sweep).parameters["replicates"].default == settings.replicates


@pytest.mark.slow
def test_each_file_is_embedded_once(tmp_path, hamspk, model_folder, audio, monkeypatch):
    asked = []
    embed = evaluating.embed_files

    def record_names(model, names, *rest, **options):
        asked.append(names)
        return embed(model, names, *rest, **options)

    monkeypatch.setattr(evaluating, "embed_files", record_names)
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    lists = [write(folder, "list.txt", TRIALS) for folder in (one, two)]
    words = ("--audio-root", audio, "--protocol", "paper", "--output", tmp_path / "out")
    code, out, _ = hamspk("evaluate", model_folder, *lists, *words)
    assert code == 0
    assert asked == [["a.wav", "b.wav", "c.wav", "d.wav"]]
    # Lists of the same name are told apart by their folders.
    assert "one/list" in out and "two/list" in out


@pytest.mark.slow
def test_every_list_may_have_its_own_audio_root(tmp_path, hamspk, refusal, model_folder, audio):
    """The same names in two lists are different recordings in different folders."""
    for name, other in zip("abcd", "bcda", strict=True):
        (tmp_path / "other").mkdir(exist_ok=True)
        shutil.copy(audio / f"{name}.wav", tmp_path / "other" / f"{other}.wav")
    one, two = write(tmp_path, "one.txt", TRIALS), write(tmp_path, "two.txt", TRIALS)
    words = ("evaluate", model_folder, one, two, "--output", tmp_path / "out")
    assert hamspk(*words, "--audio-root", audio, "--audio-root", tmp_path / "other")[0] == 0
    both = EvaluationRecord.read(tmp_path / "out" / "evaluation.json").lists
    model = load_model(str(model_folder), "cpu")
    for name, trials, root in (("one", one, audio), ("two", two, tmp_path / "other")):
        alone = evaluating.evaluate(model, trials, root, alone_settings())[name]
        assert both[name]["eer_threshold"] == alone.record["eer_threshold"]
        by_name = evaluating.evaluate(
            model, {"one": one, "two": two}, {"one": audio, "two": tmp_path / "other"}, alone_settings()
        )
        np.testing.assert_array_equal(by_name[name].scores, alone.scores)
    assert both["one"]["eer_threshold"] != both["two"]["eer_threshold"]
    three = ("--audio-root", audio) * 3
    assert "once for each of the 2 trial lists, got 3 folders" in refusal(*words, *three)
    assert "Folder not found: nope (--audio-root)" in refusal(*words, "--audio-root", audio, "--audio-root", "nope")
    with pytest.raises(ValueError, match="no folder for the list 'two'"):
        evaluating.evaluate(model, {"one": one, "two": two}, {"one": audio})
    with pytest.raises(ValueError, match="one for each of the 1 trial lists, got 2"):
        evaluating.evaluate(model, one, [audio, audio])


def alone_settings() -> evaluating.EvaluationSettings:
    return evaluating.EvaluationSettings(replicates=0)


@pytest.mark.slow
def test_the_record_is_in_the_folder_of_the_model_and_grows(tmp_path, hamspk, calibrated_folder, voices):
    """By default; another list adds to it, and nothing raw changes where a model is calibrated."""
    folder = shutil.copytree(calibrated_folder, tmp_path / "final")
    first = write(tmp_path, "first.txt", "1 a.wav b.wav\n0 a.wav c.wav\n1 a.wav short.wav\n0 short.wav c.wav\n")
    second = write(tmp_path, "second.txt", "1 a.wav b.wav\n0 b.wav c.wav\n")
    for trials in (first, second):
        code, out, _ = hamspk("evaluate", folder, trials, "--audio-root", voices)
        assert code == 0 and f"written: {folder / 'evaluation.json'}" in out
    record = EvaluationRecord.read(folder / "evaluation.json")
    assert list(record.lists) == ["first", "second"]
    values = record.lists["first"]
    assert (values["trials"], values["decisions"]["trials"], values["decisions"]["without_decision"]) == (4, 2, 2)
    assert record.lists["second"]["decisions"]["without_decision"] == 0
    rows = [re.sub(" +", " ", line).strip() for line in out.splitlines()]
    assert any(row.startswith("second log-likelihood ratio 2 0 (0.0 %) 0 ?") for row in rows)
    plots = {
        "det.png",
        *(f"{kind}-{name}.png" for kind in ("scores", "ratios", "costs") for name in ("first", "second")),
    }
    assert {file.name for file in (folder / "plots").iterdir()} == set(record.plots) == plots
    assert (folder / "report.html").read_text(encoding="utf-8").count("<img") == len(plots)
    uncalibrated = tmp_path / "raw"
    hamspk("evaluate", folder, first, "--audio-root", voices, "--uncalibrated", "--output", uncalibrated)
    alone = EvaluationRecord.read(uncalibrated / "evaluation.json").lists["first"]
    assert alone == {key: value for key, value in values.items() if key != "decisions"}


def test_a_model_without_a_folder_gets_one_in_the_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert record_folder("owner/name") == Path("owner-name-evaluation")
    record = EvaluationRecord({"name": "owner/name", "fingerprint": "f"}, {"dev": {"eer": 0.1}})
    cli_evaluate.write_and_tell(Evaluation(record, {}), "owner/name", None)
    told = capsys.readouterr().out
    assert "owner/name has no local folder" in told
    assert Path("owner-name-evaluation", "evaluation.json").is_file()


def test_missing_lists_and_files(tmp_path, refusal, model_folder, audio):
    trials = write(tmp_path, "trials.txt", TRIALS + "0 a.wav gone.wav\n")
    assert "Trial list not found: nope.txt" in refusal("evaluate", model_folder, "nope.txt", "--audio-root", audio)
    message = refusal("evaluate", model_folder, trials, "--audio-root", audio)
    assert f"1 of 5 files of the trial list are missing under {audio}: gone.wav" in message
    assert "Folder not found: nope" in refusal("evaluate", model_folder, trials, "--audio-root", "nope")
    malformed = write(tmp_path, "malformed.txt", "yes a.wav b.wav\n")
    assert "line 1: expected lines 'label enrolment test'" in refusal(
        "evaluate", model_folder, malformed, "--audio-root", audio
    )
    one_kind = write(tmp_path, "one-kind.txt", "1 a.wav b.wav\n")
    assert "do not include both target and impostor" in refusal(
        "evaluate", model_folder, one_kind, "--audio-root", audio
    )
    good = write(tmp_path, "good.txt", TRIALS)
    assert "--prior must lie strictly between 0 and 1, got 1.0" in refusal(
        "evaluate", model_folder, good, "--audio-root", audio, "--prior", 1
    )
    assert "Model folder not found" in refusal("evaluate", tmp_path / "nope", good, "--audio-root", audio)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "results.json"], "--output must be a folder for evaluation.json, report.html and plots/"),
        (["--replicates", 20], "--replicates must be 0 or at least 100, got 20"),
        (["--confidence", 95], "--confidence must lie between 0 and 1, got 95.0"),
        (["--group-by", "gender"], "--group-by needs --metadata"),
        (["--metadata", "nope.csv"], "Table not found: nope.csv"),
        (["--replicates", 0, "--compare", "other"], "--compare needs resamplings"),
        (["--subtract-mean"], "The mean of the model's cohort cannot be subtracted, because this model has no cohort"),
    ],
)
def test_words_that_do_not_fit(tmp_path, refusal, model_folder, audio, words, message):
    good = write(tmp_path, "good.txt", TRIALS)
    assert message in refusal("evaluate", model_folder, good, "--audio-root", audio, *words)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_embeddings_by_file_name(tmp_path, hamspk, model_folder, audio, suffix):
    output = tmp_path / "new" / f"embeddings{suffix}"
    files = [audio / "a.wav", audio / "telephone.wav", audio / "stereo.wav"]
    code, out, err = hamspk("embed", model_folder, *files, files[0], "--output", output)
    assert code == 0
    assert "3 files embedded (8.5 s of audio): 24 numbers each" in out
    assert "skipped" not in err
    assert re.search(r"\d utterances/s, real-time factor 0\.\d+", out)
    assert [file.name for file in output.parent.iterdir()] == [output.name]
    stored = read_embeddings(output)
    assert set(stored) == {str(file) for file in files}
    expected = load_model(str(model_folder), "cpu").embed([read_utterance(file).waveform for file in files], 16000)
    for file, row in zip(files, expected, strict=True):
        assert stored[str(file)].dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(stored[str(file)]), row, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_ranks_share_an_embedding(tmp_path, hamspk, refusal, model_folder, audio):
    files = [audio / name for name in ("a.wav", "b.wav", "silence.wav")]
    hamspk("embed", model_folder, *files, "--output", tmp_path / "one.parquet")
    output = tmp_path / "two.parquet"
    words = ("embed", model_folder, *files, "--output", output)
    code, out, err = hamspk(*words, "--rank", 0, "--world-size", 2)
    assert code == 0 and f"{output}: rank 0 of 2: 2 files embedded, 1 skipped" in out
    assert f"skipped {files[2]}: holds no sound" in err
    assert not output.exists()
    # All files are in one part, so the second rank has nothing to do and need not start.
    code, out, err = hamspk(*words, "--finish")
    assert code == 0 and "2 files embedded (5.5 s of audio), 1 skipped: 24 numbers each" in out
    assert "silence.wav" in err
    assert output.read_bytes() == (tmp_path / "one.parquet").read_bytes()
    # Afterwards, neither a rank nor the last step does anything.
    before = output.read_bytes()
    for step in (("--rank", 0, "--world-size", 2), ("--finish",)):
        code, out, _ = hamspk(*words, *step)
        assert code == 0 and f"{output} already has 2 embeddings of these recordings by this model, so nothing" in out
    assert output.read_bytes() == before and not output.with_suffix(".parts").exists()
    # Other recordings are embedded, and replace the output at the end.
    others = (*words[:-3], "--output", output, "--rank", 0, "--world-size", 1)
    assert "from other recordings" in refusal(*others)
    hamspk(*others, "--replace")
    assert output.with_suffix(".parts").exists()
    # The last step needs no option: the ranks had it.
    assert hamspk(*others[:-4], "--finish")[0] == 0 and output.read_bytes() != before
    assert "already has" in hamspk(*others)[1] and "rank 0 of 1" in hamspk(*others, "--replace")[1]


def test_a_rank_without_recordings_or_with_missing_ones_fails(tmp_path, hamspk, model_folder, audio):
    (tmp_path / "empty").mkdir()
    share = ("--output", tmp_path / "e.npz", "--rank", 1, "--world-size", 2)
    code, out, err = hamspk("embed", model_folder, tmp_path / "empty", *share)
    assert code == 1 and "nothing to embed" in out and f"skipped {tmp_path / 'empty'}: the folder contains no" in err
    assert not (tmp_path / "e.parts").exists()
    code, _, err = hamspk("embed", model_folder, audio / "a.wav", tmp_path / "absent.wav", *share)
    assert code == 1 and f"skipped {tmp_path / 'absent.wav'}: no such file" in err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--rank", 1), "--world-size is missing. Give both"),
        (("--rank", 0, "--world-size", 2, "--finish"), "--rank and --finish are separate steps"),
    ],
)
def test_steps_of_ranks_that_do_not_fit_are_refused(refusal, model_folder, audio, tmp_path, words, problem):
    assert problem in refusal("embed", model_folder, audio / "a.wav", "--output", tmp_path / "e.npz", *words)


def test_an_output_at_a_url_needs_ranks(hamspk, refusal, model_folder, audio):
    words = ("embed", model_folder, audio / "a.wav", "--output", "memory://here/e.parquet")
    assert "is a URL. Run the command with --rank 0 --world-size 1, and then again with --finish." in refusal(*words)
    assert hamspk(*words, "--rank", 0, "--world-size", 1)[0] == 0
    code, out, _ = hamspk(*words, "--finish")
    assert code == 0 and "1 file embedded (2.5 s of audio): 24 numbers each, in memory://here/e.parquet" in out


def test_ranks_of_torchrun_are_not_set_by_hand(refusal, monkeypatch, model_folder, audio, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ("embed", model_folder, audio / "a.wav", "--output", tmp_path / "e.npz", "--rank", 0, "--world-size", 2)
    assert "torchrun and accelerate set the rank themselves" in refusal(*words)


def read_embeddings(output) -> dict[str, np.ndarray]:
    if output.suffix == ".parquet":
        table = pq.read_table(output)
        return {row["name"]: np.array(row["embedding"], np.float32) for row in table.to_pylist()}
    return load_file(output) if output.suffix == ".safetensors" else dict(np.load(output))


def test_files_of_trial_lists(tmp_path, hamspk, model_folder, audio):
    first = write(tmp_path, "first.txt", TRIALS)
    second = write(tmp_path, "second.txt", "1 a.wav silence.wav\n")
    output = tmp_path / "e.safetensors"
    words = ("embed", model_folder, "--trials", first, second, "--audio-root", audio, "--output", output)
    code, out, err = hamspk(*words)
    assert code == 0
    assert "4 files embedded (9.8 s of audio), 1 skipped" in out
    assert "skipped silence.wav: holds no sound" in err
    assert set(load_file(output)) == {"a.wav", "b.wav", "c.wav", "d.wav"}


def test_precision_is_said_and_changes_little(tmp_path, hamspk, model_folder, audio):
    outputs = [tmp_path / f"{precision}.parquet" for precision in ("float32", "bfloat16")]
    for output in outputs:
        code, _, _ = hamspk(
            "embed", model_folder, audio / "a.wav", audio / "b.wav", "--output", output, "--precision", output.stem
        )
        assert code == 0
        about = pq.read_schema(output).metadata
        assert about[b"precision"] == output.stem.encode()
        assert about[b"fingerprint"].decode() == load_model(str(model_folder), "cpu").fingerprint()
    exact, rounded = (np.stack(list(read_embeddings(output).values())) for output in outputs)
    assert (cosine(torch.from_numpy(exact), torch.from_numpy(rounded)) > 0.999).all()


KILLED = """
import os, signal, sys
from hf_hamspk.__main__ import main
from hf_hamspk.embedding import extracting, parts
parts.PART_UTTERANCES = 2
kill = int(sys.argv.pop(1))
write = parts.EmbeddingParts.write
def write_and_die(self, part, *rest):
    write(self, part, *rest)
    if part >= kill:
        os.kill(os.getpid(), signal.SIGKILL)
parts.EmbeddingParts.write = write_and_die
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_and_resumed_by_several_processes(tmp_path, model_folder, audio):
    """kill -9 in the middle; two processes of torchrun go on; each file is there once."""
    script = write(tmp_path, "killed.py", KILLED)
    output = tmp_path / "e.npz"
    words = [str(word) for word in ("embed", model_folder, audio, "--output", output)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, script, "1", *words], capture_output=True, env=environment)
    assert killed.returncode == -signal.SIGKILL and not output.exists()
    done = sorted(file.name for file in (tmp_path / "e.parts").glob("part-*.parquet"))
    assert done == ["part-000000.parquet", "part-000001.parquet"]
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    resumed = subprocess.run([*run, script, "99", *words], capture_output=True, text=True, env=environment)
    assert "7 files embedded" in resumed.stdout and "4 skipped" in resumed.stdout, resumed.stderr
    assert not (tmp_path / "e.parts").exists()
    names = [str(audio / f"{name}") for name in ("a.wav", "b.wav", "c.wav", "d.wav", "one_second.flac")]
    stored = np.load(output)
    assert len(stored.files) == len(set(stored.files)) == 7 and set(names) < set(stored.files)
    expected = load_model(str(model_folder), "cpu").embed([read_utterance(name).waveform for name in names], RATE)
    for name, row in zip(names, expected, strict=True):
        np.testing.assert_allclose(stored[name], row.numpy(), rtol=1e-5, atol=1e-5)


def test_folders_are_searched_and_bad_files_reported(tmp_path, hamspk, model_folder, audio):
    (tmp_path / "empty").mkdir()
    nested = tmp_path / "nested" / "speaker" / "session"
    nested.mkdir(parents=True)
    sf.write(nested / "good.FLAC", noises(1.0)[0].numpy(), RATE, format="FLAC")
    (nested / "._good.flac").write_text("what macOS leaves")
    (nested / "notes.txt").write_text("no audio")
    output = tmp_path / "e.npz"
    code, out, err = hamspk(
        "embed", model_folder, audio, tmp_path / "nested", tmp_path / "empty", "gone.wav", "--output", output
    )
    assert code == 1
    assert "8 files embedded" in out
    assert "6 skipped" in out
    for reason in (
        "short.wav: lasts 0.05 s",
        "silence.wav: holds no sound",
        "nan.wav: contains NaN or infinite samples (3 of",
        "text.wav: cannot be decoded",
        "gone.wav: no such file",
        "empty: the folder contains no file that ends in .wav",
    ):
        assert reason in err
    assert str(nested / "good.FLAC") in np.load(output)


def test_an_output_of_other_recordings_or_another_model_is_replaced_only_if_asked(
    tmp_path, hamspk, refusal, model_folder, audio
):
    output = tmp_path / "e.npz"
    ours, others = audio / "a.wav", audio / "b.wav"
    other_model = HamSpkModel(load_model(str(model_folder), "cpu").config)
    other_model.save_pretrained(tmp_path / "other")
    assert hamspk("embed", model_folder, ours, "--output", output)[0] == 0
    before = output.read_bytes()
    assert hamspk("embed", model_folder, ours, "--output", output)[0] == 0
    assert output.read_bytes() == before
    for words, reason in (
        ([model_folder, others], "from other recordings"),
        ([tmp_path / "other", ours], "by another"),
        ([model_folder, ours, "--precision", "bfloat16"], "in float32 instead of bfloat16"),
    ):
        said = refusal("embed", *words, "--output", output)
        assert f"{output} is not replaced, because it was made {reason}" in said and "--replace" in said
        assert output.read_bytes() == before and not (tmp_path / "e.parts").exists()


def test_a_command_that_embeds_nothing_leaves_no_folders(tmp_path, hamspk, refusal, model_folder, audio):
    (tmp_path / "no_path.csv").write_text("start,end\n0,1\n")
    embed, output = ("embed", model_folder), ("--output", tmp_path / "new" / "er" / "e.npz")
    refusal(*embed, tmp_path / "no_path.csv", *output)
    assert not (tmp_path / "new").exists()
    assert hamspk(*embed, audio / "silence.wav", *output)[0] == 1 and not (tmp_path / "new").exists()
    refusal(*embed, audio / "a.wav", *output, "--finish")
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    refusal(*embed, tmp_path / "no_path.csv", *output)
    assert list((tmp_path / "new").iterdir()) == []
    assert hamspk(*embed, audio / "a.wav", *output)[0] == 0
    assert [path.name for path in (tmp_path / "new" / "er").iterdir()] == ["e.npz"]


def test_nothing_to_embed(tmp_path, hamspk, refusal, model_folder, audio):
    code, out, _ = hamspk("embed", model_folder, audio / "silence.wav", "--output", tmp_path / "e.npz")
    assert code == 1
    assert out == f"nothing embedded, 1 skipped; {tmp_path / 'e.npz'} was not written\n"
    assert "File or folder not found: nowhere" in refusal(
        "embed", model_folder, "nowhere", "--output", tmp_path / "e.npz"
    )
    assert not (tmp_path / "e.npz").exists()
    message = refusal("embed", model_folder, audio / "a.wav", "--output", "embeddings.csv")
    assert "--output must end in .parquet or .safetensors or .npz, got embeddings.csv" in message
    message = refusal("embed", model_folder, "--output", "embeddings.npz")
    assert "Give either FILES (audio files, folders or shards) or trial lists" in message
    message = refusal("embed", model_folder, audio, "--output", "embeddings.npz", "--workers", 0)
    assert "--workers must be at least 1" in message
