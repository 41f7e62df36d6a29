"""The real client against a Hub on the loopback interface: one commit, whole or not at all, whatever breaks."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hub_server import Fault
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from parameters import thinned

import hf_hamspk
from hf_hamspk import HamSpkForXVector, HamSpkModel
from hf_hamspk.folders.ownership import EARLIER_CODE
from hf_hamspk.publishing.about import About, TrainingData
from hf_hamspk.publishing.contents import HANDLER_FILE, plan_upload
from hf_hamspk.publishing.push import check_repository, push_to_hub, send
from hf_hamspk.publishing.sentences import MODULE_FILE

NAME = "tester/tiny"
TRUNK = {path.name for path in Path(hf_hamspk.__file__).parent.glob("*.py") if not path.name.startswith("__")}
# Of the client, about itself.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TENSORS = ("model.safetensors", "cohort.safetensors")


@pytest.fixture(scope="module")
def plan(trained):
    return plan_upload(trained[0], NAME, trained[1])


def expected(plan) -> dict[str, bytes]:
    return {file.name: file.read() for file in plan.files}


def in_repository(hub) -> dict[str, bytes]:
    return {name: data for name, data in hub.files(NAME).items() if name != ".gitattributes"}


def test_one_commit_holds_it_all(hub, api, plan):
    commit = send(plan, NAME, message="First", api=api)
    assert in_repository(hub) == expected(plan)
    assert hub.titles(NAME) == ["initial commit", "First"]
    assert list(hub.repositories[NAME].commits)[-1] == commit.oid
    assert hub.repositories[NAME].private
    lfs = {hashlib.sha256(expected(plan)[name]).hexdigest() for name in TENSORS}
    assert lfs <= set(hub.stored), "the tensors went by LFS"
    assert f"POST /{NAME}.git/info/lfs/objects/batch" in hub.requests
    assert sum("/commit/" in request for request in hub.requests) == 1


def test_the_same_again_sends_nothing(hub, api, plan):
    first = send(plan, NAME, api=api)
    stored = list(hub.stored)
    again = send(plan, NAME, api=api)
    assert again.oid == first.oid and hub.stored == stored and len(hub.titles(NAME)) == 2


def test_a_download_into_a_fresh_cache_is_the_same(hub, api, plan, tmp_path):
    commit = send(plan, NAME, api=api)
    assert set(api.list_repo_files(NAME)) == {*plan.names, ".gitattributes"}
    folder = snapshot_download(
        NAME, revision=commit.oid, endpoint=hub.url, token=hub.token, cache_dir=tmp_path / "cache"
    )
    for name, data in expected(plan).items():
        assert (tmp_path / "cache" / folder / name).read_bytes() == data


@pytest.mark.slow
def test_a_change_is_a_second_commit_and_the_first_stays(hub, api, model_folder, trained):
    first = push_to_hub(model_folder, NAME, api=api, run_folder=trained[1])
    before = hub.files(NAME)
    model = HamSpkForXVector.from_pretrained(model_folder)
    model.calibration = model.cohort = None
    model.base_model.projection.bias.data.add_(1.0)
    shutil.rmtree(model_folder)
    model.save_pretrained(model_folder)
    data = [TrainingData("Corpus", "CC BY 4.0")]
    second = push_to_hub(model_folder, NAME, api=api, about=About(training_data=data), licence="cc-by-sa-4.0")
    assert second.oid != first.oid and hub.files(NAME, first.oid) == before
    now = in_repository(hub)
    assert now["model.safetensors"] != before["model.safetensors"]
    gone = {"verification.json", "cohort.safetensors", "evaluation.json", "recipe.yaml", "plots/det.png"}
    assert before.keys() - {".gitattributes"} - now.keys() == gone, "what no longer belongs is taken away"
    assert yaml.safe_load(now["README.md"].decode().split("---\n")[1])["license"] == "cc-by-sa-4.0"


@pytest.mark.slow
def test_the_code_files_of_version_0_1_0_are_taken_away(hub, api):
    """A model of that version, pushed by this one: a repository that holds its 28 code files then holds today's."""
    folder = Path(__file__).parents[1] / "earlier_version" / "0.1.0" / "ecapa"
    earlier = {path.name: path for path in folder.glob("*.py")}
    assert len(earlier) == 28 and earlier.keys() - TRUNK == EARLIER_CODE
    api.create_repo(NAME, private=True)
    there = [*earlier.values(), folder / "config.json", folder / "model.safetensors"]
    operations = [CommitOperationAdd(path.name, path.read_bytes()) for path in there]
    operations.append(CommitOperationAdd("app.py", b"theirs"))
    api.create_commit(NAME, operations, commit_message="version 0.1.0")
    push_to_hub(folder, NAME, api=api)
    code = {name for name in hub.files(NAME) if name.endswith(".py")}
    assert code == TRUNK | {HANDLER_FILE, MODULE_FILE, "app.py"}
    assert json.loads(hub.files(NAME)["config.json"])["auto_map"]["AutoModel"] == "modeling_hamspk.HamSpkModel"


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"config.json": b'{"model_type": "bert"}', "app.py": b""}, "config.json"),
        ({"model.safetensors": b"weights of another project"}, "model.safetensors"),
        ({"README.md": b"---\nlicense: mit\n---\n# A card written by hand\n"}, "README.md"),
        ({"README.md": b"---\nlicense: mit\n---\n"}, None),
        ({"README.md": b"---\nlicense: mit\n---\n", "app.py": b""}, None),
    ],
)
def test_a_repository_of_something_else_is_refused(hub, api, plan, files, named):
    api.create_repo(NAME, private=True)
    api.create_commit(NAME, [CommitOperationAdd(name, data) for name, data in files.items()], commit_message="Mine")
    before = in_repository(hub)
    if named is None:
        send(plan, NAME, api=api)
        assert set(in_repository(hub)) == {*plan.names, *files}
        return
    with pytest.raises(ValueError, match=re.escape(f"would replace other files in it ({named})")):
        send(plan, NAME, api=api)
    assert in_repository(hub) == before


def test_files_of_others_stay(hub, api, plan):
    api.create_repo(NAME, private=True)
    others = [CommitOperationAdd(name, b"theirs") for name in ("onnx/model.onnx", "app.py", ".eval_results/a.yaml")]
    api.create_commit(NAME, others, commit_message="theirs")
    send(plan, NAME, api=api)
    assert in_repository(hub) == expected(plan) | {one.path_in_repo: b"theirs" for one in others}


@pytest.mark.parametrize(
    "faults",
    thinned(
        [
            [Fault("PUT", "/objects/", times=20)],
            [Fault("PUT", "/objects/", times=20, after=30000)],
            [Fault("POST", "/objects/verify", times=20)],
            [Fault("POST", "/objects/batch", times=20)],
            [Fault("POST", "/preupload/", times=20)],
            [Fault("POST", "/commit/", times=1)],
            [Fault("POST", "/commit/", times=1, after=5000)],
        ],
        ids=lambda faults: f"{faults[0].method}{faults[0].path}-{faults[0].after}",
    ),
)
def test_after_a_broken_upload_the_repository_is_as_it_was_and_then_whole(hub, api, plan, faults):
    api.create_repo(NAME, private=True)
    before = hub.files(NAME)
    hub.faults = faults
    with pytest.raises(OSError, match=r"broke off .*Run the same command again"):
        send(plan, NAME, api=api)
    assert hub.files(NAME) == before
    hub.faults = []
    arrived = list(hub.stored)
    send(plan, NAME, api=api)
    assert in_repository(hub) == expected(plan)
    assert all(hub.stored.count(oid) == 1 for oid in arrived), "what had arrived was not sent again"


def test_one_file_through_and_the_other_broken(hub, api, plan):
    cohort = hashlib.sha256(expected(plan)["cohort.safetensors"]).hexdigest()
    hub.faults = [Fault("PUT", cohort, times=20)]
    with pytest.raises(OSError, match="broke off"):
        send(plan, NAME, api=api)
    weights = hashlib.sha256(expected(plan)["model.safetensors"]).hexdigest()
    assert weights in hub.stored and cohort not in hub.stored
    assert set(hub.files(NAME)) == {".gitattributes"}
    hub.faults = []
    send(plan, NAME, api=api)
    assert in_repository(hub) == expected(plan) and hub.stored.count(weights) == 1


def test_a_short_break_is_not_noticed(hub, api, plan):
    hub.faults = [Fault("PUT", "/objects/", times=2, after=100)]
    send(plan, NAME, api=api)
    assert in_repository(hub) == expected(plan)


def test_an_answer_that_is_lost(hub, api, plan):
    """The commit is made, but the client never hears of it."""
    hub.faults = [Fault("POST", "/commit/", times=1, done=True)]
    with pytest.raises(OSError, match="broke off"):
        send(plan, NAME, api=api)
    assert in_repository(hub) == expected(plan)
    assert send(plan, NAME, api=api).oid == list(hub.repositories[NAME].commits)[-1]
    assert len(hub.titles(NAME)) == 2


def test_somebody_else_commits_meanwhile(hub, api, plan, monkeypatch):
    send(plan, NAME, api=api)
    info = api.repo_info(NAME)
    api.create_commit(NAME, [CommitOperationAdd("app.py", b"theirs")], commit_message="theirs")
    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: info)
    changed = plan.files[0].__class__("README.md", b"---\nlicense: mit\n---\n")
    other = type(plan)([changed if file.name == "README.md" else file for file in plan.files])
    with pytest.raises(OSError, match=r"tester/tiny was changed by another commit"):
        send(other, NAME, api=api)


def test_private_unless_asked_otherwise(hub, api, plan):
    send(plan, "tester/open", private=False, api=api)
    assert not hub.repositories["tester/open"].private
    with pytest.raises(ValueError, match=r"tester/open already exists and is public. Give --public \(private=False\)"):
        send(plan, "tester/open", api=api)
    assert len(hub.titles("tester/open")) == 2


def test_a_repository_with_pickles_is_refused(hub, api, plan):
    api.create_repo(NAME, private=True)
    api.create_commit(NAME, [CommitOperationAdd("pytorch_model.bin", b"x")], commit_message="old")
    with pytest.raises(ValueError, match=r"tester/tiny contains pickles.*pytorch_model\.bin.*hf repos delete-files"):
        send(plan, NAME, api=api)
    assert set(hub.files(NAME)) == {".gitattributes", "pytorch_model.bin"}


def test_without_rights_the_message_says_what_to_do(hub, plan):
    with pytest.raises(OSError, match=r"Log in with `hf auth login`"):
        send(plan, NAME, api=HfApi(endpoint=hub.url, token="hf_" + "w" * 34))
    with pytest.raises(OSError, match=r"Log in with `hf auth login`"):
        send(plan, NAME, api=HfApi(endpoint=hub.url, token=False))
    with pytest.raises(OSError, match=r"no right to write to somebody/tiny"):
        send(plan, "somebody/tiny", api=HfApi(endpoint=hub.url, token=hub.token))
    assert hub.repositories == {}


def test_no_server_no_traceback(plan):
    with pytest.raises(OSError, match="tester/tiny"):
        send(plan, NAME, api=HfApi(endpoint="http://127.0.0.1:9", token="hf_" + "t" * 34))


@pytest.mark.parametrize(
    "name", ["tiny", "a/b/c", "a b/c", "../tiny", "/tiny", "", "a..b/c", "a/b.git", "a/b--c", f"a/{'x' * 99}"]
)
def test_a_name_that_is_none(name):
    with pytest.raises(ValueError, match="expected owner/name"):
        check_repository(name)


def test_a_folder_in_the_place_of_the_name(tmp_path, monkeypatch):
    (tmp_path / "runs" / "final").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is a folder here"):
        check_repository("runs/final")


@pytest.mark.slow
def test_the_models_own_push_still_works(hub, monkeypatch, trained):
    """transformers' push_to_hub: weights, code, calibration and cohort."""
    model = HamSpkModel.from_pretrained(trained[0])
    # transformers keeps the client that it made first, with the endpoint of then.
    monkeypatch.setattr("transformers.utils.hub._hf_api", HfApi(endpoint=hub.url, token=hub.token))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    model.push_to_hub(NAME, token=hub.token, private=True)
    names = set(hub.files(NAME))
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_hamspk.py"} <= names
    assert {"verification.json", "cohort.safetensors"} <= names
    assert json.loads(hub.files(NAME)["config.json"])["model_type"] == "hamspk"
