"""The figure over input length by what is on it: lines, bands, the control, what runs off, the options."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from test_figures import caption, drawn, marks, title

from msrnn_bench import figures
from msrnn_bench.cli.main import main
from msrnn_bench.errors import UsageError
from msrnn_bench.figures import style
from msrnn_bench.figures.extrapolation import plot
from msrnn_bench.results import intervals
from msrnn_bench.results.summary import TIDY_TYPES

TOKENS, EVERY, DOCUMENTS = 70_000, 1000, ("moby", "emma", "walden", "middlemarch")


def rows(policy: str, loss: float, cache: int | None = 512, drift: float = 0.0, **changes: Any) -> list[dict[str, Any]]:
    """Of each document a row a bucket: its own difficulty, which drifts alike for all, plus the policy's loss and drift."""
    documents, tokens = changes.pop("documents", DOCUMENTS), changes.pop("tokens", TOKENS)
    plain = {
        "cell": f"{policy}-{cache}-{sorted(changes.items())}", "task": "extrapolation", "dataset": "novels", "model": "smollm2",
        "weights": "pretrained", "policy": policy, "memory": 0.0, "first": 0, "per": "layer", "cache": cache, "context": tokens,
        "seed": 0, "bos": False, "dtype": "float32", "engine": "scan", "prefill": "stepwise", "positions": "original",
        "metric": "nll", "status": "ok",
    }  # fmt: skip
    made = []
    for number, document in enumerate(documents):
        chance = np.random.default_rng(number)
        for start in range(0, tokens, EVERY):
            end = min(start + EVERY, tokens)
            hard = 3.3 + 0.15 * number + 0.1 * math.sin(start / 9000 + number) + chance.normal(0, 0.05)
            count = end - max(start, 1)
            sums = {"total": count * (hard + loss + drift * start / tokens), "count": count}
            made.append({**plain, **sums, "document": document, "bucket_start": start, "bucket_end": end, **changes})
    return made


def table(*parts: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([row for part in parts for row in part], columns=list(TIDY_TYPES)).astype(TIDY_TYPES)


def all_of(**changes: Any) -> list[list[dict[str, Any]]]:
    return [
        rows("tova", 0.06, positions="compressed", **changes), rows("window4", 0.12, positions="compressed", **changes),
        rows("tova", 0.1, drift=3.0, **changes), rows("window4", 0.12, drift=0.02, **changes),
        rows("baseline", 0.0, 8192, **changes),
    ]  # fmt: skip


CONTROL = "Control: full model on\nfresh chunks of 8,192"


def test_the_running_perplexity_is_of_all_tokens_before_n():
    given = table(*all_of())
    figure = plot(given)
    found = drawn(figure)
    assert set(found) == {
        "TOVA,\ncompressed positions", "TOVA,\noriginal positions", "Window+4,\ncompressed positions",
        "Window+4,\noriginal positions", CONTROL,
    }  # fmt: skip
    own = given[(given["policy"] == "tova") & (given["positions"] == "compressed")]
    line = found["TOVA,\ncompressed positions"]
    assert line.get_xdata().tolist() == list(range(10_000, 71_000, 1000)), "drawn from a seventh on, as the paper does"
    for n, shown in zip(line.get_xdata(), line.get_ydata(), strict=True):
        before = own[own["bucket_end"] <= n]
        assert shown == pytest.approx(math.exp(before["total"].sum() / before["count"].sum()), rel=1e-12)
    ax = figure.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Input Length", "Perplexity") and title(
        figure
    ) == "smollm2 on novels, 512 states"
    figure.canvas.draw()
    assert {"10K", "70K"} <= {text.get_text() for text in ax.get_xticklabels()}
    assert "first 70,000 tokens of 4 documents" in caption(figure) and "from 10K on" in caption(figure)


def test_colours_are_the_policies_and_dashes_the_positions():
    found = drawn(plot(table(*all_of())))
    for policy in ("tova", "window4"):
        name, color = style.LOOKS[policy].label, style.LOOKS[policy].color
        both = [found[f"{name},\n{kind} positions"] for kind in ("compressed", "original")]
        assert {to_hex(line.get_color()).upper() for line in both} == {color}
        assert [line.get_linestyle() for line in both] == ["-", "--"]
    assert to_hex(found[CONTROL].get_color()).upper() == style.LOOKS["baseline"].color
    alone = drawn(plot(table(*all_of()[:2])))
    assert set(alone) == {"TOVA", "Window+4"}, "positions are said where there are both kinds"
    assert alone["TOVA"].get_linewidth() > alone["Window+4"].get_linewidth()


def test_bands_are_of_the_difference_to_the_control():
    given = table(*all_of())
    figure = plot(given)
    assert "(jackknife-t), of the difference to the control." in caption(figure)
    bands = figure.axes[0].collections
    assert [to_hex(band.get_facecolor()).upper() for band in bands] == [
        style.LOOKS[policy].color for policy in ("tova", "tova", "window4", "window4")
    ]  # fmt: skip
    n = 30_000

    def sums(policy: str, positions: str) -> np.ndarray:
        own = given[(given["policy"] == policy) & (given["positions"] == positions) & (given["bucket_end"] <= n)]
        return own.groupby("document")[["total", "count"]].sum().to_numpy("float64")

    ours, theirs = sums("tova", "compressed"), sums("baseline", "original")
    paired = intervals.difference("nll", ours, theirs)
    base = float(intervals.value("nll", theirs.sum(0)))
    edges = bands[0].get_paths()[0].vertices
    at = sorted(edges[edges[:, 0] == n, 1])
    assert at == pytest.approx([base + paired.low, base + paired.high], rel=1e-9)


def test_without_a_control_bands_are_of_the_perplexity_and_one_document_has_none():
    figure = plot(table(*all_of()[:2]))
    assert "(jackknife-t), of the perplexity." in caption(figure) and len(figure.axes[0].collections) == 2
    one = plot(table(*all_of(documents=("moby",))))
    assert "of 1 document, read once" in caption(one) and "One document has no interval." in caption(one)
    assert not one.axes[0].collections
    uneven = plot(table(rows("tova", 0.1), rows("baseline", 0.0, 8192, documents=DOCUMENTS[:2])))
    assert "of 2 to 4 documents" in caption(uneven) and "Not all lines are over the same documents." in caption(uneven)
    assert "of the perplexity." in caption(uneven)


def test_what_runs_off_the_top_is_named_with_its_number():
    figure = plot(table(*all_of()))
    (mark,) = marks(figure)
    last = drawn(figure)["TOVA,\noriginal positions"].get_ydata()[-1]
    assert mark == f"▲ TOVA, original positions: {last:.0f} at 70K" and last > 100
    top = figure.axes[0].get_ylim()[1]
    assert all(line.get_ydata().max() < top for name, line in drawn(figure).items() if "TOVA,\norig" not in name)
    assert not marks(plot(table(*all_of()[:2])))


def test_local_is_the_perplexity_of_a_stretch():
    given = table(*all_of())
    own = given[(given["policy"] == "tova") & (given["positions"] == "compressed")]
    for window in (1, 5):
        figure = plot(given, local=True, window=window)
        line = drawn(figure)["TOVA,\ncompressed positions"]
        assert line.get_xdata().tolist() == list(range(1000 * window, 71_000, 1000))
        for n, shown in zip(line.get_xdata(), line.get_ydata(), strict=True):
            part = own[(own["bucket_end"] <= n) & (own["bucket_end"] > n - 1000 * window)]
            assert shown == pytest.approx(math.exp(part["total"].sum() / part["count"].sum()), rel=1e-10)
        assert figure.axes[0].get_ylabel() == f"Perplexity of the last {window},000 tokens"
    with pytest.raises(UsageError, match="window=5 is a number of buckets, 1 or more, of local=true"):
        plot(given, window=5)
    with pytest.raises(UsageError, match="window=71 is more buckets than there are: take window=70"):
        plot(given, local=True, window=71)


def test_options_may_be_typed(tmp_path, capsys):
    table(*all_of()).to_csv(tmp_path / "tidy.csv", index=False)
    folder = f"results_dir={tmp_path}"
    given = ["figure=extrapolation", "local=true", "window=3", "difference=true", "start=20000"]
    assert main(["plot", folder, *given]) == 0 and (tmp_path / "extrapolation.svg").is_file()
    typed = plot(table(*all_of()), local="true", window="3", difference="True", start="20000")
    meant = plot(table(*all_of()), local=True, window=3, difference=True, start=20_000)
    one, other = drawn(typed), drawn(meant)
    for name in [name for name in other if not name.startswith("_")]:
        assert one[name].get_xydata().tolist() == other[name].get_xydata().tolist() and one[name].get_xdata()[0] == 20_000
    capsys.readouterr()
    for wrong, said in (
        (["figure=extrapolation", "local=yes"], "local=yes must be true or false"),
        (["figure=extrapolation", "start=-1"], "start=-1 must be a whole number of 0 or more"),
        (["local=true"], "local=true is an option of one figure: say which, figure=NAME"),
        (["figure=depth", "local=true"], "figure depth has no option local"),
    ):
        assert main(["plot", folder, *wrong]) == 2 and said in capsys.readouterr().err


def test_difference_is_less_the_controls():
    given = table(*all_of())
    plain, figure = drawn(plot(given)), plot(given, difference=True)
    less = drawn(figure)
    for name in set(plain) - {CONTROL}:
        wanted = plain[name].get_ydata() - plain[CONTROL].get_ydata()
        assert less[name].get_ydata() == pytest.approx(wanted, abs=1e-9)
    assert CONTROL not in less and figure.axes[0].get_ylabel() == "Perplexity, less the control's"
    for lacking in (all_of()[:2], [rows("tova", 0.1), rows("baseline", 0.0, 8192, documents=DOCUMENTS[:2])]):
        with pytest.raises(UsageError, match=r"512 states has .*: measure policy=baseline"):
            plot(table(*lacking), difference=True)


def test_documents_of_unlike_length_are_drawn_as_far_as_all_reach():
    short = rows("tova", 0.1, documents=("long",)) + [
        {**row, "context": TOKENS} for row in rows("tova", 0.1, documents=("short",), tokens=20_500)
    ]
    line = drawn(plot(table(short)))["TOVA"]
    assert line.get_xdata()[-1] == 20_000


def test_panels_and_what_else_parts_lines():
    given = [*all_of(), rows("tova", 0.3, 256, positions="compressed"), rows("baseline", 0.1, 4096)]
    figure = plot(table(*given))
    assert [title(figure, panel) for panel in (0, 1)] == ["smollm2 on novels, 256 states", "smollm2 on novels, 512 states"]
    assert set(drawn(figure, 0)) == {"TOVA,\ncompressed positions", CONTROL, CONTROL.replace("8,192", "4,096")}
    knobs = [rows("eviction", 0.1, memory=memory) for memory in (0.5, 0.9)]
    assert set(drawn(plot(table(*knobs)))) == {"eviction,\nmemory 0.5", "eviction,\nmemory 0.9"}
    random = plot(table(rows("tova", 0.1, weights="random")))
    assert title(random) == "smollm2 on novels, 512 states RANDOM WEIGHTS"
    stale = rows("tova", 0.1, status="ok"), rows("tova", 0.2, status="ok", cell="another")
    with pytest.raises(UsageError, match="tova of smollm2, cache 512, original positions has several results"):
        plot(table(*stale))


def test_start_and_what_is_no_table():
    assert drawn(plot(table(*all_of()), start=0))["TOVA,\ncompressed positions"].get_xdata()[0] == 1000
    with pytest.raises(UsageError, match="start=80000 lies behind the end of a line: take start=70000"):
        plot(table(*all_of()), start=80_000)
    with pytest.raises(UsageError, match="no policy over long texts to draw"):
        plot(table(rows("baseline", 0.0, 8192)))
    with pytest.raises(UsageError, match=r"lacks .*bucket_end"):
        plot(table(rows("tova", 0.1)).drop(columns="bucket_end"))
    assert figures.table_of("extrapolation") == "tidy"
