"""`msrnn-bench report`: results folders as one HTML page, claims first. Reads tables, loads no model."""

from __future__ import annotations

from argparse import Namespace

from msrnn_bench.report import page
from msrnn_bench.runs.command import command


def main(options: Namespace) -> int:
    """Write the page of `options.results_dir` to `options.out` and print the paths."""
    for path in page.write(options.results_dir, options.out, command):
        print(path)
    return 0
