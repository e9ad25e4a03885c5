"""What a manifest and rows must look like for what is read of them: who hands on a results folder may have written anything.

Of a manifest everything may be absent, as in older cells; what is there is of its kind. Knows nothing of what the values mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

DEEPEST = 40  # levels of nesting: deeper than any configuration, and far from what Python can follow

_NUMBER = (int, float)
_TEXT_OR_NONE = (str, type(None))
_NUMBER_OR_NONE = (*_NUMBER, type(None))

# A type or several; a dict of keys, each of which may be absent; of "*", all keys; [kind], a list. "key?" may be null.
MANIFEST: dict[str, Any] = {
    "cell": str, "task": str, "label": str, "error": _TEXT_OR_NONE, "traceback": _TEXT_OR_NONE,
    "finished": str, "seconds": _NUMBER, "run": _TEXT_OR_NONE, "rows_sha256": str,
    "config": {"model?": dict, "dataset?": dict, "policy?": dict, "task?": dict},
    "settings": {
        "model": dict, "policy": {"settings": dict}, "task": {"machine": {"device": _TEXT_OR_NONE}},
    },
    "dataset?": {
        "name": _TEXT_OR_NONE, "documents": _NUMBER_OR_NONE, "characters": _NUMBER_OR_NONE, "questions": _NUMBER_OR_NONE,
        "listed": [{"sha256": str}],
    },
    "model?": {"name": _TEXT_OR_NONE, "class": _TEXT_OR_NONE, "parameters": _NUMBER_OR_NONE},
    "versions?": {"*": _TEXT_OR_NONE}, "git?": {"commit": _TEXT_OR_NONE},
    "chosen?": {"batch": int},
    "machine?": {"cores": _NUMBER_OR_NONE, "threads": _NUMBER_OR_NONE},
}  # fmt: skip
NEEDED = {"settings": ("model", "dataset", "policy", "task"), "git": ("commit",)}  # where the whole is there
_LARGEST = 2**63  # of a table's whole numbers
_MOST, _MOST_WHOLE = 1e100, 2**53  # whose sums are numbers, and exact


def misfit(manifest: Any, row: Mapping[str, Any]) -> str | None:
    """What of a manifest is not as it must be, in words; None where all is. `row`: the kinds of a row's columns."""
    if not isinstance(manifest, dict):
        return "is no object"
    if manifest.get("status") not in ("ok", "failed"):
        return "has no status that is ok or failed"
    if _deep(manifest):
        return f"is nested more than {DEEPEST} deep"
    if (place := _odd(manifest, {**MANIFEST, "row?": row})) is not None:
        return f"has in {place} what no manifest has there"
    there = {key: parts for key, parts in NEEDED.items() if manifest.get(key) is not None}
    lacking = [f"{key}.{part}" for key, parts in there.items() for part in parts if part not in manifest[key]]
    return f"lacks {lacking[0]}" if lacking else None


def impossible(rows: pd.DataFrame) -> tuple[str, str] | None:
    """The first cell with a number that nobody measured, and which; None where there is none. Sums of others would be none."""
    measured = rows["status"] == "ok"
    wrong = {"total": measured & ~(rows["total"].abs() <= _MOST), "count": measured & ~(rows["count"] > 0).fillna(False)}
    wrong["cache"] = (rows["cache"] < 1).fillna(False)
    for name in rows.select_dtypes(["Int64", "float64"]):
        wrong[f"{name} "] = (rows[name].abs() > (_MOST if rows[name].dtype == "float64" else _MOST_WHOLE)).fillna(False)
    for name, where in wrong.items():
        if where.any():
            row = rows[where.astype("bool")].iloc[0]
            return row["cell"], f"{name.strip()} = {row[name.strip()]} was never measured"
    return None


def _odd(value: Any, kind: Any) -> str | None:
    """The place of the first value that is not of its kind, "" for this one."""
    if isinstance(kind, list):
        return "" if not isinstance(value, list) else next((o for v in value if (o := _odd(v, kind[0])) is not None), None)
    if not isinstance(kind, Mapping):
        fits = isinstance(value, kind) and not (isinstance(value, int) and abs(value) >= _LARGEST)
        return None if fits else ""
    if not isinstance(value, dict):
        return ""
    if "*" in kind:
        kind = dict.fromkeys(value, kind["*"])
    for name, wanted in kind.items():
        key = name.rstrip("?")
        if key in value and not (name.endswith("?") and value[key] is None) and (odd := _odd(value[key], wanted)) is not None:
            return f"{key}.{odd}".rstrip(".")
    return None


def _deep(value: Any) -> bool:
    """Level by level and not by recursion, which what is too deep would end."""
    level = [value]
    for _ in range(DEEPEST):
        level = [v for held in level for v in (held.values() if type(held) is dict else held) if type(v) in (dict, list)]
        if not level:
            return False
    return True
