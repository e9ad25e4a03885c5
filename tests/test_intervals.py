"""Intervals: closed forms, what must hold of any, and how often they cover what they say (slow)."""

import math

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy import stats

from msrnn_bench.results import intervals
from msrnn_bench.results.reading import read_cells
from msrnn_bench.results.summary import summarise


def sums(totals, counts=1.0):
    totals = np.asarray(totals, "float64")
    return np.stack([totals, np.broadcast_to(np.asarray(counts, "float64"), totals.shape)], axis=-1)


def test_alike_documents_give_students_interval():
    x = np.random.default_rng(0).normal(3, 0.4, size=9)
    low, high, method = intervals.interval("f1", sums(x))
    wanted = stats.t.interval(0.95, len(x) - 1, x.mean(), stats.sem(x))
    assert (low, high) == pytest.approx(wanted) and method == "jackknife-t"
    low, high, _ = intervals.interval("nll", sums(64 * x, 64))
    assert (math.log(low), math.log(high)) == pytest.approx(wanted)


def test_a_difference_of_means_is_the_paired_t_interval():
    draw = np.random.default_rng(1)
    a = draw.normal(3, 0.4, size=8)
    b = a + draw.normal(0.2, 0.05, size=8)
    low, high, _ = intervals.difference("f1", sums(b), sums(a))
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 7, (b - a).mean(), stats.sem(b - a)))
    alone = intervals.interval("f1", sums(b))
    assert high - low < (alone.high - alone.low) / 3, "pairing takes out what the documents share"


def test_one_document_has_no_interval():
    for metric in ("nll", "f1", "accuracy", "rouge"):
        one = np.ones((1, 6 if metric == "rouge" else 2))
        assert intervals.interval(metric, one) is None and intervals.difference(metric, one, one) is None


def test_a_document_that_weighs_all_leaves_no_certainty():
    alike, unlike = (intervals.interval("f1", sums(np.array([1.0, 2.0, 3.0]) * c, c)) for c in ([9, 9, 9], [98, 1, 1]))
    assert unlike.high - unlike.low > alike.high - alike.low


@pytest.mark.parametrize("right", [0, 1, 3, 5])
def test_a_share_is_never_of_no_width(right):
    """Five texts of five questions each, all of a text right or none."""
    ours = sums([5.0] * right + [0.0] * (5 - right), 5)
    low, high, method = intervals.interval("accuracy", ours)
    posterior = stats.beta(right + 0.5, 5 - right + 0.5)
    assert low == (0 if right == 0 else pytest.approx(posterior.ppf(0.025)))
    assert high == (1 if right == 5 else pytest.approx(posterior.ppf(0.975)))
    assert high - low > 0.3 and method == "Jeffreys"
    gap = intervals.difference("accuracy", ours, sums([5.0] * 5, 5))
    assert gap.high - gap.low > 0.3 and gap.method == "Newcombe" and gap.low <= right / 5 - 1 <= gap.high


def test_texts_count_and_not_the_questions_on_them():
    few = intervals.interval("accuracy", sums([4.0, 5.0, 3.0, 5.0], 5))
    many = intervals.interval("accuracy", sums([0.8, 1.0, 0.6, 1.0], 1))
    assert few == many


def test_lm_evals_filters_are_no_other_metric():
    assert intervals.is_share("exact_match,strict-match") and intervals.is_share("acc") and not intervals.is_share("f1")


def test_rouge_is_the_geometric_mean_of_the_three_means():
    draw = np.random.default_rng(2)
    scores = draw.uniform(1, 40, size=(25, 3))
    three = np.stack([scores, np.ones_like(scores)], axis=-1).reshape(25, 6)
    assert intervals.value("rouge", three.sum(0)) == pytest.approx(stats.gmean(scores.mean(0)))
    low, high, _ = intervals.interval("rouge", three)
    assert low < stats.gmean(scores.mean(0)) < high
    same = intervals.difference("rouge", three, three)
    assert same.low == same.high == 0


def test_committed_rouge_is_scrolls_own():
    """Of the full model's answers: 5.10, where the mean of the answers' geometric means is 4.91."""
    rows, _ = read_cells(ROOT / "results/squality")
    summary = summarise(rows, []).set_index(["policy", "cache", "prefill", "metric"])["value"]
    found = summary.xs("full", level="policy").droplevel(["cache", "prefill"])
    assert found["rouge"] == pytest.approx(5.0965, abs=1e-4)
    assert found["rouge"] == pytest.approx((found["rouge1"] * found["rouge2"] * found["rougeL"]) ** (1 / 3))
    assert found["rouge_per_answer"] == pytest.approx(4.9054, abs=1e-4)
    assert summary["tova", 256, "stepwise", "rouge"] == pytest.approx(6.72, abs=0.005)


def test_rouge_pairs_by_document():
    """The summary's difference is the geometric means' own, over the same stories."""
    rows, _ = read_cells(ROOT / "results/squality")
    lines = summarise(rows, [])
    tova = lines[(lines["policy"] == "tova") & (lines["cache"] == 256) & (lines["metric"] == "rouge")].iloc[0]
    assert tova["difference"] == pytest.approx(tova["value"] - 5.0965, abs=1e-3)
    assert tova["difference_low"] < tova["difference"] < tova["difference_high"]
    assert tova["documents"] == 25 and tova["difference_interval"] == "jackknife-t"


# --- how often they cover: 2,000 seeded trials each

TRIALS = 2_000
SIZES = [4, 5, 8, 25, 100]
LOSSES = {"normal": lambda z: 3 + 0.3 * z, "skewed": lambda z: 2.5 - 0.5 * np.log(stats.norm.sf(z))}  # normal; exponential


def losses(n: int, shape: str, draw: np.random.Generator):
    """Two policies' per-document losses, correlated 0.9, over documents of unequal token counts; and their true means."""
    z = draw.standard_normal(n)
    other = 0.9 * z + math.sqrt(1 - 0.9**2) * draw.standard_normal(n)
    counts = draw.integers(200, 4000, size=n)
    make = LOSSES[shape]
    return sums(make(z) * counts, counts), sums((make(other) - 0.05) * counts, counts), (3.0, 2.95)


@pytest.mark.slow
@pytest.mark.parametrize("shape", list(LOSSES))
@pytest.mark.parametrize("n", SIZES)
def test_coverage_of_perplexities_and_paired_differences(n, shape, capsys):
    draw = np.random.default_rng(7)
    hits = {"mean": 0, "perplexity": 0, "difference": 0}
    for _ in range(TRIALS):
        ours, theirs, (mu, nu) = losses(n, shape, draw)
        found = {
            "mean": (intervals.interval("kl", ours), mu),
            "perplexity": (intervals.interval("nll", ours), math.exp(mu)),
            "difference": (intervals.difference("nll", ours, theirs), math.exp(mu) - math.exp(nu)),
        }
        for name, (interval, truth) in found.items():
            hits[name] += interval.low <= truth <= interval.high
    cover = {name: hit / TRIALS for name, hit in hits.items()}
    with capsys.disabled():
        print(f"\n{shape} n={n}: " + ", ".join(f"{name} {share:.3f}" for name, share in cover.items()))
    if shape == "normal":
        assert all(0.93 <= share <= 0.97 for share in cover.values()), cover
    elif n >= 8:
        assert all(share >= 0.88 for share in cover.values()), cover


@pytest.mark.slow
@pytest.mark.parametrize("within", [0.3, 0.7])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("n", SIZES)
def test_coverage_of_shares(n, share, within, capsys):
    """Clusters of five answers on a text, correlated `within` it (beta-binomial); and the difference to a worse policy."""
    draw = np.random.default_rng(11)
    hits = {"share": 0, "difference": 0}
    strength = (1 - within) / within
    worse = share - 0.2
    for _ in range(TRIALS):
        z = draw.standard_normal(n)
        other = 0.9 * z + math.sqrt(1 - 0.9**2) * draw.standard_normal(n)
        answers = [
            sums(draw.binomial(5, stats.beta.ppf(stats.norm.cdf(u), p * strength, (1 - p) * strength)), 5)
            for u, p in ((z, share), (other, worse))
        ]
        found = intervals.interval("accuracy", answers[0])
        gap = intervals.difference("accuracy", answers[1], answers[0])
        hits["share"] += found.low <= share <= found.high
        hits["difference"] += gap.low <= worse - share <= gap.high
    cover = {name: hit / TRIALS for name, hit in hits.items()}
    with capsys.disabled():
        print(f"\nshare {share} n={n} within {within}: " + ", ".join(f"{k} {v:.3f}" for k, v in cover.items()))
    assert all(value >= 0.93 for value in cover.values()), cover


def test_every_line_says_how_its_interval_was_made():
    for folder in ("novels", "retrieval", "stories_smollm2"):
        lines = summarise(read_cells(ROOT / "results" / folder).rows, [])
        assert lines["interval"].notna().equals(lines["low"].notna())
        assert set(lines["interval"].dropna()) <= {"jackknife-t", "Jeffreys"}
        assert pd.isna(lines.loc[lines["policy"] == "full", "difference_interval"]).all()
