"""Backends compute the embeddings of the model, one recording at a time, and say what they chose."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
import soundfile as sf
import torch
from tiny_models import RATE, W2V_BERT, noises, settle, tiny_config

from hf_hamspk import HamSpkConfig, HamSpkForXVector, HamSpkModel, calibrate, evaluate
from hf_hamspk.__main__ import main
from hf_hamspk.backends import BackendModel, choosing, graphs, quantise_onnx, rows, with_backend
from hf_hamspk.backends.folding import fold_norms
from hf_hamspk.backends.rows import RowEcapa, product_of_rows
from hf_hamspk.backends.threads import EmbeddingThreads
from hf_hamspk.calibration_hamspk import Calibration
from hf_hamspk.data.fitting import embed_what_fits
from hf_hamspk.data.synthetic import make_corpus, make_speech
from hf_hamspk.evaluation.evaluating import EvaluationSettings
from hf_hamspk.pipeline_hamspk import SpeakerVerificationPipeline
from hf_hamspk.publishing import handler
from hf_hamspk.publishing.tables import result_notes

SECONDS = (0.1, 0.7, 2.0, 1.1)
SPEECHBRAIN = {"ecapa_padding": "reflect", "ecapa_block_input": "sum", "ecapa_normalize_aggregate": True}


def ecapa(**fields) -> HamSpkModel:
    torch.manual_seed(0)
    model = settle(HamSpkModel(tiny_config(**fields)))
    # Negative factors of a normalisation turn a maximum into a minimum.
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.weight[::2] *= -1
    return model


@pytest.fixture(scope="module")
def model():
    return ecapa()


@pytest.mark.parametrize(
    "fields", [{}, SPEECHBRAIN, {"pooling_context": False}, {"pooling_hidden_norm": False, "pooling_unbiased": False}]
)
def test_rows_are_the_encoder(fields):
    model = ecapa(**fields)
    waves = noises(*SECONDS)
    expected = torch.cat([model.embed([wave], RATE) for wave in waves])
    found = with_backend(model, "torch").embed(waves, RATE)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_an_embedding_depends_on_no_other_recording(model):
    waves = noises(*SECONDS)
    for dtype in ("float32", "bfloat16"):
        fast = with_backend(model, "torch", dtype)
        alone = torch.cat([fast.embed([wave], RATE) for wave in waves])
        torch.testing.assert_close(fast.embed(waves, RATE), alone, atol=0, rtol=0)


@pytest.mark.parametrize("backend", ["torch", "onnx", "openvino"])
def test_recordings_embedded_at_once_have_the_embeddings_of_one_alone(model, backend):
    for package in graphs.BACKEND_PACKAGES.get(backend, ()):
        pytest.importorskip(package)
    before = torch.get_num_threads()
    waves = noises(*SECONDS * 4)
    fast = with_backend(model, backend, threads=2, at_once=2)
    assert torch.get_num_threads() == before
    assert "2 threads, 2 recordings at once" in str(fast.choice)
    found = fast.embed(waves, RATE)
    assert torch.get_num_threads() == before
    torch.testing.assert_close(found, model.embed(waves, RATE), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found, torch.cat([fast.embed([wave], RATE) for wave in waves]), atol=0, rtol=0)


def test_each_of_the_recordings_at_once_has_its_share_of_the_threads(model):
    before = torch.get_num_threads()
    fast = with_backend(model, "torch", threads=5, at_once=2)
    assert fast.pool.run(lambda _: torch.get_num_threads(), [1] * 4, 2) == [2] * 4
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [before] and torch.get_num_threads() == before


def test_what_fails_in_one_of_several_recordings_is_raised(model):
    fast = with_backend(model, "torch", threads=2, at_once=2)
    with pytest.raises(ValueError, match="input_values has 100 samples"):
        fast.embed_waveforms([np.zeros(100, np.float32), *(np.asarray(wave) for wave in noises(*SECONDS))])


def test_calls_at_the_same_time_have_room_for_their_sizes():
    running, together, order, lock = [], [], [], threading.Lock()

    def work(number):
        with lock:
            running.append(sizes[number])
            order.append(sizes[number])
            together.append((len(running), sum(running)))
        time.sleep(0.02)
        with lock:
            running.remove(sizes[number])
        return number

    sizes = [3, 9, 1, 4, 2, 2, 7, 1, 5, 3]
    assert EmbeddingThreads(3, 3).run(work, sizes, 6) == list(range(10))
    assert all(total <= 6 or count == 1 for count, total in together)
    assert max(count for count, _ in together) > 1
    # Of several threads, any may be the first to note its size.
    order.clear()
    EmbeddingThreads(1, 1).run(work, sizes, 6)
    assert order == sorted(sizes, reverse=True)


def test_many_threads_may_make_and_use_such_models(model):
    wave, before = noises(0.5)[0], torch.get_num_threads()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: with_backend(model, "torch", threads=2, at_once=2), range(12)))
        found = list(pool.map(lambda one: one.embed([wave], RATE), made))
        usual = list(pool.map(lambda _: torch.get_num_threads(), range(4)))
    torch.testing.assert_close(torch.cat(found), model.embed([wave], RATE).expand(12, -1), atol=1e-5, rtol=1e-4)
    assert set(usual) == {before} and torch.get_num_threads() == before


def test_without_memory_for_two_pieces_a_long_recording_is_embedded_piece_by_piece(model, monkeypatch):
    monkeypatch.setattr(HamSpkConfig, "longest_piece", 1.0)
    fast, lock = with_backend(model, "torch", threads=2, at_once=2), threading.Lock()
    wave = np.asarray(noises(3.5)[0])
    expected = fast.embed_waveforms([wave])
    original = fast.base_model.forward

    def forward(*arguments, **options):
        if not lock.acquire(blocking=False):
            raise RuntimeError("can't allocate memory")
        try:
            time.sleep(0.01)
            return original(*arguments, **options)
        finally:
            lock.release()

    monkeypatch.setattr(fast.base_model, "forward", forward)
    (found,) = embed_what_fits(fast, [wave])
    torch.testing.assert_close(found[None], expected)


def test_products_in_onednn_are_those_of_float32(model, monkeypatch):
    features = torch.randn(131, model.config.num_mel_bins)
    found = []
    for uses in (False, True):
        monkeypatch.setattr(rows, "uses_onednn", lambda dtype, uses=uses: uses)
        found.append(RowEcapa(model, torch.float32)(features))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fields", [{}, SPEECHBRAIN])
def test_folded_norms_change_no_embedding(fields):
    model = ecapa(**fields)
    folded = fold_norms(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for wave in noises(*SECONDS):
        features = graphs.features_of(model, wave)
        with torch.enable_grad():  # Otherwise, the encoder overwrites its inputs, which an exporter does not.
            found = graphs.WithoutFrontend(folded)(features)
        torch.testing.assert_close(found, model(wave[None]).embeddings, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    other = settle(HamSpkModel(tiny_config("campplus")))
    assert fold_norms(other) is other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_rows_are_those_of_a_linear_layer(dtype):
    weight, bias, wide = torch.randn(48, 40).to(dtype), torch.randn(48).to(dtype), torch.randn(300, 80).to(dtype)
    product = product_of_rows(weight, bias)
    for x in (wide[:, :40], wide[:1, 40:], wide[::7, 20:60], wide[:200, :40].contiguous()):
        expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
        torch.testing.assert_close(product(x).double(), expected, atol=1e-5, rtol=torch.finfo(dtype).eps)


def test_further_rows_do_not_change_the_result(model, monkeypatch):
    features = torch.randn(131, model.config.num_mel_bins)
    for dtype in (torch.bfloat16, torch.float32):
        found = []
        for step in (1, 64, 100):
            monkeypatch.setattr(rows, "ROWS_STEP", step)
            found.append(RowEcapa(model, dtype)(features))
        assert torch.cosine_similarity(torch.stack(found[1:]), found[0]).min() > 0.99999


def test_bfloat16_is_close_and_leaves_the_model_alone(model):
    waves = noises(*SECONDS)
    before = model.embed(waves, RATE)
    fast = with_backend(model, "torch", "bfloat16")
    assert torch.cosine_similarity(fast.embed(waves, RATE), before).min() > 0.999
    assert fast.embed(waves, RATE).dtype == torch.float32
    assert fast.fingerprint() == model.fingerprint()
    torch.testing.assert_close(model.embed(waves, RATE), before, atol=0, rtol=0)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_it_decides_as_the_model():
    torch.manual_seed(0)
    model = settle(HamSpkForXVector(tiny_config()))
    model.calibration = Calibration(model.fingerprint(), "cosine", -2.0, {"score": 8.0}, trials=99, targets=9)
    fast = with_backend(model, "torch")
    pair = make_speech(0, 0, 3.2, RATE), make_speech(1, 0, 3.4, RATE)
    expected, found = (one.verify(*pair, sampling_rate=RATE) for one in (model, fast))
    assert found.decision == expected.decision
    assert found.log_likelihood_ratio == pytest.approx(expected.log_likelihood_ratio, abs=1e-3)


def test_another_encoder_runs_in_torch():
    model = settle(HamSpkModel(tiny_config("campplus")))
    waves = noises(*SECONDS)
    found = with_backend(model, "torch").embed(waves, RATE)
    torch.testing.assert_close(found, model.embed(waves, RATE), atol=1e-5, rtol=1e-4)


def test_too_short_a_recording_is_refused(model):
    with pytest.raises(ValueError, match="has 100 samples; expected at least 400"):
        with_backend(model, "torch").base_model(torch.zeros(1, 100))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "tensorrt"}, "backend must be one of auto, torch, onnx, openvino, got 'tensorrt'"),
        ({"dtype": "float16"}, "dtype must be one of auto, float32, bfloat16, int8, got 'float16'"),
        ({"backend": "onnx", "dtype": "bfloat16"}, "ONNX Runtime has no bfloat16 on a CPU"),
        ({"backend": "torch", "dtype": "int8", "int8_file": "a.onnx"}, "'torch' has no int8"),
        ({"backend": "onnx", "dtype": "int8"}, "int8 needs an int8 file"),
        ({"backend": "torch", "int8_file": "a.onnx"}, "other number formats must not have one"),
        ({"threads": 1, "at_once": 2}, r"at_once must be from 1 to the number of threads \(1\), got 2"),
        ({"at_once": 0}, "at_once must be from 1"),
        ({"threads": 2, "at_once": 1.5}, "at_once must be from 1"),
        ({"threads": 0}, "threads must be a whole number of at least 1, got 0"),
    ],
)
def test_what_does_not_match_is_refused(model, options, said):
    with pytest.raises(ValueError, match=said):
        with_backend(model, **options)


def test_a_missing_package_is_named_with_the_command(model, monkeypatch):
    monkeypatch.setattr(graphs, "missing_packages", lambda backend: ["openvino"])
    with pytest.raises(ImportError, match=r"needs openvino\. Run `pip install 'hf_hamspk\[openvino\]'`"):
        with_backend(model, "openvino")


def test_a_model_in_half_precision_is_refused():
    with pytest.raises(ValueError, match="needs a model in float32 on the CPU"):
        with_backend(torch.nn.Module.to(settle(HamSpkModel(tiny_config())), torch.bfloat16), "torch")


def test_auto_takes_the_fastest_and_says_so(model, monkeypatch):
    """Times are given, because a test must not depend on them."""
    times = {("torch", "float32"): 3.0, ("torch", "bfloat16"): 1.0}
    monkeypatch.setattr(choosing, "missing_packages", lambda backend: ["it"] if backend != "torch" else [])
    monkeypatch.setattr(choosing, "has_bfloat16", lambda: True)
    monkeypatch.setattr(choosing, "_measure", lambda encoder, found: {pair: times[pair] for pair in found})
    fast = with_backend(model, "auto", "auto", threads=2)
    assert isinstance(fast, BackendModel) and (fast.choice.backend, fast.choice.dtype) == ("torch", "bfloat16")
    assert str(fast.choice) == (
        "backend torch, bfloat16, 2 threads; chosen by the milliseconds for a second of audio: torch float32 3.0, "
        "torch bfloat16 1.0"
    )
    monkeypatch.setattr(choosing, "has_bfloat16", lambda: False)
    assert with_backend(model, "auto", "auto").choice.dtype == "float32"


def test_auto_leaves_out_a_backend_that_computes_something_else(model, monkeypatch, caplog):
    monkeypatch.setattr(choosing, "missing_packages", lambda backend: [])
    monkeypatch.setattr(choosing, "write_graph", lambda *_: None)
    monkeypatch.setattr(choosing, "open_onnx", lambda *_: lambda features: -torch.ones(1, 24))

    def fails(*_):
        raise RuntimeError("an unsupported layer")

    monkeypatch.setattr(choosing, "open_openvino", fails)
    assert with_backend(model, "auto").choice.backend == "torch"
    assert "The backend onnx in float32 is not measured" in caplog.text
    assert "an unsupported layer" in caplog.text
    with pytest.raises(ValueError, match="'onnx' in float32 differ from those of the model"):
        with_backend(model, "onnx")


def test_it_measures_every_backend(model):
    found = {("torch", "float32"): choosing.torch_embedder(model, "float32")}
    with torch.no_grad():
        assert 0 < choosing._measure(model, found)["torch", "float32"] < float("inf")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, W2V_BERT])
def test_graphs_agree_with_torch(kind, tmp_path):
    """OpenVINO is tested if it is installed."""
    for package in graphs.BACKEND_PACKAGES["onnx"]:
        pytest.importorskip(package)
    model = ecapa() if kind is None else settle(HamSpkModel(tiny_config(kind)))
    graphs.write_graph(model, tmp_path / "encoder.onnx", {})
    opened = {"onnx": graphs.open_onnx(tmp_path / "encoder.onnx", 1)}
    if find_spec("openvino") is not None:
        opened["openvino"] = graphs.open_openvino(tmp_path / "encoder.onnx", 1, "float32")
    with torch.no_grad():
        for wave in noises(*SECONDS):
            wave = torch.as_tensor(wave)
            expected, features = model(wave[None]).embeddings, graphs.features_of(model, wave)
            for embedder in opened.values():
                assert torch.cosine_similarity(embedder(features), expected).min() > 1 - 1e-4


@pytest.mark.slow
def test_a_backend_is_calibrated_and_evaluated_like_a_model(model, tmp_path):
    corpus = make_corpus(tmp_path / "corpus", 14, 4, 3, (1.7, 2.1), test_share=0.55)
    lists, fast = (corpus / "trials.txt", corpus), with_backend(model, "torch")
    expected, found = (calibrate(each, *lists, progress=False) for each in (model, fast))
    try:
        assert found.model is fast and fast.calibration.fingerprint == model.fingerprint()
        assert found.calibration.offset == pytest.approx(expected.calibration.offset, rel=1e-3)
        records = [evaluate(each, *lists, settings=EvaluationSettings(progress=False)) for each in (model, fast)]
        assert records[0].record.model == records[1].record.model
        backends = [record.record.lists["trials"].get("backend") for record in records]
        assert backends == [None, "torch float32"]
        assert "backend torch float32" in " ".join(result_notes(records[1].record.to_dict()))
        fast.calibration.save(tmp_path / "own.json")
        assert Calibration.load(tmp_path / "own.json") == fast.calibration
    finally:
        model.calibration = None
    for wrong in (None, 3, [model]):
        for function in (calibrate, evaluate):
            with pytest.raises(ValueError, match="Expected a model such as HamSpkModel, its folder, or its name"):
                function(wrong, *lists)
    with pytest.raises(ValueError, match=r"such as HamSpkModel\.from_pretrained"):
        with_backend("folder", "torch")  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_int8_is_another_model_of_its_own_file(model, tmp_path, caplog):
    for package in graphs.BACKEND_PACKAGES["onnx"]:
        pytest.importorskip(package)
    path, waves = tmp_path / "int8.onnx", noises(0.7, 2.0, 1.1)
    cosines = quantise_onnx(model, path, [np.asarray(wave) for wave in waves])
    assert 0.9 < cosines["smallest"] <= cosines["median"] <= 1
    model.calibration = Calibration(model.fingerprint(), "cosine", -2.0, {"score": 8.0}, trials=99, targets=9)
    try:
        fast = with_backend(model, "onnx", "int8", path)
    finally:
        model.calibration = None
    assert fast.calibration is None and "does not apply" in caplog.text
    assert fast.fingerprint() != model.fingerprint()
    assert torch.cosine_similarity(fast.embed(waves, RATE), model.embed(waves, RATE)).min() > 0.9
    torch.manual_seed(5)
    with pytest.raises(ValueError, match="was made from other weights than those of the model"):
        with_backend(settle(HamSpkModel(tiny_config())), "onnx", "int8", path)
    (tmp_path / "else.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not an int8 file of `hamspk export`"):
        with_backend(model, "onnx", "int8", tmp_path / "else.onnx")
    with pytest.raises(ValueError, match="needs recordings, got none"):
        quantise_onnx(model, path, [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "int8"], "--precision int8 and --int8-file FILE.onnx belong together"),
        (["--backend", "onnx", "--precision", "bfloat16"], "--backend onnx has no bfloat16 on a CPU"),
        (["--backend", "auto", "--rank", "0", "--world-size", "2"], "All ranks need the same backend and precision"),
        (["--precision", "auto"], "--precision auto needs --backend"),
        (["--backend", "auto", "--compile"], "--compile works only without --backend"),
        (["--backend", "onnx", "--precision", "int8", "--int8-file", "nowhere.onnx"], "File not found: --int8-file"),
    ],
)
def test_the_command_refuses_at_once(words, said, tmp_path, capsys):
    (tmp_path / "a.wav").write_bytes(b"")
    assert main(["embed", str(tmp_path), str(tmp_path / "a.wav"), "--output", str(tmp_path / "e.npz"), *words]) == 2
    assert said in capsys.readouterr().err


def test_the_command_says_what_auto_chose(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(choosing, "missing_packages", lambda backend: ["it"] if backend != "torch" else [])
    model.save_pretrained(tmp_path / "model")
    sf.write(tmp_path / "a.wav", make_speech(0, 0, 3.2, RATE), RATE)
    words = [str(tmp_path / "model"), str(tmp_path / "a.wav"), "--output", str(tmp_path / "e.npz")]
    assert main(["embed", *words, "--backend", "auto"]) == 0
    assert "backend torch, float32, " in capsys.readouterr().err
    found = np.load(tmp_path / "e.npz")[words[1]]
    np.testing.assert_allclose(found, model.embed([words[1]])[0], rtol=1e-4, atol=1e-5)


def test_the_pipeline_takes_it_as_its_embedder(model):
    fast = with_backend(model, "torch")
    embed = SpeakerVerificationPipeline(model, device="cpu", embedder=fast)
    found = embed({"array": make_speech(0, 0, 3.2, RATE), "sampling_rate": RATE}, return_embeddings=True)
    assert embed.embedder is fast and found["embedding"].shape == (model.config.embedding_size,)


def test_the_endpoint_takes_the_file_that_its_environment_names(monkeypatch):
    given = {}

    class Made:
        verifier = None

        def __init__(self, task, **options):
            given.update(options)

    monkeypatch.setattr(handler, "pipeline", Made)
    handler.EndpointHandler("folder")
    assert "onnx_file" not in given
    monkeypatch.setenv("HAMSPK_ONNX_FILE", "model.onnx")
    handler.EndpointHandler("folder")
    assert given["onnx_file"] == "model.onnx"


def test_the_rows_have_the_channels_of_the_pooling(model):
    features = torch.randn(50, model.config.num_mel_bins)
    assert RowEcapa(model, torch.float32)(features).shape == (model.pooling.output_size,)
