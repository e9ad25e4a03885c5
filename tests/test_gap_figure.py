"""The figure `gap`, and the paper's numbers beside ours in any figure of the same axes."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_figures import PERPLEXITY, SIZES, caption, drawn, line, lines, marks, table, title

from msrnn_bench import figures
from msrnn_bench.cli.main import main
from msrnn_bench.errors import UsageError
from msrnn_bench.figures import _published, gap, style
from msrnn_bench.results import intervals
from msrnn_bench.results.summary import TIDY_TYPES

TOPLINE = 26.0


def rows(losses: dict[tuple[str, int | None], list[float]], **changes: Any) -> pd.DataFrame:
    """(policy, size) -> a document's loss each, of 100 tokens."""
    plain = {
        "task": "perplexity", "dataset": "pg19", "model": "m", "weights": "pretrained", "context": 4096, "seed": 0, "bos": True,
        "dtype": "float32", "engine": "scan", "prefill": "stepwise", "positions": "original", "bucket_start": 0,
        "bucket_end": 4096, "metric": "nll", "count": 100, "status": "ok", **changes,
    }  # fmt: skip
    made = [
        {
            **plain,
            "policy": policy,
            "cache": k,
            "cell": f"{policy}-{k}-{plain['task']}",
            "document": f"text {n}",
            "total": 100 * loss,
        }
        for (policy, k), found in losses.items()
        for n, loss in enumerate(found)
    ]
    return pd.DataFrame(made, columns=list(TIDY_TYPES)).astype(TIDY_TYPES)


FULL = [3.0, 3.2, 3.6]
GIVEN = {
    ("full", None): FULL, ("tova", 512): [loss + 0.04 + 0.01 * n for n, loss in enumerate(FULL)],
    ("tova", 1024): [loss + 0.001 for loss in FULL], ("h2o", 512): [loss - 0.002 for loss in FULL],
    ("h2o", 1024): [loss + 0.02 - 0.0233 * n for n, loss in enumerate(FULL)], ("tova", 4096): FULL, ("window", 4096): FULL,
}  # fmt: skip


def test_the_excess_is_percent_made_on_the_log_scale():
    found = gap.data(rows(GIVEN)).set_index(["policy", "cache"])
    tova = found.loc[("tova", 512)]
    assert tova["value"] == pytest.approx(100 * math.expm1(0.05)) and tova["topline"] == pytest.approx(math.exp(np.mean(FULL)))
    differences = np.array([0.04, 0.05, 0.06])  # of equal weight: the jackknife is Student's interval of their mean
    half = 4.302653 * differences.std(ddof=1) / math.sqrt(3)
    assert tova["low"] == pytest.approx(100 * math.expm1(0.05 - half), rel=1e-6)
    assert tova["high"] == pytest.approx(100 * math.expm1(0.05 + half), rel=1e-6)
    assert set(found.index) == {("tova", 512), ("tova", 1024), ("h2o", 512), ("h2o", 1024)}  # at k = T nothing is evicted


def test_both_axes_are_logarithmic_and_the_bound_is_a_band():
    figure = figures.draw("gap", rows(GIVEN), note="A note.")
    (ax,) = figure.axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log") and ax.get_ylabel() == "Excess over the topline (%)"
    top = 100 * 0.4 / math.exp(np.mean(FULL))
    (band,) = [patch for patch in ax.patches if patch.get_y() + patch.get_height() == pytest.approx(top)]
    assert band.get_width() == 1 and f"0.4 perplexity = {top:.2g}%" in [text.get_text() for text in ax.texts]
    said = caption(figure)
    assert f"here {top:.2g}% of {math.exp(np.mean(FULL)):.2f}; dotted: 5.6%, what it is of the paper's 7.16." in said
    assert "of the excess" in said and "A note." in said and "Excess" in ax.get_ylabel()
    assert [float(y) for y in drawn(figure)["TOVA"].get_ydata()] == pytest.approx([100 * math.expm1(x) for x in (0.05, 0.001)])


def test_what_is_at_or_below_zero_is_marked_and_named():
    figure = figures.draw("gap", rows(GIVEN))
    below = [artist for artist in figure.axes[0].lines if artist.get_label() == "_zero"]
    assert [list(artist.get_xdata()) for artist in below] == [[512], [1024]]
    assert all(artist.get_ydata()[0] == figure.axes[0].get_ylim()[0] for artist in below)
    said = caption(figure)
    wanted = "▼: 2 of 4 values are at or below zero and not on a logarithmic axis (H2O at 512 (-0.2%); H2O at 1,024 (-0.33%))."
    assert wanted in said
    fine = figures.draw("gap", rows({at: GIVEN[at] for at in (("full", None), ("tova", 512))}))
    assert "▼" not in caption(fine) and not [a for a in fine.axes[0].lines if a.get_label() == "_zero"]


def test_a_band_around_zero_ends_at_the_edge():
    wide = {("full", None): FULL, ("tova", 512): [3.05, 3.19, 3.6]}
    figure = figures.draw("gap", rows(wide))
    assert gap.data(rows(wide))["low"].iloc[0] < 0 and "A band that reaches the lower edge has zero in it." in caption(figure)
    assert "lower edge" not in caption(figures.draw("gap", rows({at: GIVEN[at] for at in (("full", None), ("tova", 512))})))


def test_the_pair_is_of_the_same_tokens_and_what_has_no_topline_is_said():
    other = rows({("tova", 256): [3.1, 3.3]}, dtype="bfloat16", count=7)
    found = gap.data(pd.concat([rows(GIVEN), other]))
    assert found["excess"].isna().sum() == 1
    assert "1 cell has no topline on the same tokens and is not drawn." in caption(
        figures.draw("gap", pd.concat([rows(GIVEN), other]))
    )
    more = rows({("full", None): [*FULL, 9.0]}).assign(cell="more")
    assert gap.data(pd.concat([rows(GIVEN), more]))["value"].tolist() == pytest.approx(gap.data(rows(GIVEN))["value"].tolist())
    longer = rows({("full", None): FULL}, count=200)
    with pytest.raises(UsageError, match="policy=full,tova"):
        gap.data(pd.concat([rows({("tova", 512): FULL}), longer]))
    with pytest.raises(UsageError, match=r"lacks .*document"):
        gap.data(table(lines()))


def test_the_loss_that_retention_keeps_stands_where_perplexity_was_not_measured():
    again = rows({("tova", 512): [9.0] * 3, ("tova", 256): [4.0] * 3}, task="retention")
    found = gap.data(pd.concat([rows(GIVEN), again])).set_index(["policy", "cache"])["value"]
    assert found[("tova", 512)] == pytest.approx(100 * math.expm1(0.05)) and found[("tova", 256)] > 50
    assert len(figures.draw("gap", pd.concat([rows(GIVEN), again])).axes) == 1


def test_the_papers_excess_stands_beside_any_model_of_its_length():
    figure = figures.draw("gap", rows(GIVEN), published=True)
    dotted = {artist.get_color(): artist for artist in figure.axes[0].lines if artist.get_label() == "_paper"}
    assert set(dotted) == {style.LOOKS[name].color for name in ("tova", "h2o")}
    values = dict(zip(*dotted[style.LOOKS["tova"].color].get_data(), strict=True))
    assert values[512] == pytest.approx(100 * 0.25 / 7.16) and list(values) == SIZES[:-1]
    assert "The paper's LLaMA-2-7B" in [text.get_text() for text in figure.legends[0].get_texts()]
    short = figures.draw("gap", rows(GIVEN, context=8192), published=True)
    assert not [a for a in short.axes[0].lines if a.get_label() == "_paper"]
    assert "The paper's numbers are of T = 4,096 and are not shown beside another." in caption(short)


def test_committed_results_are_drawn():
    tidy = pd.read_csv(ROOT / "results/stories260k/tidy.csv").reindex(columns=list(TIDY_TYPES)).astype(TIDY_TYPES)
    figure = figures.draw("gap", tidy)
    assert title(figure) == "stories260k on tinystories" and len(figure.axes[0].lines) >= 12
    found = gap.data(tidy).set_index(["policy", "cache"]).loc[("tova", 64)]
    summary = pd.read_csv(ROOT / "results/stories260k/summary.csv").set_index(["policy", "cache"]).loc[("tova", 64)]
    assert found["value"] == pytest.approx(100 * (summary["value"] / summary["topline"] - 1), rel=1e-4)


# --- the paper's numbers


def test_figure_3_of_the_published_table_is_the_papers_panel():
    """LLaMA-2's; of the other two models no number is printed."""
    table3 = _published.read()
    table3 = table3[table3["experiment"] == "pg19_ablation_table3"]
    figure = figures.draw("perplexity", _published.tables(table3)[1])
    artists = drawn(figure)
    for policy, values in PERPLEXITY.items():
        artist = artists[style.LOOKS[policy].label]
        assert list(artist.get_xdata()) == SIZES and list(artist.get_ydata()) == pytest.approx(values)
    assert list(artists["Topline (full context)"].get_ydata()) == pytest.approx([7.16, 7.16])
    assert title(figure) == "LLaMA-2-7B on pg19" and "100 documents" in caption(figure)
    low, high = figure.axes[0].get_ylim()
    assert 6.8 < low < 7.16 and 12.97 < high < 15 and "▲4812" in marks(figure)


def test_published_numbers_are_one_option_of_every_figure_of_those_axes():
    by_flag = figures.draw("perplexity", table(lines()), published=True)
    by_table = figures.draw("perplexity", table(lines()), paper=_published.read())
    for figure in (by_flag, by_table):
        dotted = [list(artist.get_ydata()) for artist in figure.axes[0].lines if artist.get_label() == "_paper"]
        assert sorted(dotted) == sorted(PERPLEXITY.values())
    for other in (lines(model="llama2_7b_chat"), lines(dataset="novels")):  # neither is the paper's
        figure = figures.draw("perplexity", table(other), published=True)
        assert not [a for a in figure.axes[0].lines if a.get_label() == "_paper"]
        assert "The paper prints no perplexity of this model and text." in caption(figure)
    assert "prints no" not in caption(by_flag) and "prints no" not in caption(figures.draw("perplexity", table(lines())))
    scores = table([line("full", None, 20.0, metric="rouge"), line("tova", 512, 19.0, metric="rouge")])
    assert "The paper prints no scores of this model and text." in caption(figures.draw("score", scores, published=True))
    own = pd.DataFrame([("pg19_mine", "Llama-2-7b-hf", "TOVA", 512, "rouge", 18.0)],
                       columns=["experiment", "model", "policy", "state_size", "metric", "value"])  # fmt: skip
    figure = figures.draw("score", scores, paper=own)
    assert [list(a.get_ydata()) for a in figure.axes[0].lines if a.get_label() == "_paper"] == [[18.0]]
    with pytest.raises(UsageError, match="figure depth has no axes of the paper's numbers"):
        figures.draw("depth", table(lines()), published=True)


def test_published_on_the_command_line(tmp_path, capsys):
    (tmp_path / "summary.csv").write_text(table(lines(dataset="novels")).to_csv(index=False))
    assert main(["plot", f"results_dir={tmp_path}", "published=true"]) == 0
    assert (tmp_path / "perplexity.png").is_file()
    assert main(["plot", f"results_dir={tmp_path}", "published=only", "figure=gap"]) == 0
    assert (tmp_path / "published_gap.svg").is_file() and not (tmp_path / "gap.svg").exists()
    assert main(["plot", f"results_dir={tmp_path}", "published=yes"]) == 2
    assert "published=yes must be true (the paper's numbers beside yours), only, or false" in capsys.readouterr().err


def test_an_excess_is_the_perplexities_quotient():
    draw = np.random.default_rng(0)
    counts = draw.integers(50, 500, 9).astype(float)
    theirs = np.stack([draw.normal(3, 0.3, 9) * counts, counts], axis=-1)
    ours = theirs + np.stack([draw.normal(0.05, 0.01, 9) * counts, np.zeros(9)], axis=-1)
    found = intervals.excess(ours, theirs)
    quotient = intervals.value("nll", ours.sum(0)) / intervals.value("nll", theirs.sum(0)) - 1
    assert found is not None and found.low < quotient < found.high and found.high - found.low < 0.03
    wide = intervals.excess(ours, theirs, 0.99)
    assert wide is not None and wide.low < found.low < found.high < wide.high
    assert intervals.excess(ours[:1], theirs[:1]) is None


def test_an_interval_that_one_document_makes_is_none():
    """Of a mean over what only one document has: without it there is nothing to divide by."""
    alone = np.array([[5.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    assert intervals.of(lambda s: s[..., 0] / s[..., 1], alone) is None
    assert intervals.share(np.array([[1.0, 1.0]])) is None
    low, high, method = intervals.share(np.ones((50, 2)))  # type: ignore[misc]
    assert (high, method) == (1.0, "Jeffreys") and 0.94 < low < 0.96
