"""Are two recordings of the same speaker? Needs torch, transformers and soundfile, not this package.

Usage:
    python examples/verify.py MODEL first.wav second.wav

MODEL is a folder or a name on the Hub. Its code travels with it: trust_remote_code=True runs it.
"""

import sys

import soundfile
from transformers import AutoModel


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit("usage: python examples/verify.py MODEL first.wav second.wav")
    name, *files = sys.argv[1:]

    # 1. The model
    model = AutoModel.from_pretrained(name, trust_remote_code=True)

    # 2. Two recordings, mono, at the model's sampling rate
    waveforms = []
    for file in files:
        try:
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            sys.exit(f"{file} cannot be read: {error}")
        if rate != model.config.sampling_rate:
            sys.exit(f"{file} has {rate} Hz, the model works at {model.config.sampling_rate} Hz: resample it first.")
        waveforms.append(samples.mean(axis=1))

    # 3. Their embeddings; silence, NaN and crumbs of audio are refused
    try:
        first, second = model.embed(waveforms, model.config.sampling_rate)
    except ValueError as error:
        sys.exit(str(error))

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
