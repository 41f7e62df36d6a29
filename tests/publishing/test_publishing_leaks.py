"""Paths of machines and secrets are found, with file and line; what only looks like one is not."""

import json
from pathlib import Path

import pytest

from hf_hamspk.publishing.contents import PlannedFile, check_contents
from hf_hamspk.publishing.leaks import Leak, Private, find_leaks, refuse_leaks

PRIVATE = Private(("/root/ann/project", "/srv7"), ("secret-of-ann",))
TOKEN = "hf_" + "Ab3" * 11
PATHS = [
    "/home/ann/speech",
    "/tmp/x/model",
    "/workspace/ann/a.csv",
    "/Users/ann/a",
    "/mnt/disk/a",
    "/root/ann/project/run",
    "/srv7",
    "~/speech/a.wav",
    "~ann/speech",
    "C:\\Users\\ann\\a.wav",
    "C:\\\\Users\\\\ann\\\\a.wav",
    "D:/speech/train/a.wav",
    "\\\\server\\share\\a",
    "file:///etc/a",
]
HARMLESS = [
    "https://huggingface.co/home/ann/speech",
    "https://example.org/tmp/a.html",
    "data/voxceleb2/dev/wav",
    "../shared/speech",
    "1/2, and/or, 3 / 4, a ~ b, ~0.5",
    "score ~/= 2",
    "r'\\d+:\\s'",
    "{'a': 1, 'b': 2}",
    "/srv77 is not /srv",
    "hf_hamspk and hf_hub_download",
    "x-axis: /y-axis",
    "ratio c:/d",
    "google/wavlm, home/ann",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("around", ["{}", '"a": "{}",', "root={}", "see ({})", "- {}"])
def test_a_path_is_found_with_its_line(path, around):
    leaks = find_leaks("config.json", "first\nsecond " + around.format(path) + "\nthird", PRIVATE)
    assert [(leak.file, leak.line) for leak in leaks] == [("config.json", 2)]
    assert leaks[0].what.startswith("a path of a machine")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_path_is_not_found(text):
    assert find_leaks("a.md", text, PRIVATE) == []


@pytest.mark.parametrize(
    "secret",
    [
        TOKEN,
        "api_org_" + "x" * 30,
        "ghp_" + "a" * 36,
        "AKIA" + "ABCDEFGH12345678",
        "-----BEGIN RSA PRIVATE KEY-----",
        "https://ann:pass1word@example.org",
        "secret-of-ann",
    ],
)
def test_a_secret_is_found_and_not_repeated(secret):
    leaks = find_leaks("recipe.yaml", f"a: 1\nb: {secret}", PRIVATE)
    assert [(leak.file, leak.line) for leak in leaks] == [("recipe.yaml", 2)]
    assert secret not in str(leaks[0])


def test_the_code_that_travels_holds_nothing_private():
    for path in (Path(__file__).parents[2] / "hf_hamspk").glob("*.py"):
        assert find_leaks(path.name, path.read_text(encoding="utf-8"), Private((), ())) == []


def test_this_machine_is_known(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "somebody"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    private = Private.of_this_machine(["model"])
    assert {str(tmp_path / "somebody"), str(tmp_path), str(tmp_path / "model")} <= set(private.paths)
    assert TOKEN in private.tokens
    assert "/" not in private.paths
    assert find_leaks("a", f"x {tmp_path}/model/a.wav", private)


def test_in_bytes_only_what_is_known_is_found():
    assert find_leaks("a.png", "~/x /tmp/y", PRIVATE, has_lines=False, strict=False) == []
    leaks = find_leaks("a.png", "\x00\n/root/ann/project/x", PRIVATE, has_lines=False, strict=False)
    assert leaks == [Leak("a.png", None, "a path of a machine, '/root/ann/project/x'")]


def test_the_message_names_files_and_lines():
    leaks = [Leak("config.json", n, "a path of a machine, '/tmp/a'") for n in range(1, 9)]
    with pytest.raises(ValueError, match=r"Nothing was sent.*config.json, line 1: a path.*and 3 more.*Remove them"):
        refuse_leaks(leaks)
    refuse_leaks([])


@pytest.mark.parametrize("path", ["/home/ann/a", "C:\\new\\a"])
def test_a_path_after_a_line_break_in_json_is_found(path):
    planned = PlannedFile("a.json", json.dumps({"note": f"one\n{path}"}).encode())
    with pytest.raises(ValueError, match=r"a\.json"):
        check_contents([planned], PRIVATE)
