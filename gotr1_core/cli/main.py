"""``gotr1``: the commands put together, and errors printed as two lines."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gotr1_core.cli import common, evaluate, export, generate, plugins, sft, train
from gotr1_core.errors import Gotr1Error

INTERRUPTED = 130

app = typer.Typer(
    name="gotr1",
    help="Trains text-to-image models to plan before they draw, with reinforcement learning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (train, sft, generate, evaluate, export, plugins):
    app.command(module.__name__.rpartition(".")[2])(module.command)


@app.callback()
def main(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Trains text-to-image models to plan before they draw, with reinforcement learning."""
    del debug  # `call` reads it from the arguments: it must know when reading them fails


def run(arguments: list[str] | None = None) -> None:
    """The console script: runs a command and exits with 0, 1 (failure), 2 (usage) or 130 (Ctrl-C)."""
    sys.exit(call(sys.argv[1:] if arguments is None else arguments))


def call(arguments: list[str]) -> int:
    """Runs a command; returns the exit status instead of exiting."""
    common.registry.cache_clear()
    try:
        status = app(arguments, standalone_mode=False, prog_name="gotr1")
        if status == INTERRUPTED:  # Typer turns Ctrl-C into this status without a word
            raise KeyboardInterrupt
        return status if isinstance(status, int) else 0
    except Gotr1Error as error:
        if "--debug" in arguments:
            raise
        return _say(error.message, error.hint, error.code)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", None, INTERRUPTED)
    except typer.Exit as error:
        return error.exit_code
    except typer.TyperException as error:
        shown = error.format_message() if hasattr(error, "format_message") else str(error)
        # Without any argument Typer has printed the help, and has nothing to say.
        return _say(shown, "see `gotr1 --help`", 2) if shown else 2


def _say(message: str, hint: str | None, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print("hint: " + hint.replace("\n", "\n      "), file=sys.stderr)  # so that a caret stays under what it points at
    return code


if __name__ == "__main__":
    run()
