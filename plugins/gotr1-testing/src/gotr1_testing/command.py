"""The command ``gotr1 check``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gotr1_core.cli.common import Json, complete_kinds, complete_names, parse_kind, registry
from gotr1_core.engine.console import print

if TYPE_CHECKING:
    from gotr1_core.config.models import ComponentConfig, RunConfig
    from gotr1_core.hookspecs import Kind
    from gotr1_core.protocols import RewardJudge
    from gotr1_core.samples import Sample
    from gotr1_testing.check import CheckResult

PROMPT_COUNT, OFFSETS = 16, (0, 6, 12)
"""Judges are compared on so many prompts of a source. Prompt i is paired with the examples at these offsets from i: a source may have
six categories in turn, so they are of the same category."""


def _names(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    return complete_names(parse_kind(ctx.params["kind"]))(incomplete)


def command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What it is, such as planner.", autocompletion=complete_kinds)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `gotr1 list` shows it.", autocompletion=_names)],
    options: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="The component's options, such as model=PATH.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Take the component's options from this preset.", autocompletion=complete_names("preset"))
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="CHECK", help="Run only this check; may be given again.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Add a prompt to check with; may be given again.")] = None,
    chain_tokens: Annotated[int, typer.Option(min=1, max=1_000_000, help="Cut chains at this number of tokens.")] = 96,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="JUDGE",
            help="Compare a judge with this judge; by default with another judge of the preset.",
            autocompletion=complete_names("judge"),
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Compare on the samples of a folder with samples.jsonl, written by generate or a run; several per prompt.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Checks that a component does what training relies on: log-probabilities, scores, prompts and more. Exits with 1 if a check fails."""
    import json

    from gotr1_core.cli.common import device
    from gotr1_core.cli.progress import progress
    from gotr1_core.components.build import make_component, make_judge
    from gotr1_core.config.merge import merge, parse_overrides
    from gotr1_core.config.models import ComponentConfig
    from gotr1_core.samples import Prompt
    from gotr1_testing.presets import PresetSubject
    from gotr1_testing.runner import checks_of, run_checks
    from gotr1_testing.subject import PROMPTS, Case

    component_kind = parse_kind(kind)
    checks = checks_of(component_kind, only or [])
    registry().find(component_kind, name)
    settings = merge(_preset_options(component_kind, name, preset) if preset else {}, parse_overrides(options or []))
    config = ComponentConfig(name=name, **settings)
    arguments: dict[str, Any] = {"device": device()} if component_kind in ("planner", "renderer") else {}
    case = Case(prompts=(*PROMPTS, *map(Prompt, prompt or [])), max_chain_tokens=chain_tokens)
    reference_judge, compared = _comparison(component_kind, name, preset, reference, samples)

    def make() -> Any:
        if component_kind == "preset":
            return PresetSubject(name, registry())
        if component_kind == "judge":
            return make_judge(registry(), config, device=device())
        return make_component(registry(), component_kind, config, **arguments)

    def load(folder: Path) -> Any:
        return make_component(registry(), component_kind, ComponentConfig(name=name, **{**settings, "model": str(folder)}), **arguments)

    loads = load if component_kind in ("planner", "renderer") and _has_option_model(component_kind, name) else None
    results: list[CheckResult] = []
    with progress("checking", len(checks)) as done:
        for result in run_checks(component_kind, make, case, only or [], reference=reference_judge, compared=compared, load=loads):
            results.append(result)
            done(len(results))
    shows = {check.name: check.shows for check in checks}
    if as_json:
        print(json.dumps([_as_json(result, shows[result.name]) for result in results], ensure_ascii=False))
    else:
        _print_table(results, shows)
    if any(result.passed is False for result in results):
        raise typer.Exit(1)


def _has_option_model(kind: Kind, name: str) -> bool:
    """True if a component has an option ``model``, so that an export of it can be loaded."""
    from gotr1_core.plugins import load

    options = registry().find(kind, name).component.options
    return options is not None and "model" in load(options).model_fields


def _preset_options(kind: Kind, name: str, preset: str) -> dict[str, Any]:
    """The options that a preset, or a variant of it, has for a component. A renderer that is also the planner has the planner's."""
    from gotr1_core.config.merge import VARIANTS, merge_layers, read_yaml
    from gotr1_core.config.models import RunConfig, validate
    from gotr1_core.errors import UsageError

    data = read_yaml(registry().preset(preset))
    variant: dict[str, Any] = {kind: name} if name in data.get(VARIANTS, {}).get(kind, {}) else {}
    config = validate(RunConfig, merge_layers(data, variant))
    components: dict[str, Sequence[ComponentConfig]] = {
        "planner": [config.planner],
        "renderer": [config.renderer],
        "judge": config.judge,
        "algorithm": [config.algorithm],
        "source": [config.prompts.source] if config.prompts.source else [],
    }
    if kind not in components:
        raise UsageError(f"--preset cannot be used for a check of kind {kind}", hint="leave it out")
    for component in components[kind]:
        if component.name == name:
            unified = kind == "renderer" and not component.options and config.planner.name == name
            return config.planner.options if unified else component.options
    if kind == "judge":
        return {}  # it is compared with the preset's own judge
    has = ", ".join(c.name for c in components[kind]) or "none"
    raise UsageError(f"the preset {preset} has no {kind} {name!r}", hint=f"it has {has}")


def _comparison(
    kind: Kind, name: str, preset: str | None, reference: str | None, folder: Path | None
) -> tuple[RewardJudge | None, list[Sample]]:
    """The judge that a judge is compared with, and the samples: those of a folder, or examples of the preset's source."""
    from gotr1_core.cli.common import device
    from gotr1_core.components.build import make_judge
    from gotr1_core.config.merge import merge_layers, read_yaml
    from gotr1_core.config.models import ComponentConfig, RunConfig, validate
    from gotr1_core.errors import UsageError

    if kind != "judge":
        if reference or folder:
            raise UsageError(
                f"--{'reference' if reference else 'samples'} cannot be used for a check of kind {kind}", hint="only judges are compared"
            )
        return None, []
    config = validate(RunConfig, merge_layers(read_yaml(registry().preset(preset)))) if preset else None
    other_judges = [judge for judge in config.judge if judge.name != name] if config else []
    chosen = ComponentConfig(name=reference) if reference else other_judges[0] if other_judges else None
    if chosen is None:
        if folder:
            raise UsageError("--samples cannot be used without a judge to compare with", hint="give --reference JUDGE, or --preset NAME")
        return None, []
    judge = make_judge(registry(), chosen, device=device())
    return judge, _read_samples(folder) if folder else _example_samples(config)


def _read_samples(folder: Path) -> list[Sample]:
    from gotr1_core.chain import parse
    from gotr1_core.data.pictures import read_picture
    from gotr1_core.pictures.sample_files import find_pictures
    from gotr1_core.samples import Sample

    pictures = find_pictures([folder])
    return [Sample(p.prompt, p.chain or parse(""), None if p.path is None else read_picture(p.path)) for p in pictures]


def _example_samples(config: RunConfig | None) -> list[Sample]:
    """Prompts of a source that has examples, each with its own example and with those of other prompts of its category."""
    from gotr1_core.border.calls import call_examples
    from gotr1_core.components.build import make_component
    from gotr1_core.samples import Sample

    if config is None or config.prompts.source is None:
        return []
    source = make_component(registry(), "source", config.prompts.source)
    examples = call_examples(source, "validation", 0, PROMPT_COUNT + max(OFFSETS), config.prompts.seed)
    return [
        Sample(examples[i].prompt, examples[i + k].chain, examples[i + k].image, (i, j, 0))
        for i in range(PROMPT_COUNT)
        for j, k in enumerate(OFFSETS)
    ]


def _verdict(result: CheckResult) -> str:
    return {True: "ok", False: "FAILED", None: "not run"}[result.passed]


def _print_table(results: Sequence[CheckResult], shows: dict[str, str]) -> None:
    from gotr1_core.cli.tables import format_table

    rows = [(_verdict(result), result.name, *_numbers(result), shows[result.name], result.note) for result in results]
    print(format_table(("", "check", "measured", "limit", "what must hold", "what was found"), rows), end="")


def _numbers(result: CheckResult) -> tuple[str, str]:
    """Measured number and limit as text; empty if nothing was measured."""
    if result.limit != result.limit:
        return "", ""
    return f"{result.measured:.3g}", f"{'≥' if result.at_least else '≤'} {result.limit:.3g}"


def _as_json(result: CheckResult, shows: str) -> dict[str, Any]:
    """A result for ``--json``. Infinities and NaN, which JSON does not have, become null."""
    import math

    return {
        "check": result.name,
        "verdict": _verdict(result).lower(),
        "measured": result.measured if math.isfinite(result.measured) else None,
        "limit": result.limit if math.isfinite(result.limit) else None,
        "at_least": result.at_least,
        "shows": shows,
        "note": result.note,
    }
