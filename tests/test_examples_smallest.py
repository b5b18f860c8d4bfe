"""The smallest planner, renderer and algorithm in ``examples/``: each passes its checks, and they train with one another.

Their sections in docs/plugins.md explain the files piece by piece. The pieces of a section are the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gotr1_core.cli.main import call

pytestmark = pytest.mark.unmeasured
ROOT = Path(__file__).parent.parent
LINES = {"planner": 100, "renderer": 100, "algorithm": 40}
FILES = {kind: ROOT / "examples" / f"smallest_{kind}.py" for kind in LINES}
NAMED = [word for kind, file in FILES.items() for word in ("--plugin", str(file), f"--{kind}", "smallest")]
QUICK = ["groups=4", "plans=4", "prompts.held_out=4", "evaluation.every=0", "evaluation.greedy=false", "evaluation.best_of=0"]
kinds = pytest.mark.parametrize("kind", LINES)


def train(output: Path, *words: str) -> list[dict[str, float]]:
    """Trains planner and renderer, and gives the metrics of every step."""
    command = ["train", *NAMED, "--preset", "scenes", *QUICK, "evaluation.metric=reward", f"output={output}", "name=run"]
    assert call([*command, *words]) == 0
    rows = [json.loads(line) for line in (output / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "seconds" in row]


@kinds
def test_it_is_small(kind: str) -> None:
    assert len(FILES[kind].read_text(encoding="utf-8").splitlines()) <= LINES[kind]


@kinds
def test_it_passes_its_checks(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["check", kind, "smallest", "--plugin", str(FILES[kind]), "--json"]) == 0
    verdicts = {check["check"]: check["verdict"] for check in json.loads(capsys.readouterr().out)}
    of_both_roles = {"log-probs-match-for-given-chains", "same-log-probs-in-one-pass", "learns-at-natural-length"}
    of_both_roles |= {"reference-is-the-start-heads"}
    assert {name for name, verdict in verdicts.items() if verdict == "not run"} <= of_both_roles
    assert list(verdicts.values()).count("ok") >= 12


def test_they_train_together(tmp_path: Path) -> None:
    first, second = train(tmp_path, "reward=(sem + pi) / 2", "steps=2", "updates=2", "segments.plan.kl=0.1", "segments.plan.entropy=0.01")
    for row in (first, second):
        assert row["planner.gradient_norm"] > 0
        assert row["renderer.gradient_norm"] > 0
        assert row["planner.plan.sampler_gap"] < 1e-6
        assert row["renderer.image.sampler_gap"] < 1e-6
    assert second["chain_tokens"] > 0
    assert call(["generate", "a red circle", "--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn" / "000.png").is_file()


def test_the_planner_learns(tmp_path: Path) -> None:
    words = ["train=planner", "plans=16", "groups=8", "steps=40", "optimizer.learning_rate=0.01", "segments.plan.kl=0", "reward=sem * spa"]
    rewards = [row["reward"] for row in train(tmp_path, *words)]
    assert sum(rewards[-5:]) / 5 > 2 * sum(rewards[:5]) / 5


def test_adapters_train_too(tmp_path: Path) -> None:
    [row] = train(tmp_path, "reward=(sem + pi) / 2", "steps=1", "lora.rank=2")
    assert row["planner.gradient_norm"] > 0


def test_what_is_left_out_is_reported(tmp_path: Path, refused: Callable[..., tuple[str, str]]) -> None:
    error, _ = refused(
        ["sft", "--plugin", str(FILES["planner"]), "policy=smallest", "data=scenes", "steps=1", f"output={tmp_path / 'sft'}"]
    )
    assert error == "the smallest planner has nothing but reinforcement learning"


@kinds
def test_the_docs_explain_the_whole_file(kind: str) -> None:
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    [section] = re.findall(rf"^### The smallest {kind}\n(.*?)(?=^##)", page, re.M | re.S)
    pieces = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)

    def code(text: str) -> list[str]:
        return [line for line in text.splitlines() if line]  # between pieces the blank lines differ

    assert code("".join(pieces)) == code(FILES[kind].read_text(encoding="utf-8"))


def test_they_are_exported_and_loaded_again(tmp_path: Path) -> None:
    """Trained with adapters, which ``save`` merges. Both draw from the export what they draw from the run."""
    train(tmp_path, "reward=(sem + pi) / 2", "steps=1", "lora.rank=2", "optimizer.learning_rate=0.1")
    assert call(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--merge"]) == 0
    policies = [*NAMED[:-4], "--preset", "scenes"]  # without the algorithm
    loaded = [f"{kind}.model={tmp_path / 'out' / kind}" for kind in ("planner", "renderer")]
    checkpoint = ["--checkpoint", str(tmp_path / "run" / "checkpoints" / "step-000001")]
    drawn = {}
    for name, words in {"trained": checkpoint, "loaded": [*policies, *loaded], "untrained": policies}.items():
        assert call(["generate", "a red circle", "-n", "4", *words, "--out", str(tmp_path / name)]) == 0
        drawn[name] = [(tmp_path / name / f"{number:03d}.png").read_bytes() for number in range(4)]
    assert drawn["loaded"] == drawn["trained"] != drawn["untrained"]
