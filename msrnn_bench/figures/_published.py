"""The paper's own numbers: every one that arXiv 2401.06104v2 prints, in `published.csv` next to this file, one a line."""

from pathlib import Path

import pandas as pd

FILE = Path(__file__).with_name("published.csv")


def read() -> pd.DataFrame:
    """Columns experiment, model, policy, state_size, metric, value, source, in the paper's words; printed_size and
    printed_value are the two as printed. `state_size` and `value` are numbers, missing where the paper prints none
    but a bound, a range or words ("<=0.4", "73-76"): such a claim is read in the printed columns."""
    table = pd.read_csv(FILE, dtype=str, keep_default_na=False)
    table["printed_size"], table["printed_value"] = table["state_size"], table["value"]
    table["state_size"] = pd.to_numeric(table["printed_size"], errors="coerce").astype("Int64")
    table["value"] = pd.to_numeric(table["printed_value"], errors="coerce").astype("float64")
    return table
