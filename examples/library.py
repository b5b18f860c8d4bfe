"""Uses gotr1 as a library: a judge of your own, a run from components, pictures of the trained policy.

    python examples/library.py

It takes about a minute on a laptop. It writes only to a temporary folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import gotr1_core as gotr1
from gotr1_core import IMAGE, Prompt, Sample


class Brightness:
    """A judge of your own. A judge is any object with ``rewards`` and ``score``."""

    rewards = {"bright": IMAGE}  # noqa: RUF012

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, list[float]]:
        """Returns the mean brightness of each picture, in [0,1]."""
        return {"bright": [float(np.asarray(s.image).mean()) / 255 for s in samples]}


def main(out: Path) -> None:
    # The config of a preset, with changes as on the command line.
    small = ["steps=2", "groups=2", "plans=4", "evaluation.every=0", "evaluation.best_of=0", "evaluation.greedy=false"]
    config = gotr1.load_config(preset="scenes", words=[*small, f"output={out}", "evaluation.metric=reward", "reward=bright"])

    # Components without a run: a planner plans a prompt, a renderer draws the plan, a judge scores the picture.
    planner, renderer = gotr1.make_policies(gotr1.Registry(), config)
    prompts, sampling = [Prompt("a red circle above a blue square")], gotr1.Sampling(guidance_scale=1.0, max_chain_tokens=80)
    plans = planner.plan(prompts, seeds=[1], sampling=sampling)
    drawn = renderer.render(prompts, plans.chains, seeds=[1], sampling=sampling)
    exact = gotr1.component("judge", "scenes")
    print(plans.chains[0].raw)
    print(exact.score([Sample(prompts[0], plans.chains[0], drawn.images[0])], ["sem", "spa", "pi"]))

    # A run from components, in ten lines. It uses the same functions as `gotr1 train`.
    parts = gotr1.Parts(
        planner=planner,
        renderer=planner,  # one policy has both roles
        judges=gotr1.Judges({"mine": Brightness()}, gotr1.Expression.parse("bright")),
        algorithm=gotr1.component("algorithm", "grpo", scale=False),
    )
    words = [Prompt(text) for text in ("a circle", "two squares", "a red cross", "a blue triangle")]
    run = gotr1.train(config, parts=parts, source=gotr1.FilePrompts(words), held_out=words)
    before, after = (gotr1.estimate(run.records.held_out[name]["bright"]).mean for name in ("before", "after"))
    print(f"brightness {before:.3f} -> {after:.3f}, in {run.folder}")

    # The trained policy draws.
    (sample,) = gotr1.generate(planner, planner, "a green cross", seed=3, sampling=sampling)
    gotr1.write_samples(out / "pictures", [sample])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
