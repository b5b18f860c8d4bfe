"""The commands of a shell against a server on loopback, with one process and with two that share limit and budget."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from chat_server import ChatServer, Fault, faulty, serving
from internvl_server import internvl_server

import gotr1_core
from gotr1_core.hookspecs import hookimpl
from gotr1_core.samples import Sample

from .conftest import KEY

BUDGET, LIMIT = 70, 4
TWO = ("--", "--num-processes", "2")


def gotr1(*words: str, status: int = 0) -> str:
    """Runs the command and returns what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SERVED_KEY": KEY}
    command = [sys.executable, "-m", "gotr1_core.cli.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def verdict(question: str, body: object) -> str:
    """Different questions get different scores, so that there is something to learn. Whatever is looked for fills the picture."""
    if "score" not in question:
        return '[{"bbox_2d": [0, 0, 999, 999]}]'
    return json.dumps({"reason": "it fits", "score": sum(question.encode()) % 11})


def spent(run: Path) -> dict[str, float]:
    return {path.name: json.loads(path.read_text())["requests"] for path in run.glob("spent-*.json")}


def test_two_processes_share_one_limit_and_one_budget(tmp_path: Path) -> None:
    upstream = ChatServer(answer=verdict)
    with serving(upstream) as url, faulty(url) as (address, proxy):
        proxy.rule = lambda number: Fault(delay=0.05)  # long enough that each process has as many under way as it may
        judge = [f"judge.base_url={address}", f"judge.requests={BUDGET}", f"judge.concurrency={LIMIT}", "judge.key_env=SERVED_KEY"]
        sizes = ["reward=openai.pi", "steps=20", "groups=4", "plans=4", "prompts.held_out=2", "cache=off"]
        place = [f"output={tmp_path}", "name=run"]
        said = gotr1("train", "--preset", "scenes", "--judge", "openai", *judge, *sizes, *place, "--cpu", *TWO, status=1)
        run = tmp_path / "run"
        assert f"the budget of {address} is spent" in said
        assert f"hint: raise judge.openai.requests, and resume; gotr1 train --resume {run}" in said
        assert json.loads((run / "outcome.json").read_text())["outcome"] == "interrupted"
        assert BUDGET / 2 < len(upstream.headers) <= BUDGET  # the check before the run included
        assert spent(run).keys() == {"spent-openai-0.json", "spent-openai-1.json"}
        assert sum(spent(run).values()) == len(upstream.headers)
        assert LIMIT / 2 < proxy.most_at_once <= LIMIT
        done = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]["step"]
        gotr1("train", "--resume", str(run), "judge.openai.requests=10000", f"steps={done + 1}", "--cpu", *TWO)
        assert sum(spent(run).values()) == len(upstream.headers)
        assert proxy.most_at_once <= LIMIT
        assert KEY not in said
        assert not any(KEY.encode() in path.read_bytes() for path in run.rglob("*") if path.is_file())


class OneFault:
    """Breaks the first question of a run's first step, each time it is asked. Keeps what came of the step."""

    def __init__(self) -> None:
        self.is_training, self.broken = False, list[object]()
        self.metrics: Mapping[str, float] = {}
        self.samples: Sequence[Sample] = ()

    def breaks(self, body: object) -> bool:
        if self.is_training and not self.broken:
            self.broken.append(body)
        return self.is_training and body in self.broken

    @hookimpl
    def gotr1_evaluated(self) -> None:
        self.is_training = True

    @hookimpl
    def gotr1_step_finished(self, metrics: Mapping[str, float], samples: Sequence[Sample]) -> None:
        self.is_training, self.metrics, self.samples = False, metrics, samples


@pytest.mark.parametrize("need", ["required", "optional"])
def test_an_optional_judge_drops_out_of_a_run_for_whole_groups(need: str, tmp_path: Path) -> None:
    """One question has no answer. The exact judge alone then scores all four samples of its prompt; ``optional`` counts that."""
    fault = OneFault()
    with serving(ChatServer(answer=verdict, broken=fault.breaks)) as url:
        judge = ["judge=openai", f"judge.base_url={url}", f"judge.need={need}", "judge.tries=1"]
        sizes = ["reward=pi", "steps=1", "groups=2", "plans=4", "prompts.held_out=1", "cache=off"]
        config = gotr1_core.load_config(preset="scenes", words=[*judge, *sizes, f"output={tmp_path}", "name=run"])
        gotr1_core.train(config, cpu=True, listeners=[fault])
    assert len(fault.broken) == 1
    scores = [sample.scores for sample in fault.samples]
    assert sum(math.isnan(row["openai.pi"]) for row in scores) == (4 if need == "optional" else 1)
    assert sum(row["pi"] == row["scenes.pi"] for row in scores) >= 4
    assert fault.metrics.get("judge.openai.dropped_groups") == (1.0 if need == "optional" else None)


def test_plans_of_a_server_train_a_renderer_alone(tmp_path: Path) -> None:
    def plan(question: str, body: object) -> str:
        corner = 100 + sum(json.dumps(body).encode()) % 300  # the body has the seed
        return f"<|obj_start|>a red circle<|obj_end|><|box_start|>({corner},{corner}),({corner + 400},{corner + 400})<|box_end|>"

    server = ChatServer(answer=plan)
    with serving(server) as url:
        sizes = ["train=renderer", "steps=1", "groups=2", "plans=2", "images=2", "prompts.held_out=1", "evaluation.every=0"]
        words = ["planner=openai", f"planner.base_url={url}", *sizes, f"output={tmp_path}", "name=run"]
        folder = gotr1_core.train(gotr1_core.load_config(preset="scenes", words=words), cpu=True).folder
    row = next(row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "seconds" in row)
    assert 4 < row["planning.requests"] <= spent(folder)["spent-planner-0.json"] == len(server.headers)
    seeds = [body["seed"] for body in server.bodies if "seed" in body]
    assert len(seeds) == len(set(seeds)) + 1  # the held-out prompt has one plan, before and after training


def test_a_judge_behind_our_helper_from_the_command_line(tmp_path: Path) -> None:
    """As docs/served.md says it for a user's server: train, score the run's samples again, look at the cache, and read the report."""
    cache = tmp_path / "cache"
    with internvl_server() as server:
        judge = [f"judge.base_url={server.url}", "judge.family=internvl", "judge.scoring=expected"]
        judge.append("judge.rubrics=${PACKAGE:gotr1_scenes}/rubrics")
        sizes = ["reward=openai.pi * openai.sem", "steps=1", "groups=2", "plans=2", "prompts.held_out=2", "save_samples=1"]
        run = tmp_path / "run"
        place = [f"output={tmp_path}", "name=run", f"cache={cache}"]
        gotr1("train", "--preset", "scenes", "--judge", "openai", *judge, *sizes, *place, "--cpu")
        step = next(row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if row.get("step") == 1)
        assert step["judge.openai.unanswered"] == 0
        assert spent(run)["spent-openai-0.json"] >= step["judge.openai.requests"] > 10
        assert "judge.openai.requests" in (run / "report.html").read_text()
        again = ["score", "--run", str(run), "--judge", "openai", *judge, "--cache", str(cache)]
        assert "tau" in gotr1(*again)
    said = gotr1("cache", "list", "--cache", str(cache))
    assert "openai" in said
