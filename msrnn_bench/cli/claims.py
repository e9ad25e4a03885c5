"""`msrnn-bench claims`: what the results of one or more folders say of the paper's claims. Reads tables, loads no model."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from msrnn_bench.redact import printable
from msrnn_bench.report.claims import judge
from msrnn_bench.report.folders import named, read, together
from msrnn_bench.report.told import as_csv, as_text
from msrnn_bench.results.files import write_atomically


def main(options: Namespace) -> int:
    """Print the verdicts on `options.results_dir` (several, with commas between) and write claims.csv into the first of
    them, or to `options.out`."""
    folders = named(options.results_dir)
    whole = together(read(folders))
    verdicts = judge(whole.rows, whole.summary)
    print(printable(as_text(verdicts)))
    path = Path(options.out).expanduser() if options.out else folders[0] / "claims.csv"
    write_atomically(path, as_csv(verdicts))
    print(path)
    return 0
