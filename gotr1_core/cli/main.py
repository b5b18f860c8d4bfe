"""``gotr1``: the commands put together, gotr1's own and those of plugins, and errors printed as two lines."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from gotr1_core.cli import common, config, doctor, evaluate, export, generate, plugins, score, sft, show, train
from gotr1_core.cli import list as list_
from gotr1_core.cli.launch import LAUNCHED, LaunchCommand, end, told
from gotr1_core.cli.options import ComponentCommand
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.plugins import RAISED, one_line

INTERRUPTED = 130
COMPLETE = "_GOTR1_COMPLETE"  # set where a shell asks what could come next
HELP = "Trains text-to-image models to plan before they draw, with reinforcement learning."
SETTINGS = {"help_option_names": ["-h", "--help"]}
ANYWHERE = "Anywhere on the line"
BUG = "this looks like a bug in gotr1 or a plugin; run again with --debug to see where"

app = typer.Typer(name="gotr1", help=HELP, no_args_is_help=True, context_settings=SETTINGS)
app.command(
    "train",
    cls=LaunchCommand,
    epilog="--planner NAME --help (also --renderer, --judge, --algorithm) shows the options of NAME. "
    "At the end of the line, -- --num-processes N trains in N processes.",
)(train.command)
app.command("sft", cls=ComponentCommand, epilog="policy=NAME --help (also data=NAME) shows the options of NAME.")(sft.command)
app.command("generate", cls=ComponentCommand, epilog="--planner NAME --help (also --renderer) shows the options of NAME.")(generate.command)
app.command("evaluate")(evaluate.command)
app.command("score", cls=ComponentCommand, epilog="--judge NAME --help shows the options of NAME.")(score.command)
app.command("export")(export.command)
app.command("list")(list_.command)
app.command("show")(show.command)
app.add_typer(config.app, name="config")
app.command("plugins")(plugins.command)
app.command("doctor")(doctor.command)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"gotr1 {version('gotr1')}")
        raise typer.Exit


@app.callback(help=HELP)
def main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """What comes before the command."""


def everywhere(
    plugin: Annotated[
        list[Path] | None,
        typer.Option("--plugin", metavar="FILE.py", help="Also load this file as a plugin; may be given again.", rich_help_panel=ANYWHERE),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.", rich_help_panel=ANYWHERE)] = False,
) -> None:
    """Options that stand anywhere on a line. `call` reads them before anything else; here they are for --help and completion."""


def run(arguments: list[str] | None = None) -> None:
    """The console script: runs a command and exits with 0, 1 (failure), 2 (usage) or 130 (Ctrl-C)."""
    status = call(sys.argv[1:] if arguments is None else arguments)
    if LAUNCHED in os.environ:
        end(status)
    sys.exit(status)


def call(arguments: list[str]) -> int:
    """Runs a command; returns the exit status instead of exiting."""
    debug = "--debug" in arguments[: arguments.index("--")] if "--" in arguments else "--debug" in arguments
    # A shell that completes shows whatever is printed between the words that are being typed.
    with redirect_stderr(io.StringIO()) if COMPLETE in os.environ else nullcontext():
        try:
            words, files = read_ahead(arguments)
            common.start(files, debug=debug)
            status = commands().main(words, prog_name="gotr1", standalone_mode=False)
            if status == INTERRUPTED:  # Typer turns Ctrl-C into this status without a word
                raise KeyboardInterrupt
            return status if isinstance(status, int) else 0
        except (KeyboardInterrupt, typer.Abort):
            return _say("interrupted", None, INTERRUPTED)
        except SystemExit as error:  # Typer's completion exits, and so may a plugin's command
            return (error.code or 0) if isinstance(error.code, int | None) else _say(str(error.code), None, 1)
        except typer.TyperException as error:
            return _misused(error)
        except Exception as error:
            if debug:
                raise
            if isinstance(error, Gotr1Error):
                return _say(error.message, error.hint, error.code)
            return _say(one_line(error), BUG, 1)


def read_ahead(arguments: list[str]) -> tuple[list[str], list[Path]]:
    """What is left for the command, and the files of --plugin: plugins must be loaded before there are commands to read the rest."""
    rest: list[str] = []
    files: list[Path] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*rest, word, *words], files
        name, equals, value = word.partition("=")
        if name == "--plugin":
            file = value if equals else next(words, "")
            if not file or file.startswith("--"):
                raise UsageError("--plugin needs a file", hint="for example --plugin my_judge.py")
            files.append(Path(file))
        elif word != "--debug":
            rest.append(word)
    return rest, files


def commands() -> TyperGroup:
    """gotr1's commands, then those of the plugins, each of which is asked in its own ``try``."""
    app.rich_markup_mode = "rich" if sys.stdout.isatty() else None
    group = get_command(app)
    assert isinstance(group, TyperGroup)  # it has a callback
    if app.rich_markup_mode is None:
        group.context_settings = {**SETTINGS, "terminal_width": 140}  # else a pipe has 80, and what commands do is cut to fit
    registry = common.registry()
    registry.commands = dict.fromkeys(group.commands, "gotr1")
    for plugin, add in registry.implementations("gotr1_commands"):
        own = typer.Typer(context_settings=SETTINGS)
        try:
            add(app=own)
            made = get_group(own).commands
        except RAISED as error:
            registry.fail(plugin.name, plugin.distribution, "adds no commands", error)
            continue
        for name, command in made.items():
            if name in registry.commands:
                has = registry.commands[name].partition(":")[0]
                print(f"warning: {plugin.distribution} adds a command {name!r}, but {has} has one, which is kept", file=sys.stderr)
                continue
            registry.commands[name] = plugin.id
            command.rich_help_panel = f"Commands of {plugin.distribution}"  # type: ignore[attr-defined]
            group.add_command(command, name)
    options = _everywhere()
    for command in _each(group):
        command.params += options
    return group


def _everywhere() -> list[Any]:
    """The options that every command shows, and none is given."""
    shown = typer.Typer(add_completion=False)
    shown.command()(everywhere)
    options: list[Any] = get_command(shown).params
    for option in options:
        option.expose_value = False
    return options


def _each(command: Any) -> Iterator[Any]:
    """A command and all that are under it."""
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from _each(inner)


def _misused(error: typer.TyperException) -> int:
    """What Typer says of a line that it cannot read, in two lines."""
    message, context = error.format_message(), getattr(error, "ctx", None)
    if not message or message.lstrip().startswith("Usage:"):  # nothing was asked for, which Typer answers with the help
        print(message, end="", file=sys.stderr)
        return 2
    return _say(" ".join(message.split()), f"see `{context.command_path if context else 'gotr1'} --help`", 2)


def _say(message: str, hint: str | None, code: int) -> int:
    if told(message, hint):
        return code
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print("hint: " + hint.replace("\n", "\n      "), file=sys.stderr)  # so that a caret stays under what it points at
    return code


if __name__ == "__main__":
    run()
