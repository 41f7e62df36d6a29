"""Files of version 0.1.0 are read as that version read them: models, profiles, shards, and an index of shards.

`earlier_version/make.py` made them, with the code of that version.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from earlier_version.reading import RATE, answers, enrol, machine, numbers, read_recordings, read_shards
from hub_server import HubServer
from huggingface_hub import CommitOperationAdd, HfApi
from safetensors.torch import load_file
from strangers import without

import hf_hamspk
from hf_hamspk import HamSpkForXVector, HamSpkModel
from hf_hamspk.publishing.code import renew_code
from hf_hamspk.publishing.contents import HANDLER_FILE, plan_upload
from hf_hamspk.publishing.push import push_to_hub, stale_files
from hf_hamspk.publishing.sentences import MODULE_FILE
from hf_hamspk.verification_hamspk import SpeakerProfile

FOLDER = Path(__file__).parent / "earlier_version" / "0.1.0"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
TENSORS = load_file(FOLDER / "expected.safetensors")
OLD_CODE = set(EXPECTED["code"])
PACKAGE = Path(hf_hamspk.__file__).parent
NEW_CODE = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
KINDS = ("ecapa", "wavlm")
HERE = machine() == EXPECTED["machine"]
REPOSITORY = "tester/tiny"
each_kind = pytest.mark.parametrize("kind", KINDS)
# Words of each kind of warning that are the same in all versions. The first pattern that is found names the kind.
WARNING_KINDS = {
    "little speech": "s of speech.* below 3 s|s of speech.* 3 s errors",
    "not enough speech": "s of speech.* need",
    "noise": "is noisy",
    "same recording": "same recording|very recording",
    "several speakers": "do not fit each other",
    "other number of recordings": "the calibration was measured with",
    "close candidates": " leads ",
    "useless operating point": "^The operating point ",
    "quiet": "is too quiet",
}
# Kinds of warnings that version 0.1.0 did not have.
LATER_KINDS = {"close candidates", "useless operating point", "quiet"}

# A process in which the package cannot be imported, with one thread and no network.
STRANGER = (
    without("hf_hamspk")
    + """
import json, sys
import soundfile, torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForAudioXVector, pipeline

torch.set_num_threads(1)
recordings, results, *folders = sys.argv[1:]
names = ["ann-1", "ann-2", "ann-3", "ben-1", "ben-2", "cleo-1", "short"]
files = [f"{recordings}/{name}.flac" for name in names]
waves = [soundfile.read(file, dtype="float32")[0] for file in files]
tensors, reports = {}, []
for folder in folders:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    tensors[f"{len(reports)}"] = model.embed(waves, 16000)
    verifier = model.verifier()
    verify = pipeline("speaker-verification", model=folder, trust_remote_code=True)
    reports.append({
        "verified": verifier.verify(waves[:2], waves[2], 16000).to_dict(),
        "refused": verifier.verify(waves[:2], waves[4], 16000, "strict").to_dict(),
        "identified": model.identifier([verifier.enrol(waves[3:4], 16000, name="ben")]).identify(
            waves[4:5], 16000)[0].to_dict(),
        "pipeline": verify((files[0], files[2])),
        "head": type(AutoModelForAudioXVector.from_pretrained(folder, trust_remote_code=True)).__name__,
        "from": type(model).__module__.split(".")[0],
    })
seen = sorted(name for name in sys.modules if name.split(".")[0] == "hf_hamspk")
save_file(tensors, results)
print(json.dumps({"reports": reports, "seen": seen}))
"""
)


@pytest.fixture(scope="module")
def waves():
    return read_recordings(FOLDER / "recordings")


@pytest.fixture
def old(tmp_path):
    """The folder of a model as it was, code and all, to be changed; the code is kept beside one of them only."""

    def copy(kind: str) -> Path:
        folder = Path(shutil.copytree(FOLDER / kind, tmp_path / f"old {kind}"))
        for name in OLD_CODE:
            shutil.copy(FOLDER / "ecapa" / name, folder / name)
        return folder

    return copy


def load_profiles(kind: str, model: HamSpkModel) -> dict[str, SpeakerProfile]:
    paths = sorted((FOLDER / "profiles" / kind).iterdir())
    return {path.stem: SpeakerProfile.load(path, model.fingerprint()) for path in paths}


def assert_near(found, expected, where: str = "") -> None:
    """The same names, kinds and counts; numbers within rounding, with a wider tolerance on another machine."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_near(found[key], value, f"{where} {key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            assert_near(found[number], value, f"{where} {number}")
    elif isinstance(expected, float):
        # Normalised with a small cohort, a rounding of the score becomes some hundred times as much.
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6 if HERE else 1e-2), where
    else:
        assert found == expected, where


def warning_kind(sentence: str) -> dict[str, Any]:
    """The kind of a warning, its numbers, and whether it is about the enrolment, the profile or the test."""
    kinds = [kind for kind, words in WARNING_KINDS.items() if re.search(words, sentence)]
    assert kinds, f"a kind of warning that this test does not know: {sentence}"
    subjects = [word for word in ("enrolment", "profile", "test") if word in sentence.lower()]
    return {"kind": kinds[0], "numbers": re.findall(r"\d+(?:\.\d+)?", sentence), "about": subjects}


def without_words(report: Any) -> Any:
    """The same report with the kinds of the warnings instead of the sentences, which each version words differently."""
    if not isinstance(report, dict):
        return report
    kept = {key: without_words(value) for key, value in report.items()}
    if "warnings" in report:
        # Profiles of version 0.1.0 do not keep the warnings of their enrolment.
        sentences = [sentence for sentence in report["warnings"] if not sentence.startswith("At the enrolment")]
        found = [warning_kind(sentence) for sentence in sentences]
        kept["warnings"] = [warning for warning in found if warning["kind"] not in LATER_KINDS]
    return kept


def code_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.py")}


@each_kind
def test_embeddings_and_loss_are_the_same(kind, waves):
    """Embeddings bit for bit where they were made; the loss may be summed in another order."""
    for name, tensor in numbers(FOLDER / kind, waves).items():
        expected = TENSORS[f"{kind}.{name}"]
        if HERE and name == "embeddings":
            assert torch.equal(tensor, expected)
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)


@each_kind
def test_calibration_and_cohort_are_read(kind):
    model = HamSpkModel.from_pretrained(FOLDER / kind)
    assert model.fingerprint().partition("-")[0] == EXPECTED[kind]["fingerprint"]
    assert model.calibration is not None and model.cohort is not None
    assert model.calibration.to_dict() == json.loads((FOLDER / kind / "verification.json").read_text())
    assert model.calibration.normalisation == "as" and model.calibration.needs_quality
    assert model.cohort.checksum == model.calibration.cohort


@pytest.mark.slow
@each_kind
def test_decisions_are_the_same(kind, waves):
    model = HamSpkModel.from_pretrained(FOLDER / kind)
    found = answers(model, load_profiles(kind, model), waves, EXPECTED[kind]["combine"])
    assert_near(without_words(found), without_words(EXPECTED[kind]["answers"]))


@each_kind
def test_profiles_are_read_and_written_alike(kind, waves, tmp_path):
    model = HamSpkModel.from_pretrained(FOLDER / kind)
    fresh = enrol(model, waves, EXPECTED[kind]["combine"])
    profiles = load_profiles(kind, model)
    assert profiles.keys() == fresh.keys()
    for name, profile in profiles.items():
        profile.save(tmp_path / f"{name}.safetensors")
        kept = (FOLDER / "profiles" / kind / f"{name}.safetensors").read_bytes()
        assert (tmp_path / f"{name}.safetensors").read_bytes() == kept
        assert (profile.name, profile.recordings) == (name, fresh[name].recordings)
        assert profile.seconds == pytest.approx(fresh[name].seconds)
        torch.testing.assert_close(profile.embedding, fresh[name].embedding, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(model .*\) was made with other weights"):
        profiles["ann"].check_model("0" * 64)


@each_kind
def test_saved_again_only_the_code_is_another(kind, tmp_path):
    HamSpkForXVector.from_pretrained(FOLDER / kind).save_pretrained(tmp_path)
    assert code_in(tmp_path) == NEW_CODE
    for name in ("verification.json", "cohort.safetensors", "preprocessor_config.json"):
        assert (tmp_path / name).read_bytes() == (FOLDER / kind / name).read_bytes(), name
    before, after = (load_file(folder / "model.safetensors") for folder in (FOLDER / kind, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["shards", "tars", "index"])
def test_shards_and_an_index_stream_as_they_did(kind, tmp_path):
    for name in ("shards", "tars", "index"):
        shutil.copytree(FOLDER / name, tmp_path / name)
    # An index names its shards by their whole path.
    path = tmp_path / "index" / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace("/PLACE", str(tmp_path)), encoding="utf-8")
    found = read_shards(tmp_path / kind)
    expected = EXPECTED["shards"][kind]
    assert {name: found[name] for name in expected} == expected


@each_kind
def test_a_push_plans_the_new_code_alone(kind, old):
    folder = old(kind)
    assert code_in(folder) == OLD_CODE
    plan = plan_upload(folder, REPOSITORY)
    assert {name for name in plan.names if name.endswith(".py")} - {HANDLER_FILE, MODULE_FILE} == NEW_CODE
    for file in plan.files:
        if file.name in NEW_CODE:
            assert file.read() == (PACKAGE / file.name).read_bytes()
    assert any(note.startswith("the code of the installed package is uploaded") for note in plan.notes)
    assert set(plan.left_out) == OLD_CODE - NEW_CODE
    assert set(stale_files(plan, [*OLD_CODE, "app.py", "config.json"])) == OLD_CODE - NEW_CODE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_push_over_an_earlier_one_leaves_no_old_code(old, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    folder = old("ecapa")
    with HubServer() as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo(REPOSITORY, private=True)
        there = [CommitOperationAdd(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
        api.create_commit(REPOSITORY, there, commit_message="of version 0.1.0")
        assert hub.files(REPOSITORY).keys() > OLD_CODE
        push_to_hub(folder, REPOSITORY, api=api)
        names = hub.files(REPOSITORY).keys()
    assert {name for name in names if name.endswith(".py")} == NEW_CODE | {HANDLER_FILE, MODULE_FILE}
    assert {"config.json", "model.safetensors", "verification.json", "cohort.safetensors"} < names


@pytest.mark.slow
@each_kind
def test_a_stranger_reads_the_old_the_renewed_and_the_new(kind, old, waves, tmp_path):
    """Bit for bit on any machine: the old code runs there, ours here."""
    folder, renewed, new = old(kind), tmp_path / "renewed", tmp_path / "new"
    shutil.copytree(folder, renewed)
    renew_code(renewed)
    assert code_in(renewed) >= NEW_CODE
    HamSpkForXVector.from_pretrained(folder).save_pretrained(new)
    assert code_in(new) == NEW_CODE
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON", "TRANSFORMERS"))}
    results = tmp_path / "results.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *map(str, (FOLDER / "recordings", results, folder, renewed, new))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=kept | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["seen"] == []
    of_old, *others = map(without_words, report["reports"])
    assert of_old["from"] == "transformers_modules" and of_old["head"] == "HamSpkForXVector"
    assert others == [of_old, of_old]
    model = HamSpkModel.from_pretrained(folder)
    embeddings = model.embed(list(waves.values()), RATE)
    assert all(torch.equal(tensor, embeddings) for tensor in load_file(results).values())
    enrolment = [waves["ann-1"], waves["ann-2"]]
    verified = model.verifier().verify(enrolment, waves["ann-3"], RATE)
    refused = model.verifier().verify(enrolment, waves["ben-2"], RATE, "strict")
    assert without_words(verified.to_dict()) == of_old["verified"]
    assert without_words(refused.to_dict()) == of_old["refused"]
