"""Whether the tables of a results folder still say what its cells say: to make them again takes seconds, and minutes of 10,000
cells. Reads names, times and the summary's list of cells; imports no pandas.
"""

import csv
from pathlib import Path

TABLES = ("tidy.csv", "summary.csv")


def fresh(results_dir: Path) -> bool:
    """Whether both were written after every file of a cell and after the code that makes them, and of just these cells. A cell
    that counts as unfinished is in no table, so beside one they are never fresh."""
    files = [path for path in (results_dir / "cells").glob("[!.]*") if path.suffix in (".json", ".csv")]
    try:
        written = min((results_dir / table).stat().st_mtime_ns for table in TABLES)
        newest = max(path.stat().st_mtime_ns for path in (*files, *Path(__file__).parent.glob("*.py")))
        with (results_dir / "summary.csv").open(encoding="utf-8", newline="") as file:
            told = {line["cell"] for line in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, csv.Error):
        return False
    return newest < written and told == {path.stem for path in files if path.suffix == ".json"}
