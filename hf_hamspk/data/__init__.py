"""Training and evaluation data: audio files, corpora, crops, augmentation and synthetic speech."""

from .audio import import_torchaudio, read_utterance
from .augmentation import Augmentation
from .collator import SpeakerCollator
from .corpus import BadFile, CorpusReport, check_corpus, load_corpus, speaker_labels
from .crops import even_segments, random_crop
from .dataset import SpeakerCrops, collate
from .sampling import GlobalBatchSampler
from .synthetic import make_corpus, make_speech

__all__ = [
    "Augmentation",
    "BadFile",
    "CorpusReport",
    "GlobalBatchSampler",
    "SpeakerCollator",
    "SpeakerCrops",
    "check_corpus",
    "collate",
    "even_segments",
    "import_torchaudio",
    "load_corpus",
    "make_corpus",
    "make_speech",
    "random_crop",
    "read_utterance",
    "speaker_labels",
]
