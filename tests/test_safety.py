"""A results folder that somebody else prepared runs nothing, hangs nothing, touches nothing outside; secrets stay here."""

import ast
import html
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import hostile
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, committed
from hypothesis import given, settings
from hypothesis import strategies as st

from msrnn_bench import redact
from msrnn_bench.cli.main import COMMANDS, main
from msrnn_bench.errors import MachineError, UsageError, one_line, shown
from msrnn_bench.results import arrays, cells, guarded, spreadsheet
from msrnn_bench.results.cells import Cell, read_manifest, write_failure
from msrnn_bench.results.files import write_atomically
from msrnn_bench.results.journal import Journal, packed, unpacked
from msrnn_bench.results.reading import read_cells
from msrnn_bench.results.summary import SUMMARY_TYPES, TIDY_TYPES, collect

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")

CODES = {"rerun": (2,)}  # these cells name no model that there is
# Every command that reads a results folder, as it is typed. Those that are not there yet are left out.
READERS = {
    name: typed
    for name, typed in {
        "collect": ["collect", "results_dir={folder}"],
        "plot": ["plot", "results_dir={folder}"],
        "report": ["report", "results_dir={folder}"],
        "claims": ["claims", "results_dir={folder}"],
        "status": ["status", "results_dir={folder}"],
        "diff": ["diff", "{one}", "{other}", "results_dir={folder}"],
        "rerun": ["rerun", "{one}", "results_dir={folder}"],
    }.items()
    if name in COMMANDS
}


@contextmanager
def within(seconds: int):
    """Who waits for a FIFO is woken, and the test fails."""

    def late(*_):
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch):
    """Good cells, and a folder beside them that must stay as it is, unread."""
    outside = hostile.outside(tmp_path / "outside")
    made = tmp_path / "results"
    ids = hostile.good(made)
    before = hostile.contents(outside)
    cells.unfinished.cache_clear()
    monkeypatch.setattr(arrays, "ROOM", 10_000_000)
    with hostile.watched(outside) as seen:
        yield made, outside, ids
    assert seen == [] and hostile.contents(outside) == before


def typed(command: str, folder: Path, one: str, other: str) -> list[str]:
    return [part.format(folder=folder, one=one, other=other) for part in READERS[command]]


def served(folder: Path, ids: list[str]) -> None:
    summary = pd.read_csv(folder / "summary.csv")
    assert set(summary["cell"]) - {hostile.BAD, hostile.WORSE} == set(ids) and set(summary["status"]) == {"ok", "failed"}
    assert summary["value"].notna().sum() >= 3


# --- what is left out


@pytest.mark.parametrize("case", hostile.LEFT_OUT)
def test_what_is_no_cell_is_left_out_in_one_line(folder, case, caplog, capsys):
    made, outside, ids = folder
    put, says = hostile.LEFT_OUT[case]
    put(made, outside)
    with within(30):
        assert main(["collect", f"results_dir={made}"]) == 0
    (said,) = caplog.messages
    assert says in said and hostile.BAD in said and "\n" not in said
    served(made, ids)
    assert hostile.BAD not in (made / "summary.csv").read_text() and hostile.SECRET not in capsys.readouterr().out


@pytest.mark.parametrize("case", hostile.ARRAYS)
def test_what_is_no_file_of_arrays_is_left_out(folder, case, caplog):
    made, outside, _ = folder
    hostile.ARRAYS[case][0](made, outside)
    np.savez_compressed(made / "cells" / f"{'a' * 16}.npz", death=np.arange(6).reshape(1, 2, 3))
    with within(60):
        found = arrays.read_arrays(made, "death")
    assert list(found) == ["a" * 16] and found["a" * 16].tolist() == [[[0, 1, 2], [3, 4, 5]]]
    (said,) = caplog.messages
    assert hostile.ARRAYS[case][1] in said and f"{hostile.BAD}.npz" in said


@pytest.mark.parametrize("case", hostile.DAMAGED_ARRAYS)
def test_damaged_arrays_are_one_line_and_never_unpickled(folder, case):
    made, outside, _ = folder
    hostile.DAMAGED_ARRAYS[case](made, outside)
    with within(30), pytest.raises(UsageError, match=f"{hostile.BAD}.npz is damaged .*: delete it with its .json"):
        arrays.read_arrays(made, "death")


def test_arrays_of_a_journal_are_looked_at_too(monkeypatch):
    many = packed({"a": np.zeros(1_000_000), "b": np.arange(3)})
    assert unpacked(many)["b"].tolist() == [0, 1, 2]
    monkeypatch.setattr(arrays, "ROOM", 1_000_000)
    with pytest.raises(guarded.RefusedError, match="would take 8 MB"):
        unpacked(many)


@pytest.mark.parametrize("case", hostile.NUMBERS)
def test_a_number_that_nobody_measured_is_in_no_table(folder, case, capsys):
    made, outside, _ = folder
    hostile.NUMBERS[case](made, outside)
    assert main(["collect", f"results_dir={made}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{hostile.BAD}.csv: " in line and "delete it with its .json" in line


def test_a_figure_that_odd_rows_cannot_fill_is_missing_on_the_page(folder):
    made, outside, ids = folder
    row = hostile.replace(hostile.ROW, cell=hostile.BAD, task="efficiency", cache=None, metric="nll")
    cells.write(Cell(made, "efficiency", "odd", hostile.BAD), [row], hostile.manifest(made, row))
    assert main(typed("report", made, *ids[1:3])) == 0
    assert "its rows are not such as this figure has" in (made / "report.html").read_text()


# --- the whole folder, and every command


def everything(made: Path, outside: Path) -> int:
    """Every case with an id of its own; how many there are."""
    cases = {**hostile.LEFT_OUT, **hostile.ARRAYS}
    for number, (put, _) in enumerate(cases.values(), start=1):
        put(made, outside)
        for path in list((made / "cells").glob(f"{hostile.BAD}.*")):
            path.rename(path.with_name(f"{number:016x}{path.suffix}"))
    return len(hostile.LEFT_OUT)


@pytest.mark.parametrize("command", READERS)
def test_every_command_serves_the_rest_of_a_folder_full_of_traps(folder, command, caplog, capsys):
    made, outside, ids = folder
    number = everything(made, outside)
    with within(240):
        assert main(typed(command, made, ids[1], ids[2])) in (
            (0, 1, 2) if command == "rerun" else (0, 1)
        )  # it names no model here
    said = [message for message in caplog.messages if "its next run redoes it" in message]
    assert len(said) == len(set(said)), "each is said once, in one line"
    if command not in ("status", "diff", "rerun"):  # which do not read all rows, or no other cell
        assert len(said) == number
    told = capsys.readouterr()
    assert hostile.SECRET not in told.out + told.err and "Traceback" not in told.err
    if command == "collect":
        served(made, ids)


@pytest.mark.parametrize("case", hostile.SILENT)
def test_the_rest_is_harmless(folder, case, capsys):
    made, outside, ids = folder
    hostile.SILENT[case](made, outside)
    commands = ["collect", *(["status"] if "status" in READERS else [])]
    if case in ("names that steer a terminal", "paths"):
        commands = list(READERS)
    if "is a link" in case and not case.startswith(("a plan", "summary", "tidy")):
        commands += ["plot", "report"]
    for command in commands:
        with within(240):
            assert main(typed(command, made, ids[1], ids[2])) in CODES.get(command, (0, 1)), command
        told = capsys.readouterr()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", told.out + told.err), command
        assert "Traceback" not in told.err and hostile.SECRET not in told.out + told.err
    for path in made.iterdir():
        assert not path.is_symlink()
    served(made, ids)


@pytest.mark.parametrize("name", ["cells", "tables"])
def test_a_folder_that_is_a_link_is_refused(folder, name, capsys):
    made, outside, ids = folder
    if name == "cells":
        (made / "cells").rename(made / "own")
    (made / name).symlink_to(outside / name)
    for command in READERS if name == "cells" else ["report"]:
        assert main(typed(command, made, ids[1], ids[2])) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{made / name} is a symbolic link, which is not followed" in line
    if name == "cells":
        with pytest.raises(UsageError, match="is a symbolic link"):
            cells.check_writable(made)


def test_a_results_folder_itself_may_be_a_link(folder, tmp_path, capsys):
    made, _, ids = folder
    (tmp_path / "short").symlink_to(made)
    assert main(["collect", f"results_dir={tmp_path / 'short'}"]) == 0
    served(made, ids)


def test_a_written_file_takes_the_place_of_a_link(folder):
    made, outside, _ = folder
    (made / "summary.csv").symlink_to(outside / "secret.txt")
    write_atomically(made / "summary.csv", "new")
    assert (made / "summary.csv").read_text() == "new" and not (made / "summary.csv").is_symlink()


def test_only_tables_that_are_ordinary_files_are_read(folder, capsys):
    made, outside, _ = folder
    for path in (made / "cells").iterdir():
        path.unlink()
    (made / "tidy.csv").symlink_to(outside / "secret.txt")
    os.mkfifo(made / "summary.csv")
    for command in ("plot", "report", "claims"):
        with within(60):
            assert main(typed(command, made, "", "")) == 2
        assert "has no results" in capsys.readouterr().err


def test_a_stale_table_that_is_no_file_stays(folder):
    made, outside, ids = folder
    (made / "tables").mkdir()
    (made / "tables" / "link.tex").symlink_to(outside / "tables" / "old.tex")
    os.mkfifo(made / "tables" / "fifo.tex")
    with within(240):
        assert main(typed("report", made, *ids[1:3])) == 0
    assert (made / "tables" / "link.tex").is_symlink() and (made / "tables" / "fifo.tex").exists()


def test_a_journal_that_is_no_file_is_not_opened(folder):
    made, outside, _ = folder
    (made / "cells" / "a.jsonl").symlink_to(outside / "secret.txt")
    os.mkfifo(made / "cells" / "b.jsonl")
    for name, says in (("a", "is a symbolic link"), ("b", "is a FIFO")):
        with within(30), pytest.raises(UsageError, match=f"{name}.jsonl {says}: delete it"):
            Journal(made / "cells" / f"{name}.jsonl")
    (made / "cells" / "c.jsonl").write_text('{"key": "a", "x": 1}\n{"key": ["b"]}\n' + "[" * 100_000 + "\n")
    assert Journal(made / "cells" / "c.jsonl").records == {"a": {"x": 1}}


def test_the_committed_manifests_fit():
    files = committed()
    assert len(files) > 300 and all(read_manifest(path) for path in files)
    assert max(path.stat().st_size for path in files) * 100 < guarded.MOST[".json"]


def test_a_damaged_manifest_that_cannot_be_read_is_still_the_machines(tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text("{}")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(guarded.os, "open", denied)
    with pytest.raises(MachineError, match=r"cannot read .*x.json \(Permission denied\)"):
        read_manifest(tmp_path / "x.json")


def test_where_the_system_knows_no_such_flags_a_file_is_looked_at_first(folder, monkeypatch):
    made, outside, _ = folder
    monkeypatch.setattr(guarded, "_FLAGS", os.O_RDONLY)
    monkeypatch.delattr(guarded.os, "O_NOFOLLOW")
    os.mkfifo(made / "x.json")
    (made / "y.json").symlink_to(outside / "manifest.json")
    with within(30):
        assert read_manifest(made / "x.json") is None and read_manifest(made / "y.json") is None


# --- nothing is unpickled


def test_nothing_in_the_package_unpickles_or_evaluates():
    """By what is called: pickle and its kin nowhere, numpy and torch only with the word that forbids it."""
    allowed = {"pickle": [], "dill": [], "cloudpickle": [], "joblib": [], "shelve": [], "marshal": [], "jsonpickle": []}
    for path in [*(ROOT / "msrnn_bench").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not {name.split(".")[0] for name in names} & set(allowed), f"{path}: {names}"
            if not isinstance(node, ast.Call):
                continue
            called, said = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            where = f"{path}:{node.lineno}: {ast.unparse(node)}"
            written = called == "exec" and path.name == "elementwise.py"  # of numbers and LIBRARY's names, by the package itself
            assert written or called not in ("eval", "exec", "np.loadtxt", "pd.read_pickle", "os.system"), where
            if called in ("np.load", "numpy.load", "np.lib.format.read_array"):
                assert said.get("allow_pickle") == "False", where
            if called == "torch.load":
                assert said.get("weights_only") == "True", where
            if called in ("yaml.load", "yaml.load_all"):  # with a loader that makes plain values only
                assert _plain_loader(path, node), where
            assert called not in ("yaml.unsafe_load", "yaml.full_load", "torch.jit.load"), where


def _plain_loader(path: Path, call: ast.Call) -> bool:
    loader = ast.unparse([*call.args[1:2], *(k.value for k in call.keywords if k.arg == "Loader")][0])
    return loader == "yaml.SafeLoader" or f"class {loader}(yaml.SafeLoader)" in path.read_text()


# --- spreadsheets


def test_formulas_are_texts_in_what_is_written_and_themselves_when_read(folder):
    made, outside, _ = folder
    hostile._formulas(made, outside)
    rows, summary = collect(made)
    for name, table, types in (("tidy", rows, TIDY_TYPES), ("summary", summary, SUMMARY_TYPES)):
        fields = [field for line in _fields(made / f"{name}.csv") for part in re.split("[;\t]", line) for field in [part]]
        numbers = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
        assert not [f for f in fields if re.match("[=+@\t\r\uff1d-]", f) and not numbers.fullmatch(f)]
        assert any(f.startswith("-") for f in fields)  # our own negative numbers
        again = spreadsheet.read(made / f"{name}.csv").reindex(columns=list(types)).astype(types)
        for column in ("dataset", "model", *(["document"] if name == "tidy" else [])):
            assert again[column].tolist() == table[column].tolist()


def _fields(path: Path) -> list[str]:
    import csv

    with path.open(newline="") as file:
        return [field for line in csv.reader(file) for field in line]


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet="=+-@\t\r;'a1.\uff1d", max_size=8))
def test_what_is_guarded_comes_back(text):
    made = spreadsheet.guarded(text)
    assert spreadsheet.unguarded(made) == text
    starts = re.split("[;\t\r\n]", made)
    number = re.fullmatch(r"[+-]?\d+(\.\d+)?", text)
    assert number or not any(re.match("[=+@\uff1d-]", start) for start in starts), made


def test_ordinary_tables_are_written_as_ever():
    table = pd.DataFrame({"a": ["x", None, "y - z"], "b": [-1.5, 2.0, None], "c": pd.array([-1, None, 3], dtype="Int64")})
    assert spreadsheet.harmless(table) is table


# --- secrets

VALUE = 'hunter2/&"correct horse'


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", VALUE)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-or-true")
    monkeypatch.setenv("SHORT_TOKEN", "short")
    monkeypatch.setenv("HARMLESS", "my_token_is_a_word")
    monkeypatch.setenv("db_password", "keep_tokens")  # which is the name of a setting
    return VALUE


def test_secrets_are_replaced_by_the_name_of_what_holds_them(secret):
    told = redact.redacted(f"a {VALUE} b false-or-true short my_token_is_a_word keep_tokens=true task.max_tokens=4")
    assert told == "a [SOME_API_KEY] b false-or-true short my_token_is_a_word keep_tokens=true task.max_tokens=4"
    for form in (quote(VALUE, safe=""), html.escape(VALUE), json.dumps(VALUE), repr({"x": VALUE})):
        assert "hunter2" not in redact.redacted(form), form


def test_a_secret_of_several_lines_is_one_on_one_line_too(monkeypatch):
    monkeypatch.setenv("PRIVATE_KEY", "-----BEGIN-----\nfirst half\nsecond half\n")
    assert redact.redacted("a -----BEGIN----- first half second half b") == "a [PRIVATE_KEY] b"
    assert redact.redacted("line 2: second half") == "line 2: [PRIVATE_KEY]"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("https://user:pass@host/a", "https://***@host/a"),
        ("git+ssh://token@host:22/a.git x", "git+ssh://***@host:22/a.git x"),
        ("http://user:p@ss@host:8080/a@b", "http://***@host:8080/a@b"),
        ("http://user:pa/ss@host:8080/", "http://***@host:8080/"),
        ("https://host/a?token=abc&x=1", "https://host/a?token=***&x=1"),
        ("https://host/a?x=1&api_key=abc#b", "https://host/a?x=1&api_key=***#b"),
        ("https://host/a?X-Amz-Signature=ab%2F", "https://host/a?X-Amz-Signature=***"),
        ("'https://h/?access_token=a', 'https://u:p@h'", "'https://h/?access_token=***', 'https://***@h'"),
        ('<a href="https://h/?a=1&amp;secret=b">', '<a href="https://h/?a=1&amp;secret=***">'),
    ],
)
def test_credentials_of_urls_are_left_out(text, told):
    assert redact.redacted(text) == told and redact.redacted(told) == told


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/@scope/a", "https://host/a?tokens=4&keyword=b&monkey=c", "mail a:b@c.d", "x?token=abc", "tokens=4096",
        "https://arxiv.org/abs/2401.06104", "policy.key=1", "https://host/a@b?c=d", "The secret password is a token of a key.",
    ],
)  # fmt: skip
def test_what_only_looks_like_one_stays(text):
    assert redact.redacted(text) == text


def test_messages_are_redacted_before_they_are_cut(secret):
    assert "hunter2" not in one_line(ValueError("x" * 180 + VALUE * 3)) and "hunter2" not in shown("x" * 45 + VALUE)


def test_no_secret_reaches_a_manifest_rows_or_a_journal(secret, tmp_path):
    cell = Cell(tmp_path, "perplexity", f"label {VALUE}", "d" * 16)
    config = {"keep_tokens": True, "model": {"path": Path(f"/x/{VALUE}"), "token": VALUE, "repo": "https://u:p@h/x"}}
    rows = [hostile.replace(hostile.ROW, cell=cell.id, document=f"{VALUE}/{n}") for n in range(2)]
    cells.write(cell, rows, {"config": config, "settings": hostile.manifest(tmp_path, hostile.ROW)["settings"]})
    written = json.loads(cell.manifest.read_text())
    assert written["config"] == {
        "keep_tokens": True, "model": {"path": "/x/[SOME_API_KEY]", "token": "[SOME_API_KEY]", "repo": "https://***@h/x"},
    }  # fmt: skip
    assert (written["label"], written["cell"], written["status"]) == ("label [SOME_API_KEY]", cell.id, "ok")
    assert read_cells(tmp_path).rows["document"].tolist() == ["[SOME_API_KEY]/0", "[SOME_API_KEY]/1"]
    write_failure(cell, {"error": f"no {VALUE}", "traceback": f"File x\n  {VALUE!r}\n"})
    journal = Journal(cell.journal)
    kept = journal.add(VALUE, {"answer": f"say {VALUE}", "n": 1, "deep": [{"x": VALUE}]})
    assert kept == {"answer": "say [SOME_API_KEY]", "n": 1, "deep": [{"x": "[SOME_API_KEY]"}]} == Journal(cell.journal).get(VALUE)
    for path in (tmp_path / "cells").iterdir():
        assert "hunter2" not in path.read_text(), path


def test_no_secret_reaches_a_report(secret, folder, capsys):
    """Of an older cell, whose files nobody redacted."""
    made, _, ids = folder
    for path in (made / "cells").glob("*.csv"):
        path.write_text(path.read_text().replace(",tiny,", ',"ti""ny",').replace('ti""ny', VALUE.replace('"', '""')))
    failed = made / "cells" / f"{ids[3]}.json"
    failed.write_text(failed.read_text().replace("MemoryError: killed", "https://u:pa55@h " + json.dumps(VALUE)[1:-1]))
    assert main(["report", f"results_dir={made}"]) == 0 and main(["collect", f"results_dir={made}"]) == 0
    for path in [made / "report.html", *(made / "tables").iterdir()]:
        assert "hunter2" not in path.read_text() and "pa55" not in path.read_text(), path
    assert "[SOME_API_KEY]" in (made / "report.html").read_text()


OUTPUT = """
import logging, sys, warnings
from msrnn_bench.redact import guard_output
guard_output(); guard_output()
secret = sys.argv[1]
print("out", secret); print("err", secret, file=sys.stderr); sys.stdout.writelines(["lines ", secret, "\\n"])
warnings.warn(f"warned {secret}")
logging.getLogger("a").warning("logged %s \\x1b[2J", secret)
logging.basicConfig(filename=sys.argv[2])
logging.getLogger("b").error("filed %s", secret)
try:
    raise ValueError(secret)
except ValueError:
    logging.getLogger("b").exception("caught")
print(sys.stdout.encoding, sys.stdout.isatty())
raise RuntimeError("escape \\x1b[2J " + secret)
"""


def test_no_secret_leaves_a_process_by_its_screen_its_logs_or_a_traceback(secret, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", OUTPUT, VALUE, str(tmp_path / "log")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    told = done.stdout + done.stderr + (tmp_path / "log").read_text()
    for word in ("out", "err", "lines", "warned", "logged", "filed", "ValueError:"):
        assert f"{word} [SOME_API_KEY]" in told
    assert "hunter2" not in told and "\x1b" not in told and "RuntimeError: escape \ufffd[2J [SOME_API_KEY]" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_the_command_line_says_no_secret(secret, tmp_path, debug):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SOME_API_KEY": "hunter2hunter2"}
    command = [sys.executable, "-m", "msrnn_bench.cli.main", "run", *debug, "model=local", "model.path=/nowhere/hunter2hunter2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0 and "[SOME_API_KEY]" in done.stderr and "hunter2" not in done.stdout + done.stderr
    assert ("Traceback" in done.stderr) == bool(debug)
