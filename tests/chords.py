"""A corpus of a few tonal voices."""

from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
SPEAKERS, UTTERANCES = 6, 4


def write_chords(root: Path) -> Path:
    """`train.csv`, `audio/`, `dev.txt`: each speaker a chord of its own in noise."""
    rows, trials = ["path,speaker_id"], []
    for speaker in range(SPEAKERS):
        draw = np.random.default_rng(speaker)
        chord = draw.uniform(150, 3000, 4)
        (root / "audio" / f"s{speaker}").mkdir(parents=True)
        for utterance in range(UTTERANCES):
            time = np.arange(int(draw.uniform(0.6, 1.2) * RATE)) / RATE
            wave = sum(np.sin(2 * np.pi * f * time + draw.uniform(0, 6)) for f in chord) + draw.normal(0, 1, len(time))
            soundfile.write(root / "audio" / f"s{speaker}" / f"{utterance}.flac", 0.05 * wave, RATE)
            rows.append(f"s{speaker}/{utterance}.flac,s{speaker}")
        trials.append(f"1 s{speaker}/0.flac s{speaker}/1.flac")
        trials.append(f"0 s{speaker}/0.flac s{(speaker + 1) % SPEAKERS}/1.flac")
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    (root / "dev.txt").write_text("\n".join(trials) + "\n")
    return root
