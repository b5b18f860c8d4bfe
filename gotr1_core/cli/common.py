"""What several commands share: a run's config from files and options, and components rebuilt from a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gotr1_core.components.resolve import resolve_config
from gotr1_core.errors import UsageError
from gotr1_core.hookspecs import KINDS, Kind
from gotr1_core.plugins import Registry, nearest

if TYPE_CHECKING:
    from gotr1_core.protocols import Planner, Renderer
    from gotr1_core.samples import Sampling


_files: list[Path] = []
_debug = [False]


def start(files: Sequence[Path], *, debug: bool = False) -> None:
    """Begins a command line: the next :func:`registry` is a new one, with these files of --plugin."""
    _files[:], _debug[:] = files, [debug]
    registry.cache_clear()


def debugging() -> bool:
    """Whether this command line has --debug."""
    return _debug[0]


@cache
def registry() -> Registry:
    """The plugins of this command line, loaded when they are first asked for."""
    found = Registry()
    for file in _files:
        found.add_file(file)
    return found


def names(kind: Kind) -> Callable[[str], list[tuple[str, str]]]:
    """Completes the names of a kind of component."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        found = [p.component for p in registry().of_kind(kind)]
        return [(component.name, component.summary) for component in found if component.name.startswith(incomplete)]

    return complete


def kinds(incomplete: str) -> list[str]:
    """Completes a kind of component."""
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def kind_of(word: str) -> Kind:
    """The kind that a word says."""
    for kind in KINDS:
        if kind == word:
            return kind
    raise UsageError(f"there is no kind {word!r}", hint=f"{nearest(word, KINDS)}kinds: {', '.join(KINDS)}")


# Arguments and options that several commands have.
ConfigOrWord = Annotated[
    str | None, typer.Argument(metavar="CONFIG.yaml", help="A YAML config, or the first KEY=VALUE.", show_default=False)
]
Words = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as steps=20 or planner.model=PATH.")]
KindArgument = Annotated[
    str | None, typer.Argument(metavar="KIND", help="Such as planner or judge; all if not given.", autocompletion=kinds)
]
PlannerName = Annotated[str | None, typer.Option(help="What writes the chain.", autocompletion=names("planner"))]
RendererName = Annotated[str | None, typer.Option(help="What draws it.", autocompletion=names("renderer"))]
JudgeNames = Annotated[
    list[str] | None, typer.Option(help="What scores plan and picture; may be given again.", autocompletion=names("judge"))
]
AlgorithmName = Annotated[str | None, typer.Option(help="What turns rewards into gradients.", autocompletion=names("algorithm"))]
PresetName = Annotated[
    str | None, typer.Option(help="A named config to start from; scenes if nothing else is named.", autocompletion=names("preset"))
]
PromptsFile = Annotated[Path | None, typer.Option(help="Your own prompts: text, one a line, or JSONL.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts drawn at the same time.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def config_or_words(first: str | None, words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Tells ``CONFIG.yaml`` from the first KEY=VALUE."""
    if first is None:
        return None, list(words)
    path = Path(first)
    with suppress(OSError):  # a name that is too long
        if path.is_dir():
            raise UsageError(f"{first} is a folder, and no config", hint=f"give a YAML file, such as {path / 'config.yaml'}")
        if path.exists():
            return path, list(words)
    if "=" not in first:
        raise UsageError(f"there is no config {first}", hint="give a YAML file, or KEY=VALUE")
    return None, [first, *words]


def drawing(
    registry: Registry,
    checkpoint: Path | None,
    preset: str | None,
    named: Mapping[str, Any],
    words: Sequence[str],
    *,
    planned: bool = True,
) -> tuple[Planner | None, Renderer, Sampling]:
    """What draws and how: a run's trained policies, or the untrained ones of a config. Neither judge nor prompts are needed.

    Where nothing is to be ``planned`` the planner need not be named, and is not loaded.
    """
    from gotr1_core.components.build import policies, renderer_alone
    from gotr1_core.config.models import RunConfig, make_sampling, validate
    from gotr1_core.runs.restore import restore

    if checkpoint is not None:
        given = [f"--{key}" for key, value in {**named, "preset": preset}.items() if value is not None]
        if given:
            raise UsageError(f"{given[0]} has no meaning with --checkpoint", hint="the run's own components draw; leave out one of both")
        _, parts, sampling = restore(registry, checkpoint, words, device=device())
        return parts.planner, parts.renderer, sampling
    data = resolve_config(registry, None, preset, named, words)
    if not planned and "renderer" in data:
        data = {"planner": data["renderer"], **data}
    config = validate(RunConfig, {"judge": [], **data})
    sampling = make_sampling(config.evaluation.sampling or config.sampling)
    if not planned:
        return None, renderer_alone(registry, config, device=device()), sampling
    return *policies(registry, config, device=device()), sampling


def device() -> str:
    """Where a model goes that accelerate does not place."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
