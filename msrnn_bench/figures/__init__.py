"""The figures, found by discovery: one file each, named after the figure, with `plot(table, **options) -> Figure`.

A figure is a function of the summary table, or of all rows where its module says `TABLE = "tidy"`, and of what `ARRAYS` names of
each cell's arrays; `TASKS` and `UNASKED` in its module name the tasks and metrics it is drawn of without being asked for.
May import results and errors. None loads a model, reads a results folder or imports torch.
"""

import importlib
import inspect
import io
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msrnn_bench.errors import UsageError
from msrnn_bench.results.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# What varies between two runs of the same drawing is left out of the files.
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None},
}

# What is drawn of a task's results where no figure is asked for; of others' what their metrics are, and what names the task.
SUITED = {
    "perplexity": ["perplexity"], "stories": ["stories"], "retrieval": ["score", "depth"],
    "retention": ["retention_map", "first_tokens", "token_classes"],
    "extrapolation": ["extrapolation"], "efficiency": ["efficiency"],
    "equivalence": [],  # the theorem is a table: see summary.csv
}  # fmt: skip
# What a reader must know of a model wherever its numbers are shown.
NOTES = {"smollm2": "smollm2 is SmolLM2-135M-Instruct: instruction-tuned, quantised to 4 bits (Q4_1)."}


def names() -> list[str]:
    """Every module here is a figure, but `style` and those that begin with an underscore."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if name != "style" and not name.startswith("_"))


def draw(name: str, table: "pd.DataFrame", *, published: bool | None = None, **options: Any) -> "Figure":
    """The figure of that name from its table; `published`: with the paper's numbers, which is `paper=` with all it prints (None:
    as the figure has it)."""
    if name not in names():
        raise UsageError(f"no figure {name!r}: choose from {', '.join(names())}")
    plot = importlib.import_module(f"{__name__}.{name}").plot
    known = list(inspect.signature(plot).parameters)[1:]
    if published is not None and "published" in known:
        options["published"] = published
    elif published:
        from msrnn_bench.figures import _published

        if "paper" not in known:
            raise UsageError(f"figure {name} has no axes of the paper's numbers: leave published=true out")
        options.setdefault("paper", _published.read())
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(f"figure {name} has no option {', '.join(unknown)}: choose from {', '.join(known)}")
    return plot(table, **options)


def table_of(name: str) -> str:
    """Which table the figure is drawn from: summary | tidy."""
    return str(getattr(importlib.import_module(f"{__name__}.{name}"), "TABLE", "summary"))


def data(name: str, table: "pd.DataFrame") -> "pd.DataFrame | None":
    """What the figure shows as a table, where its module has a function `data`; None where it has none."""
    made = getattr(importlib.import_module(f"{__name__}.{name}"), "data", None)
    return None if made is None else made(table)


def arrays_of(name: str) -> str | None:
    """Which of each cell's arrays the figure takes as `arrays`, by cell; None where it takes none."""
    return getattr(importlib.import_module(f"{__name__}.{name}"), "ARRAYS", None)


def suited(summary: "pd.DataFrame", metric: str | None = None) -> list[str]:
    """The figures that show what a summary holds, or one of its metrics."""
    if metric is not None:
        return ["perplexity" if metric.startswith("nll") else "score"]
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names()}
    claimed = {name: getattr(module, "TASKS", ()) for name, module in modules.items()}
    metrics = set(summary["metric"].dropna())
    besides = [name for name, module in modules.items() if metrics & set(getattr(module, "UNASKED", ()))]
    found: list[str] = []
    for task, lines in summary.groupby("task"):
        losses = lines["metric"].dropna().str.startswith("nll")
        kinds = [name for name, there in (("score", not losses.all()), ("perplexity", losses.any())) if there]
        own = [name for name, tasks in claimed.items() if task in tasks]
        found += [*SUITED.get(str(task), own or kinds or ["score"]), *own]
    return list(dict.fromkeys([*found, *besides]))


def note(table: "pd.DataFrame") -> str | None:
    """What must be said of the models whose numbers a table holds."""
    return " ".join(NOTES[name] for name in sorted(set(table["model"]) & set(NOTES))) or None


def save(figure: "Figure", stem: Path) -> list[Path]:
    """Write stem.png, stem.pdf and stem.svg, each whole or not at all; the same figure gives the same bytes."""
    from msrnn_bench.figures import style

    paths = []
    with style.context():
        for kind, metadata in _METADATA.items():
            content = io.BytesIO()
            figure.savefig(content, format=kind, dpi=200, metadata=metadata)
            figure.set_layout_engine("none")  # its places were found: once is enough for all kinds
            paths.append(stem.with_name(f"{stem.name}.{kind}"))
            write_atomically(paths[-1], content.getvalue())
    return paths
