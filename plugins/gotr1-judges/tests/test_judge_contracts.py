"""Every judge of the package passes the conformance suite, on checkpoints in the format of the full-size ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.data.pictures import shrink
from gotr1_core.samples import Prompt, Sample
from gotr1_judges.detector import DetectorJudge
from gotr1_judges.options import ClipOptions, DetectorOptions, InternJudgeOptions, QwenJudgeOptions
from gotr1_judges.preference import ClipJudge
from gotr1_judges.rubric import InternJudge, QwenJudge
from gotr1_testing import JUDGE, RELIABILITY, JudgeContract
from gotr1_testing.judges import JudgeSubject

KINDS: dict[str, tuple[Any, Any]] = {
    "internvl": (InternJudge, InternJudgeOptions),
    "qwen2_5_vl": (QwenJudge, QwenJudgeOptions),
    "qwen3_vl": (QwenJudge, QwenJudgeOptions),
}


@pytest.fixture(scope="module", params=[(kind, scoring) for kind in KINDS for scoring in ("text", "expected")], ids="-".join)
def asked(request: pytest.FixtureRequest, tiny: Callable[[str], Path], short: Path) -> Any:
    kind, scoring = request.param
    make, options = KINDS[kind]
    return make(options(model=str(tiny(kind)), rubrics=str(short), scoring=scoring, answer_tokens=4, batch=5, least_mass=0))


@pytest.fixture(scope="module")
def dino(tiny_dino: Path) -> DetectorJudge:
    return DetectorJudge(DetectorOptions(model=str(tiny_dino), threshold=0.0, batch=4))


@pytest.fixture(scope="module")
def owl(tiny_owl: Path) -> DetectorJudge:
    return DetectorJudge(DetectorOptions(model=str(tiny_owl), threshold=0.0, batch=4))


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> ClipJudge:
    return ClipJudge(ClipOptions(model=str(tiny_clip), low=-1, high=1, batch=4))


class TestRubricJudge(JudgeContract):
    @pytest.fixture
    def judge(self, asked: Any) -> Any:
        return asked

    def test_its_scores_differ(self, judge: Any) -> None:
        """Equal scores would make the comparisons pass without meaning."""
        scores = JudgeSubject(judge).score()
        known = {name: {value for value in values if value == value} for name, values in scores.items()}
        assert sum(len(values) > 1 for values in known.values()) >= 3


class TestDino(JudgeContract):
    @pytest.fixture
    def judge(self, dino: DetectorJudge) -> DetectorJudge:
        return dino

    def test_its_scores_differ(self, judge: DetectorJudge) -> None:
        assert len(set(JudgeSubject(judge).score()["ri"])) > 2


class TestOwl(JudgeContract):
    @pytest.fixture
    def judge(self, owl: DetectorJudge) -> DetectorJudge:
        return owl

    def test_its_scores_differ(self, judge: DetectorJudge) -> None:
        assert len(set(JudgeSubject(judge).score()["ri"])) > 2


class TestClip(JudgeContract):
    @pytest.fixture
    def judge(self, clip: ClipJudge) -> ClipJudge:
        return clip

    def test_its_scores_differ(self, judge: ClipJudge) -> None:
        assert len(set(JudgeSubject(judge).score()["clip"])) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_packages_own_rubrics(kind: str, tiny: Callable[[str], Path]) -> None:
    """The rubrics in full length."""
    make, options = KINDS[kind]
    for scoring in ("text", "expected"):
        judge = make(options(model=str(tiny(kind)), scoring=scoring, answer_tokens=4, least_mass=0))
        court = JudgeSubject(judge)
        found = court.score(court.samples[:2])
        assert any(value == value for values in found.values() for value in values)


def test_the_command_has_a_verdict_of_each_check(tiny: Callable[[str], Path], short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model's answers mean nothing, but reliability is measured all the same. The judge's code keeps the contract."""
    words = [f"model={tiny('internvl')}", f"rubrics={short}", "scoring=expected", "answer_tokens=4", "least_mass=0", "batch=32"]
    status = call(["check", "judge", "internvl", *words, "--reference", "scenes", "--json"])
    found = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert found.keys() == {check.name for check in (*JUDGE, *RELIABILITY)}
    assert {found[check.name]["verdict"] for check in JUDGE} == {"ok"}
    assert {found[check.name]["verdict"] for check in RELIABILITY} <= {"ok", "failed"}
    assert all(found[check.name]["measured"] is not None for check in RELIABILITY)
    assert status == ("failed" in {row["verdict"] for row in found.values()})


@pytest.mark.parametrize("name", ["clip", *KINDS])
def test_a_large_picture_is_shrunk_before_anything_else(
    name: str, tiny: Callable[[str], Path], short: Path, request: pytest.FixtureRequest
) -> None:
    """So time and memory are bounded, and what a model makes of the pixels is exactly what it makes of the smaller picture."""
    if name in KINDS:
        make, options = KINDS[name]
        judge = make(options(model=str(tiny(name)), rubrics=str(short), scoring="expected", answer_tokens=4, least_mass=0))
    else:
        judge = request.getfixturevalue("clip")
    chain = parse("<|obj_start|>a dog<|obj_end|><|box_start|>(0,0),(500,999)<|box_end|>")
    large = Image.effect_noise((3000, 60), 80).convert("RGB")
    small = shrink(large)
    assert small.size == (2048, 41)
    of_large, of_small = (judge.score([Sample(Prompt("a dog"), chain, image)], list(judge.rewards)) for image in (large, small))
    for reward, (score,) in of_small.items():
        assert of_large[reward] == [pytest.approx(score, abs=0, nan_ok=True)]


def test_a_detector_gets_a_shrunk_picture(dino: DetectorJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    class SeenError(Exception):
        pass

    def processor(images: list[Image.Image], **_: Any) -> None:
        raise SeenError([image.size for image in images])

    monkeypatch.setattr(dino, "processor", processor)
    with pytest.raises(SeenError, match=r"\[\(2048, 1024\)\]"):
        dino.locate([(Image.new("RGB", (3000, 1500)), "a dog")])
