"""The smallest judge with options: how much of the canvas the plan's boxes cover, and how bright the picture is."""

from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from gotr1_core import IMAGE, PLAN, Component, Sample, hookimpl
from gotr1_core.chain import SCALE


class SmallestOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    white: float = Field(255, gt=0, le=255, description="The brightness that scores 1.")


class SmallestJudge:
    rewards = {"cover": PLAN, "bright": IMAGE}  # noqa: RUF012

    def __init__(self, options: SmallestOptions) -> None:
        self.options = options

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        return {name: [getattr(self, name)(sample) for sample in samples] for name in names}

    def cover(self, sample: Sample) -> float:
        areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (region.box for region in sample.chain.regions)]
        return min(1.0, sum(areas) / SCALE**2)

    def bright(self, sample: Sample) -> float:
        if sample.image is None:
            return float("nan")  # a score that could not be had is never 0
        grey = sample.image.convert("L").resize((1, 1)).getpixel((0, 0))
        return min(1.0, grey / self.options.white)


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component("judge", "smallest", f"{__name__}:SmallestJudge", f"{__name__}:SmallestOptions", "bright pictures of large boxes")
