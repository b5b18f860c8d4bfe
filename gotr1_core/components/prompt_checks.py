"""Looks at a run's prompts before anything is loaded or drawn: where they come from, and which ones no judge can score."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gotr1_core.border.calls import call_can_score
from gotr1_core.components.build import component_class
from gotr1_core.config.models import PromptsConfig, RunConfig
from gotr1_core.engine.console import print
from gotr1_core.errors import UsageError
from gotr1_core.judges import judge_reward
from gotr1_core.plugins import Registry, options_of
from gotr1_core.reward import Expression
from gotr1_core.samples import Prompt

LISTED = 10  # prompts that a message shows; it counts the others
ASKED = 100_000  # prompts of a file that judges are asked about, which takes seconds; of a longer file the first ones


def prompt_origins(config: PromptsConfig) -> str:
    """Where the prompts of a run come from, in a line."""
    source = None if config.source is None else f"source {config.source.name}"
    training = str(config.file) if config.file is not None else source
    if isinstance(config.held_out, Path):
        return f"training prompts: {training}; held-out prompts: {config.held_out}"
    if source is not None:
        return f"training prompts: {training}; held-out prompts: {config.held_out} of the validation split of {source}"
    return f"training prompts: {training}, without its last {config.held_out}, which are the held-out prompts"


def check_scorable(registry: Registry, config: RunConfig, training: Sequence[Prompt], held_out: Sequence[Prompt]) -> list[str]:
    """Asks every judge whose class has ``can_score`` which prompts it can score. Returns a line for each judge that cannot score some.

    ``training`` are the prompts of your own file, if there is one: those of a source may have no end.

    Raises:
        UsageError: a judge of the reward can score none of the training prompts, or none of the held-out prompts.
    """
    lines = []
    names = Expression.parse(config.reward).names
    for judge in config.judge:
        provided = registry.find("judge", judge.name)
        make = component_class(provided)
        if not hasattr(make, "can_score"):
            continue
        options = options_of(provided.component, judge.options)
        rewards = getattr(make, "rewards", {})
        is_needed = any(names & {name, judge_reward(judge.label, name)} for name in rewards)
        for kind, prompts in (("training", training), ("held-out", held_out)):
            first, prompts = ("first ", prompts[:ASKED]) if len(prompts) > ASKED else ("", prompts)
            known = call_can_score(make, options, prompts) if prompts else []
            lost = [prompt.text for prompt, scorable in zip(prompts, known, strict=True) if not scorable]
            if not lost:
                continue
            more = f" and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
            message = f"the judge {judge.label} cannot score {len(lost)} of the {first}{len(prompts)} {kind} prompts: "
            message += ", ".join(map(repr, lost[:LISTED])) + more
            if len(lost) == len(prompts) and is_needed:
                raise UsageError(message, hint=f"choose a judge that understands them, or other prompts; `gotr1 show judge {judge.name}`")
            lines.append(message)
    return lines


def note_prompts(registry: Registry, config: RunConfig, training: Sequence[Prompt], held_out: Sequence[Prompt], *, quiet: bool) -> None:
    """Says on stderr where the prompts come from and which ones cannot be scored, unless it is ``quiet``. Raises as `check_scorable`."""
    lines = check_scorable(registry, config, training, held_out)
    if quiet:
        return
    print(f"note: {prompt_origins(config.prompts)}", file=sys.stderr)
    for line in lines:
        print(f"warning: {line}. They have no score: means leave them out, and nothing is learned from them.", file=sys.stderr)
