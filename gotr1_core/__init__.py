"""gotr1: reinforcement learning for planned text-to-image. Score the plan, score the picture, prove the gradients.

::

    import gotr1_core as gotr1

    run = gotr1.train(gotr1.load_config(preset="scenes", words=["steps=20"]))
    print(run.folder, run.records.held_out["after"]["correct"])

``__all__`` lists the public API. Each name is imported when it is first used (PEP 562), so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names again, for type checkers and the API reference
    from gotr1_core.advantages import Advantages as Advantages
    from gotr1_core.api import component as component, load_config as load_config, load_run as load_run
    from gotr1_core.chain import Chain as Chain, Region as Region, parse as parse
    from gotr1_core.components.build import make_policies as make_policies
    from gotr1_core.components.function_judge import judge as judge
    from gotr1_core.components.prompts import FilePrompts as FilePrompts
    from gotr1_core.config.models import RunConfig as RunConfig, SamplingConfig as SamplingConfig, SftConfig as SftConfig
    from gotr1_core.engine.intervals import Estimate as Estimate, estimate as estimate
    from gotr1_core.errors import Gotr1Error as Gotr1Error, UsageError as UsageError
    from gotr1_core.evaluation import HeldOut as HeldOut, evaluate as evaluate, paired as paired
    from gotr1_core.hookspecs import Component as Component, hookimpl as hookimpl
    from gotr1_core.judges import Judges as Judges
    from gotr1_core.pictures.draw_chain import draw_chain as draw_chain
    from gotr1_core.pictures.sample_files import write_samples as write_samples
    from gotr1_core.plugins import Registry as Registry
    from gotr1_core.protocols import (
        Benchmark as Benchmark,
        Loss as Loss,
        Planner as Planner,
        Policy as Policy,
        PromptSource as PromptSource,
        Renderer as Renderer,
        RewardJudge as RewardJudge,
        RLAlgorithm as RLAlgorithm,
    )
    from gotr1_core.reward import Expression as Expression
    from gotr1_core.rollout import Parts as Parts
    from gotr1_core.runs.inputs import accept_changes as accept_changes
    from gotr1_core.runs.recorder import Run as Run
    from gotr1_core.runs.start import resume as resume, train as train
    from gotr1_core.samples import (
        IMAGE as IMAGE,
        PLAN as PLAN,
        ActionStats as ActionStats,
        Example as Example,
        Prompt as Prompt,
        Rollout as Rollout,
        Sample as Sample,
        Sampling as Sampling,
    )
    from gotr1_core.workflows.export import export as export
    from gotr1_core.workflows.generation import generate as generate

_HOME = {
    "advantages": "Advantages",
    "api": "component load_config load_run",
    "chain": "Chain Region parse",
    "components.build": "make_policies",
    "components.function_judge": "judge",
    "components.prompts": "FilePrompts",
    "config.models": "RunConfig SamplingConfig SftConfig",
    "engine.intervals": "Estimate estimate",
    "errors": "Gotr1Error UsageError",
    "evaluation": "HeldOut evaluate paired",
    "hookspecs": "Component hookimpl",
    "judges": "Judges",
    "pictures.draw_chain": "draw_chain",
    "pictures.sample_files": "write_samples",
    "plugins": "Registry",
    "protocols": "Benchmark Loss Planner Policy PromptSource RLAlgorithm Renderer RewardJudge",
    "reward": "Expression",
    "rollout": "Parts",
    "runs.inputs": "accept_changes",
    "runs.recorder": "Run",
    "runs.start": "resume train",
    "samples": "ActionStats Example IMAGE PLAN Prompt Rollout Sample Sampling",
    "workflows.export": "export",
    "workflows.generation": "generate",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = ["__version__", *sorted(_MODULE)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("gotr1")
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Not kept in this module's globals: some names are also those of submodules, which importing would put there.
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
