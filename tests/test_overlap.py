"""A judge that another thread asks while models draw: the same samples and scores as without, and nothing is lost or waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from gotr1_core.batch import Batch
from gotr1_core.border.contract import ContractError
from gotr1_core.engine.background import background
from gotr1_core.errors import UsageError
from gotr1_core.judges import Judges
from gotr1_core.reward import Expression
from gotr1_core.rollout import RolloutSettings, roll_out
from gotr1_core.samples import IMAGE, PLAN, Prompt, Sample, Sampling, SegmentName, Words

PROMPTS = [Prompt(text, str(i)) for i, text in enumerate(["a", "a red cat on a mat", "dogs", "b c d", "e f"])]
SAMPLING = Sampling(guidance_scale=3.0, max_chain_tokens=8)
LONG = 30.0  # seconds after which a test gives up


class Served:
    """Another judge, behind a pause, that may be asked from a thread."""

    def __init__(self, judge: Any, pause: float = 0.01, *, thread_safe: bool = True) -> None:
        self.judge, self.pause, self.thread_safe, self.rewards = judge, pause, thread_safe, judge.rewards
        self.threads: list[str] = []
        self.busy = threading.Lock()

    def score_with_words(self, samples: Sequence[Sample], names: Sequence[str]) -> Any:
        assert self.busy.acquire(blocking=False), "two calls at once"
        self.threads.append(threading.current_thread().name)
        time.sleep(self.pause)
        scores = self.judge.score(samples, names)
        self.busy.release()
        return scores, {name: [Words(reason=s.prompt.text) for s in samples] for name in names}

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        scores: Mapping[str, Sequence[float]] = self.score_with_words(samples, names)[0]
        return scores


def tree(policy: Any, judges: Mapping[str, Any], reward: str, **changed: Any) -> Batch:
    settings = RolloutSettings(SAMPLING, **{"seed": (0, 3), "plans": 3, "images": 2, "chunk": 2, **changed})
    return roll_out(policy, policy, Judges(judges, Expression.parse(reward)), PROMPTS, settings, first=20)


def assert_equal(one: Batch, other: Batch) -> None:
    """Every number, picture and word is the same, to the last bit."""
    for a, b in zip(one.samples, other.samples, strict=True):
        assert (a.prompt, a.chain, a.lineage, a.words, a.not_finite) == (b.prompt, b.chain, b.lineage, b.words, b.not_finite)
        assert repr((dict(a.scores), a.reward)) == repr((dict(b.scores), b.reward))
        assert (a.image is None) == (b.image is None)
        assert a.image is None or (b.image is not None and a.image.tobytes() == b.image.tobytes())
    assert torch.equal(one.rewards, other.rewards) or one.rewards.isnan().any()
    assert torch.equal(one.place, other.place)
    for first, second in ((one.plans, other.plans), (one.images, other.images)):
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("reward", ["letters * bright", "bright", "letters", "bright + letters"])
def test_nothing_changes(policy: Any, letters_judge: Any, reward: str, prune: bool) -> None:
    alone, served = Served(letters_judge, thread_safe=False), Served(letters_judge)
    expected = tree(policy, {"a": alone}, reward, prune=prune)
    assert_equal(tree(policy, {"a": served}, reward, prune=prune), expected)
    assert set(alone.threads) == {"MainThread"}
    assert set(served.threads) == {"judge a"}
    assert len(served.threads) == len(alone.threads)


def test_two_judges_of_which_one_is_asked_at_once(policy: Any, letters_judge: Any) -> None:
    def both(thread_safe: bool) -> dict[str, Served]:
        return {"a": Served(letters_judge, thread_safe=thread_safe), "b": Served(letters_judge, thread_safe=False)}

    mixed = both(True)
    assert_equal(tree(policy, mixed, "a.bright * letters"), tree(policy, both(False), "a.bright * letters"))
    assert [set(judge.threads) for judge in mixed.values()] == [{"judge a"}, {"MainThread"}]


class Watching:
    """Passes on a policy's functions, and calls ``seen`` with the name of each before it draws."""

    def __init__(self, policy: Any, seen: Callable[[str], None]) -> None:
        self.policy, self.seen = policy, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def plan(self, *args: Any, **named: Any) -> Any:
        self.seen("plan")
        return self.policy.plan(*args, **named)

    def render(self, *args: Any, **named: Any) -> Any:
        self.seen("render")
        return self.policy.render(*args, **named)


class Until:
    """A judge that answers about the first chunk only after the next one is drawn, or planned. It fails if that never happens."""

    thread_safe = True

    def __init__(self, stage: SegmentName) -> None:
        self.rewards: Mapping[str, SegmentName] = {"value": stage}
        self.event, self.stage = threading.Event(), stage
        self.counts = {"plan": 0, "render": 0}

    def seen(self, name: str) -> None:
        self.counts[name] += 1
        if self.counts["plan" if self.stage == PLAN else "render"] == 2:
            self.event.set()

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        assert self.event.wait(LONG), "the next chunk is not drawn before this one is judged"
        return {name: [0.5] * len(samples) for name in names}


@pytest.mark.parametrize("stage", [PLAN, IMAGE])
@pytest.mark.parametrize("prune", [True, False])
def test_the_next_chunk_is_drawn_while_this_one_is_judged(policy: Any, stage: SegmentName, prune: bool) -> None:
    judge = Until(stage)
    watched = Watching(policy, judge.seen)
    settings = RolloutSettings(SAMPLING, seed=(0,), plans=2, chunk=1, prune=prune)
    batch = roll_out(watched, watched, Judges({"a": judge}, Expression.parse("value")), PROMPTS, settings)  # type: ignore[arg-type]
    assert batch.rewards.eq(0.5).all()


def test_plans_wait_for_no_pictures_where_nothing_is_pruned(policy: Any) -> None:
    """Plan scores are not needed before drawing ends."""

    class Late(Until):
        def seen(self, name: str) -> None:
            self.counts[name] += 1
            if self.counts["render"] == len(PROMPTS):
                self.event.set()

    judge = Late(PLAN)
    watched = Watching(policy, judge.seen)
    settings = RolloutSettings(SAMPLING, seed=(0,), plans=2, chunk=1, prune=False)
    batch = roll_out(watched, watched, Judges({"a": judge}, Expression.parse("value")), PROMPTS, settings)  # type: ignore[arg-type]
    assert batch.rewards.eq(0.5).all()


def test_a_judge_that_fails_in_its_thread(policy: Any, letters_judge: Any) -> None:
    class Fails(Served):
        def score_with_words(self, samples: Sequence[Sample], names: Sequence[str]) -> Any:
            raise ZeroDivisionError("no server")

    with pytest.raises(ContractError, match=r"failed in score_with_words\(\): ZeroDivisionError: no server"):
        tree(policy, {"a": Fails(letters_judge)}, "letters * bright")


def test_an_error_while_drawing_waits_for_no_judge(policy: Any, letters_judge: Any) -> None:
    count = [0]

    def seen(name: str) -> None:
        count[0] += name == "render"
        if count[0] == 2:
            raise UsageError("no more")

    watched, judge = Watching(policy, seen), Served(letters_judge, pause=LONG)
    begun, settings = time.monotonic(), RolloutSettings(SAMPLING, seed=(0,), plans=2, chunk=1, prune=False)
    with pytest.raises(UsageError, match="no more"):
        roll_out(watched, watched, Judges({"a": judge}, Expression.parse("bright")), PROMPTS, settings)  # type: ignore[arg-type]
    assert time.monotonic() - begun < LONG / 2
    assert len(judge.threads) == 1  # nothing else is asked


def test_calls_are_made_in_order_and_none_after_the_end() -> None:
    made: list[int] = []
    with background("test") as submit:
        futures = [submit(lambda number=number: made.append(number) or number) for number in range(20)]  # type: ignore[misc]
        assert [future.result(LONG) for future in futures] == list(range(20))
        hold = threading.Event()
        submit(lambda: hold.wait(LONG))
        late = submit(lambda: made.append(99))
    hold.set()
    time.sleep(0.1)
    assert made == list(range(20))
    assert not late.done()
