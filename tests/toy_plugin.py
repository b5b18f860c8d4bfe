"""A plugin for the tests of the command line: a policy that draws its own weight and its sampling settings, with judges for it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gotr1_core.hookspecs import Component, hookimpl
from gotr1_core.samples import IMAGE, PLAN, Prompt, Rollout, Sample, Sampling, SegmentName


class ToyOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str = Field("", description="A file to read.")
    shade: float = Field(0.0, ge=0, le=1, description="Of the pictures' red.")


class ToyPolicy:
    lora_prefix = ""

    def __init__(self, options: ToyOptions, device: Any = "cpu") -> None:
        from torch import nn

        if options.model:
            Path(options.model).read_bytes()  # as a library does with weights that are not there
        self.module = nn.Linear(1, 1).to(device)
        nn.init.constant_(self.module.weight, options.shade)

    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        from gotr1_core.chain import parse

        chains = [parse(f"<|obj_start|>{p.text}<|obj_end|><|box_start|>(0,0),(500,999)<|box_end|>") for p in prompts]
        return Rollout("plan", sampling, self._tensors(len(prompts)), chains=tuple(chains))

    def render(self, prompts: Sequence[Prompt], chains: Any, *, seeds: Any, sampling: Sampling, **more: Any) -> Rollout:
        from PIL import Image

        colour = (round(255 * self.module.weight.item()), round(10 * sampling.guidance_scale), seeds[0] % 256)
        images = [Image.new("RGB", (8, 8), colour) for _ in prompts]
        return Rollout("image", sampling, self._tensors(len(prompts)), images=tuple(images))

    def save(self, folder: Path) -> None:
        (folder / "weight.txt").write_text(str(self.module.weight.item()))

    @staticmethod
    def _tensors(rows: int) -> dict[str, Any]:
        import torch

        sampled = torch.ones(rows, 1, dtype=torch.bool)
        return {"log_prob": torch.zeros(rows, 1), "mask": sampled, "truncated": torch.zeros(rows, dtype=torch.bool)}


def red(sample: Sample) -> float:
    return sample.image.getpixel((0, 0))[0] / 255  # type: ignore[union-attr, index, no-any-return, operator]


class ToyJudge:
    """``pi``: how red a picture is. A picture of the brightest green has no score."""

    rewards: Mapping[str, SegmentName] = {"pi": IMAGE}

    def __init__(self, options: None) -> None:
        pass

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        green = [sample.image.getpixel((0, 0))[1] == 255 for sample in samples]  # type: ignore[union-attr, index]
        return {"pi": [math.nan if is_green else red(sample) for sample, is_green in zip(samples, green, strict=True)]}


class PlansOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    per_box: float = Field(0.1, gt=0)


class PlansJudge:
    """``boxes``: the number of the plan's boxes, times an option. Only an object of the class says which rewards it offers."""

    def __init__(self, options: PlansOptions) -> None:
        self.options = options
        self.rewards: Mapping[str, SegmentName] = {"boxes": PLAN}

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        return {"boxes": [self.options.per_box * len(sample.chain.regions) for sample in samples]}


class ToyBenchmark:
    def __init__(self, options: None) -> None:
        pass

    def prompts(self, count: int | None) -> list[Prompt]:
        return [Prompt(f"prompt {i}", category="even" if i % 2 == 0 else "odd") for i in range(4)][:count]

    def measure(self, samples: Sequence[Sample]) -> dict[str, list[float]]:
        scale = [sample.image.getpixel((0, 0))[1] / 10 for sample in samples]  # type: ignore[union-attr, index, operator]
        return {"shade": [red(sample) for sample in samples], "scale": scale}


@hookimpl
def gotr1_components() -> Iterator[Component]:
    policy, options = f"{__name__}:ToyPolicy", f"{__name__}:ToyOptions"
    yield Component("planner", "toy", policy, options, "writes one box")
    yield Component("renderer", "toy", policy, options)
    yield Component("judge", "toy", f"{__name__}:ToyJudge", None, "sees red [or not]")
    yield Component("judge", "plans", f"{__name__}:PlansJudge", f"{__name__}:PlansOptions")
    yield Component("benchmark", "toy", f"{__name__}:ToyBenchmark")
    yield Component("preset", "toy", f"{__name__}:toy.yaml")
