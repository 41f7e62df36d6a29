"""`hamspk calibrate`: what it writes, what uses it, and what it refuses."""

import json
import re
import shutil

import pytest
from tiny_models import settle, tiny_config

from hf_hamspk import HamSpkForXVector, HamSpkModel
from hf_hamspk.calibration_hamspk import Calibration
from hf_hamspk.data.synthetic import make_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Pairs of 8 synthetic speakers with 4 utterances each, 6 others as a cohort."""
    return make_corpus(tmp_path_factory.mktemp("corpus") / "c", 14, 4, 3, (1.7, 2.1), test_share=0.55)


@pytest.fixture
def model(tmp_path, model_folder):
    return shutil.copytree(model_folder, tmp_path / "model")


def words(model, corpus, *more) -> tuple:
    return ("calibrate", model, corpus / "trials.txt", "--audio-root", corpus, *more)


@pytest.mark.slow
def test_the_calibration_lies_beside_the_weights_and_is_used(tmp_path, hamspk, model, corpus):
    cohort = ("--cohort", corpus / "train.csv", "--cohort-root", corpus)
    output = tmp_path / "calibrated"
    code, out, _ = hamspk(*words(model, corpus, *cohort, "--output", output))
    assert code == 0
    assert re.search(r"^\* .*\n", out, re.MULTILINE)
    for part in ("AS-norm (6)", " + snr", "actDCF strict", "screening", "is uncertain by", "verification.json"):
        assert part in out
    assert not (model / "verification.json").exists()
    loaded = HamSpkModel.from_pretrained(output)
    calibration = loaded.calibration
    assert calibration is not None and loaded.cohort is not None
    assert len(loaded.cohort.embeddings) == 6
    assert calibration.audio == "trials.txt"
    assert (calibration.speakers, calibration.targets) == (8, 48)
    assert all(point.miss_rate is not None for point in calibration.operating_points)
    pair = [corpus / name for name in (corpus / "trials.txt").read_text().split()[1:3]]
    answer = json.loads(hamspk("verify", output, pair[0], "--test", pair[1], "--json")[1])
    assert answer["operating_point"] == "balanced"
    assert answer["log_likelihood_ratio"] is not None
    evaluated = ("evaluate", output, corpus / "trials.txt", "--audio-root", corpus, "--replicates", "0")
    table = hamspk(*evaluated)[1]
    assert "log-likelihood ratio" in table
    assert "screening" in table
    # The files of the calibration are not edited by hand, and not moved to other weights.
    path = output / "verification.json"
    path.write_text(path.read_text().replace('"prior": 0.5', '"prior": 0.6'))
    assert "was altered" in hamspk(*evaluated)[2]


@pytest.mark.slow
def test_settings_are_what_was_asked_for(hamspk, model, corpus):
    more = ("--cohort", corpus / "train.csv", "--cohort-root", corpus, "--normalisation", "s", "--quality", "speech")
    points = ("--operating-point", "door=0.1,1,10", "--operating-point", "even=0.5", "--minimum-speech", "0.5")
    assert hamspk(*words(model, corpus, *more, *points))[0] == 0
    calibration = Calibration.load(model / "verification.json")
    assert calibration.normalisation == "s"
    assert set(calibration.weights) == {"score", "log_speech_min", "log_speech_max"}
    door, even = calibration.operating_points
    assert (door.name, door.prior, door.cost_miss, door.cost_false_alarm) == ("door", 0.1, 1.0, 10.0)
    assert (even.name, even.prior) == ("even", 0.5)
    assert calibration.minimum_speech == 0.5
    # The cohort that the model has now is taken again.
    assert hamspk(*words(model, corpus, "--normalisation", "z", "--quality", "none"))[0] == 0
    again = Calibration.load(model / "verification.json")
    assert (again.normalisation, again.cohort) == ("z", calibration.cohort)


@pytest.mark.slow
def test_training_speakers_are_named_and_cohort_speakers_left_out(tmp_path, hamspk, corpus):
    config = tiny_config()
    config.id2label = {i: name for i, name in enumerate(["syn00013", "syn00012@0.9", "x", "y", "z"])}
    settle(HamSpkForXVector(config)).save_pretrained(tmp_path)
    rows = (corpus / "test.csv").read_text().splitlines(keepends=True)[1:]
    everybody = tmp_path / "all.csv"
    everybody.write_text((corpus / "train.csv").read_text() + "".join(rows))
    cohort = ("--cohort", everybody, "--cohort-root", corpus, "--normalisation", "as", "--top", "5")
    code, out, err = hamspk(*words(tmp_path, corpus, *cohort))
    assert code == 0
    assert "The model was trained on 2 of these speakers (test/syn00012, test/syn00013)" in out
    assert "cohort: left out 8 speakers who are also in PAIRS" in err
    assert len(HamSpkModel.from_pretrained(tmp_path).cohort.embeddings) == 6


@pytest.mark.slow
def test_what_is_refused(tmp_path, hamspk, refusal, model, corpus):
    def refused(*more, pairs="trials.txt") -> str:
        return refusal("calibrate", model, tmp_path / pairs, "--audio-root", corpus, *more)

    lines = (corpus / "trials.txt").read_text().splitlines()
    targets = [line for line in lines if line.startswith("1")]
    (tmp_path / "trials.txt").write_text("\n".join(lines))
    (tmp_path / "few.txt").write_text("\n".join([*targets[:5], *(line for line in lines if line.startswith("0"))]))
    (tmp_path / "one.txt").write_text("\n".join(targets))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert ", got 5 target pairs and" in refused(pairs="few.txt")
    assert "do not include both target and impostor" in refused(pairs="one.txt")
    assert "needs a cohort" in refused("--normalisation", "as")
    assert "already exists" in refused("--output", tmp_path / "full")
    assert "stand alone" in refused("--quality", "none", "snr")
    assert "--cohort-root needs --cohort" in refused("--cohort-root", corpus)
    assert "is not a local folder. Give a new folder" in refusal(
        "calibrate", "owner/name", tmp_path / "few.txt", "--audio-root", corpus
    )
    code, _, err = hamspk(*words(model, corpus, "--operating-point", "door=2"))
    assert code == 2
    assert "'door=2' is not an operating point (door: prior must lie between 0 and 1" in err
    assert not (model / "verification.json").exists()
