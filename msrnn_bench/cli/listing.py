"""`msrnn-bench list`: what there is to choose from, one line each, from the files' own first comment."""

from __future__ import annotations

from msrnn_bench.errors import UsageError
from msrnn_bench.runs.compose import GROUPS, choices, config_dir, settings


def main(args: list[str]) -> int:
    """Print all groups, or those named."""
    for name in args:
        if name not in GROUPS:
            raise UsageError(f"list what? {name!r} is none of: {', '.join(GROUPS)}")
    for group in args or GROUPS:
        print(f"{group}=")
        names = choices(group)
        width = max(map(len, names), default=0)
        for name in names:
            print(f"  {name:{width}}  {_about(group, name)}")
    if not args:
        print(f"and: {', '.join(s for s in settings() if s not in GROUPS)}")
    return 0


def _about(group: str, name: str) -> str:
    """The first comment of a YAML that is neither Hydra's nor the command that runs it."""
    for line in (config_dir() / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        comment = line.removeprefix("#").strip()
        if line.startswith("#") and not comment.startswith(("@package", "msrnn-bench ")):
            return comment
    return ""
