"""Speaker models of transformers, from their folders: the same embeddings of utterances that are not padded."""

import json
import shutil

import pytest
import torch
from other_projects import XVECTORS, tiny_xvector, write_xvector
from tiny_models import RATE, cosine, noises, padded
from transformers import AutoModel, SeamlessM4TFeatureExtractor, Wav2Vec2FeatureExtractor

from hf_hamspk.conversion import convert

# Kind of backbone and of the normalisation of its features.
FAMILIES = [
    (kind, norm)
    for kind in XVECTORS
    for norm in ("layer", "group")
    if kind != "wav2vec2-bert" and (kind, norm) != ("data2vec-audio", "group")
]
every_family = pytest.mark.parametrize(("kind", "norm"), FAMILIES)


BERT = "wav2vec2-bert"
# Samples of an even number of frames, which transformers does not pad.
EVEN = [400 + 160 * frames for frames in (31, 119)]


def assert_near(actual: torch.Tensor, expected: torch.Tensor, relative: float = 1e-5) -> None:
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < relative, f"{error:.2e} of the largest entry"


@pytest.mark.slow
@every_family
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted-layers", "last-layer"])
def test_embeddings_are_those_of_transformers(kind, norm, weighted, tmp_path):
    theirs = tiny_xvector(kind, norm, use_weighted_layer_sum=weighted)
    converted = convert(write_xvector(tmp_path / "model", theirs))
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / "model")
    for seconds in (0.31, 1.2345):
        waves = noises(seconds, seconds)
        inputs = extractor([wave.numpy() for wave in waves], sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            expected = theirs(inputs["input_values"]).embeddings
            assert_near(converted.model(torch.stack(waves)).embeddings, expected)
    assert converted.source == f"transformers {type(theirs).__name__}"
    assert converted.read == ["config.json", "preprocessor_config.json", "model.safetensors"]


@pytest.mark.slow
@every_family
def test_embeddings_do_not_depend_on_the_padding(kind, norm, tmp_path):
    model = convert(write_xvector(tmp_path / "model", tiny_xvector(kind, norm))).model
    # The shortest are shorter than what the time-delay layers see at once.
    waves = noises(0.1, 0.15, 0.22, 0.5, 1.1, 2.0)
    with torch.no_grad():
        alone = torch.cat([model(wave[None]).embeddings for wave in waves])
        together = model(*padded(waves)).embeddings
        wider = model(*(torch.nn.functional.pad(t, (0, 5000)) for t in padded(waves))).embeddings
    assert alone.isfinite().all()
    for embeddings in (together, wider, model.embed(waves, RATE)):
        assert_near(embeddings, alone)
    assert (1 - cosine(alone[:1], alone[1:])).min() > 1e-4, "the utterances must be told apart"


@pytest.mark.parametrize("weighted", [True, False], ids=["weighted-layers", "last-layer"])
def test_w2v_bert_embeds_as_in_transformers_and_computes_its_features(weighted, tmp_path):
    theirs = tiny_xvector(BERT, use_weighted_layer_sum=weighted)
    converted = convert(write_xvector(tmp_path / "model", theirs))
    extractor = SeamlessM4TFeatureExtractor.from_pretrained(tmp_path / "model")
    waves = [wave[:size] for wave, size in zip(noises(2.0, 2.0), EVEN, strict=True)]
    for wave in waves:
        inputs = extractor([wave.numpy()], sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            assert_near(converted.model(wave[None]).embeddings, theirs(inputs["input_features"]).embeddings, 1e-4)
    with torch.no_grad():
        alone = torch.cat([converted.model(wave[None]).embeddings for wave in waves])
        assert_near(converted.model(*padded(waves)).embeddings, alone)
    assert converted.source == "transformers Wav2Vec2BertForXVector"
    assert converted.read == ["config.json", "preprocessor_config.json", "model.safetensors"]


def test_features_of_another_size_are_refused(tmp_path):
    folder = write_xvector(tmp_path / "model", tiny_xvector(BERT))
    for options, found in (({"num_mel_bins": 40}, "2 times 40"), ({"stride": None}, "None times 80")):
        SeamlessM4TFeatureExtractor(**options).save_pretrained(folder)
        with pytest.raises(ValueError, match=rf"features of {found} values, but the model of config\.json takes 160"):
            convert(folder)


def test_a_stride_in_the_settings_of_other_features_is_ignored(tmp_path):
    folder = write_xvector(tmp_path / "model", tiny_xvector("wavlm"))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"stride": None}))
    assert convert(folder).read[1] == "preprocessor_config.json"


def test_where_transformers_sees_the_padding_and_we_do_not(tmp_path):
    """It counts the frames after the time-delay layers without their dilation: here 4 + 2, not 4 + 6 fewer."""
    theirs = tiny_xvector("wavlm")
    model = convert(write_xvector(tmp_path / "model", theirs, do_normalize=False)).model
    assert int(theirs._get_tdnn_output_lengths(torch.tensor(50))) == 50 - 6
    assert model.pooling.span == 10
    values, mask = padded(noises(0.6, 2.0))
    length = int(mask[0].sum())
    with torch.no_grad():
        padded_theirs = theirs(values, attention_mask=mask).embeddings[0]
        alone_theirs = theirs(values[:1, :length]).embeddings[0]
        padded_ours = model(values, mask).embeddings[0]
    assert_near(padded_ours, alone_theirs)
    assert (padded_theirs - alone_theirs).abs().max() > 1e-3 * alone_theirs.abs().max()


@pytest.mark.parametrize("do_normalize", [True, False])
def test_the_preprocessor_says_whether_waveforms_are_normalised(do_normalize, tmp_path):
    folder = write_xvector(tmp_path / "model", tiny_xvector("wavlm"), do_normalize)
    converted = convert(folder)
    assert converted.model.config.normalize_waveform is do_normalize
    assert converted.notes == []
    (folder / "preprocessor_config.json").unlink()
    converted = convert(folder)
    assert converted.model.config.normalize_waveform is True
    assert "preprocessor_config.json is missing" in converted.notes[0] and converted.read == [
        "config.json",
        "model.safetensors",
    ]


def test_an_older_pickle_is_read_and_one_that_runs_code_is_not(tmp_path):
    theirs = tiny_xvector("wav2vec2")
    folder = write_xvector(tmp_path / "model", theirs)
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    converted = convert(folder)
    assert converted.read[-1] == "pytorch_model.bin"
    assert torch.equal(converted.model.projection.weight, theirs.feature_extractor.weight)
    torch.save({"weights": Opens(str(tmp_path / "ran"))}, folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pytorch_model.bin contains more than weights: it uses the Python object io.open. Loading"
    ):
        convert(folder)
    assert not (tmp_path / "ran").exists()


class Opens:
    """Pickled, an order to make a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_bare_encoder_is_no_speaker_model(tmp_path):
    folder = write_xvector(tmp_path / "model", tiny_xvector("wavlm"))
    bare = tmp_path / "bare"
    tiny_xvector("wavlm").base_model.save_pretrained(bare)
    with pytest.raises(
        ValueError, match=r"Expected a \*ForXVector model in .* To train a speaker model on a pretrained speech"
    ):
        convert(bare)
    shutil.copy(bare / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"lacks 11 weights of a WavLMForXVector \(feature_ex.*To train a speaker model on it"
    ):
        convert(folder)


def test_an_adapter_and_other_kinds_are_refused(tmp_path):
    folder = write_xvector(tmp_path / "model", tiny_xvector("wav2vec2"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "wav2vec2-conformer"}))
    with pytest.raises(
        ValueError, match=r"describes a 'wav2vec2-conformer' model\. Only wavlm, wav2vec2, wav2vec2-bert, unispeech-sat"
    ):
        convert(folder)
    (folder / "config.json").write_text(json.dumps(settings | {"add_adapter": True, "output_hidden_size": 32}))
    with pytest.raises(ValueError, match=r"lacks \d+ weights|Set add_adapter=False"):
        convert(folder)


def test_nothing_of_this_machine_is_saved(tmp_path):
    folder = write_xvector(tmp_path / "a-private-place", tiny_xvector("unispeech-sat"))
    convert(folder).model.save_pretrained(tmp_path / "out")
    for file in (tmp_path / "out").glob("*.json"):
        assert "a-private-place" not in file.read_text() and str(tmp_path) not in file.read_text()
    assert AutoModel.from_pretrained(tmp_path / "out").config.converted_from == "transformers UniSpeechSatForXVector"
