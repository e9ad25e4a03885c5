"""How to cite: CITATION.cff, which ships with the package, as text and as BibTeX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from msrnn_bench.errors import UsageError


@dataclass(frozen=True)
class Citation:
    """`sentence` is CITATION.cff's own message; one text, one address ("" if none) and one BibTeX entry a work."""

    sentence: str
    works: list[tuple[str, str]]
    bibtex: str


def read() -> Citation:
    """The software first, then what it refers to."""
    here = Path(__file__).resolve().parents[1]
    file = next((path for path in (here / "CITATION.cff", here.parent / "CITATION.cff") if path.is_file()), None)
    if file is None:
        raise UsageError(f"CITATION.cff is missing beside {here}: install msrnn-bench again")
    held: Any = OmegaConf.to_container(OmegaConf.load(file))
    works = [held, *held.get("references", [])]
    bibtex = "\n\n".join(_entry(work) for work in works)
    return Citation(str(held.get("message", "")), [(_text(work), str(work.get("url", ""))) for work in works], bibtex)


def _authors(work: dict[str, Any]) -> list[str]:
    return [
        author["name"] if "name" in author else f"{author['given-names']} {author['family-names']}" for author in work["authors"]
    ]


def _text(work: dict[str, Any]) -> str:
    where = [str(work[key]) for key in ("collection-title", "version", "year") if key in work]
    where = [part for n, part in enumerate(where) if not any(part in other for other in where[:n])]  # EMNLP 2024, 2024
    return f"{', '.join(_authors(work))}: {work['title']}" + (f", {', '.join(where)}" if where else "")


def _entry(work: dict[str, Any]) -> str:
    paper = work.get("type") == "conference-paper"
    first = work["authors"][0]
    key = f"{first.get('family-names', work['title'].split()[0])}{work.get('year', '')}".lower().replace("-", "")
    whole = ["{" + name + "}" if "name" in author else name for name, author in zip(_authors(work), work["authors"], strict=True)]
    fields = {"title": "{" + work["title"] + "}", "author": " and ".join(whole), "booktitle": work.get("collection-title")}
    fields |= {name: work.get(name) for name in ("year", "version", "url")}
    kind = "inproceedings" if paper else "software"
    return f"@{kind}{{{key},\n" + "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items() if value) + "}"
