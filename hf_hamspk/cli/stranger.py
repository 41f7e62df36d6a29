"""What somebody without this package does with a model of it. `hamspk demo` runs this file in a fresh process.

    python -P stranger.py MODEL enrolment.flac test.flac [enrolment.flac test.flac ...]

Prints a JSON list with the score, the threshold and the decision of each pair. `-P` keeps Python from taking the files
beside this one for the packages of the same names.
"""

import json
import sys

import soundfile
import torch
from transformers import AutoFeatureExtractor, AutoModel

REFUSED = "hf_hamspk"


class Refuse:
    """A finder that plays a machine where this package is not installed."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> None:
        """Refuse the package, leave all else to the other finders."""
        if name.partition(".")[0] == REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r}: a stranger has not installed it", name=name)


def main() -> None:
    """Load the model with the code beside its weights, and decide pair after pair."""
    sys.meta_path.insert(0, Refuse)  # pyright: ignore[reportArgumentType]
    name, *files = sys.argv[1:]
    model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
    extractor = AutoFeatureExtractor.from_pretrained(name)
    answers = []
    for pair in zip(files[::2], files[1::2], strict=True):
        waveforms = [soundfile.read(file, dtype="float32")[0] for file in pair]
        inputs = extractor(waveforms, sampling_rate=extractor.sampling_rate, padding=True, return_tensors="pt")
        with torch.inference_mode():
            enrolment, test = model(**inputs).embeddings
        score, threshold = model.score(enrolment, test).item(), model.config.threshold
        decision = "same speaker" if score >= threshold else "different speakers"
        answers.append({"score": score, "threshold": threshold, "decision": decision})
    if REFUSED in sys.modules:
        sys.exit(f"{REFUSED} was imported after all")
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
