"""Uses gotr1 as a library: a judge of your own, a run from components, pictures of the trained policy.

    python examples/library.py

It takes about half a minute on a laptop. It writes only to a temporary folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import gotr1_core as gotr1
from gotr1_core import PLAN, Prompt, Sample


class Opening:
    """A judge of your own. A judge is any object with ``rewards`` and ``score``. This one sees only the plan, so a step draws nothing."""

    rewards = {"opening": PLAN}  # noqa: RUF012

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, list[float]]:
        """Returns 1 for each plan that begins with "There", else 0."""
        return {"opening": [float(s.chain.raw.startswith("There")) for s in samples]}


def main(out: Path, steps: int = 6) -> None:
    # The config of a preset, with changes as on the command line.
    words = [f"steps={steps}", "groups=6", "plans=8", "optimizer.warmup=0", "optimizer.learning_rate=5e-4", "train=planner"]
    words += ["reward=opening * sem", "evaluation.prompts=40", "evaluation.every=0", "evaluation.best_of=0", "evaluation.greedy=false"]
    config = gotr1.load_config(preset="scenes", words=[*words, f"output={out}"])

    # Components without a run: a planner plans a prompt, a renderer draws the plan, a judge scores the picture.
    planner, _ = gotr1.make_policies(gotr1.Registry(), config)
    prompts, sampling = [Prompt("a red circle above a blue square")], gotr1.Sampling(guidance_scale=1.0, max_chain_tokens=80)
    plans = planner.plan(prompts, seeds=[1], sampling=sampling)
    drawn = planner.render(prompts, plans.chains, seeds=[1], sampling=sampling)  # one policy has both roles
    exact = gotr1.component("judge", "scenes")
    print(plans.chains[0].raw)
    print(exact.score([Sample(prompts[0], plans.chains[0], drawn.images[0])], ["sem", "spa", "pi"]))

    # A run from components. It uses the same functions as `gotr1 train`. The planner learns the
    # opening; `sem` in the reward keeps it from forgetting what the prompt asks for.
    parts = gotr1.Parts(
        planner=planner,
        renderer=planner,
        judges=gotr1.Judges({"mine": Opening(), "exact": exact}, gotr1.Expression.parse("opening * sem")),
        algorithm=gotr1.component("algorithm", "grpo", scale=False),
    )
    source = gotr1.component("source", "scenes")
    held_out = source.prompts("validation", 40, 0)  # prompts that training does not see
    run = gotr1.train(config, parts=parts, source=source, held_out=held_out)
    before, after = run.records.held_out["before"], run.records.held_out["after"]
    for name in ("reward", "opening", "sem"):
        print(f"{name}: {gotr1.estimate(before[name]).mean:.3f} before, {gotr1.estimate(after[name]).mean:.3f} after")

    # The trained policy plans and draws.
    (sample,) = gotr1.generate(planner, planner, "a green cross", seed=3, sampling=sampling)
    print(sample.chain.raw)
    gotr1.write_samples(out / "pictures", [sample])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
