"""The plugin's source, benchmark, files and registration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from gotr1_core.data.examples import read_examples
from gotr1_core.plugins import Registry, load, options_of
from gotr1_core.protocols import Benchmark, PromptSource, RewardJudge
from gotr1_core.samples import Sample
from gotr1_scenes import plugin
from gotr1_scenes.annotate import annotated
from gotr1_scenes.benchmark import ScenesBenchmark
from gotr1_scenes.judge import REWARDS
from gotr1_scenes.painter import paint
from gotr1_scenes.source import ScenesSource, ScenesSourceOptions, write_jsonl
from gotr1_scenes.wish import Wish


@pytest.fixture
def source() -> ScenesSource:
    return ScenesSource(ScenesSourceOptions())


def test_prompts_are_numbered_and_can_be_taken_in_parts(source: ScenesSource) -> None:
    whole = source.prompts("validation", 20, 3)
    assert [*source.prompts("validation", 8, 3), *source.prompts("validation", 12, 3, start=8)] == whole
    assert len({prompt.id for prompt in whole}) == 20
    assert all(json.loads(json.dumps(dict(prompt.metadata))) == prompt.metadata for prompt in whole)


def test_examples_can_be_taken_in_parts(source: ScenesSource) -> None:
    whole = source.examples("train", 0, 12, 0)
    parts = [*source.examples("train", 0, 5, 0), *source.examples("train", 5, 7, 0)]
    assert [(e.prompt, e.chain) for e in parts] == [(e.prompt, e.chain) for e in whole]
    assert [e.image.tobytes() for e in parts if e.image] == [e.image.tobytes() for e in whole if e.image]
    for i, example in enumerate(whole):
        assert example.image is not None
        assert example.image.tobytes() == paint(annotated("train", 0, i).scene).tobytes()


def test_clean_leaves_the_noise_out(source: ScenesSource) -> None:
    clean = ScenesSource(ScenesSourceOptions(clean=True)).examples("train", 0, 60, 0)
    noisy = source.examples("train", 0, 60, 0)
    assert [e.prompt for e in clean] == [e.prompt for e in noisy]
    assert [e.chain for e in clean] != [e.chain for e in noisy]


def test_options_are_checked() -> None:
    with pytest.raises(ValidationError):
        ScenesSourceOptions(cleaned=True)  # type: ignore[call-arg]


def test_jsonl_comes_back_as_it_was(tmp_path: Path, source: ScenesSource) -> None:
    path = write_jsonl(tmp_path / "data", 25, seed=4)
    assert len(list((tmp_path / "data" / "pictures").iterdir())) == 25
    for read, made in zip(read_examples(path), source.examples("train", 0, 25, 4), strict=True):
        assert (read.prompt.text, read.prompt.category, read.chain) == (made.prompt.text, made.prompt.category, made.chain)
        assert Wish.from_metadata(read.prompt.metadata) == Wish.from_metadata(made.prompt.metadata)
        assert read.image is not None
        assert made.image is not None
        assert read.image.tobytes() == made.image.tobytes()


def test_benchmark() -> None:
    benchmark = ScenesBenchmark()
    prompts = benchmark.prompts()
    assert len(prompts) == 300
    assert benchmark.prompts(7) == prompts[:7]
    assert len(benchmark.prompts(0)) == 0
    example = annotated("validation", 0, 0, clean=True)
    found = benchmark.measure([Sample(prompts[0], example.chain, paint(example.scene))])
    assert set(found) == set(REWARDS)
    assert found["correct"] == [1.0]


def test_examples_are_as_large_as_asked() -> None:
    (small,), (large,) = (ScenesSource(ScenesSourceOptions(side=side)).examples("train", 5, 1, 0) for side in (48, 64))
    assert small.image is not None
    assert large.image is not None
    assert (small.image.size, large.image.size) == ((48, 48), (64, 64))
    assert (small.prompt, small.chain) == (large.prompt, large.chain)


def test_components_resolve() -> None:
    registry = Registry(())
    registry.add(plugin, "gotr1-scenes")
    for kind, protocol in (("source", PromptSource), ("judge", RewardJudge), ("benchmark", Benchmark)):
        component = registry.find(kind, "scenes").component  # type: ignore[arg-type]
        made = load(component.target)(options_of(component, {}))
        members = [name for name in dir(protocol) if not name.startswith("_")]
        assert members
        assert all(hasattr(made, name) for name in members), (kind, members)
    assert registry.find("preset", "scenes").component.target.startswith("gotr1_scenes:")


def test_registering_imports_nothing_heavy() -> None:
    program = "import sys, gotr1_scenes.plugin as p; list(p.gotr1_components()); print(*({'torch','numpy','scipy','PIL'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("noise", "| shape |"),
        ("understood", "| shape |"),
        ("confusion", "| correct | 1.0000 |"),
        ("sizes", "| distinct 8x8 patches |"),
    ],
)
def test_measure_prints_the_tables_of_the_docs(
    what: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gotr1_scenes import measure

    monkeypatch.setattr(sys, "argv", ["measure", what, "--count", "120"])
    measure.main()
    assert line in capsys.readouterr().out
