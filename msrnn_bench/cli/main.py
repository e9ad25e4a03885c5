"""The command line: a thin dispatcher over Hydra. Imports nothing heavy, so that --help answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from msrnn_bench.errors import LESS_MEMORY, UsageError, out_of_memory
from msrnn_bench.redact import guard_output, printable, redacted

HELP = """\
msrnn-bench: transformers as bounded multi-state RNNs (arXiv 2401.06104), measured

  msrnn-bench run policy=tova cache=512             measure a model under a policy and a state size
  msrnn-bench run -m policy=window,tova cache=64,256   every combination
  msrnn-bench sweep experiment=laptop/fig3          an experiment's own grid; run it again to go on where it stopped
  msrnn-bench status                                what is done, running, failed, missing, time left (watch=true: until done)
  msrnn-bench collect                               tables from the finished cells: tidy.csv, summary.csv, on the screen
  msrnn-bench plot                                  the figures from them (figure=NAME for one)
  msrnn-bench claims                                the paper's claims, judged by your results (results_dir=A,B); claims.csv
  msrnn-bench report results_dir=A,B                one HTML page: claims judged, figures, tables, what is missing
  msrnn-bench paper scale=laptop                    every figure and table of the paper, then the report (scale=paper: a GPU)
  msrnn-bench diff CELL CELL                        two cells side by side: settings, versions, data, machine, numbers
  msrnn-bench rerun CELL                            a cell again, from its manifest alone: does the number come out the same?
  msrnn-bench list                                  models, datasets, policies, tasks, experiments to choose from
  msrnn-bench convert FOLDER OUT                    pickled weights (pytorch_model*.bin) to safetensors, all or nothing
  msrnn-bench lm-eval run --model msrnn ...         lm-eval's own command line, which knows bounded models as `msrnn`
  msrnn-bench doctor                                versions, devices, what works here; a 5-second self-check

Settings are key=value (Hydra): cache is the state size; model, dataset, policy, task, experiment choose a file of
conf/; documents, tokens, context, dtype, device, seed, engine, prefill, results_dir, force are single values.
dry_run=true says what a run or sweep would measure and take, and does nothing.
`msrnn-bench run --cfg job` prints the whole configuration. --debug shows tracebacks.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 for what the user gave, 1 for what the machine lacks or what failed, 130 when interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args or os.environ.get("HYDRA_FULL_ERROR") == "1"
    args = [a for a in args if a != "--debug"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if args[0] == "--version":
        from msrnn_bench import __version__

        print(__version__)
        return 0
    command, rest = args[0], args[1:]
    if command not in COMMANDS:
        return _fail(f"unknown command {command!r}; there are: {', '.join(COMMANDS)}", 2)
    if command != "lm-eval" and any(a in ("-h", "--help") for a in rest):
        print(HELP, end="")
        return 0
    try:
        return COMMANDS[command](rest)
    except UsageError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        if debug:
            raise
        return _fail("interrupted; what is finished is kept, the same command goes on from there", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        if out_of_memory(error):
            return _fail(f"out of memory: {LESS_MEMORY}", 1)
        text = " ".join(redacted(str(error)).split())
        return _fail(f"failed ({type(error).__name__}: {text[:400]}); --debug shows where", 1)


def _fail(message: str, code: int) -> int:
    print("msrnn-bench: " + printable(" ".join(redacted(message).splitlines())), file=sys.stderr)
    return code


def _run(args: list[str]) -> int:
    """`run`: one cell, or with -m every combination, here or through a launcher. Hydra's own flags go to Hydra itself."""
    flags, given = _split(args)
    multirun = bool({"-m", "--multirun"} & set(flags))
    from msrnn_bench.runs.overrides import understood

    own = bool(set(flags) - {"-m", "--multirun"}) or any(o.startswith("hydra/sweeper=") for o in given)
    if not own and _launched(given):
        if not multirun:
            raise UsageError("hydra/launcher starts a job for each cell of a grid: add -m, or leave it out")
        from msrnn_bench.runs import launch

        return launch.run(given, ["run", *flags])
    overrides = understood(given, ["run", *flags], sweeps=multirun, hydra=own)
    if own:
        from msrnn_bench.runs import hydra_app

        return hydra_app.main(flags, overrides)
    from msrnn_bench.runs import grid

    return grid.run(overrides, experiment_grid=True, single=not multirun)


def _sweep(args: list[str]) -> int:
    """`sweep experiment=NAME`: the experiment's own grid, or those of several."""
    flags = [a for a in args if a.startswith("-")]
    if flags:
        raise UsageError(f"sweep takes settings only, not {flags[0]}; for Hydra's own flags use run -m")
    if not any(a.startswith("experiment=") for a in args):
        from msrnn_bench.runs.compose import choices

        raise UsageError(f"sweep which grid? Add experiment=NAME, one of: {', '.join(choices('experiment'))}")
    if _launched(args):
        from msrnn_bench.runs import launch

        return launch.run(args, ["sweep"])
    from msrnn_bench.runs import grid
    from msrnn_bench.runs.overrides import understood

    return grid.run(understood(args, ["sweep"], sweeps=True), experiment_grid=True, single=False)


def _launched(args: list[str]) -> bool:
    """Whether a launcher is to start the cells' processes."""
    return any(arg.startswith("hydra/launcher=") for arg in args)


# Hydra's own flags: with a value behind them, and without.
VALUED = {
    "--cfg", "-c", "--package", "-p", "--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd", "--info", "-i",
    "--experimental-rerun",
}  # fmt: skip
BARE = {"-m", "--multirun", "--resolve", "--hydra-help", "--version", "--shell-completion", "-sc", "--run", "-r"}


def _split(args: list[str]) -> tuple[list[str], list[str]]:
    """Flags and overrides. Flags go first, else Hydra loses the overrides after one."""
    flags: list[str] = []
    overrides: list[str] = []
    wants_value = False
    for arg in args:
        if wants_value or arg.startswith("-"):
            name = arg.partition("=")[0]
            if not wants_value and name not in VALUED | BARE:
                raise UsageError(f"unknown flag {arg!r}: settings are key=value, --help shows the commands")
            flags.append(arg)
            wants_value = not wants_value and arg in VALUED
        else:
            overrides.append(arg)
    return flags, overrides


def _collect(args: list[str]) -> int:
    from pathlib import Path

    folder = Path(_options("collect", args).results_dir).expanduser()
    from msrnn_bench.results.summary import collect
    from msrnn_bench.results.tables import markdown

    rows, summary = collect(folder)
    print(printable(markdown(summary)) + "\n")
    print(f"{len(summary)} lines from {len(rows)} rows\n{folder / 'summary.csv'}\n{folder / 'tidy.csv'}")
    return 0


def _status(args: list[str]) -> int:
    from msrnn_bench.cli import status

    return status.main(_options("status", args))


def _plot(args: list[str]) -> int:
    from msrnn_bench.cli import plotting

    return plotting.main(_options("plot", args))


def _report(args: list[str]) -> int:
    from msrnn_bench.cli import reporting

    return reporting.main(_options("report", args))


def _claims(args: list[str]) -> int:
    from msrnn_bench.cli import claims

    return claims.main(_options("claims", args))


def _paper(args: list[str]) -> int:
    from msrnn_bench.cli import paper

    return paper.main(_options("paper", args))


def _diff(args: list[str]) -> int:
    from msrnn_bench.cli import diff

    return diff.main(args)


def _rerun(args: list[str]) -> int:
    from msrnn_bench.cli import rerun

    return rerun.main(args)


def _list(args: list[str]) -> int:
    from msrnn_bench.cli import listing

    return listing.main(args)


def _doctor(args: list[str]) -> int:
    if args:
        raise UsageError(f"doctor takes no settings, got {args[0]!r}")
    from msrnn_bench.cli import doctor

    return doctor.main()


def _convert(args: list[str]) -> int:
    if len(args) != 2:
        raise UsageError(f"convert takes two folders, got {len(args)}: msrnn-bench convert FOLDER OUT")
    from pathlib import Path

    from msrnn_bench.models.convert import convert

    print(convert(Path(args[0]).expanduser(), Path(args[1]).expanduser()))
    return 0


def _lm_eval(args: list[str]) -> int:
    from msrnn_bench.cli import lm_eval

    return lm_eval.main(args)


def _options(command: str, args: list[str]) -> argparse.Namespace:
    """key=value settings of the commands that need no Hydra."""
    known: dict[str, str | None] = {
        "results_dir": "results", "figure": None, "out": None, "paper": None, "published": None, "note": None, "metric": None,
        "local": None, "window": None, "difference": None, "start": None, "layer": None, "cache": None, "lines": None,
        "scheme": None, "scale": "laptop", "workers": "2", "novels": None, "squality": None, "qasper": None, "dry_run": "false",
        "watch": "false",
    }  # fmt: skip
    steps = ["scale", "results_dir", "workers", "novels", "squality", "qasper", "dry_run"]
    plot = [key for key in known if key not in [*steps[:1], *steps[2:], "watch"]]
    both = ["results_dir", "out"]
    allowed = {
        "status": ["results_dir", "watch"], "collect": ["results_dir"], "claims": both, "report": both, "plot": plot,
        "paper": steps,
    }[command]  # fmt: skip
    chosen = {key: known[key] for key in allowed}
    for arg in args:
        key, equals, value = arg.partition("=")
        if not equals or key not in allowed:
            raise UsageError(f"unknown setting {arg!r} of {command}; there are: {', '.join(f'{k}=...' for k in allowed)}")
        chosen[key] = value
    return argparse.Namespace(**chosen)


COMMANDS = {
    "run": _run, "sweep": _sweep, "status": _status, "collect": _collect, "plot": _plot, "claims": _claims, "report": _report,
    "paper": _paper,
    "diff": _diff, "rerun": _rerun, "list": _list, "doctor": _doctor,
    "convert": _convert, "lm-eval": _lm_eval,
}  # fmt: skip


def entry() -> None:
    """The console script."""
    from msrnn_bench.runs.children import follow_parent, heed_signals

    guard_output()
    follow_parent()
    heed_signals()
    sys.exit(main())


if __name__ == "__main__":
    entry()
