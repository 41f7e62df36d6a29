"""What is read of other projects' files, what is refused, and how a source is told."""

import json
import pickle
import random
import re
import zipfile

import pytest
import torch
from other_projects import fields_of, small_model, weights_of, write, write_speechbrain
from safetensors.torch import save_file
from tiny_models import noises, tiny_config

from hf_hamspk import HamSpkModel
from hf_hamspk.conversion import convert, detect, stated_licence
from hf_hamspk.conversion.checkpoints import Tagged, read_tensors, read_yaml
from hf_hamspk.conversion.speechbrain import convert_speechbrain_state_dict
from hf_hamspk.conversion.wespeaker import convert_wespeaker_state_dict


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, torch.Tensor]]:
    """Of one small encoder of each source, by its own names."""
    return {source: weights_of(source, small_model(source)) for source in ("speechbrain", "wespeaker", "official")}


def refuses(message: str, path, kind: str | None = None) -> None:
    with pytest.raises(ValueError, match=message):
        convert(path, kind)


# --- reading


class Opens:
    """Pickled, an order to make a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(3), "extra": Opens(str(tmp_path / "ran"))}, path)
    message = "model.pt contains more than weights: it uses the Python object io.open. Loading Python"
    with pytest.raises(ValueError, match=message):
        read_tensors(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        # torch reads the first letter as an order of a pickle to find the Python object of the next two lines.
        b"cd /work\nsource activate\n",
        b"no checkpoint at all",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
    ],
)
def test_a_file_that_is_no_checkpoint_is_called_so(content, tmp_path):
    (tmp_path / "model.pt").write_bytes(content)
    found = f"a file that begins with {content[:20]!r}" if content else "an empty file"
    message = f"model.pt is not a PyTorch checkpoint: expected a file that torch.save wrote, got {found}. Give the file"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_tensors(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=re.escape(message)):
        read_tensors(tmp_path / "model.pt", content)


def test_another_archive_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("a/readme.txt", "text")
    with pytest.raises(ValueError, match=r"model.pt is not a PyTorch checkpoint: .* got another zip archive"):
        read_tensors(tmp_path / "model.pt")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_objects_is_called_a_pickle_with_objects(protocol, tmp_path):
    objects = {"weight": torch.zeros(3), "extra": Opens(str(tmp_path / "ran"))}
    torch.save(objects, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"model.pt contains more than weights: it uses the Python object io.open"):
        read_tensors(tmp_path / "model.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(objects["extra"], protocol=protocol))
    with pytest.raises(ValueError, match=r"plain.pkl (contains more than weights|cannot be read as a checkpoint)"):
        read_tensors(tmp_path / "plain.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.pt", b"PK\x03\x04 half an archive"),
        ("model.pt", b"\x80\x02 half a pickle"),
        ("model.safetensors", b""),
        ("model.safetensors", b"no checkpoint at all"),
    ],
)
def test_a_damaged_file_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} cannot be read.* Copy or download it again"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(3)], "expected a state dict .* got a list"),
        ({"epoch": 3}, "expected a state dict .* found no tensors"),
        (
            {"a": torch.tensor([1.0, torch.nan])},
            "a contains NaN or infinite values. The training probably diverged",
        ),
        ({"a": torch.eye(3).to_sparse()}, "expected dense tensors of real numbers, but a is sparse"),
        ({"a": torch.eye(3).to_sparse_csr()}, "a is sparse"),
        ({"a": torch.eye(3).to(torch.complex64)}, "a is complex"),
        ({"a": torch.eye(3, device="meta")}, "a is without values"),
        ({"a": torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)}, "a is quantised"),
        ({"a": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])}, "a is nested"),
    ],
)
def test_what_is_no_state_dict_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path / "model.pt")


@pytest.mark.parametrize("of_zip", [True, False])
def test_each_damage_is_a_sentence(of_zip, tmp_path):
    """Files of both formats of torch, with changed bytes or an end too early."""
    path, generator = tmp_path / "model.pt", random.Random(0)
    torch.save({"layer.weight": torch.ones(3, 3), "x": [1, "a"]}, path, _use_new_zipfile_serialization=of_zip)
    whole, refused = path.read_bytes(), 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(3):
            content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content[: generator.choice([len(content), generator.randrange(len(content))])])
        try:
            read_tensors(path)
        except ValueError as error:
            refused += 1
            assert "model.pt" in str(error) and "\n" not in str(error)
    assert refused > 75


def test_wrappers_prefixes_and_precisions(tmp_path):
    tensors = {"module.a": torch.ones(2).half(), "b": torch.tensor(3)}
    for name, content in {"plain": tensors, "wrapped": {"state_dict": tensors, "epoch": 7}}.items():
        torch.save(content, tmp_path / name)
        read = read_tensors(tmp_path / name)
        assert read.keys() == {"a", "b"} and read["a"].dtype == torch.float32 and read["b"].dtype == torch.int64
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(read_tensors(tmp_path / "model.safetensors")["a"], torch.ones(2))


def test_tags_of_yaml_are_data(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "a.yaml").write_text(
        f"a: !apply:os.system [touch {ran}]\nb: !new:os.mkdir\n  path: {ran}\nc: !ref <d>\nd: [1, !ref <e>]\ne: 2\n"
        "f: !ref <e>/<absent>\ng: !name:os.getcwd\nh: !ref <i>\ni: !ref <h>\n"
    )
    content = read_yaml(tmp_path / "a.yaml")
    assert content["a"] == Tagged("apply:os.system", [f"touch {ran}"])
    assert content["b"] == Tagged("new:os.mkdir", {"path": str(ran)})
    assert content["c"] == [1, 2] and content["f"] == "2/<absent>"
    assert content["h"] is not None, "a circle of references must end"
    assert not ran.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        ("a: [", "cannot be read as YAML"),
        ("- 1", "must contain a YAML mapping .* got a list"),
        ("", "must contain a YAML mapping .* got a NoneType"),
    ],
)
def test_other_yaml_is_refused(text, message, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_yaml(tmp_path / "a.yaml")


# --- which source
@pytest.mark.slow
def test_a_source_is_told_by_its_files(weights, tmp_path):
    for source in weights:
        path = write(source, tmp_path / source, weights[source])
        assert detect(path) == source
        inside = {"speechbrain": path / "embedding_model.ckpt", "wespeaker": path / "avg_model.pt"}.get(source, path)
        assert convert(inside).source == convert(path, source).source


def test_what_cannot_be_told_is_refused(tmp_path):
    refuses(
        "Source not found: .*absent. Only local files can be converted; download the checkpoint first",
        tmp_path / "absent",
    )
    refuses(
        "is not recognised. Expected a folder with hyperparams.yaml .* Name the project with --from speechbrain",
        tmp_path,
    )
    refuses(
        "The project of a checkpoint must be one of speechbrain, wespeaker, official, xvector, campplus, got 'kaldi'",
        tmp_path,
        "kaldi",
    )
    refuses("Expected a checkpoint file of the HAM-Softmax code, .* got the folder", tmp_path, "official")
    refuses("File not found: .*hyperparams.yaml. Use the complete model folder", tmp_path, "speechbrain")
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    refuses("a.pt is not recognised", tmp_path / "a.pt")
    refuses(r"does not contain an ECAPA-TDNN encoder .* found a\.", tmp_path / "a.pt", "official")
    HamSpkModel(tiny_config()).save_pretrained(tmp_path / "ours")
    refuses("is already a model of this package and needs no conversion", tmp_path / "ours")
    (tmp_path / "config.json").write_text("[]")
    refuses("must contain a JSON object, got a list", tmp_path)
    (tmp_path / "config.json").write_text("{")
    refuses("cannot be read as JSON", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "wavlm", "architectures": ["WavLMForXVector"]}))
    refuses("Expected one of model.safetensors, .* found none. Use the complete model folder", tmp_path)


def test_the_licence_is_what_the_readme_says(tmp_path, weights):
    folder = write_speechbrain(tmp_path / "model", weights["speechbrain"])
    assert stated_licence(folder) == stated_licence(folder / "embedding_model.ckpt") == "apache-2.0"
    for text in (
        "# No metadata\n",
        "---\ntags: [a]\n---\n",
        "---\nlicense: [a, b]\n---\n",
        "---\n: : [\n---\n",
        "\xff",
    ):
        (folder / "README.md").write_text(text, encoding="latin-1")
        assert stated_licence(folder) is None
    (folder / "README.md").unlink()
    assert stated_licence(folder) is None


# --- models that ours cannot be


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "ECAPA_TDNN.ECAPA_TDNN",
            "Xvector.Xvector",
            "embedding_model must be SpeechBrain's ECAPA_TDNN .* got 'new:speech",
        ),
        ("!new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA", "!new:mine.ECAPA", "embedding_model must be SpeechBrain's"),
        ("lobes.features.Fbank", "lobes.features.MFCC", "compute_features must be SpeechBrain's Fbank"),
        (
            "norm_type: sentence",
            "norm_type: global",
            "mean_var_norm has norm_type global. Only models with norm_type sent",
        ),
        (
            "n_mels: !ref <n_mels>",
            "n_mels: 80\n    f_min: 20",
            "compute_features has f_min 20. Only models with f_min 0 can",
        ),
        (
            "lin_neurons: 192",
            "activation: !name:torch.nn.ELU",
            "embedding_model has arguments that cannot be converted: activation",
        ),
        (
            "kernel_sizes: [5, 3,",
            "kernel_sizes: [7, 3,",
            r"kernel_sizes \[7, 3, 3, 3, 1\]. Only models with kernel_sizes",
        ),
        (
            "dilations: [1, 2, 3, 4, 1]",
            "dilations: [1]",
            "dilations of embedding_model must be a list of at least 3 integers",
        ),
        (
            "lin_neurons: 192",
            "lin_neurons: 100",
            r"The weights do not fit .* 2 of another shape \(projection.bias, projec",
        ),
        ("lin_neurons: 192", "lin_neurons: many", "cannot be converted: .*embedding_size.*many"),
    ],
)
def test_other_models_of_speechbrain_are_refused(old, new, message, weights, tmp_path):
    refuses(message, write("speechbrain", tmp_path / "model", weights["speechbrain"], **{old: new}))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "model: ECAPA_TDNN",
            "model: CAMPPlus",
            "describes the model CAMPPlus. Only the ECAPA_TDNN models and ResNet18, .*, ResNet293 of WeSpeaker can be",
        ),
        ("model: ECAPA_TDNN", "model: ECAPA_TDNN_GLOB_c512", r"The weights do not fit .* of another shape"),
        (
            'frontend: "fbank"',
            "frontend: s3prl",
            "dataset_args has frontend s3prl. Only models with frontend fbank can be",
        ),
        ("frame_shift: 10", "frame_shift: 5", "fbank_args has frame_shift 5. Only models with frame_shift 10 can be"),
        ("num_mel_bins: 80", "num_mel_bins: 40", "model_args has feat_dim 80. Only models with feat_dim 40 can be"),
        (
            'pooling_func: "ASTP"',
            "pooling_func: TSTP",
            "model_args has pooling_func TSTP. Only models with pooling_func A",
        ),
        (
            "data_type: shard",
            "dataset_args: 3",
            "cannot be read as YAML|dataset_args must contain 'key: value' lines, got 3",
        ),
        ("num_frms: 200", "cmvn: false", "dataset_args has cmvn False. Only models with cmvn True can be converted"),
    ],
)
def test_other_models_of_wespeaker_are_refused(old, new, message, weights, tmp_path):
    if old == "data_type: shard":
        folder = write("wespeaker", tmp_path / "model", weights["wespeaker"])
        (folder / "config.yaml").write_text("model: ECAPA_TDNN\ndataset_args: 3\n")
    else:
        folder = write("wespeaker", tmp_path / "model", weights["wespeaker"], **{old: new})
    refuses(message, folder)


@pytest.mark.parametrize("name", ["layer1.conv2.weight", "blocks.0.tdnn1.conv.conv.weight", "blocks.1.shortcut.weight"])
def test_an_unknown_weight_is_named(name):
    for function in (convert_wespeaker_state_dict, lambda weights: convert_speechbrain_state_dict(weights, 8)):
        with pytest.raises(ValueError, match=rf"'{re.escape(name)}' is not a weight of (SpeechBrain|WeSpeaker)'s"):
            function({name: torch.zeros(1)})


@pytest.mark.parametrize("source", ["speechbrain", "wespeaker", "official"])
def test_a_missing_weight_is_named(source, weights, tmp_path):
    name = next(name for name in weights[source] if name.startswith(("fc", "linear")) and name.endswith("bias"))
    some = {n: t for n, t in weights[source].items() if n != name}
    refuses(
        r"1 missing \(projection.bias\). The weights are named as in the converted model",
        write(source, tmp_path / "m", some),
    )


def test_half_an_encoder_of_the_released_code_is_refused(weights, tmp_path):
    some = {n: t for n, t in weights["official"].items() if not n.startswith("attention")}
    refuses(
        "is not a complete encoder of the HAM-Softmax code: 'attention.0.weight' is missing",
        write("official", tmp_path / "m", some),
    )


@pytest.mark.parametrize("source", ["speechbrain", "wespeaker"])
def test_the_configuration_alone_tells_the_model(source, weights, tmp_path):
    """What was converted is what the configuration says, and nothing but."""
    config = convert(write(source, tmp_path / "model", weights[source])).model.config
    for name, value in fields_of(source).items():
        assert getattr(config, name) == value, name
    wave = noises(0.5)[0][None]
    with torch.no_grad():
        assert HamSpkModel(config).eval()(wave).embeddings.shape == (1, 192)
