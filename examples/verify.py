"""Are two recordings of the same speaker? Needs transformers and soundfile, not this package.

Usage:
    python examples/verify.py MODEL first.wav second.wav

MODEL is a folder or a name on the Hub. Its code travels with it: trust_remote_code=True runs it.
"""

import sys

import soundfile
import torch
from transformers import AutoFeatureExtractor, AutoModel


def main() -> None:
    # 1. The model and its feature extractor
    name, *files = sys.argv[1:]
    model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
    extractor = AutoFeatureExtractor.from_pretrained(name)

    # 2. Two recordings, mono, at the model's sampling rate
    waveforms = []
    for file in files:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        if rate != extractor.sampling_rate:
            sys.exit(f"{file} has {rate} Hz, the model works at {extractor.sampling_rate} Hz: resample it first.")
        waveforms.append(samples.mean(axis=1))

    # 3. Their embeddings, padded together
    inputs = extractor(waveforms, sampling_rate=extractor.sampling_rate, padding=True, return_tensors="pt")
    with torch.inference_mode():
        first, second = model(**inputs).embeddings

    # 4. The score, and the decision if a threshold was measured in training
    score = model.score(first, second).item()
    print(f"score {score:.4f} ({model.config.similarity})")
    if model.config.threshold is None:
        print("no threshold in the configuration: measure one on trials of your own")
    else:
        same = score >= model.config.threshold
        print(f"{'same speaker' if same else 'different speakers'} (threshold {model.config.threshold:.4f})")


if __name__ == "__main__":
    main()
