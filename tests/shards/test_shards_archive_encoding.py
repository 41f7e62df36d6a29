"""Decoding and encoding of one file for a shard."""

import io

import numpy as np
import pytest
import soundfile as sf
from prepare_sources import RATE, as_file, as_m4a, noise

import hf_hamspk.audio_hamspk as audio_hamspk
from hf_hamspk.audio_hamspk import InputError, Limits, MissingDecoderError, read_sound
from hf_hamspk.data.audio import read_utterance
from hf_hamspk.shards.encoding import encode_file, encode_waveform, to_16_bit


def pcm(content: bytes) -> np.ndarray:
    return sf.read(io.BytesIO(content), dtype="int16")[0]


def test_sixteen_bits_come_back_as_they_were():
    """Every value there is, loudest included."""
    samples = np.arange(-32768, 32768, dtype=np.int16)
    encoded = encode_file(as_file(samples), "x.wav", "flac", RATE, 0.1)
    np.testing.assert_array_equal(pcm(encoded.content), samples)
    assert (encoded.suffix, encoded.samples, encoded.sampling_rate) == (".flac", 65536, RATE)
    assert encoded.duration == 65536 / RATE


def test_louder_than_full_scale_is_clipped():
    np.testing.assert_array_equal(
        to_16_bit(np.array([-2.0, -1.0, 1.0, 2.0], np.float32)), [-32768, -32768, 32767, 32767]
    )


def test_channels_are_averaged_and_rates_changed_as_when_reading():
    stereo = np.stack([noise(1, 0.5, 8000), noise(2, 0.5, 8000)], axis=1)
    content = as_file(stereo, rate=8000)
    encoded = encode_file(content, "x.wav", "flac", RATE, 0.1)
    np.testing.assert_array_equal(pcm(encoded.content), to_16_bit(read_utterance(content, RATE).waveform))
    assert encoded.samples == 8000


@pytest.mark.parametrize("codec", ["flac", "opus"])
@pytest.mark.parametrize("length", [1600, 1601, 5333, 16_000, 31_999])
def test_the_number_of_samples_is_that_which_is_decoded(codec, length):
    encoded = encode_file(as_file(noise(length, length / RATE)), "x.wav", codec, RATE, 0.1)
    assert len(read_utterance(encoded.content).waveform) == encoded.samples == length


def test_opus_is_near_and_small():
    samples = (8000 * np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)).astype(np.int16)
    content = encode_waveform(samples / np.float32(32768), RATE, "opus")
    error = read_utterance(content).waveform - samples / 32768
    assert np.mean(error**2) < 0.01 * np.mean((samples / 32768) ** 2)
    assert len(content) < len(samples) / 2


def test_flac_is_taken_as_it_is_unless_it_must_be_changed():
    plain = as_file(noise(1), "FLAC")
    assert encode_file(plain, "x.flac", "flac", RATE, 0.1).content is plain
    assert encode_file(plain, "x.flac", "flac", 8000, 0.1).samples == 2400
    with_padding = plain[:4] + plain[4:42] + b"\x01\x01\x00\x00" + bytes(65536) + plain[42:]
    assert plain[4] & 0x80 == 0, "the stream info is not the last block"
    encoded = encode_file(with_padding, "x.flac", "flac", RATE, 0.1)
    assert len(encoded.content) < len(with_padding) - 60_000
    np.testing.assert_array_equal(pcm(encoded.content), pcm(plain))


def test_the_codec_source_changes_nothing_and_still_checks():
    for content, name, suffix in (
        (as_m4a(noise(1)), "x.M4A", ".m4a"),
        (as_file(noise(1, rate=8000), rate=8000), "x", ".wav"),
        (as_file(noise(1), "FLAC"), "", ".flac"),
    ):
        encoded = encode_file(content, name, "source", RATE, 0.1)
        assert encoded.content is content
        assert encoded.suffix == suffix
        assert encoded.duration == pytest.approx(0.3)
    with pytest.raises(InputError, match="cannot be decoded"):
        encode_file(b"no audio", "x.wav", "source", RATE, 0.1)


@pytest.mark.parametrize(("rate", "layout"), [(16_000, "mono"), (44_100, "mono"), (48_000, "stereo")])
def test_m4a_is_decoded_without_delay(rate, layout):
    seconds = np.arange(rate) / rate
    tone = (8000 * np.sin(2 * np.pi * (200 + 300 * seconds) * seconds)).astype(np.int16)
    samples = tone if layout == "mono" else np.stack([tone, tone], axis=1)
    sound = read_utterance(as_m4a(samples, rate, layout), None, "x.m4a")
    assert sound.sampling_rate == rate
    assert sound.waveform.dtype == np.float32
    assert len(sound.waveform) == rate
    shifts = [float(np.mean((np.roll(sound.waveform, shift) - tone / 32768) ** 2)) for shift in range(-20, 21)]
    assert np.argmin(shifts) == 20, "the samples are where they were"
    assert shifts[20] < 0.02 * np.mean((tone / 32768) ** 2)
    assert len(read_utterance(as_m4a(samples, rate, layout)).waveform) == RATE


def test_bad_m4a_is_refused_with_its_name():
    whole = as_m4a(noise(1, 3.0))
    broken = bytearray(whole)
    broken[1000:3000] = bytes(2000)
    for content, reason in (
        (whole[: len(whole) // 2], "cannot be decoded"),
        (whole[:50], "cannot be decoded"),
        (bytes(broken), "cannot be decoded|cut short"),
        (as_m4a(noise(1, 0.05)), "lasts 0.05 s"),
        (as_m4a(np.zeros(RATE, np.int16)), "holds no sound"),
    ):
        with pytest.raises(InputError, match=rf"v/x\.m4a: .*({reason})"):
            read_utterance(content, None, "v/x.m4a")


def test_a_playlist_in_place_of_audio_opens_nothing(tmp_path):
    """FFmpeg would read the files and addresses that it names."""
    (tmp_path / "secret.wav").write_bytes(as_file(noise(1)))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n".encode()
    for content in (playlist, b"\0\0\0\x08ftyp" + playlist, b"\xff\xf1" + playlist):
        with pytest.raises(InputError, match=r"cannot be decoded|is empty"):
            read_utterance(content, None, "x.m4a")


def test_without_pyav_the_error_says_what_to_install(monkeypatch):
    content = as_m4a(noise(1))
    monkeypatch.setattr(audio_hamspk, "av", None)
    with pytest.raises(MissingDecoderError, match=r"x\.m4a: is AAC.*pip install av"):
        read_utterance(content, None, "x.m4a")
    read_utterance(as_file(noise(1)), None, "x.wav")


@pytest.mark.parametrize("make", [as_file, as_m4a, lambda samples: as_file(samples, "FLAC")])
def test_too_long_is_refused(make):
    content = make(noise(1, 1.0))
    with pytest.raises(InputError, match="lasts 1 s or more in 1 channels; expected at most 15000 samples"):
        read_sound(content, None, "x", Limits(values=15_000), strict=True)
    read_sound(content, None, "x", Limits(values=17_000), strict=True)
