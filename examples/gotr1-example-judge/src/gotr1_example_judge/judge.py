"""Judge ``colorfulness``: the colourfulness of a picture (Hasler and Süsstrunk, "Measuring colourfulness in natural images", 2003).

With rg = R - G and yb = (R + G) / 2 - B over the pixels, 0 to 255: M = √(σ²(rg) + σ²(yb)) + 0.3 √(μ²(rg) + μ²(yb)).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from gotr1_core import Sample


class ColorfulnessOptions(BaseModel):
    """Options of the judge ``colorfulness``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    full: float = Field(109.0, gt=0, description="The M that scores 1; the paper's viewers called 109 extremely colourful.")


class ColorfulnessJudge:
    """Scores ``colorful``: M / full, at most 1; NaN without a picture."""

    rewards: Mapping[str, Literal["plan", "image"]] = {"colorful": "image"}

    def __init__(self, options: ColorfulnessOptions) -> None:
        self.full = options.full

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        """Returns a score in [0,1] or NaN for each sample, by reward."""
        return {name: [self._colorful(sample) for sample in samples] for name in names}

    def _colorful(self, sample: Sample) -> float:
        if sample.image is None:
            return float("nan")
        red, green, blue = np.asarray(sample.image.convert("RGB"), float).reshape(-1, 3).T
        rg, yb = red - green, (red + green) / 2 - blue
        return min(1.0, float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())) / self.full)
