"""What several commands share: the plugin registry, common arguments and options, and the policies that draw."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gotr1_core.components.resolve import resolve_config
from gotr1_core.engine.console import print
from gotr1_core.errors import NOT_FINITE_HINT, Gotr1Error, UsageError, nearest
from gotr1_core.hookspecs import KINDS, Kind
from gotr1_core.plugins import Registry

if TYPE_CHECKING:
    from gotr1_core.config.models import JudgeConfig
    from gotr1_core.protocols import Planner, Renderer
    from gotr1_core.samples import Sample, Sampling


_files: list[Path] = []
_debug, _config_plugins = [False], [True]


def start(files: Sequence[Path], *, debug: bool = False, config_plugins: bool = True) -> None:
    """Starts a command line with the files of --plugin: the next :func:`registry` call builds a new registry.

    ``config_plugins`` is false on a line with --no-plugins.
    """
    _files[:], _debug[:], _config_plugins[:] = files, [debug], [config_plugins]
    registry.cache_clear()


def debugging() -> bool:
    """True if this command line has ``--debug``."""
    return _debug[0]


@cache
def registry() -> Registry:
    """Returns the plugins of this command line. They are loaded at the first call."""
    plugins = Registry(config_plugins=_config_plugins[0])
    for file in _files:
        plugins.add_file(file)
    return plugins


def complete_names(kind: Kind) -> Callable[[str], list[tuple[str, str]]]:
    """Returns a function that completes the names of components of one kind for a shell, each with its summary."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        components = [provided.component for provided in registry().of_kind(kind)]
        return [(component.name, component.summary) for component in components if component.name.startswith(incomplete)]

    return complete


def complete_kinds(incomplete: str) -> list[str]:
    """Completes the name of a kind of component for a shell."""
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def parse_kind(word: str) -> Kind:
    """Returns the kind of component with this name.

    Raises:
        UsageError: there is no such kind.
    """
    for kind in KINDS:
        if kind == word:
            return kind
    raise UsageError(f"there is no kind {word!r}", hint=f"{nearest(word, KINDS)}kinds: {', '.join(KINDS)}")


# Arguments and options that several commands have.
ConfigOrWord = Annotated[
    str | None, typer.Argument(metavar="CONFIG.yaml", help="A YAML config file, or the first KEY=VALUE.", show_default=False)
]
Words = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as steps=20 or planner.model=PATH.")]
KindArgument = Annotated[
    str | None, typer.Argument(metavar="KIND", help="Such as planner or judge. Without it, all kinds.", autocompletion=complete_kinds)
]
PlannerName = Annotated[str | None, typer.Option(help="The component that writes the chain.", autocompletion=complete_names("planner"))]
RendererName = Annotated[str | None, typer.Option(help="The component that draws the chain.", autocompletion=complete_names("renderer"))]
JudgeNames = Annotated[
    list[str] | None,
    typer.Option(help="A component that scores plans and pictures. May be repeated.", autocompletion=complete_names("judge")),
]
AlgorithmName = Annotated[
    str | None, typer.Option(help="The component that turns rewards into gradients.", autocompletion=complete_names("algorithm"))
]
PresetName = Annotated[
    str | None, typer.Option(help="A named config to start from; scenes if you name nothing else.", autocompletion=complete_names("preset"))
]
PresetWithJudges = Annotated[
    str | None, typer.Option("--preset", help="Use the judges and the reward of a preset.", autocompletion=complete_names("preset"))
]
PromptsFile = Annotated[Path | None, typer.Option(help="Your own prompts: a text file with one per line, or JSONL, JSON or CSV.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts drawn at the same time.")]
CacheDir = Annotated[str | None, typer.Option(metavar="DIR", help="Keep judges' scores in this folder, and find them there; or off.")]
AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="With a run: go on if files that it read, such as weights or prompts, are not the same.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def config_or_words(first: str | None, words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Returns the config file that the first argument names, or None, and the KEY=VALUE words.

    Raises:
        UsageError: ``first`` is a folder, or is neither a file nor KEY=VALUE.
    """
    if first is None:
        return None, list(words)
    path = Path(first)
    with suppress(OSError):  # a name that is too long
        if path.is_dir():
            raise UsageError(f"{first} is a folder, not a config", hint=f"give a YAML file, such as {path / 'config.yaml'}")
        if path.exists():
            return path, list(words)
    if "=" not in first:
        raise UsageError(f"there is no config {first}", hint="give a YAML file, or KEY=VALUE")
    return None, [first, *words]


DRAWS = {"planner", "renderer", "sampling", "evaluation", "plugins"}
"""First words of the keys that drawing with an untrained model reads."""


def policies_to_draw(
    registry: Registry,
    checkpoint: Path | None,
    preset: str | None,
    named: Mapping[str, Any],
    words: Sequence[str],
    *,
    planned: bool = True,
    accept_changes: bool = False,
) -> tuple[Planner | None, Renderer, Sampling]:
    """Returns planner, renderer and how to sample: the policies of a run or checkpoint, or the untrained ones of a config.

    The config needs neither judges nor prompts. Without ``planned`` it needs no planner either; then none is loaded, and None is returned.

    Raises:
        UsageError: a preset or a component is named together with a checkpoint, ``accept_changes`` is given without one, or a word sets
            something that nothing here reads.
    """
    from gotr1_core.components.build import make_policies, make_renderer
    from gotr1_core.config.merge import parse_overrides
    from gotr1_core.config.models import RunConfig, make_sampling, validate
    from gotr1_core.runs.restore import restore

    if checkpoint is not None:
        refused = [f"--{key}" for key, value in {**named, "preset": preset}.items() if value is not None]
        if refused:
            raise UsageError(
                f"{refused[0]} cannot be combined with --checkpoint",
                hint="a run draws with its own components; remove one of the two options",
            )
        _, parts, sampling = restore(registry, checkpoint, words, device=device(), accept_changes=accept_changes)
        return parts.planner, parts.renderer, sampling
    if accept_changes:
        raise UsageError("--accept-changes needs --checkpoint", hint="remove it: only a run can have changed files")
    if unread := sorted((parse_overrides(words).keys() & RunConfig.model_fields.keys()) - DRAWS):
        raise UsageError(f"{unread[0]} cannot be set here", hint="drawing reads planner.…, renderer.… and sampling.…; --help has the rest")
    data = resolve_config(registry, None, preset, named, words)
    if not planned and "renderer" in data:
        data = {"planner": data["renderer"], **data}
    config = validate(RunConfig, {"judge": [], **data})
    sampling = make_sampling(config.evaluation.sampling or config.sampling)
    if not planned:
        return None, make_renderer(registry, config, device=device()), sampling
    return *make_policies(registry, config, device=device()), sampling


def judges_from_words(names: Sequence[str] | None, words: Sequence[str]) -> tuple[Sequence[JudgeConfig], float, list[str]]:
    """The judges that --judge names with their options among the words, which are judge.KEY=VALUE; judge_reminder; and the other words.

    Without a name there is no judge, and every word is returned.
    """
    from gotr1_core.components.preflight import check_labels
    from gotr1_core.config.merge import merge, parse_overrides
    from gotr1_core.config.models import JUDGE_REMINDER, validate
    from gotr1_core.plugins import options_of
    from gotr1_core.workflows.judging import ScoreConfig

    if not names:
        return [], JUDGE_REMINDER, list(words)
    own = [word for word in words if word.partition("=")[0].split(".")[0] in ("judge", "judge_reminder")]
    config = validate(ScoreConfig, merge({"judge": list(names)}, parse_overrides(own)))
    check_labels(config.judge)
    for judge in config.judge:  # before anything is loaded
        options_of(registry().find("judge", judge.name).component, judge.options)
    return config.judge, config.judge_reminder, [word for word in words if word not in own]


def check_finite(samples: Sequence[Sample]) -> None:
    """Says how many samples have no picture because a number was not finite.

    Raises:
        Gotr1Error: all of them.
    """
    lost = sum(sample.not_finite is not None for sample in samples)
    if not lost:
        return
    message = f"{lost} of {len(samples)} pictures could not be drawn: logits, latents or pixels are not finite"
    if lost == len(samples):
        raise Gotr1Error(message, hint=NOT_FINITE_HINT)
    print(f"warning: {message}. What to do: {NOT_FINITE_HINT}", file=sys.stderr)


def device() -> str:
    """Returns the device for models that accelerate does not place: ``cuda`` if there is a GPU, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
