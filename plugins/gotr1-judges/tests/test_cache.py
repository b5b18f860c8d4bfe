"""The cache of what judges say: the same scores with and without it, several processes, and files that are broken."""

from __future__ import annotations

import inspect
import json
import math
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.components.build import make_judge
from gotr1_core.config.models import ComponentConfig, RunConfig, validate
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.protocols import RunMember
from gotr1_core.samples import IMAGE, PLAN, Prompt, Sample, SegmentName, Words
from gotr1_judges.cache import FILE, ScoreCache
from gotr1_judges.cached import CachedJudge, wrap
from gotr1_judges.rubric import RubricJudge
from gotr1_judges.rubrics import read_rubrics

Captured = pytest.CaptureFixture[str]
nan = math.nan


class Counting:
    """A judge whose scores are a hash of the sample, and which records what it was asked."""

    rewards: Mapping[str, SegmentName] = {"sem": PLAN, "pi": IMAGE}
    thread_safe = True

    def __init__(self, key: Mapping[str, Any] | None = None, cached: bool = True) -> None:
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.key, self.cached = key, cached

    def cache_key(self) -> Mapping[str, Any] | None:
        return self.key

    def score_with_words(self, samples: Sequence[Sample], names: Sequence[str]) -> Any:
        self.asked += [(s.prompt.text, tuple(names)) for s in samples]
        scores = {n: [nan if s.prompt.text == "lost" else len(s.prompt.text + s.chain.raw) / 97 for s in samples] for n in names}
        boxes = {"cat": [(0.0, 0.1, 0.2, 0.3)]}
        problems = ["x" if s.prompt.text == "lost" else "" for s in samples]
        words = {n: [Words(n + s.prompt.text, boxes=boxes, problem=p) for s, p in zip(samples, problems, strict=True)] for n in names}
        return scores, words

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        scores: Mapping[str, Sequence[float]] = self.score_with_words(samples, names)[0]
        return scores


def sample(text: str = "a cat", chain: str = "a cat", color: str = "red", **metadata: Any) -> Sample:
    return Sample(Prompt(text, metadata=metadata), parse(chain), Image.new("RGB", (4, 4), color))


def cached(folder: Path, judge: Counting | None = None, **facts: Any) -> CachedJudge:
    return CachedJudge(judge or Counting(), ScoreCache(folder), {"name": "counting", **facts})


def test_what_was_said_is_said_again_and_nobody_is_asked(tmp_path: Path) -> None:
    samples, names = [sample("a"), sample("ab"), sample("a")], ["sem", "pi"]
    alone = Counting().score_with_words(samples, names)
    first = Counting()
    assert cached(tmp_path, first).score_with_words(samples, names) == alone
    assert first.asked == [("a", ("sem", "pi")), ("ab", ("sem", "pi"))]  # samples that are alike are asked about once
    second = Counting()
    judge = cached(tmp_path, second)
    assert judge.score_with_words(samples, names) == alone
    assert second.asked == []
    assert judge.counts() == {"cache_asked": 6, "cache_hits": 6}
    assert judge.score([*samples, sample("abc")], ["pi"])["pi"] == Counting().score([*samples, sample("abc")], ["pi"])["pi"]
    assert second.asked == [("abc", ("pi",))]
    assert judge.score([], names) == {"sem": [], "pi": []}
    assert judge.thread_safe is True  # what the judge says of itself


def test_a_judge_behind_a_cache_joins_its_run(tmp_path: Path) -> None:
    class Joins(Counting):
        def join_run(self, folder: Path, *, name: str) -> None:
            (folder / name).touch()

    judge = cached(tmp_path, Joins())
    assert isinstance(judge, RunMember)
    assert inspect.getattr_static(judge, "join_run")  # so it is also with Python 3.12
    judge.join_run(tmp_path, name="joined")
    assert (tmp_path / "joined").is_file()
    assert not isinstance(cached(tmp_path), RunMember)


def test_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    judge = Counting()
    cached(tmp_path, judge).score([sample("a")], ["sem"])
    found = cached(tmp_path, judge).score([sample("a"), sample("b")], ["sem", "pi"])
    assert found == Counting().score([sample("a"), sample("b")], ["sem", "pi"])
    assert judge.asked[1:] == [("a", ("pi",)), ("b", ("sem", "pi"))]


def test_a_missing_score_is_not_kept(tmp_path: Path) -> None:
    judge = Counting()
    for _ in range(2):
        scores, words = cached(tmp_path, judge).score_with_words([sample("lost"), sample("a")], ["pi"])
        assert math.isnan(scores["pi"][0])
        assert words["pi"][0].problem == "x"
    assert [text for text, _ in judge.asked] == ["lost", "a", "lost"]


def test_whatever_a_score_depends_on_is_in_its_key(tmp_path: Path) -> None:
    one = sample()
    others = [sample("a dog"), sample(chain="a dog"), sample(color="blue"), sample(things=[1]), replace(one, plan_known=False)]
    others.append(replace(one, image=Image.new("RGB", (2, 8), "red")))
    others.append(replace(one, prompt=replace(one.prompt, category="x")))
    judge = Counting()
    cached(tmp_path, judge).score([one, *others], ["pi"])
    assert len(judge.asked) == 1 + len(others)
    cached(tmp_path, judge).score([sample(color="green")], ["sem"])  # a score of the plan does not depend on the picture
    before = len(judge.asked)
    cached(tmp_path, judge).score([sample(color="white")], ["sem"])
    assert len(judge.asked) == before
    cached(tmp_path, judge, revision="2").score([one], ["pi"])
    assert len(judge.asked) == before + 1


def test_pictures_of_a_palette_are_told_apart(tmp_path: Path) -> None:
    red, blue = (
        replace(sample(), image=Image.new("RGB", (4, 4), color).convert("P", palette=Image.Palette.ADAPTIVE)) for color in ("red", "blue")
    )
    judge = Counting()
    cached(tmp_path, judge).score([red, blue], ["pi"])
    assert len(judge.asked) == 2


def test_the_rubrics_are_part_of_the_key() -> None:
    class Sampled:
        def cache_key(self) -> None:
            return None

    text, expected = (
        RubricJudge(None, read_rubrics("v1", {}, scoring=kind, family="qwen-vl", key="judge")) for kind in ("text", "expected")
    )  # type: ignore[arg-type]
    assert text.cache_key() != expected.cache_key()
    assert json.dumps(text.cache_key())
    text.answerer = Sampled()  # type: ignore[assignment]
    assert text.cache_key() is None


def test_who_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))

    class Plain:
        rewards: Mapping[str, SegmentName] = {"pi": IMAGE}

        def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
            return {}

    served, local, plain = Counting({}), Counting({}, cached=False), Plain()
    assert isinstance(wrap(served, None, dict), CachedJudge)
    assert (tmp_path / "own" / "gotr1" / FILE).is_file()
    assert wrap(local, None, dict) is None
    assert wrap(plain, None, dict) is None
    assert all(isinstance(wrap(judge, str(tmp_path), dict), CachedJudge) for judge in (served, local, plain))
    sampled = Counting(None)
    assert wrap(sampled, None, dict) is None
    assert wrap(sampled, str(tmp_path), dict) is sampled
    assert "are not kept" in capsys.readouterr().err


def test_a_judge_of_a_config(tmp_path: Path) -> None:
    registry, config = Registry(), ComponentConfig(name="scenes")
    assert not isinstance(make_judge(registry, config), CachedJudge)
    assert not isinstance(make_judge(registry, config, cache=None), CachedJudge)  # in this process, off by default
    judge = make_judge(registry, config, cache=str(tmp_path))
    assert isinstance(judge, CachedJudge)
    red = Sample(Prompt("a red circle"), parse("x"), Image.new("RGB", (48, 48)))
    assert judge.score([red], ["pi"]) == make_judge(registry, config).score([red], ["pi"])


@pytest.mark.parametrize(("given", "read"), [("off", "off"), (False, "off"), (None, None), ("here", str(Path("here").absolute()))])
def test_the_folder_in_a_config(given: Any, read: str | None) -> None:
    assert validate(RunConfig, {"planner": "x", "renderer": "x", "judge": "x", "cache": given}).cache == read


# -- the file ---------------------------------------------------------------------------------------------------------------


def test_the_oldest_go_first(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path, largest=200_000)
    for number in range(60):
        cache.write({f"{number}": "x" * 5_000}, judge="a")
        cache.read(["0"])  # the first one is always used
    kept = cache.read([str(number) for number in range(60)])
    assert {"0", "59"} <= kept.keys()
    assert "1" not in kept
    assert cache.size() <= 200_000
    assert (tmp_path / FILE).stat().st_size < 300_000


WRITER = """
import sys
from pathlib import Path
from gotr1_judges.cache import ScoreCache
cache, me = ScoreCache(Path(sys.argv[1])), sys.argv[2]
for number in range(100):
    cache.write({f"{me}-{number}": {"score": 0.5}, f"shared-{number}": {"score": 0.25}}, judge=me)
    assert cache.read([f"{me}-{number}"]) == {f"{me}-{number}": {"score": 0.5}}
assert cache.works
"""


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    started = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(me)], stderr=subprocess.PIPE) for me in range(4)]
    assert [(process.communicate(timeout=120)[1], process.returncode) for process in started] == [(b"", 0)] * 4
    rows = ScoreCache(tmp_path).judges()
    assert sum(row["scores"] for row in rows) == 500


def test_several_threads_and_a_fork_use_one_cache(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path)
    threads = [threading.Thread(target=cache.write, args=({str(n): n},), kwargs={"judge": "a"}) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child = os.fork()
    if not child:
        cache.write({"child": 1}, judge="a")
        os._exit(0 if cache.works else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(cache.read([*map(str, range(8)), "child"])) == 9


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_set_aside(content: bytes, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / FILE).write_bytes(content)
    judge = cached(tmp_path)
    assert judge.score([sample("a")], ["pi"]) == Counting().score([sample("a")], ["pi"])
    assert "was damaged" in capsys.readouterr().err
    assert (tmp_path / f"{FILE}.damaged").read_bytes() == content
    assert ScoreCache(tmp_path).judges()[0]["scores"] == 1


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(UsageError, match="is a database of something else"):
        ScoreCache(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_folder_that_cannot_be_used(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "file").write_text("x")
    Image.new("RGB", (48, 48)).save(tmp_path / "x.png")
    words = ["score", str(tmp_path / "x.png"), "--prompt", "a red circle", "--judge", "scenes", "--cache", str(tmp_path / "file")]
    assert call(words) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: the cache {tmp_path / 'file'} cannot be used")
    assert hint.startswith("hint: ")


def test_a_cache_that_breaks_in_a_run_ends_nothing(tmp_path: Path, capsys: Captured) -> None:
    judge = cached(tmp_path)
    judge.score([sample("a")], ["pi"])
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("DROP TABLE scores")
    for _ in range(2):
        assert judge.score([sample("a"), sample("b")], ["pi"]) == Counting().score([sample("a"), sample("b")], ["pi"])
    assert capsys.readouterr().err.count("is not used any more") == 1


@pytest.mark.parametrize(
    "row", [3, {}, {"score": 2}, {"score": "x"}, {"score": 0.5, "words": {"boxes": 3}}, {"score": 0.5, "words": {"?": 1}}]
)
def test_a_row_that_gotr1_did_not_write_is_asked_again(row: Any, tmp_path: Path) -> None:
    judge = Counting()
    mine = cached(tmp_path, judge)
    mine.score([sample("a")], ["pi"])
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("UPDATE scores SET row = ?", [json.dumps(row)])
    assert mine.score([sample("a")], ["pi"]) == Counting().score([sample("a")], ["pi"])
    assert len(judge.asked) == 2


# -- the commands -----------------------------------------------------------------------------------------------------------


def test_the_commands(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert call(["cache", "list"]) == 0
    assert capsys.readouterr().out == f"nothing is kept\n{tmp_path / 'gotr1'}\n"
    Image.new("RGB", (48, 48)).save(tmp_path / "x.png")
    words = ["score", str(tmp_path / "x.png"), "--prompt", "a red circle", "--judge", "scenes", "--json", "--cache", str(tmp_path / "c")]
    assert call(words) == 0
    first = capsys.readouterr().out
    assert call(words) == 0
    assert capsys.readouterr().out == first
    assert call(["cache", "list", "--json", "--cache", str(tmp_path / "c")]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(row["judge"], row["scores"]) for row in listed["judges"]] == [("scenes", 2)]
    assert call(["cache", "list", "--cache", str(tmp_path / "c")]) == 0
    assert "scenes" in capsys.readouterr().out
    assert call(["cache", "clear", "--judge", "other", "--cache", str(tmp_path / "c")]) == 0
    assert capsys.readouterr().out.startswith("0 scores removed")
    assert call(["cache", "clear", "--cache", str(tmp_path / "c")]) == 0
    assert capsys.readouterr().out.startswith("2 scores removed")
