"""Files with which sentence-transformers loads a published model."""

import json
from collections.abc import Mapping
from pathlib import Path

MODULE_FILE = "sentence_transformers_module.py"
MODULES_FILE, SETTINGS_FILE = "modules.json", "config_sentence_transformers.json"
_MODULE = Path(__file__).with_name(MODULE_FILE)
_MODULE_CLASS = "RecordingEmbedder"
# Packages whose versions sentence-transformers checks before it loads the model.
_CHECKED_PACKAGES = ("transformers", "soundfile")


def sentence_transformers_files(versions: Mapping[str, str]) -> dict[str, Path | bytes]:
    """Return the files that sentence-transformers needs, by their names in the repository.

    `similarity` of the loaded model is the cosine, because sentence-transformers knows no hyperbolic distance.

    Args:
        versions: maps the names of the packages that this package requires to their versions, such as `>=5.18,<6`.
    """
    module = {"idx": 0, "name": "0", "path": "", "type": f"{Path(MODULE_FILE).stem}.{_MODULE_CLASS}"}
    settings = {
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "cosine",
        "prompts": {},
        "default_prompt_name": None,
        "requirements": {name: versions[name] for name in _CHECKED_PACKAGES if name in versions},
    }
    return {
        MODULE_FILE: _MODULE,
        MODULES_FILE: (json.dumps([module], indent=2) + "\n").encode(),
        SETTINGS_FILE: (json.dumps(settings, indent=2) + "\n").encode(),
    }
