"""Registers the judges and the planner of gotr1-served."""

from __future__ import annotations

from collections.abc import Iterator

from gotr1_core.hookspecs import Component, hookimpl


@hookimpl
def gotr1_components() -> Iterator[Component]:
    """Yields the judges ``openai`` and ``gpt-4o``, and the planner ``openai``."""
    target, options = "gotr1_served.judge:", "gotr1_served.options:"
    summary = "any model behind an OpenAI-compatible server reads plan and picture: sem, spa, ri, pi"
    yield Component("judge", "openai", f"{target}OpenAIJudge", f"{options}OpenAIJudgeOptions", summary)
    summary = "GPT-4o of OpenAI reads plan and picture: sem, spa, ri, pi"
    yield Component("judge", "gpt-4o", f"{target}Gpt4oJudge", f"{options}Gpt4oJudgeOptions", summary)
    target, summary = (
        "gotr1_served.planner:OpenAIPlanner",
        "any model behind an OpenAI-compatible server writes the plans; it does not train",
    )
    yield Component("planner", "openai", target, f"{options}OpenAIPlannerOptions", summary)
