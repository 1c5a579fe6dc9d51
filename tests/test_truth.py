"""The whole way at scale `ci`: does a study find what was planted, and does removing what hurts help?"""

import pytest

import dtl

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(kept):
    models = dtl.book.SIZES["ci"][0]
    return dtl.Study(dtl.load("testbed", seed=0), store=kept("testbed")).run(models, progress=False)


def test_the_planted_truth_is_found(study):
    scores = dtl.testbed.score(study.influence(), study.problem)
    assert min(scores.values()) >= 0.95, scores


def test_influences_on_classes_are_reliable(study):
    reliability = study.influence(by="class").reliability
    assert reliability.min() >= 0.9, reliability


def test_removing_what_hurts_helps_and_what_helps_hurts(study):
    influence = study.influence(by="class")
    curve = dtl.removal_curve(study, influence, [3, 6, 9], ("negative", "positive"), seeds=10, progress=False)
    chosen = dtl.removal.select(curve, "negative")
    assert chosen.count > 0 and chosen.gain > 2 * chosen.stderr > 0, chosen
    full, removed = (curve.test.sel(order="positive", count=k).values for k in (0, chosen.count))
    error = ((full.var(ddof=1) + removed.var(ddof=1)) / len(full)) ** 0.5
    assert removed.mean() < full.mean() - 2 * error, (full, removed)
