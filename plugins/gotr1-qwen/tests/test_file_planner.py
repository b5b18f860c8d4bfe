"""The planner `file`: chains from a file, also from the output of `gotr1 generate`, and a renderer that trains on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gotr1_core.chain import Region, parse
from gotr1_core.cli.main import call
from gotr1_core.components.build import make_component
from gotr1_core.components.preflight import check
from gotr1_core.config.models import ComponentConfig, RunConfig, validate
from gotr1_core.errors import UsageError
from gotr1_core.hookspecs import Component, hookimpl
from gotr1_core.pictures.sample_files import write_samples
from gotr1_core.plugins import Registry
from gotr1_core.protocols import Planner
from gotr1_core.runs.start import train
from gotr1_core.samples import IMAGE, Prompt, Sample, Sampling, SegmentName
from gotr1_core.workflows.generation import generate
from gotr1_qwen.file import FilePlanner
from gotr1_qwen.options import FileOptions

CAT, DOG = Region("cat", (1, 2, 30, 40)).text, f"a {Region('dog', (0, 0, 500, 999)).text}"


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def chains(tmp_path: Path) -> Path:
    rows = [{"prompt": "a cat", "chain": CAT}, "", {"prompt": " a dog ", "chain": DOG, "reward": None}]
    return write(tmp_path / "chains.jsonl", [*rows, {"prompt": "a cat", "chain": ["two", "three"]}])


def test_chains_are_handed_out_by_seed(chains: Path) -> None:
    planner = FilePlanner(FileOptions(chains=chains))
    assert isinstance(planner, Planner)
    plans = planner.plan([Prompt("a cat")] * 6 + [Prompt("a dog")], seeds=range(7), sampling=Sampling())
    assert [chain.raw for chain in plans.chains] == [CAT, "two", "three"] * 2 + [DOG]
    assert plans.chains[6] == parse(DOG)
    assert len(plans) == 7
    assert not plans.tensors["mask"].any()  # nothing was sampled
    again = planner.plan([Prompt("a cat")], seeds=[2**62 + 1], sampling=Sampling())
    assert again.chains[0].raw == [CAT, "two", "three"][(2**62 + 1) % 3]


def test_a_prompt_without_a_chain_is_named(chains: Path) -> None:
    planner = FilePlanner(FileOptions(chains=chains))
    planner.check_prompts([Prompt("a dog"), Prompt("a cat\n")], Sampling())
    for use in (
        lambda: planner.check_prompts([Prompt("a cat"), Prompt("a bird")], Sampling()),
        lambda: FilePlanner.preflight_prompts(FileOptions(chains=chains), [Prompt("a cat"), Prompt("a bird")], Sampling()),
        lambda: planner.plan([Prompt("a bird")], seeds=[0], sampling=Sampling()),
    ):
        with pytest.raises(UsageError, match="has no chain for the prompt 'a bird'") as caught:
            use()
        assert '{"prompt": "…", "chain": "…"}' in str(caught.value.hint)


def test_prompts_compare_after_unicode_normalisation(tmp_path: Path) -> None:
    file = tmp_path / "chains.jsonl"
    composed, decomposed = "un café", "un cafe\u0301 "
    file.write_text(json.dumps({"prompt": decomposed, "chain": "one"}) + "\n" + json.dumps({"prompt": composed, "chain": "two"}))
    planner = FilePlanner(FileOptions(chains=file))
    for prompt in (Prompt(composed), Prompt(decomposed)):
        FilePlanner.preflight_prompts(FileOptions(chains=file), [prompt], Sampling())
        planner.check_prompts([prompt], Sampling())
        plans = planner.plan([prompt, prompt], seeds=[0, 1], sampling=Sampling())
        assert [chain.raw for chain in plans.chains] == ["one", "two"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "has no chains"),
        (["{}"], "line 1, is not {"),
        ([{"prompt": "a", "chain": "b"}, "nonsense"], "line 2, is not {"),
        (["3"], "line 1, is not {"),
        ([["a", "b"]], "line 1: there is no chain"),
        ([{"prompt": "a", "chain": None}], "line 1: the chain is not a text"),
        ([{"prompt": "a", "chain": []}], "line 1: the chain is not a text"),
        ([{"prompt": 3, "chain": "b"}], "line 1: the prompt is not a text"),
    ],
)
def test_a_file_that_is_invalid(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        FilePlanner.preflight(FileOptions(chains=write(tmp_path / "chains.jsonl", rows)), key="planner")
    assert caught.value.message.startswith("planner.chains: ")
    assert caught.value.hint
    with pytest.raises(UsageError, match="No such file"):
        FilePlanner(FileOptions(chains=tmp_path / "none.jsonl"))


def test_nothing_of_it_trains_or_is_saved(chains: Path, tmp_path: Path) -> None:
    planner = FilePlanner(FileOptions(chains=chains))
    assert list(planner.module.parameters()) == []
    for use in (
        lambda: planner.supervised_loss(planner.module, [], seed=0),
        lambda: planner.save(tmp_path),
        lambda: planner.save_adapter(tmp_path),
    ):
        with pytest.raises(UsageError, match="nothing to train"):
            use()


# -- with a renderer --------------------------------------------------------------------------------------------------------


def janus(tiny_janus: Path) -> dict[str, Any]:
    return {"name": "janus", "model": str(tiny_janus), "instruction": "{prompt}", "attention": "eager"}


def test_what_generate_writes_is_drawn_again(tiny_janus: Path, tmp_path: Path) -> None:
    """The same chains and seeds give the same pictures. The renderer does not depend on which planner wrote a plan."""
    registry = Registry()
    policy = make_component(registry, "planner", ComponentConfig(**janus(tiny_janus)))
    sampling = Sampling(guidance_scale=2.0, max_chain_tokens=10)
    chains = [{"prompt": "a cat", "chain": chain} for chain in ("a cat", CAT)]
    one = FilePlanner(FileOptions(chains=write(tmp_path / "own.jsonl", chains)))
    first = generate(one, policy, "a cat", number=4, sampling=sampling)
    assert len({sample.chain.raw for sample in first}) == 2
    write_samples(tmp_path / "pictures", first)
    again = FilePlanner(FileOptions(chains=tmp_path / "pictures" / "samples.jsonl"))
    assert set(again.chains) == {"a cat"}
    assert {chain.raw for chain in again.chains["a cat"]} == {sample.chain.raw for sample in first}
    second = generate(again, policy, "a cat", number=4, sampling=sampling)
    pairs = {(s.chain.raw, s.lineage): s.image.tobytes() for s in first if s.image}
    same = [pairs[s.chain.raw, s.lineage] == s.image.tobytes() for s in second if s.image and (s.chain.raw, s.lineage) in pairs]
    assert same
    assert all(same)


class Bright:
    """Scores how bright a picture is."""

    def __init__(self, options: None = None) -> None:
        self.rewards: Mapping[str, SegmentName] = {"bright": IMAGE}

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        return {"bright": [float(np.asarray(sample.image).mean()) / 255 for sample in samples]}


def settings(tiny_janus: Path, chains: Path, prompts: Path, output: Path, **changed: Any) -> RunConfig:
    data: dict[str, Any] = {
        "planner": {"name": "file", "chains": str(chains)},
        "renderer": janus(tiny_janus),
        "judge": "bright",
        "reward": "bright",
        "prompts": {"file": str(prompts), "held_out": 1},
        "train": "renderer",
        "steps": 1,
        "groups": 1,
        "plans": 2,
        "images": 2,
        "lora": None,
        "sampling": {"guidance_scale": 2.0},
        "evaluation": {"every": 0, "prompts": 1, "metric": "bright"},
        "output": str(output),
        "name": "run",
    }
    return validate(RunConfig, data | changed)


@pytest.fixture
def registry() -> Registry:
    found = Registry()
    target = f"{__name__}:Bright"
    found.add(SimpleNamespace(gotr1_components=hookimpl(lambda: [Component("judge", "bright", target)])), "bright")
    return found


def test_a_renderer_trains_on_them(tiny_janus: Path, chains: Path, tmp_path: Path, registry: Registry) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    config = settings(tiny_janus, chains, prompts, tmp_path)
    run = train(config, registry=registry, cpu=True)
    (step,) = [row for row in run.records.rows if "seconds" in row]
    assert step["chain_tokens"] == 0
    assert step["image.sampler_gap"] < 1e-4
    assert step["gradient_norm"] > 0
    sampled = [json.loads(line) for line in (tmp_path / "run/samples/held-out-after/samples.jsonl").read_text().splitlines()]
    assert [row["chain"] for row in sampled] == [DOG]


def test_it_cannot_be_trained(tiny_janus: Path, chains: Path, tmp_path: Path, registry: Registry) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    for what in ("planner", "both"):
        config = settings(tiny_janus, chains, prompts, tmp_path, train=what)
        with pytest.raises(UsageError, match="the planner has nothing to train"):
            train(config, registry=registry, cpu=True)
    prompts.write_text("a cat\na bird\n")
    config = settings(tiny_janus, chains, prompts, tmp_path)
    check(registry, config)
    with pytest.raises(UsageError, match="has no chain for the prompt 'a bird'"):
        train(config, registry=registry, cpu=True)
    assert not (tmp_path / "run").exists()


def test_gotr1_check_says_that_there_is_nothing_to_check(chains: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["check", "planner", "file", f"chains={chains}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["verdict"] for row in found} == {"not run"}
    assert "nothing to train" in found[0]["note"]
