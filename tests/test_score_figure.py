"""The score figure by what is on it: panels, lines, bands, the topline, labels, limits."""

from typing import Any

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from test_figures import caption, drawn, title

from msrnn_bench import figures
from msrnn_bench.errors import UsageError
from msrnn_bench.figures import style
from msrnn_bench.figures.score import plot
from msrnn_bench.results.summary import SUMMARY_TYPES

SIZES = [256, 512, 1024, 2048]
TOPLINE = 20.0
SCORES = {
    "baseline": [10.0, 12.0, 15.0, 18.0],
    "window4": [14.0, 15.0, 16.0, 18.5],
    "h2o": [15.0, 17.0, 18.0, 19.0],
    "tova": [16.0, 18.0, 19.0, 20.5],
}


def line(policy: str, cache: int | None, value: float | None, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "task": "squality", "dataset": "squality", "model": "llama2_7b_chat", "weights": "pretrained", "policy": policy,
        "per": None if policy in ("full", "baseline") else "layer", "cache": cache, "context": 4096, "seed": 0, "bos": True,
        "dtype": "bfloat16", "engine": "scan", "prefill": "stepwise", "positions": "original", "template": "plain",
        "metric": "rouge", "documents": 25, "count": 25, "value": value, "status": "ok", **changes,
    }  # fmt: skip
    if plain["prefill"] != "stepwise" and policy in ("full", "baseline"):
        plain["prefill"] = "stepwise"  # as rows have it: they cut no state
    if value is not None:
        bands = {"low": value - 2, "high": value + 2, "topline": TOPLINE, "difference": value - TOPLINE}
        plain |= {**bands, "difference_low": value - TOPLINE - 0.5, "difference_high": value - TOPLINE + 0.25}
    return {**plain, **changes, "prefill": plain["prefill"], "cell": f"{policy}-{cache}-{changes}"}


def lines(values: dict[str, list[float]] = SCORES, shift: float = 0.0, **changes: Any) -> list[dict[str, Any]]:
    points = [
        line(name, k, v + shift * (name != "baseline"), **changes)
        for name, row in values.items()
        for k, v in zip(SIZES, row, strict=True)
    ]
    return [line("full", None, TOPLINE, **changes), *points]


def table(*parts: list[dict[str, Any]]) -> pd.DataFrame:
    rows = {(row["cell"].replace("oneshot", ""), row["prefill"]): row for part in parts for row in part}
    return pd.DataFrame(list(rows.values()), columns=list(SUMMARY_TYPES)).astype(SUMMARY_TYPES)


def titles(figure: Any) -> list[str]:
    return [title(figure, panel) for panel in range(len(figure.axes))]


def test_one_line_per_policy_a_topline_and_bands():
    figure = plot(table(lines()))
    artists, ax = drawn(figure), figure.axes[0]
    for policy, values in SCORES.items():
        artist = artists[style.LOOKS[policy].label]
        assert list(artist.get_xdata()) == SIZES and list(artist.get_ydata()) == values
        assert (to_hex(artist.get_color()), artist.get_marker()) == (
            style.LOOKS[policy].color.lower(),
            style.LOOKS[policy].marker,
        )
    assert set(artists["Topline (full context)"].get_ydata()) == {TOPLINE} and len(artists) == len(SCORES) + 1
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [str(size) for size in SIZES]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Multi-state size", "ROUGE (geometric mean of 1, 2, L)")
    assert titles(figure) == ["llama2_7b_chat on squality"] and len(ax.collections) == len(SCORES)
    band = next(c for c in ax.collections if to_hex(c.get_facecolor()[0]) == style.LOOKS["tova"].color.lower())
    at_512 = [y for x, y in band.get_paths()[0].vertices if x == 512]
    assert (min(at_512), max(at_512)) == (17.5, 18.25), "of the paired difference"
    (across,) = ax.patches
    assert (across.get_y(), across.get_height()) == (18, 4), "of the topline itself"


def test_nothing_runs_off_whatever_is_best():
    figure = plot(table(lines({"tova": [16.0, 18.0, 40.0, 20.5], "window4": [3.0, 15.0, 16.0, 18.5]})))
    low, high = figure.axes[0].get_ylim()
    assert 0 <= low < 2.5 and 40.25 < high < 43 and not figure.axes[0].texts, "bands too, and no marks"
    low, high = plot(table(lines({"tova": [0.2, 0.3, 0.4, 0.5]}))).axes[0].get_ylim()
    assert low == pytest.approx(-0.04 * 20) and high > 20, "an interval may reach below 0, a score does not"
    low, _ = plot(table(lines({"tova": [-3.0, 0.3, 0.4, 0.5]}, metric="own")), metric="own").axes[0].get_ylim()
    assert low < -3, "but where one does, it is shown"


def test_the_legend_reads_as_the_curves_lie():
    (legend,) = plot(table(lines(), lines(model="other"))).legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["TOVA", "H2O", "Window+4", "Baseline", "Topline (full context)"]


def test_both_prefills_have_the_topline_and_the_baseline():
    figure = plot(table(lines(), lines(shift=-0.5, prefill="oneshot")))
    assert titles(figure) == ["llama2_7b_chat on squality (stepwise)", "llama2_7b_chat on squality (oneshot)"]
    stepwise, oneshot = drawn(figure, 0), drawn(figure, 1)
    assert set(stepwise) == set(oneshot) == {*(style.LOOKS[name].label for name in [*SCORES, "full"])}
    assert list(oneshot["TOVA"].get_ydata()) == [value - 0.5 for value in SCORES["tova"]]
    for name in ("Baseline", "Topline (full context)"):
        assert list(stepwise[name].get_ydata()) == list(oneshot[name].get_ydata())
    alone = plot(table(lines(prefill="oneshot")))
    assert len(alone.axes) == 1 and "Oneshot prefill." in caption(alone) and len(drawn(alone)) == len(SCORES) + 1
    assert len(plot(table(lines({"baseline": SCORES["baseline"]}))).axes) == 1


def test_panels_by_model_template_subtask_and_length():
    figure = plot(table(lines(), lines(model="mistral_7b_instruct"), lines(model="neural_chat_7b")))
    assert titles(figure) == [f"{name} on squality" for name in ("llama2_7b_chat", "mistral_7b_instruct", "neural_chat_7b")]
    chats = plot(table(lines(), lines(template="chat")))
    assert titles(chats) == ["llama2_7b_chat on squality (chat prompt)", "llama2_7b_chat on squality (plain prompt)"]
    hay = {"task": "retrieval", "dataset": "filler", "metric": "accuracy"}
    shares = {name: [value / TOPLINE - 0.1 for value in values] for name, values in SCORES.items()}
    parts = [lines(shares, **hay, length=length, subtask="needle") for length in (16000, 1000, 4000)]
    figure = plot(table(*parts))
    assert titles(figure) == [f"llama2_7b_chat on filler ({length} tokens)" for length in ("1,000", "4,000", "16,000")]
    assert figure.axes[0].get_ylabel() == "Accuracy" and figure.axes[0].get_ylim() == pytest.approx((-0.04, 1.04))
    kinds = plot(table(*(lines(shares, **hay, length=1000, subtask=kind) for kind in ("needle", "lookup"))))
    assert titles(kinds) == [f"llama2_7b_chat on filler ({kind})" for kind in ("lookup", "needle")]


def test_a_task_of_lm_eval_is_named():
    given = [lines(task="lm_eval", dataset="none", subtask="niah_single_1", length=length) for length in (1024, 4096)]
    assert titles(plot(table(given[0]))) == ["llama2_7b_chat on niah_single_1"]
    assert titles(plot(table(*given)))[1] == "llama2_7b_chat on niah_single_1 (4,096 tokens)"
    both = [lines(task="lm_eval", dataset="none", subtask=name, metric="acc") for name in ("arc_easy", "piqa")]
    assert titles(plot(table(*both))) == ["llama2_7b_chat on arc_easy", "llama2_7b_chat on piqa"]


def test_the_metric_is_the_main_one_or_the_one_asked_for():
    double = {name: [2 * value for value in values] for name, values in SCORES.items()}
    given = table(lines(), lines(double, metric="rouge1"), lines(double, metric="nll", task="perplexity", template=None))
    assert list(drawn(plot(given))["TOVA"].get_ydata()) == SCORES["tova"] and len(plot(given).axes) == 1
    one = plot(given, metric="rouge1")
    assert list(drawn(one)["TOVA"].get_ydata()) == double["tova"] and one.axes[0].get_ylabel() == "ROUGE-1"
    assert plot(table(lines(metric="f1", task="qasper", dataset="qasper"))).axes[0].get_ylabel() == "F1"
    with pytest.raises(UsageError, match=r"no line has metric f1; there are: rouge, rouge1"):
        figures.draw("score", given, metric="f1")
    with pytest.raises(UsageError, match=r"there are: exotic"):
        plot(table(lines(metric="exotic")))
    assert plot(table(lines(metric="exotic")), metric="exotic").axes[0].get_ylabel() == "exotic"


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(UsageError, match="task=squality"):
        plot(table(lines(metric="nll")))
    with pytest.raises(UsageError, match="no policy's rouge to draw"):
        plot(table(lines({})))
    with pytest.raises(UsageError, match=r"lacks metric"):
        plot(pd.DataFrame({"policy": ["tova"]}))
    with pytest.raises(UsageError, match=r"lacks .*template"):
        plot(table(lines()).drop(columns="template"))


def test_caption_says_what_was_measured_and_what_failed():
    lost = line("tova", 64, None, status="failed", metric=None, documents=None, count=None)
    other = line("tova", 64, None, status="failed", metric=None, documents=None, count=None, task="perplexity")
    said = caption(plot(table(lines(), lines(prefill="oneshot"), [lost, other]), note="A note."))
    for part in ("4,096 tokens of context", "25 documents", "bfloat16", "Plain prompt.", "difference to the topline", "A note."):
        assert part in said
    assert "1 cell failed and is missing." in said, "once, though there are two panels, and not another task's"
    assert "Stepwise prefill. Plain prompt." in caption(plot(table(lines())))
    empty = {"topline": None, "difference": None, "difference_low": None, "difference_high": None}
    alone = plot(table(lines({"tova": SCORES["tova"]}, **empty)[1:]))
    assert "intervals over documents, of the score" in caption(alone) and list(drawn(alone)) == ["TOVA"]
    assert caption(plot(table(lines()), caption=False)) == ""


def test_one_size_still_shows_its_interval():
    ax = plot(table([line("full", None, TOPLINE), line("tova", 512, 18.0)])).axes[0]
    bars = [c.get_segments()[0][:, 1].tolist() for c in ax.collections if hasattr(c, "get_segments")]
    assert bars == [[17.5, 18.25]]


def test_a_table_read_back_from_its_file_gives_the_same_figure(tmp_path):
    given = table(lines(), lines(shift=-1, prefill="oneshot"), lines(length=1000, subtask="needle", dataset="none"))
    given.to_csv(tmp_path / "summary.csv", index=False)
    one, two = plot(given), plot(pd.read_csv(tmp_path / "summary.csv"))
    assert titles(one) == titles(two) and len(titles(one)) == 3 and caption(one) == caption(two)
    for panel in range(3):
        for label, artist in drawn(one, panel).items():
            assert list(artist.get_ydata()) == list(drawn(two, panel)[label].get_ydata())


@pytest.mark.parametrize("panels", [1, 2, 6])
def test_no_text_runs_into_another(panels):
    kinds = [{"subtask": s, "length": n} for s in ("single", "variable_tracking") for n in (1000, 4000, 16000)]
    figure = plot(table(*(lines(**kind, dataset="filler") for kind in kinds[:panels])), note="A note.")
    figure.draw_without_rendering()
    texts = [*figure.texts, *figure.legends[0].get_texts()]
    for ax in figure.axes:
        texts += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels()]
    boxes = [text.get_window_extent().padded(-1) for text in texts if text.get_text()]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
