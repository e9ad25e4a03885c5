"""lm-eval's tasks by name: those of the user's folder, RULER's, all others; from what is here before the hub is asked.

Knows no model and no answer. lm-eval is imported where it is used, for that takes seconds, and the names are looked up
in the text of its 14,000 files first: a mistaken one is told at once.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msrnn_bench.errors import MachineError, UsageError, one_line
from msrnn_bench.tasks.lm_eval.context import no_punkt, offline, quiet, seeded

RULER_NEEDS = ("nltk", "wonderwords")
RULER_GROUPS = ("ruler", "longcxt")  # its group and its tag: every task of the folder
SEED = 1234  # lm-eval's own, to which ours is added
_NAMED = re.compile(r"""^["']?(?:task|group|tag)["']?\s*:\s*["']?([\w.-]+)""", re.MULTILINE)


@dataclass(frozen=True)
class Subtask:
    """One of lm-eval's tasks, ready to ask; `length` in tokens where it makes its texts to a length."""

    name: str
    length: int | None
    task: Any

    @property
    def label(self) -> str:
        return self.name if self.length is None else f"{self.name}@{self.length}"


@dataclass(frozen=True)
class Wanted:
    """What is asked for. `tokenizer` is the folder of the one that RULER measures its texts with."""

    names: tuple[str, ...]
    include_path: Path | None = None
    lengths: tuple[int, ...] = ()
    tokenizer: Path | None = None
    num_fewshot: int | None = None
    seed: int = 0


def home() -> Path:
    """The folder of lm-eval's own tasks, found without importing it."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise MachineError("lm-eval is not installed: python -m pip install 'lm-eval>=0.4.13,<0.5'")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def check(wanted: Wanted) -> None:
    """Refuse, from the names alone, what no folder has, and what RULER lacks here."""
    if wanted.include_path is not None and not wanted.include_path.is_dir():
        raise UsageError(f"task.include_path={wanted.include_path} is no folder: give one with lm-eval's YAML files")
    ruler = False
    for name in wanted.names:
        if wanted.include_path is not None and _mentions(wanted.include_path, name):
            continue
        if _mentions(home() / "ruler", name) or name in RULER_GROUPS:
            ruler = True
        elif not _is_pattern(name) and not _own(name):
            raise _unknown(name, wanted.include_path)
    if ruler and not wanted.lengths:
        raise UsageError("RULER's tasks make their texts to a length: give task.lengths=[1024,4096]")
    missing = [module for module in RULER_NEEDS if importlib.util.find_spec(module) is None]
    if ruler and missing:
        raise MachineError(f"RULER's tasks need {' and '.join(missing)}: python -m pip install 'msrnn-bench[ruler]'")
    if ruler and wanted.tokenizer is None:
        raise UsageError("RULER's tasks measure their texts with the model's tokenizer, and this model comes without a folder")


def _is_pattern(name: str) -> bool:
    return any(mark in name for mark in "*?[")


def _mentions(folder: Path, name: str) -> bool:
    """Whether a YAML file below the folder has the word; a name that stands in none is no task, group or tag of it."""
    word = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
    return any(word.search(path.read_text(errors="replace")) for path in folder.rglob("*.yaml"))


@functools.cache
def _own(name: str) -> bool:
    return _mentions(home(), name)


def _unknown(name: str, include_path: Path | None) -> UsageError:
    folders = [folder for folder in (include_path, home()) if folder is not None]
    texts = (path.read_text(errors="replace") for folder in folders for path in folder.rglob("*.yaml"))
    close = difflib.get_close_matches(name, {found for text in texts for found in _NAMED.findall(text)}, n=3)
    hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
    where = "" if include_path is None else f", nor has {include_path}"
    return UsageError(f"lm-eval has no task {name!r}{where}{hint}; `lm-eval ls tasks` lists them")


def build(wanted: Wanted) -> list[Subtask]:
    """The tasks behind the names, their documents read. Raises UsageError or MachineError in one line."""
    ruler = home() / "ruler"
    names = [n for name in wanted.names for n in (_manager(ruler, False).all_subtasks if name in RULER_GROUPS else [name])]
    found: list[Subtask] = []
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        for name in names:
            folders = [f for f in (wanted.include_path, ruler) if f is not None]
            folder = next((f for f in folders if name in _manager(f, False).all_subtasks), None)
            with _readable(name):
                found += _of_lengths(name, folder, wanted) if folder else _own_tasks(name, wanted)
    labels = [subtask.label for subtask in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UsageError(f"task.tasks names {', '.join(twice)} twice")
    for subtask in found:
        _refuse(subtask)
        _few_shots(subtask.task, wanted)
    return found


def _refuse(subtask: Subtask) -> None:
    if getattr(subtask.task, "UNSAFE_CODE", False):
        raise UsageError(
            f"task {subtask.name} runs the code that a model writes: take lm-eval's own command line and its "
            "--confirm_run_unsafe_code, in a place that may break (msrnn-bench lm-eval run --model msrnn ...)"
        )
    if getattr(subtask.task, "MULTIMODAL", False):
        raise UsageError(f"task {subtask.name} shows pictures or sounds, which a bounded language model does not read")


def _of_lengths(name: str, folder: Path, wanted: Wanted) -> list[Subtask]:
    """A task of a small folder: where it makes its own texts, once per length, each as if it were the only one."""
    made = "custom_dataset" in (_manager(folder, False).task_index[name].cfg or {})
    lengths: list[int | None] = [*wanted.lengths] if made and wanted.lengths else [None]
    found = []
    for length in lengths:
        manager = _manager(folder, False, wanted.tokenizer, () if length is None else (length,))
        found += [Subtask(inner, length, task) for inner, task in _load(manager, name, wanted.seed).items()]
    return found


def _own_tasks(name: str, wanted: Wanted) -> list[Subtask]:
    """Any other task, group, tag or pattern; this index takes lm-eval some ten seconds."""
    manager = _indexed(wanted.include_path, wanted.tokenizer, wanted.lengths)
    names = manager.match_tasks([name]) if _is_pattern(name) else [name]
    if not names or any(n not in manager.all_tasks for n in names):
        raise _unknown(name, wanted.include_path)
    return [Subtask(n, None, task) for inner in names for n, task in _load(manager, inner, wanted.seed).items()]


def _manager(folder: Path | None, defaults: bool, tokenizer: Path | None = None, lengths: tuple[int, ...] = ()) -> Any:
    from lm_eval.tasks import TaskManager

    known: dict[str, Any] = {} if tokenizer is None else {"tokenizer": str(tokenizer)}
    known |= {"max_seq_lengths": list(lengths)} if lengths else {}
    return TaskManager(include_path=None if folder is None else str(folder), include_defaults=defaults, metadata=known)


@functools.lru_cache(maxsize=2)
def _indexed(folder: Path | None, tokenizer: Path | None, lengths: tuple[int, ...]) -> Any:
    return _manager(folder, True, tokenizer, lengths)


def _load(manager: Any, name: str, seed: int) -> dict[str, Any]:
    """The task, or those of a group; from local files and the local cache if they hold it, else from the hub."""
    with seeded(seed), no_punkt():
        try:
            with offline():
                return manager.load([name])["tasks"]
        except Exception as error:
            if not isinstance(error, ConnectionError) and "Couldn't find cache" not in str(error):
                raise
            if not _hub_answers():
                raise MachineError(
                    f"task {name} has its documents on the hub, which does not answer ({one_line(error)}); "
                    "a task of your own reads local files: task.include_path=FOLDER"
                ) from error
        return manager.load([name])["tasks"]


def _few_shots(task: Any, wanted: Wanted) -> None:
    """As lm-eval itself does it: a task that says 0 means it."""
    if wanted.num_fewshot is not None and task.get_config("num_fewshot") != 0:
        task.set_config(key="num_fewshot", value=wanted.num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Whatever goes wrong in a task's YAML, code or data, as one line."""
    try:
        yield
    except UsageError:
        raise
    except ImportError as error:
        raise MachineError(f"task {name} needs a package that is missing: {one_line(error)}") from error
    except LookupError as error:
        if "punkt" not in str(error):
            raise _broken(name, error) from error
        raise MachineError(f"task {name} needs NLTK's sentences: python -m nltk.downloader punkt_tab") from error
    except FileNotFoundError as error:
        raise UsageError(f"task {name} names a file that is not there: {one_line(error)}") from error
    except OSError as error:
        raise MachineError(f"task {name} cannot read its documents: {one_line(error)}") from error
    except Exception as error:  # a task is anybody's YAML and Python
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> UsageError:
    return UsageError(f"task {name} cannot be built ({type(error).__name__}: {one_line(error)}); --debug shows where")


def _hub_answers() -> bool:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        return True
    except Exception:  # the transport's errors have no common class
        return False
