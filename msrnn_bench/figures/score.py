"""Score against multi-state size, after Figures 4, 5, 10 and 11 of the paper (arXiv 2401.06104): large is good.

One panel per model and dataset, and per prefill, kind of prompt, subtask and length where there are several. Departures
from the paper: intervals, which are of the paired difference to the topline (see perplexity.py); and both prefills. The
full model and the baseline cut no state, so they are the same under either prefill and stand in the panels of both.
"""

import operator
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from msrnn_bench.errors import UsageError
from msrnn_bench.figures import _axes, _panels, _scale, style
from msrnn_bench.figures._panels import Panel

_SHARED = (*_panels.SHARED, "prefill", "subtask", "length")
_METRICS = {
    "rouge": "ROUGE (geometric mean of 1, 2, L)", "f1": "F1", "accuracy": "Accuracy",
    "acc": "Accuracy", "acc_norm": "Accuracy (normalised by length)", "exact_match": "Exact match",
    "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L",
}  # fmt: skip
_WHOLE = {"accuracy": (0.0, 1.0)}  # scores whose whole range is drawn


def plot(
    table: pd.DataFrame,
    *,
    note: str | None = None,
    caption: bool = True,
    emphasise: str | Sequence[str] = "tova",
    metric: str | None = None,
    paper: pd.DataFrame | None = None,
) -> Figure:
    """Draw a summary table.

    paper: the paper's numbers, dotted as in the perplexity figure (it prints none of its curves of scores, a file of yours may);
    metric: which of its metrics; by default the first that is there of rouge, f1, accuracy and the like. note, caption and
    emphasise are those of the perplexity figure."""
    metric = _metric(table, metric)
    panels = sorted(_panels.read(_in_both_prefills(table), metric, _SHARED), key=_place)
    published = [_panels.published(paper, panel, metric) for panel in panels]
    limits = _scale.score_limits(panels, _WHOLE.get(metric))
    order = _scale.order(panels, operator.sub)
    looks = style.looks([*order, "full"])
    thick = {emphasise} if isinstance(emphasise, str) else set(emphasise)
    text = _caption(panels, table, _axes.unpublished(paper, published, "scores"), note) if caption else []
    with style.context():
        handles = _axes.handles(panels, order, looks, thick, any(published))
        columns = _axes.columns(len(panels))
        figure, axes, width = _axes.canvas(len(panels), columns, len(handles), len(text))
        for index, (panel, ax) in enumerate(zip(panels, axes, strict=True)):
            _axes.draw(ax, panel, looks, thick)
            for name, points in published[index].items():
                ax.plot(points["cache"], points["value"], ":", color=looks[name].color, linewidth=1.0, label="_paper")
            _axes.frame(ax, panel, limits[index], 0, width)
            leftmost = index % columns == 0
            ax.set_ylabel(_METRICS.get(metric, metric) if leftmost else "")
            ax.tick_params(labelleft=leftmost or len(set(limits)) > 1)
        _axes.surround(figure, handles, text, beside=len(panels) == 1)
    return figure


def _metric(table: pd.DataFrame, wanted: str | None) -> str:
    """The metric to draw, refused where no line has it."""
    if "metric" not in table or "value" not in table:
        raise UsageError("not a summary table, it lacks metric, value: give what `msrnn-bench collect` writes")
    there = sorted(name for name in set(table.loc[table["value"].notna(), "metric"].dropna()) if not name.startswith("nll"))
    for metric in [wanted] if wanted else _METRICS:
        if metric in there:
            return metric
    if wanted or there:
        names = ", ".join(there) or "none"
        raise UsageError(f"no line has metric {wanted or 'rouge, f1 or accuracy'}; there are: {names} (metric=NAME)")
    raise UsageError("no score to draw: run `msrnn-bench run task=squality policy=tova cache=512`, then collect")


def _in_both_prefills(table: pd.DataFrame) -> pd.DataFrame:
    """The table with full model and baseline beside each prefill; refused where it is none."""
    lacking = sorted(set(_SHARED) - set(table.columns))
    if lacking:
        raise UsageError(f"not a summary table, it lacks {', '.join(lacking)}: give what `msrnn-bench collect` writes")
    return _panels.in_each(table, "prefill", _SHARED)


def _place(panel: Panel) -> tuple[Any, ...]:
    """Where a panel stands among others: as its settings sort, but stepwise, which is the definition, first."""
    texts = [str(panel.settings[name]) for name in _SHARED[: _SHARED.index("prefill")]]
    return *texts, panel.settings["prefill"] != "stepwise", str(panel.settings["subtask"]), panel.settings["length"] or 0


def _caption(panels: list[Panel], table: pd.DataFrame, more: list[str], note: str | None) -> list[str]:
    """What the reader must know and the axes do not say."""
    sentences = _axes.measured(panels, "of context")
    for name, what in (("prefill", "prefill"), ("template", "prompt")):
        values = {str(panel.settings[name]) for panel in panels if panel.settings[name] is not None}
        if len(values) == 1:
            sentences.append(f"{values.pop().capitalize()} {what}.")
    where = ["task", "model", "dataset"]
    drawn = {tuple(str(panel.settings[name]) for name in where) for panel in panels}
    lost = table[table["value"].isna() & (table["status"] != "ok")]
    failed = sum(tuple(str(line[name]) for name in where) in drawn for _, line in lost.iterrows())
    return _axes.wrapped([*sentences, *_axes.bands(panels, "score"), *more, *_axes.failures(failed)], note)
