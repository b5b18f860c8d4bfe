"""A plugin for tests: a planner without weights that writes boxes, and a judge that rewards red."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gotr1_core.chain import Chain, Region
from gotr1_core.hookspecs import Component, hookimpl
from gotr1_core.samples import IMAGE, PLAN, Prompt, Rollout, Sample, Sampling, SegmentName


class Boxes:
    """Writes a region for the left or the right half; for one seed in four, none."""

    lora_prefix = ""

    def __init__(self, options: None, *, device: Any = "cpu") -> None:
        self.module, self.device = nn.Module(), device

    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        left = 0, 0, 499, 999
        right = 500, 0, 999, 999
        chains = tuple(
            Chain.of([f"{prompt.text}: ", Region("a red cat", right if seed % 2 else left) if seed % 4 else "nothing"])
            for prompt, seed in zip(prompts, seeds, strict=True)
        )
        mask = torch.zeros(len(chains), 1, dtype=torch.bool)
        return Rollout(PLAN, sampling, {"mask": mask, "log_prob": mask.float(), "truncated": mask[:, 0]}, chains=chains)

    def supervised_loss(self, module: nn.Module, examples: Any, *, seed: int) -> Any:
        raise NotImplementedError

    def enable_gradient_checkpointing(self) -> None:
        pass

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def save_adapter(self, folder: Path) -> None:
        raise NotImplementedError


class Red:
    """``boxed``: 1 if the plan has a region. ``red``: how much redder than blue the picture is."""

    rewards: Mapping[str, SegmentName] = {"boxed": PLAN, "red": IMAGE}

    def __init__(self, options: None) -> None:
        del options

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        return {name: [getattr(self, name)(sample) for sample in samples] for name in names}

    def boxed(self, sample: Sample) -> float:
        return float(bool(sample.chain.regions))

    def red(self, sample: Sample) -> float:
        pixels = np.asarray(sample.image, float)
        return 0.5 + float((pixels[..., 0] - pixels[..., 2]).mean()) / 510


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component("planner", "boxes", f"{__name__}:Boxes")
    yield Component("judge", "red", f"{__name__}:Red")
