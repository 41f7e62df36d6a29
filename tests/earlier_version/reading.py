"""What models, profiles and shards say: asked by `make.py` of version 0.1.0, and by the test of the present one."""

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch
import transformers

from hf_hamspk import HamSpkForXVector, HamSpkModel
from hf_hamspk.data.dataset import SpeakerCrops
from hf_hamspk.shards.reading import ShardReader
from hf_hamspk.shards.streaming import ShardUtterances, StreamedBatches

RATE = 16000
ENROLLED = {"ann": ("ann-1", "ann-2"), "ben": ("ben-1",)}
# Enrolment (a profile, or recordings), test, and operating point.
PAIRS = [
    ("ann", "ann-3", None),
    ("ann", "ben-2", None),
    ("ann", "ann-1", "strict"),
    ("ben", "ben-2", "screening"),
    ("ben", "cleo-1", None),
    ("ben", "short", None),
    (["ann-1", "ann-2"], "ann-3", "strict"),
    (["ben-1"], "ben-2", None),
    (["ben-1", "short"], "ann-3", "screening"),
]


def machine() -> str:
    """Where numbers are the same bit for bit: versions and processor."""
    processor = platform.processor()
    described = Path("/proc/cpuinfo")
    if described.is_file():
        pairs = [line.partition(":") for line in described.read_text().splitlines()]
        facts = {name.strip(): value.strip() for name, _, value in pairs}
        processor = " ".join(facts.get(name, "") for name in ("model name", "model", "stepping", "cache size"))
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, transformers {transformers.__version__}, {processor}, {capability}"


def read_recordings(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: sf.read(path, dtype="float32")[0] for path in sorted(folder.glob("*.flac"))}


def numbers(folder: Path, waves: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Embeddings of all recordings, and logits and loss of two."""
    head, model = HamSpkForXVector.from_pretrained(folder).eval(), HamSpkModel.from_pretrained(folder)
    batch = torch.tensor(np.stack([waves["ann-1"], waves["ben-1"]]))
    with torch.no_grad():
        output = head(batch, labels=torch.tensor([1, 3]))
    embeddings = model.embed(list(waves.values()), RATE)
    return {"embeddings": embeddings, "logits": output.logits, "loss": output.loss}


def enrol(model: HamSpkModel, waves: Mapping[str, np.ndarray], combine: str) -> dict[str, Any]:
    """A profile of each enrolled speaker."""
    verifier = model.verifier()
    return {name: verifier.enrol([waves[one] for one in own], RATE, combine, name) for name, own in ENROLLED.items()}


def answers(
    model: HamSpkModel, profiles: Mapping[str, Any], waves: Mapping[str, np.ndarray], combine: str
) -> dict[str, dict]:
    """Verifications and identifications, by what was asked."""
    verifier = model.verifier()
    said = {}
    for enrolment, test, point in PAIRS:
        given = profiles[enrolment] if isinstance(enrolment, str) else [waves[one] for one in enrolment]
        answer = verifier.verify(given, waves[test], RATE, point, combine=combine)
        said[f"verify {enrolment} {test} {point}"] = answer.to_dict()
    found = model.identifier(list(profiles.values())).identify(list(waves.values()), RATE)
    return said | {f"identify {one}": answer.to_dict() for one, answer in zip(waves, found, strict=True)}


def read_shards(folder: Path) -> dict[str, Any]:
    """The utterances in order, and the crops of a pass in order."""
    reader = ShardReader(folder)
    utterances = [
        [name, speaker, hashlib.sha256(group.audio(row)).hexdigest()]
        for group in map(reader.read, range(len(reader.group_sizes)))
        for row, (name, speaker) in enumerate(zip(group.names, group.speakers, strict=True))
    ]
    source = ShardUtterances(ShardReader(folder))
    crops = SpeakerCrops(source, {speaker: label for label, speaker in enumerate(source.speakers)}, 3200, 0)
    batches = [
        [batch["labels"].tolist(), hashlib.sha256(batch["input_values"].numpy().tobytes()).hexdigest()]
        for batch in StreamedBatches(crops, 4)
    ]
    return {"fingerprint": reader.fingerprint(), "utterances": utterances, "batches": batches}
