"""Simulated studies with known truth: how often the report's statistics find a difference that is, or is not, there.

    python tests/study/simulated_studies.py --studies 1000

A study has six comparisons of eight heads. The error of a run is the mean of the costs of its speakers, so that draws
of the speakers can be computed by one matrix product. A cost is 1, and to it are added a part of the speaker that all
heads share, a part of the speaker with this head, a part of the run, and a part of the speaker in this run. With an
effect, the costs of the first head of the first comparison are lower by this share.
"""

import argparse
import time

import numpy as np

from hf_hamspk.evaluation.intervals import draw_speakers
from hf_hamspk.study.statistics import compare_heads, holm

PAIRS = ((0, 1), (2, 3), (0, 4), (0, 5), (2, 6), (7, 0))
HEADS, SPEAKERS, REPLICATES = 8, 78, 999
# Standard deviations. The first gives an error of a list of 78 speakers a deviation of 15 %, as on the list test-o.
SPEAKER, SPEAKER_OF_HEAD, RUN, SPEAKER_OF_RUN = 1.3, 0.25, 0.03, 0.4


def study_p_values(seed, seeds, effect=0.0, pairs=PAIRS):
    """Corrected p-values of the comparisons of one simulated study, and the plain ones."""
    draw = np.random.default_rng(seed)
    draws = np.concatenate([np.ones((1, SPEAKERS)), draw_speakers(SPEAKERS, REPLICATES, seed)])
    shared, errors = SPEAKER * draw.normal(size=SPEAKERS), {}
    for head in range(HEADS):
        costs = 1 + shared + SPEAKER_OF_HEAD * draw.normal(size=SPEAKERS) + RUN * draw.normal(size=(seeds, 1))
        costs = costs + SPEAKER_OF_RUN * draw.normal(size=(seeds, SPEAKERS)) - effect * (head == 0)
        errors[head] = {"list": costs @ draws.T / SPEAKERS}
    found = [compare_heads(errors[a], errors[b], seed=seed).p_value for a, b in pairs]
    return holm(found), found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    arguments = parser.parse_args()
    for seeds, effect in ((3, 0.0), (5, 0.0), (10, 0.0), (5, 0.1), (10, 0.1), (10, 0.2)):
        began, family, single, first = time.time(), 0, 0, 0
        for study in range(arguments.studies):
            corrected, plain = study_p_values(study, seeds, effect)
            family += min(corrected) <= 0.05
            single += sum(p <= 0.05 for p in plain)
            first += corrected[0] <= 0.05
        print(
            f"{arguments.studies} studies, {seeds} seeds, effect {100 * effect:.0f} %: "
            f"{100 * family / arguments.studies:.1f} % with any corrected p <= 0.05, "
            f"{100 * single / arguments.studies / len(PAIRS):.1f} % of plain p <= 0.05, "
            f"{100 * first / arguments.studies:.1f} % with corrected p <= 0.05 for the first pair "
            f"({time.time() - began:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
