"""Figures by what is on them (lines, bands, marks, labels, colours), never by pixels."""

import inspect
import os
import subprocess
import sys
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from msrnn_bench import figures
from msrnn_bench.errors import MachineError, UsageError
from msrnn_bench.figures import _published, style
from msrnn_bench.figures.perplexity import plot, short
from msrnn_bench.results.summary import SUMMARY_TYPES

SIZES = [64, 128, 256, 512, 1024, 2048, 4096]
TOPLINE = 7.16
# LLaMA-2-7B on PG-19, arXiv 2401.06104 Table 3
PERPLEXITY = {
    "baseline": [17.65, 12.97, 10.39, 8.92, 8.04, 7.50, 7.16],
    "window": [4812.27, 4025.01, 3275.58, 2184.62, 1001.29, 240.17, 7.16],
    "window1": [10.20, 8.97, 8.22, 7.76, 7.50, 7.33, 7.16],
    "window4": [10.28, 8.98, 8.19, 7.73, 7.46, 7.30, 7.16],
    "h2o": [10.22, 8.97, 8.21, 7.75, 7.49, 7.32, 7.16],
    "h2o_layer": [10.20, 8.97, 8.22, 7.76, 7.50, 7.33, 7.16],
    "tova_head": [11.13, 9.55, 8.69, 7.90, 7.52, 7.27, 7.16],
    "tova": [9.53, 8.32, 7.71, 7.41, 7.25, 7.17, 7.16],
    "tova1": [9.53, 8.31, 7.71, 7.41, 7.25, 7.17, 7.16],
    "tova4": [9.63, 8.33, 7.72, 7.41, 7.25, 7.17, 7.16],
}


def line(policy: str, cache: int | None, value: float | None, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "task": "perplexity", "dataset": "pg19", "model": "Llama-2-7b-hf", "weights": "pretrained", "policy": policy,
        "memory": 0.0, "first": 0, "recent": None, "per": "layer", "cache": cache, "context": 4096, "seed": 0,
        "bos": True, "dtype": "bfloat16", "engine": "scan", "prefill": "stepwise", "positions": "original",
        "metric": "nll", "documents": 8, "count": 32760, "value": value, "status": "ok",
        "cell": f"{policy}-{cache}", **changes,
    }  # fmt: skip
    if value is not None and plain["documents"] > 1:
        loss = value - TOPLINE
        bands = {"low": 0.9 * value, "high": 1.1 * value, "topline": TOPLINE, "difference": loss}
        plain = {**plain, **bands, "difference_low": 0.95 * loss, "difference_high": 1.05 * loss, **changes}
    return plain


def lines(values: dict[str, list[float]] = PERPLEXITY, **changes: Any) -> list[dict[str, Any]]:
    points = [line(name, k, v, **changes) for name, row in values.items() for k, v in zip(SIZES, row, strict=True)]
    return [line("full", None, TOPLINE, **changes), *points]


def table(*parts: list[dict[str, Any]]) -> pd.DataFrame:
    rows = [row for part in parts for row in part]
    return pd.DataFrame(rows, columns=list(SUMMARY_TYPES)).astype(SUMMARY_TYPES)


def drawn(figure: Figure, panel: int = 0) -> dict[str, Any]:
    return {str(artist.get_label()): artist for artist in figure.axes[panel].lines}


def test_the_full_model_and_the_baseline_stand_beside_both_kinds_of_positions():
    few = {name: PERPLEXITY[name] for name in ("tova", "baseline")}
    closed = [row | {"positions": "compressed"} for row in lines({"tova": PERPLEXITY["tova"]}) if row["policy"] == "tova"]
    figure = plot(table(lines(few), closed))
    assert ["compressed" in title(figure, panel) for panel in (0, 1)] == [True, False]
    tova, baseline = style.LOOKS["tova"].label, style.LOOKS["baseline"].label
    for panel in (0, 1):
        assert {tova, baseline, style.LOOKS["full"].label} <= set(drawn(figure, panel))


def marks(figure: Figure, panel: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts if "▲" in text.get_text()]


def title(figure: Figure, panel: int = 0) -> str:
    return figure.axes[panel].get_title().replace("\n", " ")


def caption(figure: Figure) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in figure.texts)


# --- the package


@pytest.mark.parametrize("name", figures.names())
def test_every_figure_found_is_a_function_of_a_table(name: str):
    parameters = list(inspect.signature(import_module(f"msrnn_bench.figures.{name}").plot).parameters.values())
    assert parameters[0].name == "table"
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters[1:])


def test_a_task_a_panel_and_a_loss_per_word():
    given = [lines(task="lm_eval", dataset="none", subtask=name, count=count) for name, count in (("one", 9), ("two", 5))]
    figure = plot(table(*given))
    assert [title(figure, panel) for panel in (0, 1)] == ["Llama-2-7b-hf on one", "Llama-2-7b-hf on two"]
    assert drawn(figure, 0).keys() == drawn(figure, 1).keys() and "4,096 tokens of context" in caption(figure)
    words = plot(table(lines(metric="nll_per_word"), lines()), metric="nll_per_word")
    assert len(words.axes) == 1 and words.axes[0].get_ylabel() == "Perplexity per word"
    with pytest.raises(UsageError, match=r"metric=acc is no perplexity: .*figure=score"):
        plot(table(lines()), metric="acc")


def test_what_is_drawn_unasked():
    tasks = {"squality": "rouge", "qasper": "f1", "stories": "nll", "perplexity": "nll"}
    assert figures.suited(table(*(lines(task=task, metric=metric) for task, metric in tasks.items())), None) == [
        "perplexity", "score", "stories",
    ]  # fmt: skip
    assert figures.suited(table(lines()), None) == ["perplexity"]
    assert figures.suited(table(lines(task="retrieval", metric="accuracy")), None) == ["score", "depth"]
    rolling, choice = (lines(task="lm_eval", metric=metric) for metric in ("nll", "acc"))
    kept = lines(task="retrieval", metric="needle_kept_by_step")
    assert figures.suited(table(lines(task="retrieval", metric="accuracy"), kept), None) == ["score", "depth", "needle"]
    assert figures.suited(table(rolling), None) == ["perplexity"] and figures.suited(table(choice), None) == ["score"]
    assert figures.suited(table(rolling, choice), None) == ["score", "perplexity"]
    assert figures.suited(table([line("tova", 8, None, task="squality", metric=None, status="failed")]), None) == ["score"]
    assert [figures.suited(table(rolling, choice), metric) for metric in ("nll_per_word", "acc")] == [["perplexity"], ["score"]]


def test_a_figure_is_drawn_by_name():
    assert "perplexity" in figures.names() and "style" not in figures.names()
    assert isinstance(figures.draw("perplexity", table(lines()), note="A note."), Figure)
    with pytest.raises(UsageError, match=r"choose from .*perplexity"):
        figures.draw("pie", table(lines()))
    with pytest.raises(UsageError, match=r"no option colour: choose from .*note"):
        figures.draw("perplexity", table(lines()), colour="red")


def test_figures_import_no_torch():
    code = "import sys, msrnn_bench.figures.perplexity; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_saved_files_are_whole_and_the_same_every_time(tmp_path: Path):
    first = figures.save(plot(table(lines())), tmp_path / "new" / "fig.3")
    assert [path.name for path in first] == ["fig.3.png", "fig.3.pdf", "fig.3.svg"]
    assert sorted(first) == sorted((tmp_path / "new").iterdir())
    content = [path.read_bytes() for path in first]
    assert content[0].startswith(b"\x89PNG") and content[1].startswith(b"%PDF") and b"<svg" in content[2]
    assert b"CreationDate" not in content[1] and b"<dc:date>" not in content[2]
    again = figures.save(plot(table(lines())), tmp_path / "again")
    assert content == [path.read_bytes() for path in again]
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError):
        figures.save(plot(table(lines())), tmp_path / "file" / "fig")


def test_the_users_own_settings_neither_matter_nor_change():
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "red"}):
        figure = plot(table(lines()))
        assert matplotlib.rcParams["font.size"] == 30
        assert figure.axes[0].xaxis.label.get_fontsize() == 7.5
        assert to_hex(figure.axes[0].get_facecolor()) == "#ffffff"


def test_every_policy_has_one_look_of_its_own():
    known = style.looks(style.LOOKS)
    assert len({look.color for look in known.values()}) == len(known)
    assert len({(look.marker, look.dash) for look in known.values()}) == len(known)
    assert len({look.label for look in known.values()}) == len(known)
    some = style.looks(["tova", "mine", "full", "another"])
    assert some["tova"] == style.LOOKS["tova"] and some["mine"].label == "mine"
    assert len({look.color for look in [*known.values(), some["mine"], some["another"]]}) == len(known) + 2
    assert style.looks(["another", "mine"])["mine"] == some["mine"]  # whatever the order


# --- perplexity


def test_one_line_per_policy_through_its_values_and_a_topline():
    figure = plot(table(lines()))
    artists = drawn(figure)
    for policy, values in PERPLEXITY.items():
        artist = artists[style.LOOKS[policy].label]
        assert list(artist.get_xdata()) == SIZES and list(artist.get_ydata()) == values
        assert to_hex(artist.get_color()) == style.LOOKS[policy].color.lower()
    assert set(artists["Topline (full context)"].get_ydata()) == {TOPLINE}
    assert len(artists) == len(PERPLEXITY) + 1
    ax = figure.axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [str(size) for size in SIZES]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Multi-state size", "Perplexity")
    assert title(figure) == "Llama-2-7b-hf on pg19"
    assert artists["TOVA"].get_linewidth() > 1.5 * artists["H2O"].get_linewidth()
    other = drawn(plot(table(lines()), emphasise=["h2o", "window4"]))
    assert other["H2O"].get_linewidth() > 1.5 * other["TOVA"].get_linewidth()


def test_the_axis_fits_the_contenders_and_marks_what_runs_off():
    figure = plot(table(lines()))
    low, high = figure.axes[0].get_ylim()
    assert 6 < low < TOPLINE and 12.97 < high < 15  # the paper's own axis is 7 to 15
    assert sorted(marks(figure)) == sorted(["▲4812", "▲4025", "▲3276", "▲2185", "▲1001", "▲240", "▲17.6"])
    names = {text.get_text(): to_hex(text.get_color()) for text in figure.axes[0].texts}
    assert names["▲4812"] == names["Window"] == style.LOOKS["window"].color.lower()
    assert names["▲17.6"] == names["Baseline"] == style.LOOKS["baseline"].color.lower()
    assert "▲" in caption(figure)


def test_nothing_is_marked_where_all_fits():
    figure = plot(table(lines({"tova": PERPLEXITY["tova"], "h2o": PERPLEXITY["h2o"]})))
    low, high = figure.axes[0].get_ylim()
    assert marks(figure) == [] and "▲" not in caption(figure) and 10.22 < high < 10.6 and low < TOPLINE
    near = {"tova": [7.17] * 7, "window": [8.9] * 7}  # a loss of a quarter stays on the axis however good the best is
    assert marks(plot(table(lines(near)))) == []


def test_a_size_only_a_bad_policy_was_run_at_does_not_stretch_the_axis():
    figure = plot(table(lines(), [line("window", 32, 9999.0)]))
    assert figure.axes[0].get_ylim()[1] < 15 and "▲9999" in marks(figure)


@pytest.mark.parametrize("panels", [1, 3, 4])
def test_no_text_runs_into_another(panels: int):
    figure = plot(table(*(lines(dataset=f"text{index}") for index in range(panels))), note="A note.")
    assert len(figure.axes) == panels
    figure.draw_without_rendering()
    texts = [*figure.texts, *figure.legends[0].get_texts()]
    for ax in figure.axes:
        low, high = ax.get_ylim()
        ticks = [tick.label1 for tick in ax.yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
        texts += [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ticks]
    boxes = [text.get_window_extent().padded(-1) for text in texts if text.get_text() and text.get_visible()]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0 for box in boxes)


def test_the_legend_reads_as_the_curves_lie():
    (legend,) = plot(table(lines(), lines(dataset="other"))).legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[:3] == ["Window", "Baseline", "TOVA (per head)"] and labels[-1] == "Topline (full context)"
    assert set(labels) == {style.LOOKS[name].label for name in [*PERPLEXITY, "full"]}


def test_bands_are_of_the_paired_difference():
    figure = plot(table(lines({"tova": PERPLEXITY["tova"]})))
    (band,) = figure.axes[0].collections
    loss = PERPLEXITY["tova"][0] - TOPLINE
    at_64 = [y for x, y in band.get_paths()[0].vertices if x == 64]
    assert (min(at_64), max(at_64)) == pytest.approx((TOPLINE + 0.95 * loss, TOPLINE + 1.05 * loss))
    (across,) = figure.axes[0].patches
    assert across.get_y() == pytest.approx(0.9 * TOPLINE) and across.get_height() == pytest.approx(0.2 * TOPLINE)
    assert "difference to the topline" in caption(figure)


def test_without_topline_bands_are_of_the_perplexity():
    empty = {"topline": None, "difference": None, "difference_low": None, "difference_high": None}
    figure = plot(table(lines({"tova": PERPLEXITY["tova"]}, **empty)[1:]))
    at_64 = [y for x, y in figure.axes[0].collections[0].get_paths()[0].vertices if x == 64]
    assert (min(at_64), max(at_64)) == pytest.approx((0.9 * 9.53, 1.1 * 9.53))
    assert list(drawn(figure)) == ["TOVA"] and "of the perplexity" in caption(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["TOVA"]


def test_one_document_has_no_band():
    figure = plot(table(lines(documents=1)))
    assert not figure.axes[0].collections and not figure.axes[0].patches and "Bands" not in caption(figure)


def test_a_caption_says_how_its_bands_were_made():
    points = [line("full", None, TOPLINE), line("tova", 64, 9.0, difference_interval="jackknife-t")]
    assert "Bands: 95% intervals over documents (jackknife-t), of the difference" in caption(plot(table(points)))
    old = table(points).drop(columns=["interval", "difference_interval"])
    assert "Bands: 95% intervals over documents, of the difference" in caption(plot(old))


def test_panels_share_an_axis_only_where_they_lose_little():
    shifted = {name: [value + 0.3 for value in values] for name, values in PERPLEXITY.items()}
    alike = plot(table(lines(), lines(shifted, dataset="z")))
    assert alike.axes[0].get_ylim() == alike.axes[1].get_ylim() and alike.axes[1].get_ylabel() == ""
    harder = lines({name: [5 * v for v in values] for name, values in PERPLEXITY.items()}, dataset="z")
    apart = plot(table(lines(), harder))
    assert apart.axes[0].get_ylim() != apart.axes[1].get_ylim()


def test_panels_part_what_has_another_topline_and_say_what_parts_them():
    figure = plot(table(lines(), lines(dtype="float32"), lines(context=2048, model="meta-llama/Other")))
    titles = [title(figure, panel) for panel in range(3)]
    assert titles == ["Llama-2-7b-hf on pg19 (bfloat16)", "Llama-2-7b-hf on pg19 (float32)", "Other on pg19"]
    assert "4,096 / 2,048 tokens per chunk" in caption(figure) and "bfloat16 / float32" in caption(figure)


def test_random_weights_are_shouted():
    figure = plot(table(lines(weights="random"), lines()))
    assert sorted(title(figure, p) for p in (0, 1)) == ["Llama-2-7b-hf on pg19", "Llama-2-7b-hf on pg19 RANDOM WEIGHTS"]
    assert "random weights" in caption(plot(table(lines(weights="random"))))


def test_caption_says_what_was_measured():
    said = caption(plot(table(lines()), note="Instruction-tuned, 4-bit quantised."))
    for part in ("4,096 tokens per chunk", "8 documents", "bfloat16", "pretrained weights", "4-bit quantised."):
        assert part in said
    assert "Not all lines" not in said
    assert caption(plot(table(lines()), caption=False)) == ""
    assert "2 to 8 documents. Not" not in said
    some = caption(plot(table(lines(), [line("mine", 64, 9.0, documents=2)])))
    assert "2 to 8 documents" in some and "Not all lines are over the same documents." in some


def test_what_failed_is_not_drawn_and_said():
    failed = line("tova", 8192, None, status="failed", metric=None, documents=None, count=None)
    figure = plot(table(lines(), [{**failed, "documents": None}]))
    assert list(drawn(figure)["TOVA"].get_xdata()) == SIZES and "1 cell failed and is missing." in caption(figure)


def test_settings_of_a_policy_are_lines_of_their_own_unless_they_follow_the_size():
    h2o = [line("h2o", k, 10.0, recent=k // 2, memory=1.0) for k in SIZES]
    tova = [line("tova", k, 9.0 + memory, memory=memory) for k in SIZES for memory in (0.0, 0.5)]
    artists = drawn(plot(table(lines({}), h2o, tova)))
    assert set(artists) == {"H2O", "tova (memory 0)", "tova (memory 0.5)", "Topline (full context)"}
    assert len(artists["H2O"].get_xdata()) == len(SIZES)
    halves = [line("h2o", k, 11.0, recent=8, memory=1.0, cell=f"other{k}") for k in SIZES]
    assert "h2o (recent 8)" in drawn(plot(table(lines({}), h2o, halves)))


def test_the_larger_of_two_measurements_stands_and_a_tie_is_refused():
    again = line("tova", 64, 9.0, count=99_999, cell="larger")
    assert drawn(plot(table(lines(), [again])))["TOVA"].get_ydata()[0] == 9.0
    with pytest.raises(UsageError, match=r"tova of .* cache 64 has several results \(cells stale, tova-64\)"):
        plot(table(lines(), [line("tova", 64, 9.0, cell="stale")]))
    engines = [line("full", None, TOPLINE + 0.001, engine="recurrence", cell="other engine")]
    assert set(drawn(plot(table(lines(), engines)))["Topline (full context)"].get_ydata()) == {TOPLINE}


def test_a_table_read_back_from_its_file_gives_the_same_figure(tmp_path: Path):
    given = table(lines(), lines(dtype="float32"), [line("tova", 32, None, status="failed", metric=None)])
    given.to_csv(tmp_path / "summary.csv", index=False)
    one, two = plot(given), plot(pd.read_csv(tmp_path / "summary.csv"))
    for panel in range(2):
        assert title(one, panel) == title(two, panel) and one.axes[panel].get_ylim() == two.axes[panel].get_ylim()
        for label, artist in drawn(one, panel).items():
            assert list(artist.get_ydata()) == list(drawn(two, panel)[label].get_ydata())
    assert caption(one) == caption(two)


def test_one_size_and_a_size_that_is_no_power_of_two():
    figure = plot(table([line("full", None, TOPLINE), line("tova", 100, 8.0)]))
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["100"]
    figure = plot(table([line("tova", k, 8.0) for k in (1000, 1001, 131072)]))
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["", "1001", "131072"]


def test_paper_numbers_are_dotted_where_model_and_text_are_the_papers(tmp_path: Path):
    names = {"tova": "TOVA-layer", "window4": "Window+4", "h2o": "H2O-head", "tova4": "TOVA-layer+4"}
    rows: list[tuple] = [("pg19_ablation_table3", "LLaMA-2-7B", n, 64, "perplexity", "9.5", "") for n in names.values()]
    rows += [("pg19_fig3", "LLaMA-2-7B", "(axis range)", None, "perplexity", "7-15", "")]
    rows += [("passkey", "LLaMA-2-7B", "TOVA", 64, "accuracy", "1", "")]
    columns = ["experiment", "model", "policy", "state_size", "metric", "value", "source"]
    paper = pd.DataFrame(rows, columns=columns)
    given = table(lines(), lines(dataset="novels"), lines(model="SmolLM2-135M-Instruct"))
    figure = plot(given, paper=paper)
    count = {title(figure, p): len(figure.axes[p].lines) - len(PERPLEXITY) - 1 for p in range(3)}
    assert count == {"Llama-2-7b-hf on pg19": 4, "Llama-2-7b-hf on novels": 0, "SmolLM2-135M-Instruct on pg19": 0}
    dotted = [artist for artist in figure.axes[count_index(figure)].lines if artist.get_label() == "_paper"]
    assert {to_hex(artist.get_color()) for artist in dotted} == {style.LOOKS[name].color.lower() for name in names}
    assert all(artist.get_linestyle() == ":" for artist in dotted)
    assert "The paper's numbers" in [text.get_text() for text in figure.legends[0].get_texts()]


def count_index(figure: Figure) -> int:
    return [title(figure, panel) for panel in range(3)].index("Llama-2-7b-hf on pg19")


def test_the_papers_own_numbers_overlay_every_policy_of_its_table():
    figure = plot(table(lines()), paper=_published.read())
    dotted = [list(artist.get_ydata()) for artist in figure.axes[0].lines if artist.get_label() == "_paper"]
    assert sorted(dotted) == sorted(PERPLEXITY.values())


def test_the_papers_numbers_come_with_the_package():
    """All of them, as numbers where they are, and none of another paper."""
    assert _published.FILE.parent == Path(figures.__file__).parent, "beside the modules, so that the wheel has it"
    paper = _published.read()
    assert len(paper) == 299 and paper["source"].str.startswith("arXiv 2401.06104v2 ").all()
    assert not paper[["experiment", "model", "policy", "printed_size", "metric"]].duplicated().any()
    assert (paper["state_size"].dtype, paper["value"].dtype) == ("Int64", "float64")
    words = ["experiment", "model", "policy", "metric", "source", "printed_size", "printed_value"]
    assert all(paper[name].map(type).eq(str).all() for name in words) and paper[words[:5]].ne("").all().all()
    # What is no number is a bound, a range, words or an axis: never a result that failed to be read.
    odd = paper.loc[paper["value"].isna(), "printed_value"]
    assert len(odd) == 27 and odd.str.contains(r"[<>]|\d\.\.\d|\d-\d|^up to|^almost|^at least").all()
    assert paper["value"].notna().sum() == 272 and paper.loc[paper["value"].notna(), "value"].ge(0).all()


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(UsageError, match="msrnn-bench run policy=tova cache=512"):
        plot(table(lines({})))
    with pytest.raises(UsageError, match=r"lacks .*value"):
        plot(pd.DataFrame({"policy": ["tova"]}))
    with pytest.raises(UsageError, match="run"):
        plot(table([]))


def test_numbers_in_marks_are_short():
    assert [short(v) for v in (9.04, 17.65, 240.17, 4812.27, 9999.4, 48123.0, 4.8e8)] == [
        "9.0", "17.6", "240", "4812", "9999", "48k", "4.8e+08",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["price_$5_to_$10", "$\\foo$", "50% & <b>"])
def test_names_are_drawn_as_written(name, tmp_path):
    """Two `$` are mathematics to matplotlib, and what is none ends in an exception."""
    figure = plot(table(lines(dataset=name)))
    assert name in title(figure, 0)
    assert all(path.stat().st_size > 1000 for path in figures.save(figure, tmp_path / "figure"))
