"""The figures of what stays, from death times whose answers are known: a window is a band, a protected token a column."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from test_figures import caption

from msrnn_bench import figures
from msrnn_bench.cli.main import main
from msrnn_bench.errors import UsageError
from msrnn_bench.figures import _pixels, _table5, style
from msrnn_bench.results.summary import TIDY_TYPES

TOKENS, SIZE, LAYERS = 96, 12, 3


def deaths(first: int = 0, *, tokens: int = TOKENS, size: int = SIZE, chance: int | None = None) -> np.ndarray:
    """Death times [T] of a window of `size` states of which the `first` stay; with `chance` any other state leaves."""
    found, alive, draw = np.full(tokens, -1), [], np.random.default_rng(chance)
    for step in range(tokens):
        alive.append(step)
        if len(alive) > size:
            found[alive.pop(first if chance is None else int(draw.integers(first, size + 1)))] = step
    return found


def layered(*layers: np.ndarray) -> np.ndarray:
    """[L, 1, T] of one decision a layer."""
    return np.stack(layers)[:, None]


WINDOW, WINDOW4 = layered(*[deaths()] * LAYERS), layered(*[deaths(4)] * LAYERS)
CHANCE = layered(*(deaths(1, chance=layer) for layer in range(LAYERS)))


def rows(policy: str, death: np.ndarray, document: str = "one", size: int = SIZE, **changes: Any) -> list[dict[str, Any]]:
    """A cell's rows as task=retention has them, from the death times of one document: of every token, and by position."""
    layers, _, tokens = death.shape
    kept = (np.where(death < 0, tokens - 1, death) - np.arange(tokens) + 1).mean(1).sum(0)  # [T], summed over layers
    settings = {
        "cell": f"{policy}-{size}-{'-'.join(map(str, changes.values()))}", "task": "retention", "dataset": "pysource",
        "model": "smollm2", "weights": "pretrained", "policy": policy, "memory": 0.0, "first": 0, "per": "layer",
        "cache": size, "context": tokens, "seed": 0, "bos": False, "dtype": "float32", "engine": "scan",
        "prefill": "stepwise", "positions": "original", "document": document, "metric": "lifetime", "status": "ok", **changes,
    }  # fmt: skip
    parts = [("all", 0, tokens), *(("position", at, at + 1) for at in range(26)), ("position", 26, tokens)]
    return [
        {**settings, "subtask": part, "bucket_start": begin, "bucket_end": end, "total": float(kept[begin:end].sum()),
         "count": layers * (end - begin)}
        for part, begin, end in parts
    ]  # fmt: skip


def table(*parts: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([row for part in parts for row in part], columns=list(TIDY_TYPES)).astype(TIDY_TYPES)


def classed(
    policy: str, lifetimes: dict[str, float], document: str = "one", scheme: str = "pos", size: int = 256, **changes: Any
) -> list[dict[str, Any]]:
    """A cell's rows by class: 20 tokens of each in every one of two layers, with these mean lifetimes, in a text of 2,048."""
    common = rows(policy, WINDOW, document, size, **{"context": 2048, **changes})[0]
    parts = [
        {**common, "subtask": f"class:{scheme}/{name}", "bucket_end": 2048, "total": 40.0 * steps, "count": 40}
        for name, steps in lifetimes.items()
    ]
    whole = {"bucket_end": 2048, "total": 10.0 * sum(lifetimes.values()), "count": 20 * len(lifetimes)}
    return parts + [{**common, **whole, "subtask": f"layer:{layer:02}"} for layer in range(2)]


ARRAYS = {"window-12-": WINDOW, "window4-12-": WINDOW4, "tova-12-": CHANCE}
MAPS = table(*(rows(policy, death) for policy, death in (("window", WINDOW), ("window4", WINDOW4), ("tova", CHANCE))))


def maps(figure: Figure) -> dict[str, np.ndarray]:
    """Title of each map -> its pixels, NaN where nothing was read."""
    return {ax.get_title(): np.ma.filled(ax.images[0].get_array(), np.nan) for ax in figure.axes if ax.images}


# --- pixels


def test_every_pixel_is_its_share():
    """A pixel per step and token is the plain definition; coarser ones are means over what was read by then."""
    death = np.stack([deaths(1, chance=5), deaths(0, chance=6)])
    step, token = np.mgrid[:TOKENS, :TOKENS]
    plain = np.mean([np.where(one < 0, TOKENS, one)[token] > step for one in death], axis=0)
    plain[token > step] = np.nan
    np.testing.assert_array_equal(_pixels.held(death, TOKENS), plain)
    np.testing.assert_array_equal(_pixels.held(death, 10 * TOKENS), plain)
    assert np.allclose(np.nansum(plain, axis=1), np.minimum(np.arange(TOKENS) + 1, SIZE)), "as many states as there may be"
    for size in (7, 32):
        edges = list(pairwise(np.arange(size + 1) * TOKENS // size))
        blocks = [[plain[a:b, c:d] for c, d in edges] for a, b in edges]
        coarse = [[np.nan if np.isnan(block).all() else np.nanmean(block) for block in row] for row in blocks]
        np.testing.assert_allclose(_pixels.held(death, size), coarse)


# --- retention_map


def test_a_window_is_a_band_and_protected_tokens_are_columns():
    drawn = maps(figures.draw("retention_map", MAPS, arrays=ARRAYS))
    assert list(drawn) == ["Window, k = 12", "Window+4, k = 12", "TOVA, k = 12"]
    step, token = np.mgrid[:TOKENS, :TOKENS]
    read = token <= step
    band, column = step - token < SIZE, token < 4
    assert all((np.isnan(pixels) == ~read).all() for pixels in drawn.values()), "tinted is what was not read yet"
    assert (drawn["Window, k = 12"][read] == band[read]).all()
    first = (column | (step - token < SIZE - 4) | (step < SIZE))[read]
    assert (drawn["Window+4, k = 12"][read] == first).all()
    assert (drawn["TOVA, k = 12"][:, 0] == 1).all() and (drawn["TOVA, k = 12"][step - token >= SIZE] == 1).sum() > TOKENS


def test_which_layer_and_what_the_caption_says():
    layers = [maps(figures.draw("retention_map", MAPS, arrays=ARRAYS, layer=at))["TOVA, k = 12"] for at in (0, "1", 2, "last")]
    assert not np.array_equal(layers[0], layers[1], equal_nan=True) and np.array_equal(layers[2], layers[3], equal_nan=True)
    figure = figures.draw("retention_map", MAPS, arrays=ARRAYS, note="A note.")
    said = caption(figure)
    assert "Layer 2 of 0 to 2" in said and "first 96 tokens of one, float32, pretrained weights." in said and "A note." in said
    assert figure.axes[0].get_title(loc="left").strip() == "smollm2 on pysource" and "heads" not in said
    assert not figures.draw("retention_map", MAPS, arrays=ARRAYS, caption=False).texts
    for layer in (3, -1, "first"):
        with pytest.raises(UsageError, match=rf"layer={layer} is none of 0 to 2, last or all"):
            figures.draw("retention_map", MAPS, arrays=ARRAYS, layer=layer)


def test_all_layers_are_tiles_in_their_order():
    figure = figures.draw("retention_map", MAPS, arrays=ARRAYS, layer="all")
    (ax,) = [ax for ax in figure.axes if ax.get_title() == "TOVA, k = 12"]
    assert len(ax.images) == LAYERS and [text.get_text() for text in ax.texts] == ["0", "1", "2"]
    for number, image in enumerate(ax.images):
        pixels = np.ma.filled(image.get_array(), np.nan)
        np.testing.assert_array_equal(pixels, _pixels.held(CHANCE[number], len(pixels)))
    places = [image.get_extent() for image in ax.images]
    assert places[0][0] < places[1][0] and places[0][2] < places[2][2], "left to right, then down"
    assert "All layers, 0 to 2" in caption(figure)


def test_heads_that_decide_alone_are_a_share():
    death = np.stack([deaths(), deaths(4)])[None]  # [1, 2, T]
    per_head = table(rows("tova_head", death, per="head"))
    figure = figures.draw("retention_map", per_head, arrays={"tova_head-12-head": death})
    (pixels,) = maps(figure).values()
    assert set(pixels[~np.isnan(pixels)]) == {0, 0.5, 1} and "share over heads" in caption(figure)


def test_one_size_of_several_policies_all_of_one():
    sizes = {size: layered(deaths(size=size)) for size in (6, 12, 24)}
    one = table(*(rows("window", death, size=size) for size, death in sizes.items()))
    arrays = {f"window-{size}-": death for size, death in sizes.items()}
    assert list(maps(figures.draw("retention_map", one, arrays=arrays))) == ["Window, k = 6", "Window, k = 12", "Window, k = 24"]
    both = pd.concat([one, table(*(rows("tova", CHANCE[:1], size=12),))])
    arrays["tova-12-"] = CHANCE[:1]
    assert list(maps(figures.draw("retention_map", both, arrays=arrays))) == ["Window, k = 12", "TOVA, k = 12"]
    assert list(maps(figures.draw("retention_map", both, arrays=arrays, cache="24"))) == ["Window, k = 24"]
    with pytest.raises(UsageError, match="no retention cell of cache=7 has its death times"):
        figures.draw("retention_map", both, arrays=arrays, cache=7)


def test_texts_stand_apart_and_the_same_numbers_are_the_same_bytes(tmp_path):
    other = rows("window", WINDOW, dataset="text")
    figure = figures.draw("retention_map", table(rows("window", WINDOW), other), arrays={**ARRAYS, "window-12-text": WINDOW})
    titles = [ax.get_title(loc="left").strip() for ax in figure.axes]
    assert {"smollm2 on pysource", "smollm2 on text"} <= set(titles)
    first, again = (
        [path.read_bytes() for path in figures.save(figures.draw("retention_map", MAPS, arrays=ARRAYS), tmp_path / name)]
        for name in ("one", "two")
    )
    assert first == again


def test_what_is_not_there_is_said():
    empty = MAPS.iloc[:0]
    ours = dict.fromkeys(["retention_map", "first_tokens", "token_classes"], "task=retention")
    for name, needed in {**ours, "needle": "task.needle=true"}.items():
        with pytest.raises(UsageError, match=needed) as found:
            figures.draw(name, empty)
        assert "\n" not in str(found.value)
        with pytest.raises(UsageError, match=r"not a table of all rows, it lacks .*tidy.csv"):
            figures.draw(name, pd.DataFrame({"metric": ["lifetime"], "policy": ["tova"]}))
    with pytest.raises(UsageError, match="no retention cell has its death times beside its rows"):
        figures.draw("retention_map", MAPS)


@pytest.mark.parametrize("wrong", [CHANCE[..., :50], layered(deaths(size=11)), CHANCE[:, 0], CHANCE[0, 0]])
def test_death_times_of_another_run_are_refused(wrong):
    with pytest.raises(UsageError, match="death times of cell tova-12- are not of its 96 tokens and 12 states"):
        figures.draw("retention_map", MAPS, arrays={"tova-12-": wrong})


# --- first_tokens


def lines(figure: Figure, panel: int = 0) -> dict[str, Any]:
    return {str(line.get_label()): line for line in figure.axes[panel].lines if not str(line.get_label()).startswith("_")}


def test_lifetimes_of_the_first_tokens():
    figure = figures.draw("first_tokens", MAPS)
    drawn = lines(figure)
    assert list(drawn) == ["Window", "Window+4", "TOVA"] and figure.axes[0].get_title() == "smollm2 on pysource\nk = 12"
    assert list(drawn["Window"].get_ydata()) == [13] * 26, "k steps, and the one at which it leaves"
    assert list(drawn["Window+4"].get_ydata()) == [96, 95, 94, 93] + [12 - 4 + 1] * 22
    assert drawn["TOVA"].get_ydata()[0] == 96 and to_hex(drawn["TOVA"].get_color()) == style.LOOKS["tova"].color.lower()
    means = [line for line in figure.axes[0].lines if line.get_label() == "_mean"]
    expected = np.minimum(np.arange(1, TOKENS + 1), SIZE + 1).mean()
    assert means and all(line.get_ydata()[0] == pytest.approx(expected) for line in means), "whatever the policy"
    (end,) = [line for line in figure.axes[0].lines if line.get_label() == "_end"]
    assert list(end.get_ydata()) == [96, 96 - 25]
    assert "1 document, float32" in caption(figure) and "Bands" not in caption(figure)


def test_a_line_per_size_or_per_policy():
    parts = [rows(p, layered(deaths(first, size=k)), size=k) for k in (6, 12, 24) for p, first in (("window", 0), ("window4", 4))]
    both = table(*parts)
    by_policy = figures.draw("first_tokens", both)
    assert [ax.get_title().splitlines()[1] for ax in by_policy.axes] == ["k = 6", "k = 12", "k = 24"]
    by_size = figures.draw("first_tokens", both, lines="k")
    assert [ax.get_title().splitlines()[1] for ax in by_size.axes] == ["Window", "Window+4"]
    assert list(lines(by_size)) == ["k = 6", "k = 12", "k = 24"]
    assert len({line.get_color() for line in lines(by_size).values()}) == 3
    one = figures.draw("first_tokens", both[both["policy"] == "window4"])
    assert list(lines(one)) == ["k = 6", "k = 12", "k = 24"], "one policy: a line per size, as in the paper"
    with pytest.raises(UsageError, match="lines=size is neither k nor policy"):
        figures.draw("first_tokens", both, lines="size")


def test_bands_are_over_documents():
    several = table(*(rows("tova", layered(deaths(1, chance=seed)), document=str(seed)) for seed in range(4)))
    figure = figures.draw("first_tokens", several)
    (band,) = figure.axes[0].collections
    own = [rows("tova", layered(deaths(1, chance=seed)))[4]["total"] for seed in range(4)]  # position 3
    half = 3.182446 * np.std(own, ddof=1) / 2
    ys = [y for x, y in band.get_paths()[0].vertices if x == 3]
    assert min(ys) == pytest.approx(np.mean(own) - half, rel=1e-5) and max(ys) == pytest.approx(np.mean(own) + half, rel=1e-5)
    assert "4 documents" in caption(figure) and "95% intervals over documents (jackknife-t)" in caption(figure)


def test_several_results_of_one_name_are_refused_and_the_larger_one_stands():
    other = table(rows("tova", layered(*[deaths(1, chance=9)] * LAYERS), engine="scan"))
    with pytest.raises(UsageError, match="tova at cache 12 has several results"):
        figures.draw("first_tokens", pd.concat([MAPS, other]))
    more = table(*(rows("tova", CHANCE, document=document, engine="scan") for document in ("one", "two")))
    assert "1 to 2 documents" in caption(figures.draw("first_tokens", pd.concat([MAPS, more])))


# --- token_classes

CLASSES = {"POS": 600.0, "NN": 300.0, "DT": 150.0, "untagged": 150.0}  # their mean is 300


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_yticklabels()]


def test_classes_are_ranked_and_the_average_is_one():
    figure = figures.draw("token_classes", table(classed("tova", CLASSES), classed("window", dict.fromkeys(CLASSES, 257.0))))
    assert labels(figure) == ["POS  (20)", "NN  (20)", "DT  (20)", "untagged  (20)"]
    drawn = lines(figure)
    assert list(drawn["TOVA"].get_xdata()) == [0.5, 1, 2, 0.5], "by class: DT, NN, POS, untagged"
    assert list(np.round(drawn["TOVA"].get_ydata())) == [2, 1, 0, 3] and set(drawn["Window"].get_xdata()) == {1}
    by_window = figures.draw("token_classes", table(classed("tova", CLASSES), classed("window", {"NN": 300.0, "DT": 400.0})),
                             emphasise="window")  # fmt: skip
    assert labels(by_window)[:2] == ["DT  (20)", "NN  (20)"], "the emphasised policy gives the order"


def test_the_paper_stands_beside_tags_of_the_same_meaning_only():
    """k = 256 of 2,048 is the paper's 512 of 4,096: 1393, 527 and 379 against 481 on average."""
    found = figures.data("token_classes", table(classed("tova", CLASSES))).set_index("class")
    assert found.loc[["POS", "NN", "DT"], "published_steps"].tolist() == [1393, 527, 379]
    assert found["published_k"].dropna().unique() == [512] and found["published_average"].dropna().unique() == [481]
    assert found.loc["POS", "published_multiple"] == pytest.approx(1393 / 481) and found.loc["POS", "multiple"] == 2
    figure = figures.draw("token_classes", table(classed("tova", CLASSES)))
    (paper,) = [line for line in figure.axes[0].lines if line.get_label() == "_paper"]
    assert sorted(paper.get_xdata()) == pytest.approx([379 / 481, 527 / 481, 1393 / 481])
    assert "k = 512 of 4,096 tokens" in caption(figure)


def test_the_paper_s_numbers_at_the_same_share():
    assert _table5.lifetimes().loc["”", 512] == 1101 and _table5.lifetimes().loc["\\n", 256] == 303
    assert _table5.lifetimes().loc["Avg."].tolist() == [249, 481, 897, 1537] and _table5.SAME["quote_close"] == "”"
    assert [_table5.same_share(k, 2048) for k in (64, 128, 256, 1024, 2048)] == [None, 256, 512, 2048, None]
    assert _table5.same_share(512, 4096) == 512


@pytest.mark.parametrize("changes", [{"size": 300}, {"size": 64}, {"scheme": "char"}])
def test_the_paper_is_left_out_where_it_has_no_such_share_or_scheme(changes):
    given = table(classed("tova", CLASSES, **changes))
    assert figures.data("token_classes", given)["published_steps"].isna().all()
    figure = figures.draw("token_classes", given)
    assert not [line for line in figure.axes[0].lines if line.get_label() == "_paper"] and "Diamonds" not in caption(figure)


def test_a_text_has_its_own_scheme():
    source = classed("tova", {"keyword": 100.0, "string": 300.0}, scheme="token")
    chars = classed("tova", {"digit": 200.0, "newline": 200.0}, scheme="char")
    prose = classed("tova", CLASSES, dataset="novels")
    figure = figures.draw("token_classes", table(source, chars, prose))
    shown = [[text.get_text().split()[0] for text in ax.get_yticklabels()] for ax in figure.axes if ax.get_yticklabels()]
    assert ["string", "keyword"] in shown and ["POS", "NN", "DT", "untagged"] in shown
    assert "part of speech" in caption(figure) and "Python's source" in caption(figure)
    assert set(figures.data("token_classes", table(source, chars, prose))["scheme"]) == {"token", "char", "pos"}
    with pytest.raises(UsageError, match="scheme=words is none of those measured: char, pos, token"):
        figures.draw("token_classes", table(source, chars, prose), scheme="words")


def test_many_policies_are_in_the_table_and_four_in_the_figure():
    names = ["window", "window1", "window4", "h2o", "random", "tova"]
    given = table(*(classed(name, CLASSES) for name in names))
    figure = figures.draw("token_classes", given)
    assert list(lines(figure)) == ["Random", "Window+4", "H2O", "TOVA"] and "Not drawn: window, window1." in caption(figure)
    assert set(figures.data("token_classes", given)["policy"]) == set(names)
    two = figures.draw("token_classes", given, policies=["window", "tova"])
    assert list(lines(two)) == ["Window", "TOVA"]
    with pytest.raises(UsageError, match="policies has tovo, which is none of those measured"):
        figures.draw("token_classes", given, policies=["tovo"])


def test_intervals_of_classes_are_over_documents():
    several = table(*(classed("tova", {"NN": 300.0 + shift, "DT": 100.0}, str(shift)) for shift in (-30, 0, 30, 60)))
    found = figures.data("token_classes", several).set_index("class")
    half = 3.182446 * np.std([270, 300, 330, 360], ddof=1) / 2
    assert found.loc["NN", ["low", "high"]].tolist() == pytest.approx([315 - half, 315 + half], rel=1e-5)
    assert found.loc["NN", "documents"] == 4 and found.loc["NN", "tokens"] == 80
    assert "Lines: 95% intervals" in caption(figures.draw("token_classes", several))


# --- needle


def test_the_needle_s_share_by_distance():
    def cell(policy: str, shares: list[float], document: str) -> list[dict[str, Any]]:
        common = {**rows(policy, WINDOW, document)[0], "task": "retrieval", "dataset": "filler", "metric": "needle_kept_by_step",
                  "subtask": "single", "length": 1000, "template": "plain"}  # fmt: skip
        return [
            {**common, "bucket_start": 2**n, "bucket_end": 2**n + 1, "total": 6 * share, "count": 6}
            for n, share in enumerate(shares)
        ]

    given = table(*(cell(policy, shares, document) for document in ("a", "b")
                    for policy, shares in (("tova", [1, 0.9, 0.8, 0.7]), ("window", [1, 1, 1, 0]))))  # fmt: skip
    figure = figures.draw("needle", given)
    drawn = lines(figure)
    assert list(drawn["TOVA"].get_xdata()) == [1, 2, 4, 8]
    assert list(drawn["TOVA"].get_ydata()) == pytest.approx([1, 0.9, 0.8, 0.7])
    assert list(drawn["Window"].get_ydata()) == [1, 1, 1, 0]
    assert figure.axes[0].get_title() == "smollm2 on filler\nk = 12, 1,000 tokens" and "2 haystacks" in caption(figure)


# --- the command line


def test_plot_hands_arrays_over_and_writes_the_table(tmp_path, capsys):
    (tmp_path / "cells").mkdir()
    both = pd.concat([table(rows("window", WINDOW)), table(classed("window", CLASSES))])
    both.to_csv(tmp_path / "tidy.csv", index=False)
    np.savez_compressed(tmp_path / "cells" / "window-12-.npz", death=WINDOW.astype(np.int32))
    np.savez_compressed(tmp_path / "cells" / "other.npz", nll=np.zeros(3))  # another task's
    plot = ["plot", f"results_dir={tmp_path}"]
    assert main([*plot, "figure=retention_map", "layer=0", "cache=12"]) == 0 and (tmp_path / "retention_map.png").is_file()
    assert main([*plot, "figure=token_classes"]) == 0
    written = pd.read_csv(tmp_path / "token_classes.csv")
    assert written.set_index("class").loc["POS", ["steps", "published_steps"]].tolist() == [600, 1393]
    assert str(tmp_path / "token_classes.csv") in capsys.readouterr().out
    assert main([*plot, "layer=0"]) == 2
    assert "layer=0 is an option of one figure: say which, figure=NAME" in capsys.readouterr().err
    assert main([*plot, "figure=first_tokens", "layer=0"]) == 2
    assert "first_tokens has no option layer" in capsys.readouterr().err
    (tmp_path / "cells" / "other.npz").write_bytes(b"no zip")
    assert main([*plot, "figure=retention_map"]) == 2 and "other.npz is damaged" in capsys.readouterr().err
