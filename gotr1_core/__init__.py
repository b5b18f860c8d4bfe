"""gotr1: reinforcement learning for planned text-to-image. Score the plan, score the picture, prove the gradients.

::

    import gotr1_core as gotr1

    run = gotr1.train(gotr1.load_config(preset="scenes", words=["steps=20"]))
    print(run.folder, run.records.held_out["after"]["correct"])

What is listed in ``__all__`` is the public API. Each name is imported when it is first used (PEP 562), so that importing this package
costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names again, for type checkers and the API reference
    from gotr1_core.build import FilePrompts as FilePrompts
    from gotr1_core.build import Parts as Parts
    from gotr1_core.build import policies as policies
    from gotr1_core.chain import Chain as Chain
    from gotr1_core.chain import Region as Region
    from gotr1_core.chain import draw as draw
    from gotr1_core.chain import parse as parse
    from gotr1_core.config import RunConfig as RunConfig
    from gotr1_core.config import SamplingConfig as SamplingConfig
    from gotr1_core.config import SftConfig as SftConfig
    from gotr1_core.credit import Credit as Credit
    from gotr1_core.errors import Gotr1Error as Gotr1Error
    from gotr1_core.errors import UsageError as UsageError
    from gotr1_core.evaluation import Estimate as Estimate
    from gotr1_core.evaluation import estimate as estimate
    from gotr1_core.evaluation import evaluate as evaluate
    from gotr1_core.evaluation import paired as paired
    from gotr1_core.exporting import export as export
    from gotr1_core.generation import generate as generate
    from gotr1_core.hookspecs import Component as Component
    from gotr1_core.hookspecs import hookimpl as hookimpl
    from gotr1_core.library import component as component
    from gotr1_core.library import load_config as load_config
    from gotr1_core.library import load_run as load_run
    from gotr1_core.plugins import Registry as Registry
    from gotr1_core.protocols import (
        Benchmark as Benchmark,
    )
    from gotr1_core.protocols import (
        Loss as Loss,
    )
    from gotr1_core.protocols import (
        Planner as Planner,
    )
    from gotr1_core.protocols import (
        Policy as Policy,
    )
    from gotr1_core.protocols import (
        PromptSource as PromptSource,
    )
    from gotr1_core.protocols import (
        Renderer as Renderer,
    )
    from gotr1_core.protocols import (
        RewardJudge as RewardJudge,
    )
    from gotr1_core.protocols import (
        RLAlgorithm as RLAlgorithm,
    )
    from gotr1_core.reward import Expression as Expression
    from gotr1_core.rollout import Judges as Judges
    from gotr1_core.run import Run as Run
    from gotr1_core.samples import (
        IMAGE as IMAGE,
    )
    from gotr1_core.samples import (
        PLAN as PLAN,
    )
    from gotr1_core.samples import (
        Example as Example,
    )
    from gotr1_core.samples import (
        Prompt as Prompt,
    )
    from gotr1_core.samples import (
        Rollout as Rollout,
    )
    from gotr1_core.samples import (
        Sample as Sample,
    )
    from gotr1_core.samples import (
        Sampling as Sampling,
    )
    from gotr1_core.samples import (
        Scored as Scored,
    )
    from gotr1_core.session import resume as resume
    from gotr1_core.session import train as train
    from gotr1_core.tracking import write_samples as write_samples

_HOME = {
    "build": (
        "FilePrompts",
        "Parts",
        "policies",
    ),
    "chain": (
        "Chain",
        "Region",
        "draw",
        "parse",
    ),
    "config": (
        "RunConfig",
        "SamplingConfig",
        "SftConfig",
    ),
    "credit": ("Credit",),
    "errors": (
        "Gotr1Error",
        "UsageError",
    ),
    "evaluation": (
        "Estimate",
        "estimate",
        "evaluate",
        "paired",
    ),
    "exporting": ("export",),
    "generation": ("generate",),
    "hookspecs": (
        "Component",
        "hookimpl",
    ),
    "library": (
        "component",
        "load_config",
        "load_run",
    ),
    "plugins": ("Registry",),
    "protocols": (
        "Benchmark",
        "Loss",
        "Planner",
        "Policy",
        "PromptSource",
        "RLAlgorithm",
        "Renderer",
        "RewardJudge",
    ),
    "reward": ("Expression",),
    "rollout": ("Judges",),
    "run": ("Run",),
    "samples": (
        "Example",
        "IMAGE",
        "PLAN",
        "Prompt",
        "Rollout",
        "Sample",
        "Sampling",
        "Scored",
    ),
    "session": (
        "resume",
        "train",
    ),
    "tracking": ("write_samples",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

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
