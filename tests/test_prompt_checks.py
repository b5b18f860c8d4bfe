"""What is said about a run's prompts before anything is loaded: where they come from, and which ones cannot be scored."""

from __future__ import annotations

from pathlib import Path

import pytest

from gotr1_core.cli.main import call
from gotr1_core.components.prompt_checks import ASKED, LISTED, check_scorable, prompt_origins
from gotr1_core.config.models import PromptsConfig, RunConfig, validate
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.samples import Prompt

KNOWN = ("a red circle", "two green triangles", "a blue square left of a red cross")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"source": {"name": "scenes"}}, "training prompts: source scenes; held-out prompts: 300 of the validation split of source scenes"),
        (
            {"source": {"name": "scenes"}, "file": "/a.txt", "held_out": 5},
            "training prompts: /a.txt; held-out prompts: 5 of the validation split of source scenes",
        ),
        ({"file": "/a.txt", "held_out": "/b.txt"}, "training prompts: /a.txt; held-out prompts: /b.txt"),
        ({"file": "/a.txt", "held_out": 7}, "training prompts: /a.txt, without its last 7, which are the held-out prompts"),
    ],
)
def test_where_prompts_come_from(settings: dict[str, object], text: str) -> None:
    assert prompt_origins(validate(PromptsConfig, settings)) == text


def config(reward: str = "pi", judge: str = "scenes") -> RunConfig:
    policy = {"planner": "janus", "renderer": "janus", "algorithm": "grpo"}
    return validate(RunConfig, {**policy, "judge": judge, "reward": reward, "prompts": {"source": "scenes"}})


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(text) for text in texts]


def test_prompts_that_no_judge_can_score_are_listed() -> None:
    found = check_scorable(Registry(), config(), prompts(*KNOWN, "a dog"), prompts(*KNOWN))
    assert found == ["the judge scenes cannot score 1 of the 4 training prompts: 'a dog'"]
    many = [f"dog {number}" for number in range(LISTED + 2)]
    (line,) = check_scorable(Registry(), config(), [], prompts(*KNOWN, *many))
    assert line.startswith(f"the judge scenes cannot score {len(many)} of the {len(many) + 3} held-out prompts: 'dog 0', ")
    assert line.endswith(f"'dog {LISTED - 1}' and 2 more")


def test_a_prompt_with_a_wish_of_its_own_can_be_scored() -> None:
    wish = {"things": [{"shape": "circle", "color": "red", "texture": None}], "relations": []}
    assert check_scorable(Registry(), config(), [Prompt("anything", metadata=wish)], prompts(*KNOWN)) == []


def test_a_run_that_could_score_nothing_does_not_start() -> None:
    with pytest.raises(UsageError, match=r"cannot score 2 of the 2 training prompts: 'a dog', 'a cat'"):
        check_scorable(Registry(), config(), prompts("a dog", "a cat"), prompts(*KNOWN))
    observed = config(reward="0.5")  # the judge only observes: nothing depends on it
    assert len(check_scorable(Registry(), observed, prompts("a dog"), prompts(*KNOWN))) == 1


def test_of_a_long_file_the_first_prompts_are_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ASKED == 100_000
    monkeypatch.setattr("gotr1_core.components.prompt_checks.ASKED", 3)
    (line,) = check_scorable(Registry(), config(), prompts("a dog", *KNOWN, "a cat"), [])
    assert line == "the judge scenes cannot score 1 of the first 3 training prompts: 'a dog'"


def test_the_first_lines_of_a_run_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\n".join([*KNOWN, "a dog", *KNOWN]))
    words = ["prompts.source=null", "prompts.held_out=2", "evaluation.prompts=2"]
    assert call(["train", "--dry-run", "--prompts", str(file), *words]) == 0
    note, warning, *_ = capsys.readouterr().err.splitlines()
    assert note == f"note: training prompts: {file}, without its last 2, which are the held-out prompts"
    assert warning.startswith("warning: the judge scenes cannot score 1 of the 5 training prompts: 'a dog'. ")
