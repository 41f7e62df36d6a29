"""`hamspk sweep` on synthetic speakers."""

import json

import pytest
import soundfile
from tiny_models import RATE

from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.evaluation import sweeps
from hf_hamspk.evaluation.trials import read_trials
from hf_hamspk.evaluation.verification import embed_files, verify_trials
from hf_hamspk.loading.models import load_model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two recordings of each of four speakers, all pairs of the first with the second ones, and a table."""
    root = tmp_path_factory.mktemp("sweep")
    rows, pairs = ["path,speaker_id,session"], []
    for speaker in range(4):
        for take in range(2):
            name = f"s{speaker}/{take}.wav"
            (root / f"s{speaker}").mkdir(exist_ok=True)
            soundfile.write(root / name, make_speech(speaker, take, 1.2, RATE), RATE)
            rows.append(f"{name},s{speaker},{'ab'[take if speaker else 0]}")
        pairs += [f"{int(speaker == other)} s{speaker}/0.wav s{other}/1.wav" for other in range(4)]
    (root / "trials.txt").write_text("\n".join(pairs) + "\n")
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.slow
def test_sweep(hamspk, model_folder, corpus, tmp_path):
    words = ("sweep", model_folder, corpus / "trials.txt", "--audio-root", corpus, "--output", tmp_path / "out")
    words = (*words, "--metadata", corpus / "table.csv", "--group-by", "session", "--over", "duration", "codec")
    code, out, _ = hamspk(*words)
    assert code == 0, out
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(record["sweeps"]) == ["trials"] and record["lists"] == {}
    conditions = record["sweeps"]["trials"]["conditions"]
    duration, codec, session = (conditions[kind] for kind in ("duration", "codec", "session"))
    assert [point["condition"] for point in duration] == ["as it is", "1 s", "2 s", "3 s", "5 s"]
    assert duration[0] == codec[0]
    # Recordings of 1.2 s cannot be longer.
    assert all(point["eer"] == duration[0]["eer"] for point in duration[2:])
    trials = read_trials(corpus / "trials.txt")
    model = load_model(str(model_folder), "cpu")
    assert duration[0]["eer"] == verify_trials(model, trials, embed_files(model, trials.files, corpus)).eer
    assert "too few to resample" in duration[0]["note"]
    counts = {point["condition"]: (point["trials"], point["targets"]) for point in session}
    assert counts["same session"] == (4, 1)
    assert counts["different session"] == (12, 3)
    for kind in conditions:
        assert (tmp_path / "out" / "plots" / f"sweep-trials-{kind}.png").read_bytes().startswith(b"\x89PNG")
        assert kind in out
    again = tmp_path / "again"
    hamspk(*(again if word == tmp_path / "out" else word for word in words))
    assert (again / "evaluation.json").read_bytes() == (tmp_path / "out" / "evaluation.json").read_bytes()
    assert '<td class="text">duration: 1 s</td>' in (again / "report.html").read_text(encoding="utf-8")


def test_a_recording_that_cannot_be_embedded_under_a_condition_is_left_out(model_folder, corpus, monkeypatch):
    def embed(*arguments, change=None, **options):
        found = embed_files(*arguments, change=change, **options)
        if change is not None:
            del found.embeddings["s0/1.wav"]
            found.failures["s0/1.wav"] = "needs more memory"
        return found

    monkeypatch.setattr(sweeps, "embed_files", embed)
    found = sweeps.sweep(model_folder, corpus / "trials.txt", corpus, ["duration"], [1.0], replicates=0, progress=False)
    (unchanged, short) = found.points["duration"]
    assert [(point.trials, point.targets) for point in (unchanged, short)] == [(16, 4), (12, 3)]
    assert found.failures == {"s0/1.wav": "needs more memory"}


def test_bad_words(refusal, model_folder, corpus):
    words = ("sweep", model_folder, corpus / "trials.txt", "--audio-root", corpus)
    assert "--values needs exactly one condition" in refusal(*words, "--values", "1")
    assert "--group-by needs --metadata" in refusal(*words, "--group-by", "session")
    assert "Nothing to sweep" in refusal(*words, "--over")
    assert "--replicates must be" in refusal(*words, "--replicates", "5")
    assert "no column 'language'" in refusal(
        *words, "--over", "--metadata", corpus / "table.csv", "--group-by", "language"
    )
    assert "must be finite and above 0, got -1 s" in refusal(*words, "--over", "duration", "--values", "-1")
