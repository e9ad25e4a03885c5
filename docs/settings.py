"""Writes docs/settings.md from the YAMLs of conf/: every key, its default, and the comment that stands beside it.

    python docs/settings.py

A key that several YAMLs of one `_target_` have is explained once, by the first of them that has a comment on it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).resolve().parents[1] / "conf"
PAGE = Path(__file__).with_suffix(".md")
WIDEST = 44  # characters of a default that is shown; what is longer is in the file

HEAD = """\
# Settings

Written by `python docs/settings.py` from the comments in `conf/`; edit those, not this page.

A setting is `key=value` behind `run` or `sweep`: `cache=512`, `task.chat=true`, `dataset.path=FOLDER`. A group is chosen by
name, `policy=tova`; the YAML of that name gives its keys, and `_target_` in it the class that is built. What the class does
not know is refused. A list is `task.lengths=[1000,4000]`, nothing is `null`. `msrnn-bench list` prints all names,
`msrnn-bench run --cfg job` a whole configuration. In a checkout a YAML of your own in `conf/` is a new name.
"""
INTRODUCED = {
    "task": "What each measures: [tasks.md](tasks.md).",
    "dataset": "What counts as a document, and how it is cut: [tasks.md](tasks.md#perplexity).",
    "policy": "What each does: [policies.md](policies.md).",
    "model": "Which models can be bounded: [python.md](python.md#what-is-refused).",
}


@dataclass(frozen=True)
class Key:
    """One setting of a file: its value, as text and as YAML reads it, and the comment beside it ("" where there is none)."""

    name: str
    value: Any
    shown: str
    comment: str


@dataclass(frozen=True)
class File:
    """One YAML: what its first comment says of it, the class it builds, its keys."""

    name: str
    about: str
    target: str
    keys: dict[str, Key]


def read(path: Path) -> File:
    """A YAML of conf/ with its comments."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    root = yaml.compose(text)
    values = yaml.safe_load(text)
    keys = {}
    for key, node in root.value:
        if key.value in ("defaults", "hydra") or key.value.startswith("_"):
            continue
        line = lines[key.start_mark.line]
        # behind a value on the same line, else behind the colon or the mark of a text of several lines
        inside = node.start_mark.line == node.end_mark.line == key.start_mark.line
        rest = line[node.end_mark.column :] if inside else re.sub(r"^\w+:\s*([|>][-+]?)?", "", line)
        comment = rest.strip().removeprefix("#").strip() if rest.strip().startswith("#") else ""
        shown = line[node.start_mark.column : node.end_mark.column] if inside else ""
        keys[key.value] = Key(key.value, values[key.value], _shown(values[key.value], shown), comment)
    return File(path.stem, _about(lines), str(values.get("_target_", "")), keys)


def _about(lines: list[str]) -> str:
    """The comment above the first key: whole, not the one line that `msrnn-bench list` prints."""
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    return " ".join(head)


def _shown(value: Any, raw: str) -> str:
    """A default in a table."""
    if isinstance(value, dict):
        return "given"
    if isinstance(value, list) and (not raw or len(raw) > WIDEST):
        return f"{len(value)} values"
    if isinstance(value, str) and (not raw or len(raw) > WIDEST):
        return "in the file"
    return f"`{raw}`"


def groups() -> dict[str, list[File]]:
    """Group -> its files, by name."""
    return {group: [read(path) for path in sorted((CONF / group).rglob("*.yaml"))] for group in INTRODUCED}


def by_target(files: list[File]) -> dict[str, list[File]]:
    """The files of each class, classes in the order of their first file."""
    found = defaultdict(list)
    for file in files:
        found[file.target].append(file)
    return dict(found)


def meaning(key: str, files: list[File]) -> str:
    """What the first file with a comment on the key says of it."""
    return next((file.keys[key].comment for file in files if key in file.keys and file.keys[key].comment), "")


def uncommented() -> list[str]:
    """The keys that no YAML of their class explains."""
    missing = [f"config.yaml: {key.name}" for key in read(CONF / "config.yaml").keys.values() if not key.comment]
    for group, files in groups().items():
        for alike in by_target(files).values():
            missing += [f"{group}/{f.name}.yaml: {key}" for f in alike for key in f.keys if not meaning(key, alike)]
    return missing


def page() -> str:
    """The whole of settings.md."""
    top = read(CONF / "config.yaml")
    defaults = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = [f"`{group}={name}`" for entry in defaults if isinstance(entry, dict) for group, name in entry.items() if name]
    parts = [HEAD, f"## Top level\n\n{_table([top])}\n\nThe groups' defaults: {', '.join(chosen)}; no experiment."]
    for group, files in groups().items():
        parts.append(f"## {group}=NAME\n\n{INTRODUCED[group]}")
        for target, alike in by_target(files).items():
            parts.append(_class(group, target, alike))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _class(group: str, target: str, files: list[File]) -> str:
    """One class: its keys, then the names that build it and what differs."""
    head = f"### {', '.join(f'`{file.name}`' for file in files)}" if len(files) < 5 else f"### {target.rpartition('.')[2]}"
    lines = [head, f"`{target}`"]
    if len(files) == 1:
        lines.insert(1, _sentence(files[0]))
    if any(file.keys for file in files):
        lines.append(_table(files))
    if len(files) > 1:
        lines.append("\n".join(f"* `{group}={file.name}`: {_sentence(file)}{_differing(file, files)}" for file in files))
    return "\n\n".join(lines)


def _sentence(file: File) -> str:
    """What a file's first comment says, without the command in front of it."""
    return re.sub(r"^dataset=[^:]*: (.)", lambda found: found[1].upper(), file.about)


def _differing(file: File, files: list[File]) -> str:
    """The settings in which a file is not as the table says, but for its name where that is the file's."""
    odd = []
    for key in file.keys.values():
        if key.shown != _default(key.name, files) and key.value != file.name:
            odd.append(f"`{key.name}` {key.shown}" if "`" not in key.shown else f"`{key.name}={key.shown.strip('`')}`")
    return f" {', '.join(odd)}." if odd else ""


def _default(name: str, files: list[File]) -> str:
    """What most of the files have."""
    (shown, count), *_ = Counter(file.keys[name].shown for file in files).most_common()
    return shown if 2 * count >= len(files) else "each its own"


def _table(files: list[File]) -> str:
    rows = [["key", "default", "meaning"], ["---"] * 3]
    for name in files[0].keys:
        cells = [f"`{name}`", _default(name, files), meaning(name, files)]
        rows.append([cell.replace("|", "\\|") for cell in cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
