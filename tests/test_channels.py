"""Channels and levels of recordings: the same choice and the same warnings at every door."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from datasets import Dataset
from safetensors.torch import load_file
from small_shards import make_shards
from tiny_models import save_calibrated_model
from transformers import pipeline

import hf_hamspk.loading.models
from hf_hamspk import (
    DataArguments,
    HamSpkConfig,
    HamSpkForXVector,
    HamSpkModel,
    SpeakerProfile,
    Trainer,
    TrainingArguments,
    calibrate,
    sweep,
)
from hf_hamspk.__main__ import main
from hf_hamspk.audio_hamspk import CHANNELS, MOST_CHANNELS, QUIET_DB, InputError, Limits, choose_channel, read_sound
from hf_hamspk.cli import options
from hf_hamspk.data.audio import read_utterance
from hf_hamspk.data.synthetic import make_corpus, make_speech
from hf_hamspk.evaluation.evaluating import EvaluationSettings, evaluate
from hf_hamspk.evaluation.verification import embed_files
from hf_hamspk.shards.crops import decode_crop
from hf_hamspk.shards.planning import PrepareOptions
from hf_hamspk.training.corpora import open_corpus

RATE = 16000
DIFFERENT = "has different channels, which were averaged"
OPTION = "choose one with channel (--channel): left, right or a number"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_calibrated_model(tmp_path_factory.mktemp("channels") / "final")


@pytest.fixture(scope="module")
def model(folder) -> HamSpkModel:
    return HamSpkModel.from_pretrained(folder)


@pytest.fixture
def loaded(monkeypatch, model) -> HamSpkModel:
    """Commands use the model that is loaded already."""
    monkeypatch.setattr(hf_hamspk.loading.models, "load_model", lambda name, device: model)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """A call of two people, each of its channels, another recording, and a quiet recording of 16 bits."""
    root = tmp_path_factory.mktemp("files")
    left, right = (0.3 * make_speech(speaker, 0, 4.0) for speaker in (1, 2))
    written = {
        "call": np.stack([left, right], axis=1),
        "left": left,
        "right": right,
        "other": 0.3 * make_speech(1, 1, 4.0),
        "quiet": 0.3 * make_speech(1, 2, 4.0) * 10 ** (-46 / 20),
    }
    for name, samples in written.items():
        soundfile.write(root / f"{name}.wav", samples, RATE, subtype="PCM_16")
    return {name: str(root / f"{name}.wav") for name in written}


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
@pytest.mark.parametrize("form", ["wav", "flac", "array", "tensor", "dictionary"])
def test_one_channel_is_the_recording_of_it_alone(form, channels, tmp_path):
    samples = (0.1 * np.random.default_rng(channels).standard_normal((RATE // 2, channels))).astype(np.float32)
    path = tmp_path / f"all.{form}"
    if form in ("wav", "flac"):
        soundfile.write(path, samples, 22050, subtype="PCM_16")
    sources = {
        "array": lambda part: part,
        "tensor": lambda part: torch.from_numpy(part.T.copy()),
        "dictionary": lambda part: {"array": part, "sampling_rate": 22050},
    }
    for number in range(1, channels + 1):
        alone = samples[:, number - 1 : number]
        if form in sources:
            source, expected = sources[form](samples), sources[form](alone)
        else:
            source, expected = path, tmp_path / f"one.{form}"
            soundfile.write(expected, alone, 22050, subtype="PCM_16")
        found = read_sound(source, RATE, source_rate=22050, channel=number)
        assert np.array_equal(found.waveform, read_sound(expected, RATE, source_rate=22050).waveform)
        assert not any(DIFFERENT in warning for warning in found.warnings)
    with pytest.raises(InputError, match=f"has {channels} channels, but not channel {channels + 1}"):
        read_sound(source, RATE, source_rate=22050, channel=channels + 1)


def test_names_of_channels(files):
    def read(channel: Any):
        return read_sound(files["call"], RATE, channel=channel)

    assert np.array_equal(read("left").waveform, read(1).waveform)
    assert np.array_equal(read("right").waveform, read(np.int64(2)).waveform)
    assert np.array_equal(read("mean").waveform, read(None).waveform)
    assert read("mean").warnings == []
    assert DIFFERENT in read(None).warnings[0] and OPTION in read(None).warnings[0]
    for wrong in ("Left", "", 0, -1, 33, 1.5, True, [1], "1", float("nan")):
        with pytest.raises(InputError, match="channel must be 'left', 'right', 'mean' or a number from 1 to 32, got"):
            read(wrong)
    assert read_sound(files["left"], RATE, channel="left").warnings == []
    limits = choose_channel({"seconds": 2}, "left")
    with pytest.raises(InputError, match="expected at most 2 s"):
        read_sound(files["call"], RATE, limits=limits)
    assert choose_channel(Limits(), None) == Limits()


def test_a_damaged_other_channel_does_not_matter():
    good = np.float32(0.1 * np.random.default_rng(0).standard_normal(RATE))
    both = np.stack([good, np.full(RATE, np.nan, np.float32)])
    assert np.array_equal(read_sound(both, RATE, channel="left").waveform, good)
    with pytest.raises(InputError, match=r"contains NaN or infinite samples \(16000 of 16000\);"):
        read_sound(both, RATE, channel="right")
    silent = np.stack([good, np.zeros(RATE, np.float32)])
    with pytest.raises(InputError, match=r"holds no sound \(every sample is 0\)"):
        read_sound(silent, RATE, channel="right", strict=True)


def test_channel_names_of_the_commands():
    assert sorted(options.CHANNEL_NAMES) == sorted(CHANNELS)
    assert options.HIGHEST_CHANNEL == MOST_CHANNELS


@pytest.mark.slow
@pytest.mark.parametrize("channel", ["left", 2])
def test_every_door_reads_the_channel(channel, loaded, folder, files, tmp_path, capsys):
    model, alone = loaded, files["left" if channel == "left" else "right"]
    call, other = files["call"], files["other"]
    embedding = model.embed([alone])
    assert torch.equal(model.embed([call], channel=channel), embedding)
    profile = model.enrol([call], name="anna", channel=channel)
    assert torch.equal(profile.embedding, model.enrol([alone], name="anna").embedding)
    assert not any(DIFFERENT in warning for warning in profile.warnings)
    expected = model.verify(alone, alone).to_dict()
    assert model.verify(call, call, channel=channel).to_dict() == expected
    assert model.verifier().verify_pairs([(call, call)], channel=channel)[0].to_dict() == expected
    found, wanted = model.compare([call, call], channel=channel), model.compare([alone, alone])
    assert np.array_equal(found.scores, wanted.scores) and found.warnings == wanted.warnings
    assert model.identify(call, [profile], channel=channel) == model.identify(alone, [profile])
    verify = pipeline("speaker-verification", model=str(folder), trust_remote_code=True, device="cpu")
    assert verify((call, call), channel=channel)["score"] == pytest.approx(expected["score"], abs=1e-6)
    embedded = verify(call, channel=channel, return_embeddings=True)
    np.testing.assert_allclose(embedded["embedding"], embedding[0].numpy(), atol=1e-5)
    mean = embed_files(model, [call], channel=channel, progress=False)
    torch.testing.assert_close(mean.embeddings[call], embedding)

    def command(*words: str) -> str:
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    answer = json.loads(command("verify", folder, call, call, "--channel", channel, "--json"))
    assert answer["score"] == pytest.approx(expected["score"], abs=1e-6) and answer["warnings"] == expected["warnings"]
    command("enrol", folder, call, "--name", "anna", "--profiles", tmp_path / "profiles", "--channel", channel)
    enrolled = SpeakerProfile.load(tmp_path / "profiles" / "anna.safetensors")
    assert torch.equal(enrolled.embedding, profile.embedding)
    found = command("identify", folder, call, "--profiles", tmp_path / "profiles", "--channel", channel, "--json")
    assert json.loads(found)[call]["candidates"][0]["score"] == pytest.approx(1, abs=1e-5)
    command("embed", folder, call, "--output", tmp_path / "out.npz", "--channel", channel)
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")[call], embedding[0].numpy(), atol=1e-5)
    trials = tmp_path / "trials.txt"
    trials.write_text(f"1 {call} {alone}\n0 {call} {other}\n")
    settings = EvaluationSettings(replicates=0, progress=False, channel=channel, calibrated=False)
    with pytest.raises(InputError, match="channel must be"):
        EvaluationSettings(channel="middle")
    # The other files of the list have only one channel.
    if channel == "left":
        evaluated = evaluate(model, [trials], "/", settings).lists["trials"]
        assert evaluated.scores[0] == pytest.approx(1, abs=1e-5)


def in_matroska(samples: np.ndarray) -> bytes:
    """A Matroska file of 16-bit samples `(L, C)` at 16 kHz, which PyAV decodes."""
    av = pytest.importorskip("av")
    wave, result = io.BytesIO(), io.BytesIO()
    soundfile.write(wave, samples, RATE, format="WAV", subtype="PCM_16")
    wave.seek(0)
    with av.open(wave, format="wav") as given, av.open(result, "w", format="matroska") as written:
        stream = written.add_stream("pcm_s16le", rate=RATE, layout=given.streams.audio[0].layout.name)
        for frame in given.decode(audio=0):
            frame.pts = None
            written.mux(stream.encode(frame))
        written.mux(stream.encode(None))
    return result.getvalue()


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 9, 32, 33, 50])
def test_many_channels_of_pyav(channels):
    """PyAV reads planes of more than 7 channels beyond their memory, which ended the process with a crash."""
    samples = np.random.default_rng(channels).integers(-9000, 9000, (RATE // 2, channels)).astype(np.int16)
    content = in_matroska(samples)
    if channels > MOST_CHANNELS:
        with pytest.raises(InputError, match=f"has {channels} channels; expected 1 to 32"):
            read_sound(content, RATE)
        return
    for number in {1, channels}:
        found = read_sound(content, RATE, channel=number).waveform
        np.testing.assert_array_equal(found * 32768, samples[:, number - 1])
    crop = decode_crop(content, RATE // 4, np.random.default_rng(0))
    assert crop.shape == (RATE // 4,) and np.isfinite(crop).all()


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> tuple[Path, Path]:
    """A corpus of pairs, and the same recordings as right channels of calls, whose left channels have one voice."""
    mono = make_corpus(tmp_path_factory.mktemp("calls") / "mono", 10, 4, 3, (1.7, 2.1), test_share=0.8)
    stereo = mono.parent / "stereo"
    for path in [*mono.rglob("*.flac"), *mono.glob("*.txt"), *mono.glob("*.csv")]:
        copy = stereo / path.relative_to(mono)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".flac":
            samples, rate = soundfile.read(path)
            soundfile.write(copy, np.stack([0.3 * make_speech(7, 7, 3.0)[: len(samples)], samples], axis=1), rate)
        else:
            copy.write_bytes(path.read_bytes())
    return mono, stereo


@pytest.mark.parametrize("segment", ["", "#t=0.5,1.5"])
@pytest.mark.parametrize("form", ["wav", "ogg", "mp3"])
def test_segments_have_the_channel(form, segment, tmp_path):
    """Also of formats in which the reader cannot seek, and where the complete recording is decoded."""
    both = np.stack([0.3 * make_speech(speaker, 0, 2.0) for speaker in (1, 2)], axis=1)
    path = tmp_path / f"call.{form}"
    soundfile.write(path, both, RATE)
    decoded, _ = soundfile.read(path, dtype="float32", always_2d=True)
    found = read_utterance(f"{path}{segment}", RATE, channel="right").waveform
    expected = decoded[:, 1] if not segment else decoded[RATE // 2 : RATE + RATE // 2, 1]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(InputError, match="has 2 channels, but not channel 3"):
        read_utterance(f"{path}{segment}", RATE, channel=3)


@pytest.mark.slow
def test_shards_keep_the_channel(calls, tmp_path):
    mono, stereo = calls
    for name, source, words in (("mono", mono, ()), ("right", stereo, ("--channel", "right"))):
        given = str(source / "train.csv"), str(tmp_path / name)
        assert main(["prepare", *given, "--processes", "0", "--shards", "1", *words]) == 0
    alone, chosen = (pq.read_table(next((tmp_path / name).glob("*.parquet"))) for name in ("mono", "right"))
    assert alone.equals(chosen)
    # Without a channel, the fingerprint is that of earlier versions.
    fingerprints = [
        json.loads((tmp_path / name / "manifest.json").read_text())["fingerprint"] for name in ("mono", "right")
    ]
    assert fingerprints[0] != fingerprints[1]
    with pytest.raises(InputError, match="channel must be"):
        PrepareOptions(channel="middle")
    with pytest.raises(ValueError, match="copies files unchanged, so it cannot keep only the channel 'left'"):
        PrepareOptions(codec="source", channel="left")


def test_commands_over_shards_and_indices_refuse_a_channel(calls, folder, tmp_path, capsys):
    assert main(["prepare", str(calls[0] / "train.csv"), str(tmp_path / "out"), "--index", "--channel", "left"]) == 2
    assert "copies no audio, so it cannot choose a --channel" in capsys.readouterr().err


@pytest.mark.slow
def test_measuring_and_training_read_the_channel(calls, loaded, tmp_path):
    mono, stereo = calls
    model, trials = loaded, mono / "trials.txt"
    options = {"progress": False, "replicates": 0, "over": ["duration"], "values": [1.0]}
    expected = sweep(model, trials, mono, **options)
    found = sweep(model, trials, stereo, channel="right", **options)
    assert found.points == expected.points != sweep(model, trials, stereo, channel="left", **options).points
    options = {"progress": False, "quality": "none"}
    weights = []
    for root, channel in ((mono, None), (stereo, "right")):
        report = calibrate(model, trials, root, channel=channel, cohort=root / "train.csv", **options)
        weights.append((report.calibration.weights, report.calibration.offset, report.cohort_skipped))
        assert report.cohort_left_out == 0
    assert weights[0] == weights[1]
    size = {"ecapa_channels": 16, "ecapa_output_channels": 48, "pooling_channels": 16, "embedding_size": 16}
    states = {}
    for name, root, channel in (("mono", mono, None), ("right", stereo, "2"), ("header", stereo, "right")):
        data = DataArguments(
            train_data=str(root / "train.csv"),
            dev_trials=str(trials),
            trial_root=str(root),
            channel=channel,
            crop_seconds=0.5,
            check_audio="header" if name == "header" else "full",
        )
        torch.manual_seed(0)
        arguments = TrainingArguments(output_dir=str(tmp_path / name), epochs=1, batch_size=4, cpu=True, report_to=[])
        result = Trainer(HamSpkForXVector(HamSpkConfig(**size)), arguments, data=data).train()
        state = load_file(tmp_path / name / "final" / "model.safetensors")
        states[name] = (result.lists["trials"]["eer"], state)
    for name in ("right", "header"):
        assert states[name][0] == states["mono"][0]
        assert all(torch.equal(value, states["mono"][1][key]) for key, value in states[name][1].items())


@pytest.mark.parametrize("form", ["bytes", "stream"])
def test_rows_of_data_sets_have_the_channel(files, form):
    """Both kinds of data sets of the library datasets."""
    cells = [{"bytes": Path(files["call"]).read_bytes(), "path": None}] * 4
    data = Dataset.from_dict({"audio": cells, "speaker_id": ["a", "b", "a", "b"]})
    given: Any = data if form == "bytes" else data.to_iterable_dataset()
    arguments = DataArguments(channel="right")
    arguments.train_data = given
    found, _ = open_corpus(arguments, RATE, print, False)
    if form == "stream":
        found.fill(dict(enumerate(data)))
    alone = read_sound(files["right"], RATE).waveform
    assert np.array_equal(found.cut(0, len(alone), np.random.default_rng(0)), alone)


def test_training_refuses_unknown_channels_and_channels_of_shards(tmp_path):
    for given, kept in (("2", 2), (3, 3), ("left", "left"), (None, None)):
        assert DataArguments(channel=given).channel == kept
    for wrong in ("middle", "0", "33", 0):
        with pytest.raises(InputError, match="channel must be 'left', 'right', 'mean' or a number from 1 to 32"):
            DataArguments(channel=wrong)
    make_shards(tmp_path / "shards", [[3, 2]], "parquet")
    with pytest.raises(ValueError, match="channel is for audio files; shards contain one channel"):
        open_corpus(DataArguments(train_data=str(tmp_path / "shards"), channel="left"), RATE, print, False)


def test_wrong_channels_at_the_command_line(folder, files, capsys):
    for wrong in ("middle", "0", "33", "-1"):
        with pytest.raises(SystemExit) as ended:
            main(["verify", str(folder), files["call"], files["other"], f"--channel={wrong}"])
        assert ended.value.code == 2
        assert "must be left, right, mean or a number from 1 to 32" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "said"), [("call", OPTION), ("quiet", "is too quiet: its loudest second is at -")])
def test_every_door_gives_the_warning(name, said, loaded, folder, files, tmp_path, capsys, caplog):
    model, path, other = loaded, files[name], files["other"]
    assert said in " ".join(model.verify(path, other).warnings)
    assert said in " ".join(model.verify(other, path).warnings)
    assert said in " ".join(model.compare([path, other]).warnings)
    profile = model.enrol([path], name="anna")
    assert said in " ".join(profile.warnings)
    assert said in " ".join(model.identify(path, [profile]).warnings)
    verify = pipeline("speaker-verification", model=str(folder), trust_remote_code=True, device="cpu")
    assert said in " ".join(verify((path, other))["warnings"])
    assert said in " ".join(verify(path, return_embeddings=True)["warnings"])

    def printed(*words: str) -> str:
        caplog.clear()
        assert main([str(word) for word in words]) == 0
        out, err = capsys.readouterr()
        return out + err + caplog.text

    assert said in printed("verify", folder, path, other)
    assert said in printed("enrol", folder, path, "--name", "anna", "--profiles", tmp_path / "profiles")
    assert said in printed("identify", folder, path, "--profiles", tmp_path / "profiles")
    assert said in printed("embed", folder, path, "--output", tmp_path / "out.npz")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        embed_files(model, [path, other], progress=False)
        assert caplog.text.count(said) == 1


def test_embedding_logs_the_first_warning_and_the_number_of_the_others(model, files, monkeypatch):
    said = []
    monkeypatch.setattr(f"{HamSpkModel.__module__}.logger.warning", said.append)
    model.embed([files["other"]])
    assert said == []
    model.embed([files["call"], files["other"], files["quiet"]])
    (sentence,) = said
    assert sentence.startswith("Recording 1 has different channels")
    assert sentence.endswith("(1 more warnings about other recordings)")


@pytest.mark.parametrize("gain", [1, 0.1, 0.001])
def test_the_level_is_of_the_loudest_second(gain):
    """Pauses around the speech and a constant offset do not change it; silence has no level to warn of."""
    tone = gain * 0.1 * np.sin(2 * np.pi * 200 * np.arange(2 * RATE) / RATE)
    level = 20 * np.log10(gain * 0.1 / np.sqrt(2))
    padded = np.float32(np.concatenate([np.zeros(5 * RATE), tone, np.zeros(5 * RATE)]) + 0.2)
    # A pure tone has a level near its peaks, which has a warning of its own.
    warnings = [one for one in read_sound(padded, RATE, source_rate=RATE).warnings if "too quiet" in one]
    assert bool(warnings) == (level < QUIET_DB)
    if warnings:
        assert f"its loudest second is at {level:.0f} dBFS" in warnings[0]
    assert read_sound(np.zeros(RATE, np.float32), RATE, source_rate=RATE).warnings == []
    assert read_sound(np.zeros(0, np.float32), RATE, source_rate=RATE).warnings == []
