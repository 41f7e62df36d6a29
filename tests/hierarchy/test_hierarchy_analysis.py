"""The measurement of a hierarchy on simulated embeddings with known truth, and its report."""

import json

import numpy as np
import pytest

from hf_hamspk import HamSpkConfig
from hf_hamspk.geometry_hamspk import released_radius
from hf_hamspk.hierarchy.analysis import (
    CENTRES,
    EMBEDDINGS,
    MEANS,
    HierarchySettings,
    analyse,
    label_classes,
    measure_shape,
)
from hf_hamspk.hierarchy.points import Points, Space, matched_directions, space_of, uniform_directions
from hf_hamspk.hierarchy.recordings import EmbeddedRecordings, LabelledTable, read_labelled_table
from hf_hamspk.hierarchy.report import write_hierarchy_report

SPEAKERS, UTTERANCES, SIZE = 48, 3, 16
QUICK = {"permutations": 99, "draws": 19}
BALL = Space("released", 3.0)


def simulated(planted=1.5, seed=0, radius=None, counts=None):
    """Speakers in two genders and three corpora, whose means are `planted` times as far apart as the speakers."""
    draw = np.random.default_rng(seed)
    gender, corpus = np.arange(SPEAKERS) % 2, np.arange(SPEAKERS) % 3
    means = planted * (draw.standard_normal((2, SIZE))[gender] + draw.standard_normal((3, SIZE))[corpus])
    means = means + draw.standard_normal((SPEAKERS, SIZE))
    names = [f"s{i:02d}" for i in range(SPEAKERS) for _ in range(UTTERANCES)]
    own = np.repeat(np.arange(SPEAKERS), UTTERANCES)
    embeddings = 5 * (means[own] + 0.5 * draw.standard_normal((len(own), SIZE)))
    labels = {
        "gender": ["fm"[gender[i]] for i in own],
        "corpus": ["abc"[corpus[i]] for i in own],
        "age": ["" if i == 0 else str(20 + i // 2) for i in own],
        "session": [str(place % UTTERANCES) for place in range(len(own))],
    }
    repetitions = np.ones(SPEAKERS, int) if counts is None else counts(corpus, draw)
    table = LabelledTable(
        [f"{i}.wav" for i in range(len(own))], names, labels, np.repeat(repetitions, UTTERANCES).tolist()
    )
    found = EmbeddedRecordings(table, embeddings, draw.uniform(1, 4, len(own)), draw.uniform(10, 30, len(own)), {})
    length = draw.uniform(0.2, 0.5, SPEAKERS) if radius is None else radius(repetitions, corpus, draw)
    directions = means / np.linalg.norm(means, axis=1, keepdims=True)
    return found, {f"s{i:02d}": length[i] * directions[i] for i in range(SPEAKERS)}


def relations(measured, points=CENTRES):
    return {(row["what"], row["within"]): row for row in measured.record["radius_relations"] if row["points"] == points}


@pytest.fixture(scope="module")
def planted():
    """A measured hierarchy with all parts."""
    found, centres = simulated()
    settings = HierarchySettings(("gender", "corpus", "age", "session"), "corpus", **QUICK)
    return analyse(found, centres, BALL, settings)


def test_a_planted_hierarchy_is_purer_than_permuted_labels(planted):
    trees = {(row["points"], row["label"], row["within"]): row for row in planted.record["trees"]}
    for points in (CENTRES, MEANS):
        for label, within in (("gender", "corpus"), ("corpus", None)):
            row = trees[points, label, within]
            assert row["purity"]["value"] > row["purity"]["null"] + 0.1 and row["purity"]["p"] == 0.01
            assert row["agreement"]["value"] > 0.1 and row["agreement"]["p"] == 0.01
        assert trees[points, "age", None]["count"] == SPEAKERS - 1
        assert (points, "corpus", "corpus") not in trees
    assert trees[EMBEDDINGS, "speaker", None]["purity"]["value"] > 0.95
    assert trees[EMBEDDINGS, "session", "speaker"]["purity"]["p"] > 0.05


def test_no_hierarchy_gives_no_small_p_values():
    settings = HierarchySettings(("gender", "corpus"), None, permutations=99, draws=0)
    p_values = []
    for seed in range(2):
        found, centres = simulated(planted=0.0, seed=seed)
        record = analyse(found, centres, BALL, settings).record
        p_values += [row["purity"]["p"] for row in record["trees"] if row["label"] != "speaker"]
        p_values += [row["p"] for row in record["radius_relations"]]
    assert len(p_values) == 20 and np.mean(np.array(p_values) <= 0.05) < 0.2


def test_radii_of_clipped_embeddings_are_constant_and_have_no_relations(planted):
    assert planted.record["radii"][EMBEDDINGS]["relative_spread"] < 1e-9
    assert planted.record["radii"][CENTRES]["high"] < 2 * np.arctanh(released_radius(3.0))
    assert not relations(planted, EMBEDDINGS) and not relations(planted, MEANS)


@pytest.mark.slow
def test_what_the_tables_leave_out_is_stated(planted, tmp_path):
    left_out = planted.record["left_out"]
    assert f"{UTTERANCES} of {SPEAKERS * UTTERANCES} recordings, which have no value in the column age" in left_out
    assert "relations of radii with session, because its values vary within a speaker" in left_out
    equal = "relations of the radii of {}, because these radii are all equal"
    assert [equal.format(points) in left_out for points in (CENTRES, MEANS)] == [
        False,
        True,
    ]
    found, centres = simulated()
    found.table.labels["room"] = ["x" if row < 3 else "" for row in range(len(found.embeddings))]
    measured = analyse(found, centres, BALL, HierarchySettings(("room",), permutations=19, draws=0))
    text, _ = write_hierarchy_report(measured, tmp_path / "report")
    few = "there are too few known values, or all values are equal, or no value occurs twice."
    assert f"Left out: relations of the radii of {CENTRES} with room, utterances: {few}" in text
    assert f"Left out: dendrograms of {MEANS} and room: {few}" in text
    assert "The shape of the distances was not measured, because the number of draws is 0." in text


def test_a_radius_that_follows_the_number_of_utterances_is_found_within_corpora():
    found, centres = simulated(
        counts=lambda corpus, draw: draw.integers(1, 9, SPEAKERS),
        radius=lambda counts, corpus, draw: 0.2 + 0.03 * counts + draw.uniform(0, 0.02, SPEAKERS),
    )
    rows = relations(analyse(found, centres, BALL, HierarchySettings(("corpus",), "corpus", permutations=99, draws=0)))
    for within in (None, "corpus"):
        row = rows["utterances", within]
        assert row["value"] > 0.8 and row["p"] == 0.01 and row["holm"] <= 0.2


def test_a_radius_that_follows_the_corpus_only_is_not_mistaken_for_one_that_follows_the_number():
    """The numbers of utterances differ between the corpora, as the radii do. Within corpora nothing is left."""
    found, centres = simulated(
        counts=lambda corpus, draw: 1 + 5 * corpus + draw.integers(0, 3, SPEAKERS),
        radius=lambda counts, corpus, draw: 0.2 + 0.1 * corpus + draw.uniform(0, 0.05, SPEAKERS),
    )
    rows = relations(analyse(found, centres, BALL, HierarchySettings(("corpus",), "corpus", permutations=99, draws=0)))
    assert rows["utterances", None]["value"] > 0.7 and rows["utterances", None]["p"] == 0.01
    assert abs(rows["utterances", "corpus"]["value"]) < 0.3 and rows["utterances", "corpus"]["p"] > 0.05
    assert rows["corpus", None]["value"] > 0.7 and ("corpus", "corpus") not in rows


@pytest.mark.slow
def test_points_on_a_sphere_do_not_look_like_a_tree():
    draw = np.random.default_rng(0)
    settings = HierarchySettings(draws=19)
    found = measure_shape(Points(draw.standard_normal((40, 6)), BALL), settings, draw)
    p_values = [one[null]["p"] for one in found.values() for null in ("uniform", "matched")]
    assert sum(p <= 0.05 for p in p_values) <= 2 and np.mean(p_values) > 0.25
    tree = Points(np.kron(np.eye(4), np.ones((10, 4))) + 0.3 * draw.standard_normal((40, 16)), BALL)
    found = measure_shape(tree, settings, draw)
    assert found["cophenetic"]["matched"]["p"] == 0.05 and found["delta_mean"]["matched"]["p"] == 0.05


def test_null_points_have_the_same_radii_and_the_matched_ones_the_same_covariance():
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((40, 5)) * np.array([4, 2, 1, 0.2, 0.2])
    points = Points(vectors, BALL)
    for source in (uniform_directions(points), matched_directions(points)):
        drawn = source(draw)
        assert np.allclose(drawn.radii, points.radii) and not np.allclose(drawn.directions, points.directions)
    many = np.concatenate([matched_directions(points)(draw).directions for _ in range(50)])
    shares = [np.linalg.eigvalsh(np.cov(one.T))[::-1] for one in (many, points.directions)]
    assert abs(shares[0] / shares[0].sum() - shares[1] / shares[1].sum()).max() < 0.1


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"head": "ham"}, "released"),
        ({"head": "joint"}, "released"),
        ({"head": "h", "projection": "curved", "curvature": 1.0}, "curved"),
        ({"head": "am"}, "sphere"),
        ({"head": "softmax"}, "euclidean"),
    ],
)
def test_the_space_of_a_head(fields, name):
    assert space_of(HamSpkConfig(**fields)).name == name
    assert space_of(HamSpkConfig(**fields), "sphere").name == "sphere"


def test_distances_from_the_origin_are_the_radii():
    vectors = np.concatenate([np.zeros((1, 8)), np.random.default_rng(0).standard_normal((20, 8))])
    for space in (BALL, Space("free", 3.0), Space("curved", 2.0, 1.0), Space("euclidean")):
        points = Points(vectors, space)
        assert np.allclose(points.distances()[0], points.radii, atol=1e-6)
        assert (np.linalg.norm(space.positions(vectors), axis=1) <= 1 + 1e-12).all()


def test_labels_become_classes():
    assert label_classes(["b", "a", "", "b"])[0].tolist() == [1, 0, -1, 1]
    classes, names = label_classes([*map(str, range(40)), ""])
    assert classes[-1] == -1 and np.bincount(classes[:-1]).tolist() == [10] * 4
    assert names == ["0 to 9", "10 to 19", "20 to 29", "30 to 39"]


def test_rows_of_a_table_are_counted_and_must_agree(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("path,speaker_id,gender\na.wav,s,f\nb.wav,s,f\na.wav,s,f\n")
    found = read_labelled_table(path, ["gender"])
    assert (found.names, found.repetitions, found.labels) == (["a.wav", "b.wav"], [2, 1], {"gender": ["f", "f"]})
    with pytest.raises(ValueError, match="has no column 'age'"):
        read_labelled_table(path, ["age"])
    path.write_text("path,speaker_id,gender,age\na.wav,s,f,\nb.wav,s,f, \n")
    with pytest.raises(ValueError, match="the column 'age' has no values"):
        read_labelled_table(path, ["gender", "age"])
    path.write_text("path,speaker_id,gender\na.wav,s,f\na.wav,s,m\n")
    with pytest.raises(ValueError, match=r"line 3: an earlier line gives a\.wav another speaker"):
        read_labelled_table(path, ["gender"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"within": "corpus"}, "within must be one of"),
        ({"permutations": 5}, "permutations must be at least 19"),
        ({"draws": 1}, "draws must be at least 19, so that p can reach 0.05, or 0 to leave the shape out, got 1"),
    ],
)
def test_invalid_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        HierarchySettings(**fields)


def test_few_speakers_are_refused():
    found, centres = simulated()
    few = LabelledTable(*(values[:6] for values in (found.table.names, found.table.speakers)), {}, [1] * 6)
    small = EmbeddedRecordings(few, found.embeddings[:6], found.seconds[:6], found.snr[:6], {})
    with pytest.raises(ValueError, match="at least 4 speakers"):
        analyse(small, centres, BALL, HierarchySettings(**QUICK))


def test_speakers_cannot_be_compared_within_a_label_that_varies_within_speakers():
    found, centres = simulated()
    with pytest.raises(ValueError, match="Expected one value of the column 'session' for each speaker, but s00 has"):
        analyse(found, centres, BALL, HierarchySettings(("session",), "session", **QUICK))


@pytest.mark.slow
def test_the_report_has_all_numbers_and_pictures_and_replaces_only_itself(planted, tmp_path):
    for _ in range(2):
        text, files = write_hierarchy_report(planted, tmp_path / "new")
    assert [path.name for path in files] == ["hierarchy.json", "hierarchy.txt", "hierarchy.html"]
    assert json.loads(files[0].read_text()) == planted.record
    assert files[1].read_text().strip() == text.strip()
    for title in ("Radii", "Shape of the distances", "Dendrograms and labels", "2 delta / diameter", "matched"):
        assert title in text
    pictures = {path.name: path.stat().st_size for path in (tmp_path / "new" / "plots").iterdir()}
    assert set(pictures) == {"disk.png", "radii.png", "relations.png", "dendrogram.png"}
    assert min(pictures.values()) > 5000 and files[2].read_text().count("data:image/png") == 4
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "hierarchy.txt").write_text("my notes")
    with pytest.raises(ValueError, match=r"hierarchy\.txt already exists and is not the report"):
        write_hierarchy_report(planted, tmp_path / "theirs")


@pytest.mark.slow
def test_without_centres_the_means_of_the_speakers_are_measured(tmp_path):
    found, _ = simulated()
    measured = analyse(found, {}, Space("sphere"), HierarchySettings(("gender",), permutations=99, draws=0))
    assert set(measured.sets) == {MEANS, EMBEDDINGS} and relations(measured, EMBEDDINGS)
    text, _ = write_hierarchy_report(measured, tmp_path)
    assert "no centres are measured" in text
