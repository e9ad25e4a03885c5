"""What the shell gave, as overrides that Hydra understands; what Hydra would read as something else, refused in one line.

Paths and names of conf/ are texts as they stand: `~/m`, spaces, accents, `(`, `)`, `=` need no quotes. Where Hydra's grammar
has a meaning of its own for a comma, `[...]`, `{...}` or a function, nothing is guessed: the line shows the same command with
the value quoted. In quotes `\\n` and `\\t` are a line end and a tab, `\\\\n` the two characters. Numbers are what they look like.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString

from msrnn_bench.errors import UsageError, one_line, shown
from msrnn_bench.runs.compose import GROUPS

PATHS = ("path", "results_dir", "include_path", "judge_path", "repo")  # last parts of the keys whose value is a path
_FUNCTIONS = "bool|choice|extend_list|float|glob|int|interval|json_str|range|shuffle|sort|str|tag"
_CALL = re.compile(rf"\s*(?:{_FUNCTIONS})\s*\(.*\)\s*", re.DOTALL)
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?=[\d.]*\d)[\d_]*\.?[\d_]*(?:[eE][+-]?[\d_]+)?")
_MEANT = {"n": "\n", "t": "\t", "\\": "\\", "'": "'", '"': '"'}


def understood(args: list[str], command: list[str], *, sweeps: bool, hydra: bool = False) -> list[str]:
    """The overrides of a command line. `command` is what stands before them; `sweeps` whether several values of one
    setting are measured in turn; `hydra` whether Hydra itself runs them, so that its own settings mean something."""
    own = any(_own_policy(arg) for arg in args)
    made = []
    for number, arg in enumerate(args):
        key, equals, raw = arg.partition("=")
        bare = key.lstrip("+~")
        if any("\ud800" <= letter <= "\udfff" for letter in arg):
            raise UsageError(f"{arg!a} is no UTF-8 text: rename the file, or set the terminal to UTF-8")
        override = _parsed(f"{key}=x" if equals else arg)
        if override is None or not override.key_or_group or not (equals or key.startswith("~")):
            raise UsageError(f"cannot read the override {shown(arg)!r}: write key=value, such as cache=512")
        if re.match(r"hydra\b", bare) and (not hydra or bare.startswith("hydra.sweeper.params")):
            raise UsageError(f"{bare} is Hydra's own, and this command has no use for it: several values are run -m cache=64,128")
        if bare == "experiment" and raw.strip().lower() == "null":
            continue  # as it is without; Hydra has no null for a group
        if own and key.startswith("policy.") and key != "policy._target_":
            key = f"++{key}"  # a knob of the user's class, which the policy that it replaces may lack
        value = _value(bare, raw, lambda quoted, at=number: _command(command, args, at, quoted), sweeps)
        made.append(f"{key}={value}" if equals else arg)
    return made


def quoted(text: str) -> str:
    """A text in Hydra's grammar, whatever it holds."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def _value(key: str, raw: str, command: Any, sweeps: bool) -> str:
    path = key.rpartition(".")[2] in PATHS
    there = path and _there(key, raw)
    if (path or key in GROUPS) and _plain(raw):
        return quoted(raw)
    override = _parsed(f"x={raw}")
    if override is None:
        if (
            sweeps and not there and "," in raw and not re.search(r"""[()\[\]{}'"]""", raw)
        ):  # several values, not all of which Hydra can read
            return ",".join(_value(key, part, command, sweeps) for part in raw.split(","))
        if re.search(r"[,\[\]{}]", raw) or raw.lstrip()[:1] in ("'", '"'):
            raise UsageError(f"{key}={shown(raw)} cannot be read; as one text it is written {command(_typed(raw, path))}")
        return quoted(raw if path else _decoded(raw))
    if override.is_sweep_override():
        if not sweeps:
            raise UsageError(
                f"{key}={shown(raw)} has several values: add -m to measure every combination; as one text it is written "
                f"{command(_typed(raw, path))}"
            )
        if there:
            raise UsageError(
                f"{key}={shown(raw)} is a file, and read as several values; as one it is {command(_typed(raw, path))}"
            )
    elif key in GROUPS and not isinstance(override.value(), str | None):
        raise UsageError(f"{key}={shown(raw)} must be one name; several are measured with run -m {key}=NAME,NAME")
    elif path and isinstance(override.value(), list | dict):
        raise UsageError(f"{key}={shown(raw)} must be one path; as a text it is written {command(_typed(raw, path))}")
    _refuse_rewritten(key, raw)
    if path:
        return raw
    if re.search(r"\\[nt]", raw) and not re.search(r"""[,\[\]{}()'"]""", raw):
        return quoted(_decoded(raw))
    if re.search(r"\\[nt]", _QUOTED.sub("", raw)):
        raise UsageError(f"{key}={shown(raw)}: among several values a line end or a tab is written in quotes, ['\\n','\\t']")
    return _QUOTED.sub(lambda found: quoted(_decoded(found[0][1:-1])), raw)


def _there(key: str, raw: str) -> bool:
    """Whether it is the path of something; a `~name` that is nobody's home, and what no system takes for a path, is refused."""
    try:
        return [Path(part).expanduser().exists() for part in (*raw.split(","), raw)][-1]
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"{key}={shown(raw)} is no path ({shown(one_line(error))})") from error


def _plain(raw: str) -> bool:
    """Nothing in it has a meaning in Hydra's grammar that someone may have meant."""
    return (
        bool(raw.strip())
        and raw.strip().lower() != "null"
        and not re.search(r"""[,\[\]{}'"\\]""", raw)
        and not _CALL.fullmatch(raw)
    )


def _refuse_rewritten(key: str, raw: str) -> None:
    """`5_0` is 50 to Hydra: whoever typed it may have meant either."""
    for word in re.split(r"[\s,\[\]{}():]+", _QUOTED.sub(" ", raw)):
        if "_" in word and _NUMBER.fullmatch(word):
            read = _parsed(f"x={word}")
            if read is not None and isinstance(read.value(), int | float):
                plain = shown(read.value())
                raise UsageError(
                    f"{key}={shown(raw)}: {word} would be read as {plain}; write {plain}, or for a text \"{key}='{word}'\""
                )


def _decoded(text: str) -> str:
    """Escapes as people mean them; a backslash before any other letter is a backslash."""
    return re.sub(r"\\(.)", lambda found: _MEANT.get(found[1], found[0]), text, flags=re.DOTALL)


def _typed(raw: str, path: bool) -> str:
    """How a text is typed so that `understood` gives it back."""
    if path:
        return quoted(raw)
    return "'" + raw.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t") + "'"


def _command(command: list[str], args: list[str], at: int, value: str) -> str:
    """The whole command, for a shell, with the value at that place replaced."""
    given = [*args[:at], f"{args[at].partition('=')[0]}={value}", *args[at + 1 :]]
    return " ".join(["msrnn-bench", *map(_shell, [*command, *given])])


def _shell(arg: str) -> str:
    return f'"{arg}"' if "'" in arg and not re.search(r'["$`\\!]', arg) else shlex.quote(arg)


def _own_policy(arg: str) -> bool:
    key, _, value = arg.partition("=")
    return key.lstrip("+") == "policy._target_" and any(not v.startswith("msrnn_bench.") for v in value.split(","))


def _parsed(line: str) -> Override | None:
    """Hydra's reading of a line, None where it has none."""
    try:
        return OverridesParser.create().parse_override(line)
    except Exception:  # its own, and what Python says of a number of thousands of digits
        return None
