"""ECAPA-TDNN of SpeechBrain, WeSpeaker and the released code, from their files: their embeddings, from the waveform."""

import pytest
import torch
from other_projects import small_model, weights_of, write
from tiny_models import noises, padded, settle

from hf_hamspk.conversion import Converted, convert

SOURCES = ["speechbrain", "wespeaker", "official"]
PREFIX = "state_dict."


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error, relative to the largest entry."""
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module", params=SOURCES)
def reference(request, golden, tmp_path_factory) -> tuple[str, dict[str, torch.Tensor], Converted]:
    """A golden encoder: its source, its numbers, and what is made of its files."""
    tensors, _ = golden(f"ecapa_{request.param}_c64")
    weights = {name.removeprefix(PREFIX): t for name, t in tensors.items() if name.startswith(PREFIX)}
    path = write(request.param, tmp_path_factory.mktemp("source") / "model", weights)
    return request.param, tensors, convert(path)


def test_embeddings_are_those_of_the_source(reference):
    _, tensors, converted = reference
    waves = tensors["input.waveform"]
    with torch.no_grad():
        for actual in (converted.model(waves).embeddings, converted.model.embed(list(waves), 16000)):
            assert error(actual, tensors["expected.embedding"]) < 1e-4


def test_features_are_those_of_the_source(reference):
    source, tensors, converted = reference
    expected = tensors["expected.fbank"] if source == "official" else tensors["expected.fbank"].mT
    assert error(converted.model.frontend(tensors["input.waveform"]).values, expected) < 1e-4


def test_a_padded_batch_gives_the_embeddings_of_the_source_without_padding(reference):
    _, tensors, converted = reference
    values, mask = padded([*tensors["input.waveform"], *noises(3.7)])
    with torch.no_grad():
        assert error(converted.model(values, mask).embeddings[:2], tensors["expected.embedding"]) < 1e-4


def test_where_speechbrain_sees_the_padding_and_we_do_not(golden, tmp_path):
    """Told relative lengths, SpeechBrain masks the pooling, but its convolutions read what is beyond the end."""
    tensors, _ = golden("ecapa_speechbrain_c64")
    weights = {name.removeprefix(PREFIX): t for name, t in tensors.items() if name.startswith(PREFIX)}
    model = convert(write("speechbrain", tmp_path / "model", weights)).model
    waves, relative = tensors["input.waveform"], tensors["input.relative_lengths"]
    lengths = (relative * waves.shape[1]).round().long()
    mask = (torch.arange(waves.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        ours = model(waves, mask).embeddings
        alone = torch.cat([model(wave[None, :n]).embeddings for wave, n in zip(waves, lengths.tolist(), strict=True)])
    theirs = tensors["expected.embedding_with_lengths"]
    assert relative.tolist()[0] == 1 > relative.tolist()[1]
    assert error(ours, alone) < 1e-5
    assert error(ours[0], theirs[0]) < 1e-4
    # The same utterance, but for the frames at its end.
    assert 1e-3 < error(ours[1], theirs[1]) < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_live_agreement_with_speechbrain():
    ecapa = pytest.importorskip("speechbrain.lobes.models.ECAPA_TDNN", reason="the extra 'speechbrain' is absent")
    features = pytest.importorskip("speechbrain.lobes.features")
    processing = pytest.importorskip("speechbrain.processing.features")
    from hf_hamspk.conversion.speechbrain import convert_speechbrain_state_dict

    theirs = ecapa.ECAPA_TDNN(80, channels=[64, 64, 64, 64, 192], attention_channels=32, lin_neurons=192).eval()
    fbank = features.Fbank(n_mels=80)
    normalise = processing.InputNormalization(norm_type="sentence", std_norm=False)
    model = settle(small_model("speechbrain"))
    theirs.load_state_dict(weights_of("speechbrain", model))
    model.load_state_dict(convert_speechbrain_state_dict(theirs.state_dict(), 8))
    for seconds in (0.1, 0.5, 1.2345, 4.0):
        wave = torch.stack(noises(seconds, seconds, seed=3))
        with torch.no_grad():
            expected = theirs(normalise(fbank(wave), torch.ones(2)), torch.ones(2))[:, 0]
            assert error(model(wave).embeddings, expected) < 1e-4, seconds


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_weights_come_back_bit_for_bit(source, half, tmp_path):
    model = settle(small_model(source))
    if half:
        model.half().float()
    weights = weights_of(source, model)
    if half:
        weights = {name: t.half() if t.is_floating_point() else t for name, t in weights.items()}
    converted = convert(write(source, tmp_path / "model", weights))
    again = converted.model.state_dict()
    assert again.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again[name], tensor), name
    assert not converted.model.training and converted.model.config.converted_from == converted.source


def test_counters_of_batches_may_be_absent(tmp_path):
    model = small_model("wespeaker")
    weights = {n: t for n, t in weights_of("wespeaker", model).items() if not n.endswith("num_batches_tracked")}
    convert(write("wespeaker", tmp_path / "model", weights))


def test_wespeaker_without_context_and_with_normalised_embeddings(tmp_path):
    model = settle(small_model("wespeaker", pooling_context=False, normalize_embedding=True))
    replaced = {"global_context_att: true": "emb_bn: true"}
    path = write("wespeaker", tmp_path / "model", weights_of("wespeaker", model), **replaced)
    converted = convert(path).model
    wave = noises(0.7)[0][None]
    with torch.no_grad():
        assert torch.equal(converted(wave).embeddings, model(wave).embeddings)


def test_the_encoder_alone_is_a_source_too(tmp_path):
    model = small_model("official")
    torch.save(weights_of("official", model), tmp_path / "encoder.pt")
    converted = convert(tmp_path / "encoder.pt")
    assert converted.left_out == {}
    assert torch.equal(converted.model.projection.weight, model.projection.weight)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchfbank.1.mel_scale.fb", "torchfbank.1.spectrogram.window"])
def test_an_encoder_of_other_filters_is_refused(name, tmp_path):
    model = small_model("official")
    window, bank = model.frontend.constants()
    constants = {"torchfbank.1.mel_scale.fb": bank, "torchfbank.1.spectrogram.window": window}
    convert(write("official", tmp_path / "right.model", weights_of("official", model) | constants))
    constants[name] = constants[name] * 1.01
    with pytest.raises(ValueError, match=rf"with another front-end: its {name} differs from that of the HAM"):
        convert(write("official", tmp_path / "wrong.model", weights_of("official", model) | constants))
