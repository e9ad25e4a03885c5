"""What the paper leaves open, and what was taken: a line a question, read off the rows where they tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

_PROMPTED = ("squality", "qasper", "retrieval", "stories", "lm_eval")
_CHUNKED = ("perplexity", "retention")


@dataclass(frozen=True)
class Choice:
    """One question. `measured` is "" where nothing was measured that it concerns."""

    question: str
    paper: str  # what the paper says of it
    taken: str  # what is done here, and what else can be chosen
    measured: str  # what the rows say was done, by model


def choices(rows: pd.DataFrame) -> list[Choice]:
    """The open choices, in a fixed order, for the tidy rows of one or more results folders."""
    return [Choice(question, paper, taken, measured(rows)) for question, paper, taken, measured in _OPEN]


def _by_model(tasks: Sequence[str], column: str, words: Callable[[object], str] = str) -> Callable[[pd.DataFrame], str]:
    """What a column says, of each model of these tasks; the full model and the baseline have no prefill of their own."""

    def measured(rows: pd.DataFrame) -> str:
        own = rows[rows["task"].isin(list(tasks)) & ~rows["policy"].isin(["full", "baseline"]) & rows[column].notna()]
        said: dict[str, list[str]] = {}
        for model, part in own.groupby("model"):
            said.setdefault(" and ".join(sorted({words(value) for value in part[column]})), []).append(str(model))
        return "; ".join(f"{what}: {', '.join(models)}" for what, models in sorted(said.items()))

    return measured


def _classes(rows: pd.DataFrame) -> str:
    """Which schemes of classes the rows have, by text."""
    kept = rows[rows["task"].eq("retention") & rows["metric"].eq("lifetime").fillna(False)]
    schemes = kept.assign(scheme=kept["subtask"].str.extract(r"^class:(\w+)/", expand=False)).dropna(subset=["scheme"])
    return "; ".join(f"{text}: {', '.join(sorted(set(part['scheme'])))}" for text, part in schemes.groupby("dataset"))


def _recency(rows: pd.DataFrame) -> str:
    """The shares themselves, by size, averaged in each way that the rows have."""
    kept = rows[rows["metric"].eq("recent_share").fillna(False) & rows["policy"].eq("tova") & rows["status"].eq("ok")]
    kept = kept[kept["subtask"].isin([*_AVERAGES, "all"])]
    said = []
    for (model, dataset, size), part in kept.groupby(["model", "dataset", "cache"]):
        shares = [(_AVERAGES[name], part[part["subtask"] == name]) for name in _AVERAGES]
        last = part[
            part["subtask"].eq("all") & part["bucket_end"].eq(part["context"]) & part["bucket_end"].eq(part["bucket_start"] + 1)
        ]
        told = [
            f"{p['total'].sum() / p['count'].sum():.1%} {name}" for name, p in [*shares, ("at the last step", last)] if len(p)
        ]
        said.append(f"tova, {model} on {dataset}, k={size:,}: {', '.join(told)}")
    return "; ".join(said)


_AVERAGES = {"all:full": "over steps with a full state", "all:every": "over all steps"}


def _positions(rows: pd.DataFrame) -> str:
    far = rows[rows["task"].eq("extrapolation") & rows["policy"].ne("baseline") & rows["policy"].ne("full")]
    found = sorted({(str(policy), str(kind)) for policy, kind in zip(far["policy"], far["positions"], strict=True)})
    return ", ".join(f"{policy} {kind}" for policy, kind in found)


_OPEN: tuple[tuple[str, str, str, Callable[[pd.DataFrame], str]], ...] = (
    (
        "Does a mark of beginning (BOS) stand in front of each chunk?",
        "not said",
        "where the tokenizer adds one itself (dataset.bos=auto), and it takes one of the T places; always or never on demand",
        _by_model(_CHUNKED, "bos", lambda value: "with BOS" if value else "without BOS"),
    ),
    (
        "Is a task's prompt read token by token, evicting, or whole, and cut once behind it (prefill)?",
        "not said; the authors' code cuts once",
        "both: prefill=stepwise, the definition, and prefill=oneshot, which has seen the question when it cuts; judged apart",
        _by_model(_PROMPTED, "prefill"),
    ),
    (
        "Which states are the recent ones of the 73 to 76%, averaged over what?",
        "not said",
        "states of the last k positions, over all steps with a full state; at k = T/2 that is at least half by construction",
        _recency,
    ),
    (
        "Which tagger gives the parts of speech, and which word a token belongs to?",
        "not said",
        "textblob's on NLTK's words; a token has the class of the word its first character stands in; in source, Python's tokens",
        _classes,
    ),
    (
        "Has window+4 compressed positions too at 70,000 tokens?",
        "not said",
        "yes: positions=compressed of both policies is what the claims compare; positions=original can be measured beside",
        _positions,
    ),
    (
        "Is a chat model asked in its chat template?",
        "not said",
        "task.chat=false, the plain prompt, unless told; a template is a column of the rows, and judged apart",
        _by_model(_PROMPTED, "template"),
    ),
)  # fmt: skip
