"""Are two recordings of the same speaker? Needs torch, transformers and soundfile, not this package.

Usage:
    python examples/verify.py MODEL enrolment.wav [enrolment2.wav ...] test.wav

MODEL is a folder or a name on the Hub. Its code travels with it: trust_remote_code=True runs it.
"""

import os
import sys

import soundfile
from transformers import AutoModel


def main() -> None:
    if len(sys.argv) < 4:
        sys.exit("usage: python examples/verify.py MODEL enrolment.wav [enrolment2.wav ...] test.wav")
    name, *files = sys.argv[1:]

    # 1. The model, with the calibration that lies beside its weights
    try:
        model = AutoModel.from_pretrained(name, trust_remote_code=True)
    except OSError as error:
        sys.exit(f"There is no model {name}, neither a folder here nor on the Hub: {str(error).splitlines()[0]}")

    # 2. The recordings, mono, at the model's sampling rate
    waveforms = []
    for file in files:
        if not os.path.isfile(file):
            sys.exit(f"There is no file {file}.")
        try:
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            sys.exit(f"{file} cannot be read: {error}")
        if rate != model.config.sampling_rate:
            sys.exit(f"{file} has {rate} Hz, the model works at {model.config.sampling_rate} Hz: resample it first.")
        waveforms.append(samples.mean(axis=1))

    # 3. The answer; recordings with too little speech get no decision
    *enrolment, test = waveforms
    try:
        answer = model.verifier().verify(enrolment, test, model.config.sampling_rate)
    except ValueError as error:
        sys.exit(str(error))
    if answer.score is not None:
        print(f"score {answer.score:.4f} ({model.config.similarity})")
    if answer.log_likelihood_ratio is not None:
        print(f"log-likelihood ratio {answer.log_likelihood_ratio:.2f}, threshold {answer.threshold:.2f}")
    if answer.decision is None:
        print("no decision: the model is not calibrated; `hamspk calibrate` calibrates it with your own pairs")
    else:
        print(answer.decision)
    for warning in answer.warnings:
        print(f"warning: {warning}")


if __name__ == "__main__":
    main()
