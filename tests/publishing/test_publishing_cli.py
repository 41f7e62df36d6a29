"""`hamspk push` and `hamspk card`, and the Python of a card."""

import json
import re
from functools import partial

import pytest
from card_recordings import record
from huggingface_hub import HfApi
from transformers import AutoModel

from hf_hamspk import HamSpkForXVector
from hf_hamspk.__main__ import main
from hf_hamspk.publishing.card import render_card
from hf_hamspk.publishing.contents import plan_upload
from hf_hamspk.publishing.facts import CardFacts
from hf_hamspk.publishing.speed import measure_speed

NAME = "tester/tiny"
# Of the client, about itself.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hamspk(capsys):
    """Runs a command: exit code, standard output, standard error."""

    def run(*words) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def test_a_dry_run_lists_everything_and_needs_no_network(hamspk, trained):
    """The tests are offline: a request would raise."""
    code, out, _ = hamspk("push", trained[0], NAME, "--run", trained[1], "--dry-run")
    assert code == 0
    assert re.search(r"^model\.safetensors +\d+\.\d kB$", out, re.MULTILINE)
    assert re.search(r"^cohort\.safetensors +\d+(\.\d k| )B$", out, re.MULTILINE)
    assert re.search(r"^\d\d files +\d+\.\d kB$", out, re.MULTILINE)
    assert "not sent: ann.wav (not part of a published model)" in out
    assert "note: no licence is stated; give --licence" in out
    assert out.endswith("dry run: nothing was sent\n")


@pytest.mark.slow
def test_a_push_into_a_folder_needs_no_network(hamspk, trained, tmp_path):
    output = tmp_path / "some" / "published"
    code, out, _ = hamspk("push", trained[0], NAME, "--run", trained[1], "--output", output)
    assert code == 0 and out.endswith(f"written: {output} (nothing was sent)\n")
    written = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
    plan = plan_upload(trained[0], NAME, trained[1])
    assert {name: path.read_bytes() for name, path in written.items()} == {one.name: one.read() for one in plan.files}
    assert HamSpkForXVector.from_pretrained(output).calibration is not None
    code, _, err = hamspk("push", trained[0], NAME, "--output", output)
    assert code == 2 and "--output must be a new or empty folder" in err


@pytest.mark.slow
def test_a_push_says_where_it_is(hamspk, trained, hub, monkeypatch):
    client = HfApi(endpoint=hub.url, token=hub.token)
    monkeypatch.setattr("hf_hamspk.publishing.push.HfApi", lambda: client)
    code, out, _ = hamspk("push", trained[0], NAME, "--no-cohort", "--license", "cc-by-4.0", "--message", "Hello")
    assert code == 0
    oid = list(hub.repositories[NAME].commits)[-1]
    assert f"{NAME} is at revision {oid}: {hub.url}/{NAME}/commit/{oid}" in out
    assert hub.repositories[NAME].private and hub.titles(NAME)[-1] == "Hello"
    assert "cohort.safetensors" not in hub.files(NAME)
    assert b"license: cc-by-4.0" in hub.files(NAME)["README.md"]
    hub.repositories.clear()
    hamspk("push", trained[0], NAME, "--public")
    assert not hub.repositories[NAME].private


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{folder}", "tiny"], "'tiny' is not a name on the Hub; expected owner/name"),
        (["{folder}/absent", NAME], "Folder not found"),
        (["{folder}", NAME, "--about", "absent.yaml"], "File not found: absent.yaml"),
        (["{folder}", NAME, "--run", "absent"], "Run folder not found: absent"),
        (["{folder}", NAME], "offline mode"),
    ],
)
def test_a_mistake_is_one_line(hamspk, trained, words, message):
    code, _, err = hamspk("push", *(word.format(folder=trained[0]) for word in words))
    assert code == 2 and message in err and "Traceback" not in err


def test_private_and_public_exclude_each_other(trained):
    with pytest.raises(SystemExit):
        main(["push", str(trained[0]), NAME, "--private", "--public"])


@pytest.mark.slow
def test_a_card_keeps_its_facts_and_is_rendered_again(hamspk, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_hamspk.publishing.speed.measure_speed", partial(measure_speed, seconds=0.5, repetitions=1))
    (tmp_path / "about.yaml").write_text("title: T\ntraining_data: [{name: A, licence: CC BY 4.0}]\n")
    card = tmp_path / "cards" / "tiny.md"
    words = ("--run", trained[1], "--about", tmp_path / "about.yaml", "--output", card, "--measure-speed")
    assert hamspk("card", trained[0], *words)[0] == 0
    first = card.read_bytes()
    facts = CardFacts.from_json(card.with_suffix(".json").read_text(), "facts")
    assert facts.about.title == "T" and facts.about.speed["device"].startswith("CPU")
    assert render_card(facts).encode() == first
    card.unlink()
    assert hamspk("card", card.with_suffix(".json"))[0] == 0
    assert card.read_bytes() == first
    # What was stated is taken from the facts of the earlier card.
    again = hamspk("card", trained[0], "--run", trained[1], "--about", card.with_suffix(".json"))
    assert again[1].encode() == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent"], "SOURCE not found: absent"),
        (["absent.json"], "File not found: absent.json"),
        (["absent.json", "--run", "x"], "--run needs a model folder or a recipe"),
        (["{folder}", "--output", "card.txt"], "--output must end in .md, got card.txt"),
        (["{folder}/config.json", "--measure-speed"], "--measure-speed needs a model folder"),
        (["{folder}/config.json"], "config.json does not contain the facts of a card"),
        (["{run}/recipe.yaml", "--repository", NAME], "need a model folder as SOURCE, but"),
    ],
)
def test_a_mistake_with_a_card_is_one_line(hamspk, trained, words, message):
    code, _, err = hamspk("card", *(word.format(folder=trained[0], run=trained[1]) for word in words))
    assert code == 2 and message in err and "Traceback" not in err


@pytest.mark.slow
def test_the_python_of_a_card_runs(hamspk, trained, tmp_path, monkeypatch, capsys):
    card = hamspk("card", trained[0], "--repository", NAME)[1]
    record(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert blocks and all(NAME in block for block in blocks)
    for block in blocks:
        exec(compile(block.replace(NAME, str(trained[0])), "card", "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert re.match(r"-?\d\.\d+ -?\d+\.\d+ (same speaker|different speakers) \[", first)
    assert first == second


class Marker:
    """Makes a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("of", [AutoModel, HamSpkForXVector])
def test_loading_never_unpickles(of, model_folder, tmp_path):
    import pickle

    marker = tmp_path / "unpickled"
    (model_folder / "model.safetensors").unlink()
    (model_folder / "pytorch_model.bin").write_bytes(pickle.dumps(Marker(marker)))
    with pytest.raises(OSError, match=r"safetensors"):
        of.from_pretrained(model_folder)
    assert not marker.exists()
    config = json.loads((model_folder / "config.json").read_text())
    assert config["model_type"] == "hamspk"
