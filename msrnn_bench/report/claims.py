"""The paper's claims, judged: `judge`. Each is a small function in claims_*.py; their order there is the order here."""

from __future__ import annotations

from types import ModuleType

import pandas as pd

from msrnn_bench.figures import _published
from msrnn_bench.report import claims_perplexity
from msrnn_bench.report.claim import Claim
from msrnn_bench.report.deciding import Finding, decide
from msrnn_bench.report.evidence import Scene, scenes
from msrnn_bench.report.verdict import BY_POINT, NOT_MEASURED, NOT_REPRODUCED, REPRODUCED, STATED, UNDECIDED, Verdict


def _of(module: ModuleType) -> list[Claim]:
    return [made for made in vars(module).values() if isinstance(made, Claim)]


CLAIMS: tuple[Claim, ...] = tuple(made for module in (claims_perplexity,) for made in _of(module))


def published_rows() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The paper's numbers as tidy rows and summary: one document, "the paper's", so they have no interval."""
    return _published.tables()


def judge(rows: pd.DataFrame, summary: pd.DataFrame) -> list[Verdict]:
    """Every claim, for each model and text on which it could be judged; else once, as not measured.

    rows: tidy rows of one or more results folders; summary: their summary lines, which know what failed."""
    papers = published_rows()[0]
    verdicts = []
    for claim in CLAIMS:
        published = _published_verdict(claim, papers)
        found = [(scene, decide(claim.parts(scene), claim.bound)) for scene in scenes(rows, claim.tasks, claim.prefills)]
        judged = [(scene, finding) for scene, finding in found if finding.verdict != NOT_MEASURED]
        verdicts += [_verdict(claim, finding, published, _scope(scene, finding)) for scene, finding in judged]
        if not judged:
            verdicts.append(_verdict(claim, _nothing(claim, found, summary), published, ""))
    return verdicts


def _published_verdict(claim: Claim, papers: pd.DataFrame) -> str:
    if not claim.printed:
        return STATED
    found = [decide(claim.parts(scene), claim.bound) for scene in scenes(papers, claim.tasks, claim.prefills)]
    by_point = {finding.inside for finding in found if finding.verdict == UNDECIDED}
    if not by_point:
        return NOT_MEASURED
    return f"{REPRODUCED if by_point == {True} else NOT_REPRODUCED} {BY_POINT}"


def _nothing(claim: Claim, found: list[tuple[Scene, Finding]], summary: pd.DataFrame) -> Finding:
    """Why no scene could be judged: what each lacks, and what failed."""
    reasons = [f"{_where(scene)} {finding.reason}" for scene, finding in found]
    shown = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
    reason = shown or f"nothing of task {' or '.join(claim.tasks)} is there"
    failed = int((summary["task"].isin(claim.tasks) & (summary["status"] == "failed")).sum()) if len(summary) else 0
    return Finding(NOT_MEASURED, reason + (f"; {failed} cell{'s' * (failed > 1)} failed" if failed else ""))


def _where(scene: Scene) -> str:
    text = scene.settings["dataset"]
    return f"{scene.settings['model']} on {text}" if text != "none" else str(scene.settings["model"])


def _scope(scene: Scene, finding: Finding) -> str:
    known = scene.settings
    parts = [_where(scene), f"{finding.n} document{'s' * (finding.n != 1)}", f"T={scene.context:,}", str(known["dtype"])]
    parts += [str(known[name]) for name in ("variant", "template", "prefill") if known.get(name) is not None]
    return ", ".join(parts) + (", RANDOM WEIGHTS" if known["weights"] == "random" else "")


def _verdict(claim: Claim, finding: Finding, published: str, scope: str) -> Verdict:
    return Verdict(
        claim.id, claim.sentence, claim.place, claim.needs, finding.verdict, finding.statistic, finding.low, finding.high,
        claim.words, finding.reason, scope, finding.smallest, claim.command, published,
    )  # fmt: skip
