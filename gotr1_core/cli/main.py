"""``gotr1``: puts together the commands, its own and those of plugins, and prints an error as two lines."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stderr
from copy import copy
from functools import cache
from pathlib import Path
from traceback import format_exception
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from gotr1_core.border.discovery import HookCall, raised_by_plugin
from gotr1_core.cli import (
    common,
    compare,
    config,
    doctor,
    evaluate,
    export,
    generate,
    list as list_,
    plugins,
    runs,
    sft,
    show,
    train,
)
from gotr1_core.cli.launch import LaunchCommand, end_process, report_to_launcher
from gotr1_core.cli.options import ComponentCommand
from gotr1_core.engine.console import print
from gotr1_core.engine.openmp import choose_spin
from gotr1_core.errors import Gotr1Error, UsageError, one_line
from gotr1_core.runs.launched import is_launched

INTERRUPTED = 130
COMPLETE = "_GOTR1_COMPLETE"  # an environment variable; a shell sets it to ask for completions
HELP = "Trains text-to-image models to plan before they draw, with reinforcement learning."
SETTINGS = {"help_option_names": ["-h", "--help"]}
ANYWHERE = "Anywhere on the line"
LONGEST = 4_000  # characters of an error: a file of others may have a name of gigabytes
BUG = "this looks like a bug in gotr1 or a plugin; run again with --debug to see where"

app = typer.Typer(name="gotr1", help=HELP, no_args_is_help=True, context_settings=SETTINGS)
app.command(
    "train",
    cls=LaunchCommand,
    epilog="--planner NAME --help (also --renderer, --judge, --algorithm) shows the options of NAME. "
    "-- --num-processes N at the end of the line trains in N processes.",
)(train.command)
app.command("sft", cls=ComponentCommand, epilog="policy=NAME --help (also data=NAME) shows the options of NAME.")(sft.command)
app.command("generate", cls=ComponentCommand, epilog="--planner NAME --help (also --renderer) shows the options of NAME.")(generate.command)
app.command("evaluate", cls=ComponentCommand, epilog="--judge NAME --help (also --planner, --renderer) shows the options of NAME.")(
    evaluate.command
)
app.command("export")(export.command)
app.command("runs")(runs.command)
app.command("compare")(compare.command)
app.command("list")(list_.command)
app.command("show")(show.command)
app.add_typer(config.app, name="config")
app.add_typer(plugins.app, name="plugins")
app.command("doctor")(doctor.command)


def _print_version(given: bool) -> None:
    if given:
        from importlib.metadata import version

        print(f"gotr1 {version('gotr1')}")
        raise typer.Exit


@app.callback(help=HELP)
def main(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Reads the options before the command."""


def options_anywhere(
    plugin: Annotated[
        list[Path] | None,
        typer.Option("--plugin", metavar="FILE.py", help="Also load this file as a plugin. May be repeated.", rich_help_panel=ANYWHERE),
    ] = None,
    no_plugins: Annotated[
        bool,
        typer.Option("--no-plugins", help="Load no plugin file that a config or a run names.", rich_help_panel=ANYWHERE),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=ANYWHERE)] = False,
) -> None:
    """Options that may stand anywhere on a line. `call` reads them first; this function only shows them in --help and completion."""


def run(arguments: list[str] | None = None) -> None:
    """The console script: runs a command and exits with its status: 0, 1 (failure), 2 (usage) or 130 (Ctrl-C).

    Characters that the terminal's encoding lacks are escaped (``\\u732b``), so that no result is lost when it is printed.
    """
    choose_spin()  # before torch is imported
    sys.excepthook = lambda *raised: print("".join(format_exception(*raised)), end="", file=sys.stderr)  # of --debug, escaped
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    status = call(sys.argv[1:] if arguments is None else arguments)
    if is_launched():
        end_process(status)
    sys.exit(status)


def call(arguments: list[str]) -> int:
    """Runs a command, prints its error if it has one, and returns the exit status."""
    before_dashes = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug, config_plugins = "--debug" in before_dashes, "--no-plugins" not in before_dashes
    # During completion stderr is dropped: the shell would print it into the line that the user types.
    with redirect_stderr(io.StringIO()) if COMPLETE in os.environ else nullcontext():
        try:
            words, files = read_ahead(arguments)
            common.start(files, debug=debug, config_plugins=config_plugins)
            status = commands().main(words, prog_name="gotr1", standalone_mode=False)
            if status == INTERRUPTED:  # Typer returns this status after Ctrl-C and prints nothing
                raise KeyboardInterrupt
            return status if isinstance(status, int) else 0
        except (KeyboardInterrupt, typer.Abort):
            return _print_error("interrupted", None, INTERRUPTED)
        except SystemExit as error:  # from Typer's completion, or a plugin's command
            return (error.code or 0) if isinstance(error.code, int | None) else _print_error(str(error.code), None, 1)
        except typer.TyperException as error:
            return _print_usage_error(error)
        except BaseException as error:  # libraries in Rust raise some that are no Exception
            if debug:
                raise
            if isinstance(error, Gotr1Error):
                return _print_error(error.message, error.hint, error.code)
            from gotr1_core.engine.files import path_problem

            if problem := path_problem(error):
                return _print_error(problem, "give another path, or change what is there", UsageError.code)
            return _print_error(one_line(error), BUG, 1)


def read_ahead(arguments: list[str]) -> tuple[list[str], list[Path]]:
    """Returns a line without --plugin, --no-plugins and --debug, and the files of --plugin.

    Plugins must be loaded before the rest can be read.

    Raises:
        UsageError: --plugin without a file.
    """
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
        elif word not in ("--debug", "--no-plugins"):
            rest.append(word)
    return rest, files


def commands() -> TyperGroup:
    """Returns gotr1's commands and those of the plugins. A plugin that fails to add its commands is reported and left out."""
    rich = sys.stdout.isatty()
    group: TyperGroup = _copy(_own_commands(rich))
    if not rich:
        group.context_settings = {**SETTINGS, "terminal_width": 140}  # a pipe would get 80 columns, which cuts the commands' summaries
    registry = common.registry()
    registry.commands = dict.fromkeys(group.commands, "gotr1")
    for plugin, add in registry.implementations("gotr1_commands"):
        try:
            added = _copy(_plugin_commands(add)).commands
        except raised_by_plugin() as error:
            registry.fail(plugin.name, plugin.distribution, "adds no commands", error)
            continue
        for name, command in added.items():
            own = group.commands.get(name)
            if isinstance(own, TyperGroup) and isinstance(command, TyperGroup) and registry.commands[name] == "gotr1":
                for inner in command.commands.keys() - own.commands.keys():  # a plugin may add to a group of gotr1's
                    own.add_command(command.commands[inner], inner)
                    registry.commands[f"{name} {inner}"] = plugin.id
                continue
            if name in registry.commands:
                owner = registry.commands[name].partition(":")[0]
                print(f"warning: {plugin.distribution} adds a command {name!r}, but {owner} has one; gotr1 keeps that", file=sys.stderr)
                continue
            registry.commands[name] = plugin.id
            command.rich_help_panel = f"Commands of {plugin.distribution}"
            group.add_command(command, name)
    options = _options_anywhere()
    for command in _all_commands(group):
        command.params += options
    return group


@cache  # Typer takes tens of milliseconds, which a process that runs many commands pays once
def _own_commands(rich: bool) -> TyperGroup:
    """Returns gotr1's own commands, without options that may stand anywhere. Only :func:`_copy` of them may be changed."""
    app.rich_markup_mode = "rich" if rich else None
    group = get_command(app)
    assert isinstance(group, TyperGroup)  # the app has a callback, so it is a group
    return group


@cache
def _plugin_commands(add: HookCall) -> TyperGroup:
    """Returns the commands that a plugin adds. Only :func:`_copy` of them may be changed."""
    plugin_app = typer.Typer(context_settings=SETTINGS)
    add(app=plugin_app)
    return get_group(plugin_app)


def _copy(command: Any) -> Any:
    """Returns a command, and all below it, with lists of parameters and of commands of their own."""
    copied = copy(command)
    copied.params = [*command.params]
    if hasattr(command, "commands"):
        copied.commands = {name: _copy(inner) for name, inner in command.commands.items()}
    return copied


@cache
def _options_anywhere() -> list[Any]:
    """Returns the options that every command shows. Their values are not passed to commands."""
    holder = typer.Typer(add_completion=False)
    holder.command()(options_anywhere)
    options: list[Any] = get_command(holder).params
    for option in options:
        option.expose_value = False
    return options


def _all_commands(command: Any) -> Iterator[Any]:
    """Yields a command and all commands below it."""
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from _all_commands(inner)


def _print_usage_error(error: typer.TyperException) -> int:
    """Prints Typer's error about a wrong line as two lines. Returns the exit status 2."""
    message, context = error.format_message(), getattr(error, "ctx", None)
    if not message or message.lstrip().startswith("Usage:"):  # the line has no command, and the message is the help
        print(message, end="", file=sys.stderr)
        return 2
    return _print_error(" ".join(message.split()), f"see `{context.command_path if context else 'gotr1'} --help`", 2)


def _print_error(message: str, hint: str | None, code: int) -> int:
    """Prints an error and its hint, or passes them to the launcher of this process. Returns ``code``."""
    if report_to_launcher(message, hint):
        return code
    message = message if len(message) <= LONGEST else f"{message[:LONGEST]}…"
    print(f"error: {message}".replace("\n", " "), file=sys.stderr)
    if hint:
        print("hint: " + hint.replace("\n", "\n      "), file=sys.stderr)  # a caret in the hint keeps its column
    return code


if __name__ == "__main__":
    run()
