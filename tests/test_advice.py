"""What an error message advises exists: each setting it names is one, and each value it gives is accepted there."""

import ast
import inspect
import re
from functools import cache

import pytest
from conftest import ROOT, choice
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object

import msrnn_bench as mb
from msrnn_bench.cli import main as cli
from msrnn_bench.cli import plotting
from msrnn_bench.errors import UsageError, check
from msrnn_bench.runs.compose import GROUPS, choices, compose_grid
from msrnn_bench.runs.overrides import understood
from msrnn_bench.runs.values import Settings

HOLE = "\0"  # what is filled in when the message is made
SETTING = re.compile(r"(?<![\w.\0{$/-])(?:\+\+?|~)?([a-z_][\w.]*)=([^\s;]*)")
OTHERS = {"key", "rows", "pretrained"}  # any key; of `states.fork`; of `msrnn-bench lm-eval`


@cache
def messages() -> list[tuple[str, str]]:
    """Every text that is handed to UsageError, MachineError or the last line of the command: where, and the text."""
    found = []
    for path in sorted((ROOT / "msrnn_bench").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("UsageError", "MachineError", "_fail"):
                for argument in node.args[:1]:
                    found.append((f"{path.name}:{node.lineno}", _text(argument)))
    return found


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr | ast.BinOp):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node.left, node.right]
        return "".join(map(_text, parts))
    return HOLE


def advised() -> list[tuple[str, str, str]]:
    """Where, the key, and the value as it is typed ("" where the message fills it in or leaves it to the reader)."""
    found = []
    for where, text in messages():
        for key, value in SETTING.findall(text.replace("`", " ")):
            value = re.sub(r"[),.:'\"]+$", "", value) if not value.startswith("[") else value.rstrip(").,:")
            found.append((where, key, "" if HOLE in value or re.search(r"[A-Z]{3,}|\.\.\.", value) else value))
    return found


@cache
def classes() -> dict[str, list]:
    """Nested key -> the classes that have it."""
    found: dict[str, list] = {}
    for group in ("model", "dataset", "policy", "task"):
        for name in choices(group):
            config = choice(group, name)
            for key in config:
                made = get_object(config._target_)
                if made not in found.setdefault(f"{group}.{key}", []):
                    found[f"{group}.{key}"].append(made)
    return found


@cache
def python() -> set[str]:
    """The arguments of what one calls in Python, which the messages of multistate/ name."""
    callables = [mb.bounded, mb.scan, mb.recurrence, mb.Eviction, mb.Random, mb.Window]
    return {name for one in callables for name in inspect.signature(one).parameters}


ADVISED = advised()


def test_there_is_advice_to_check():
    assert len(messages()) > 200 and len(ADVISED) > 80


@pytest.mark.parametrize(("where", "key", "value"), ADVISED, ids=[f"{w} {k}={v}" for w, k, v in ADVISED])
def test_advice_can_be_followed(where, key, value):
    known = {*GROUPS, *Settings.__annotations__, *classes(), *python(), *OTHERS}
    known |= {"trust", "keep", "watch", "hydra.sweep.dir", "hydra.sweeper.max_batch_size"}  # of rerun, status and launchers
    known |= {"figure", "metric", "out", "paper", "published", "note", *plotting.OPTIONS}  # of collect and plot
    known |= {name.partition(".")[2] for name in classes()}  # where the message is about a group's file
    assert key in known, f"{where} names {key}, which is no setting"
    if not value or key not in {*GROUPS, *Settings.__annotations__, *classes()}:
        return
    (typed,) = understood([f"{key}={value}"], ["run"], sweeps=True)
    override = OverridesParser.create().parse_override(typed)
    if override.is_sweep_override():
        return
    if key in GROUPS:
        assert override.value() in choices(key), f"{where}: there is no {key} {value}"
        return
    made = [Settings] if key in Settings.__annotations__ else classes()[key]
    for one in made:
        try:
            check(one, {key.rpartition(".")[2]: override.value()})
            return
        except UsageError as error:
            said = error
    raise AssertionError(f"{where}: {said}")


def test_commands_that_are_advised_exist():
    named = [(where, name) for where, text in messages() for name in re.findall(r"msrnn-bench (\w[\w-]*)", text)]
    assert len(named) > 5
    assert {name for _, name in named} <= {*cli.COMMANDS, "again"}, named  # "install msrnn-bench again"


COMMANDS = [(w, c) for w, text in messages() for c in re.findall(r"`(?:msrnn-bench )?((?:run|sweep) [^`\0]*=[^`\0]*)`", text)]


@pytest.mark.parametrize(("where", "command"), COMMANDS, ids=[where for where, _ in COMMANDS])
def test_whole_commands_that_are_advised_compose(where, command):
    name, *given = command.split()
    flags = [arg for arg in given if arg.startswith("-")]
    overrides = understood([arg for arg in given if not arg.startswith("-")], [name], sweeps=name == "sweep" or bool(flags))
    assert compose_grid(overrides, experiment_grid=True)
