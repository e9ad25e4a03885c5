"""The paper's claims, judged: `judge`. Each is a small function in claims_*.py; their order there is the order here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import pandas as pd

from msrnn_bench.figures import _published
from msrnn_bench.report import claims_perplexity, claims_reach, claims_states, claims_writing
from msrnn_bench.report.claim import Claim
from msrnn_bench.report.deciding import Finding, Part, decide
from msrnn_bench.report.evidence import Scene, scenes
from msrnn_bench.report.telling import several
from msrnn_bench.report.verdict import BY_POINT, NOT_MEASURED, NOT_REPRODUCED, REPRODUCED, STATED, UNDECIDED, Verdict


def _of(module: ModuleType) -> list[Claim]:
    return [made for made in vars(module).values() if isinstance(made, Claim)]


# What tells one row of a cell from another; a cell that two folders hold counts once.
_ROW = ["cell", "document", "subtask", "length", "depth", "bucket_start", "bucket_end", "metric"]
_MODULES = (claims_perplexity, claims_writing, claims_reach, claims_states)
CLAIMS: tuple[Claim, ...] = tuple(made for module in _MODULES for made in _of(module))


def published_rows() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The paper's numbers as tidy rows and summary: one document, "as printed", so they have no interval."""
    return _published.tables()


def judge(rows: pd.DataFrame, summary: pd.DataFrame, claims: Sequence[Claim] = CLAIMS) -> list[Verdict]:
    """Every claim, for each model and text on which it could be judged; else once, as not measured.

    rows: tidy rows of one or more results folders, a cell in several of them counting once; summary: their summary lines,
    which know what failed."""
    ours = _Scenes(rows)
    verdicts = []
    for claim in claims:
        published = _published_verdicts()[claim.id]
        found = _findings(claim, ours.of(claim))
        judged = [(scope, finding) for scope, finding in found if finding.verdict != NOT_MEASURED]
        verdicts += [_verdict(claim, finding, published, scope) for scope, finding in judged]
        if not judged:
            verdicts.append(_verdict(claim, _nothing(claim, found, summary), published, ""))
    return verdicts


class _Scenes:
    """The scenes of a table, made once for all claims on the same tasks."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows.drop_duplicates(_ROW)
        self.made: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Scene]] = {}

    def of(self, claim: Claim) -> list[Scene]:
        key = (claim.tasks, claim.ways)
        if key not in self.made:
            self.made[key] = list(scenes(self.rows, *key))
        return self.made[key]


def _findings(claim: Claim, of: Sequence[Scene]) -> list[tuple[str, Finding]]:
    """Of each scene, or of all together, where it was and what was found."""
    if claim.pooled:
        parts: list[Part] = [part for scene in of for part in claim.parts(scene)]
        finding = decide(parts, claim.bound)
        return [(_pooled(of, finding), finding)] if of else []
    found = []
    for scene in of:
        finding = decide(claim.parts(scene), claim.bound)
        said = claim.remark(scene) if claim.remark and finding.verdict != NOT_MEASURED else ""
        found.append((_scope(scene, finding), replace(finding, reason=f"{finding.reason}; {said}") if said else finding))
    return found


@functools.cache
def _published_verdicts() -> dict[str, str]:
    papers = _Scenes(_published.rows())
    return {claim.id: published_verdict(claim, papers.of(claim)) for claim in CLAIMS}


def published_verdict(claim: Claim, papers: Sequence[Scene]) -> str:
    """What the same function says of the paper's own numbers."""
    if not claim.printed:
        return STATED
    found = [decide(claim.parts(scene), claim.bound) for scene in papers]
    by_point = {finding.inside for finding in found if finding.verdict == UNDECIDED}
    if not by_point:
        return NOT_MEASURED
    return f"{REPRODUCED if by_point == {True} else NOT_REPRODUCED} {BY_POINT}"


def _nothing(claim: Claim, found: Sequence[tuple[str, Finding]], summary: pd.DataFrame) -> Finding:
    """Why nothing could be judged: what each scene lacks, and what failed."""
    reasons = [f"{scope}: {finding.reason}" for scope, finding in found]
    shown = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
    reason = shown or f"nothing of task {' or '.join(claim.tasks)} is there"
    failed = int((summary["task"].isin(claim.tasks) & summary["status"].eq("failed")).sum()) if len(summary) else 0
    return Finding(NOT_MEASURED, reason + (f"; {failed} cell{'s' * (failed > 1)} failed" if failed else ""))


def _where(scene: Scene) -> str:
    text = scene.settings["dataset"]
    return f"{scene.settings['model']} on {text}" if text != "none" else str(scene.settings["model"])


def _scope(scene: Scene, finding: Finding) -> str:
    known = scene.settings
    parts = [_where(scene)]
    parts += [f"n={finding.n}"] if finding.n else []
    parts += [f"T={scene.context:,}", str(known["dtype"])]
    parts += [str(known[name]) for name in ("variant", "template", "prefill") if known.get(name) is not None]
    parts += [f"{known['positions']} positions"] if "positions" in known else []
    return ", ".join(parts) + (", RANDOM WEIGHTS" if known["weights"] == "random" else "")


def _pooled(of: Sequence[Scene], finding: Finding) -> str:
    named = several(sorted(dict.fromkeys(str(scene.settings["model"]) for scene in of), key=lambda name: name.endswith("(twin)")))
    random = any(scene.settings["weights"] == "random" for scene in of)
    dtypes = " and ".join(sorted({str(scene.settings["dtype"]) for scene in of}))
    return f"{named}, n={finding.n}, {dtypes}" + (", some with random weights" if random else "")


def _verdict(claim: Claim, finding: Finding, published: str, scope: str) -> Verdict:
    return Verdict(
        claim.id, claim.sentence, claim.place, claim.needs, finding.verdict, finding.statistic, finding.low, finding.high,
        claim.words, finding.reason, scope, finding.smallest, claim.command, published,
    )  # fmt: skip
