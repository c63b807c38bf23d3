"""The command line: stylize-batch. What each command is called, and where it is."""

from __future__ import annotations

import atexit
import difflib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import cli_machine, cli_manifest, cli_out, cli_pair
from pipeline.console import as_refusal, flush, open_standard_streams, say, tell
from pipeline.ledger import Exit
from stylize import __version__

__all__ = ["main"]

app = typer.Typer(
    name="stylize-batch",
    help="Paint whole collections of photographs in the style of pictures (Gatys et al. 2015).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights_app = typer.Typer(help="The networks' weights: list, fetch, verify.", no_args_is_help=True)
app.add_typer(weights_app, name="weights", rich_help_panel="This machine")

COMMANDS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "Manifests": {
        "run": cli_manifest.run_command,
        "demo": cli_manifest.demo_command,
        "plan": cli_manifest.plan_command,
        "validate": cli_manifest.validate_command,
        "make-manifest": cli_manifest.make_manifest_command,
    },
    "Single pictures": {
        "pair": cli_pair.pair_command,
        "explain": cli_pair.explain_command,
        "show": cli_pair.show_command,
    },
    "Output folders": {
        "status": cli_out.status_command,
        "report": cli_out.report_command,
        "montage": cli_out.montage_command,
        "merge": cli_out.merge_command,
        "compact": cli_out.compact_command,
        "rebuild-index": cli_out.rebuild_index_command,
        "prune": cli_out.prune_command,
    },
    "This machine": {
        "doctor": cli_machine.doctor_command,
        "bench": cli_machine.bench_command,
        "presets": cli_machine.presets_command,
    },
}
"""By what they are about, in the order of `--help`."""

WEIGHTS_COMMANDS: Mapping[str, Callable[..., Any]] = {
    "list": cli_machine.weights_list_command,
    "fetch": cli_machine.weights_fetch_command,
    "verify": cli_machine.weights_verify_command,
}

for _panel, _commands in COMMANDS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)
for _name, _command in WEIGHTS_COMMANDS.items():
    weights_app.command(_name)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        tell(f"stylize-batch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script. `stylize-batch MANIFEST` is `stylize-batch run MANIFEST`."""
    open_standard_streams()
    arguments = sys.argv[1:]
    commands = {"weights", *(name for panel in COMMANDS.values() for name in panel)}
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        _check_command(arguments[0], commands)
        arguments = ["run", *arguments]
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup has it ignored
        signal.signal(signal.SIGHUP, _terminated)
    atexit.register(flush)  # before the interpreter's own, whose failure would be exit code 120
    try:
        app(arguments, prog_name="stylize-batch", standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    except Exception as error:
        refusal = as_refusal(error)
        if refusal is not None:
            if str(refusal):
                _complain(str(refusal))
            sys.exit(refusal.code)
        _complain(
            f"this is a bug (version {__version__}, Python {sys.version.split()[0]}, "
            f"{sys.platform}); please report it with the command, what `stylize-batch doctor "
            "--json` says, and what follows:"
        )
        traceback.print_exc()
        sys.exit(Exit.BUG)


def _check_command(word: str, commands: Collection[str]) -> None:
    """A word that is neither command nor manifest is most likely a mistyped command."""
    if not Path(word).suffix and not os.path.exists(word):
        near = difflib.get_close_matches(word, sorted(commands), 1) or ["--help"]
        _complain(f"there is no command and no manifest {word!r}; did you mean {near[0]}?")
        sys.exit(Exit.USAGE)


def _complain(message: str) -> None:
    say(f"stylize-batch: {message}")


def _terminated(number: int, frame: object) -> None:
    """SIGTERM and SIGHUP end a command as Ctrl-C does: what is open is closed on the way."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
