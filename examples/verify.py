"""Decide whether recordings are of the same speaker, with torch, transformers and soundfile but without this package.

Usage:
    python examples/verify.py MODEL enrolment.wav [enrolment2.wav ...] test.wav

MODEL is a folder or a name on the Hub. trust_remote_code=True runs the code that is saved beside the weights.
"""

import os
import sys

from transformers import AutoModel


def main() -> None:
    if len(sys.argv) < 4:
        sys.exit("usage: python examples/verify.py MODEL enrolment.wav [enrolment2.wav ...] test.wav")
    name, *enrolment, test = sys.argv[1:]
    for file in (*enrolment, test):
        if not os.path.isfile(file):
            sys.exit(f"File not found: {file}.")

    # 1. Load the model, with the calibration beside its weights
    try:
        model = AutoModel.from_pretrained(name, trust_remote_code=True)
    except OSError as error:
        sys.exit(f"Model not found: {name} is neither a folder nor on the Hub ({str(error).splitlines()[0]})")

    # 2. Verify; the model reads and resamples the files, and recordings with too little speech get no score
    try:
        answer = model.verify(enrolment, test)
    except ValueError as error:
        sys.exit(str(error))

    # 3. Print the answer
    if answer.score is not None:
        print(f"score {answer.score:.4f} ({model.config.similarity})")
    if answer.log_likelihood_ratio is not None:
        print(f"log-likelihood ratio {answer.log_likelihood_ratio:.2f}, threshold {answer.threshold:.2f}")
    if answer.decision is None:
        print("no decision: the model is not calibrated; calibrate it with `hamspk calibrate`")
    else:
        print(answer.decision)
    for warning in answer.warnings:
        print(f"warning: {warning}")


if __name__ == "__main__":
    main()
