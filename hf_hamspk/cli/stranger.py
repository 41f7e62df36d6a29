"""Verify pairs of recordings with the code saved beside a model, without this package.

`hamspk demo` runs this file in a fresh process:

    python -P stranger.py MODEL enrolment.flac test.flac [enrolment.flac test.flac ...]

It prints a JSON list with the answer to each pair. `-P` keeps the folder of this file off the import path, because
some of its modules have the same names as other packages.
"""

import json
import sys

import soundfile
from transformers import AutoFeatureExtractor, AutoModel

REFUSED_PACKAGE = "hf_hamspk"


class Refuse:
    """Import hook that makes this package appear not to be installed."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> None:
        """Raise ModuleNotFoundError for this package, and return None for others, so that other finders import them."""
        if name.partition(".")[0] == REFUSED_PACKAGE:
            raise ModuleNotFoundError(f"No module named {name!r}: its import is blocked in this process", name=name)


def decide_pairs() -> None:
    """Load the model with the code saved beside its weights, and print the answer to each pair."""
    sys.meta_path.insert(0, Refuse)  # pyright: ignore[reportArgumentType]
    name, *files = sys.argv[1:]
    model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
    extractor = AutoFeatureExtractor.from_pretrained(name)
    verifier = model.verifier()
    answers = []
    for pair in zip(files[::2], files[1::2], strict=True):
        enrolment, test = (soundfile.read(file, dtype="float32")[0] for file in pair)
        answers.append(verifier.verify([enrolment], test, extractor.sampling_rate).to_dict())
    if REFUSED_PACKAGE in sys.modules:
        sys.exit(f"{REFUSED_PACKAGE} was imported, although its import is blocked in this process")
    print(json.dumps(answers))


if __name__ == "__main__":
    decide_pairs()
