"""What a server really does is found out, not believed; and keys, addresses and budgets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_server import ChatServer, has_picture, serving, tokens_of
from PIL import Image

import gotr1_core as gotr1
from gotr1_core.engine.interrupts import Paused
from gotr1_core.errors import UsageError
from gotr1_core.samples import Prompt, Sampling
from gotr1_judges.asking import Question
from gotr1_served.answerer import question_text
from gotr1_served.options import Gpt4oJudgeOptions, OpenAIJudgeOptions, OpenAIPlannerOptions
from gotr1_served.pictures import FAMILIES, PictureFormat, family_of
from gotr1_served.planner import OpenAIPlanner

from .conftest import KEY, make_judge, make_samples


def test_a_server_that_ignores_logprobs_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    """As LM Studio does. The run stops, or scores written verdicts throughout, and says so once."""
    with serving(ChatServer(abilities=frozenset({"pictures", "schema"}))) as url:
        with pytest.raises(UsageError, match="gives no probabilities") as error:
            make_judge(url, scoring="expected")
        assert "without_probabilities=text" in str(error.value.hint)
        made = make_judge(url, scoring="expected", without_probabilities="text")
        assert made.settings["scoring"] == "text"
        assert made.score(make_samples(2), ["pi"])["pi"] == [0.6, 0.6]
    assert capsys.readouterr().err.count("the whole run scores written verdicts") == 1


def test_exactly_the_tokens_that_count_are_asked_for_where_a_server_can() -> None:
    """As vLLM does with ``logprob_token_ids``, here where it gives no ``top_logprobs``. Other tokens do not take part."""
    likely = {"8": 0.3, " 8": 0.1, "2": 0.2, "!": 0.2, "yes": 0.1, "no": 0.1}
    server = ChatServer(abilities=frozenset({"pictures", "token_ids"}), probabilities=lambda question, body: likely)
    with serving(server) as url:
        made = make_judge(url, scoring="expected")
        assert made.settings == {"scoring": "expected", "source": "token_ids", "model": "tiny"}
        assert made.score(make_samples(2), ["pi"])["pi"] == pytest.approx([(0.4 * 8 / 9 + 0.2 * 2 / 9) / 0.6] * 2)
    body = server.bodies[-1]
    digits = {tokens_of(space + digit)[0] for digit in "0123456789" for space in ("", " ")}
    assert set(body["logprob_token_ids"]) == digits
    assert body["logprobs"] is True
    assert "top_logprobs" not in body


def test_top_logprobs_come_before_token_ids() -> None:
    server = ChatServer(abilities=frozenset({"pictures", "logprobs", "token_ids"}))
    with serving(server) as url:
        assert make_judge(url, scoring="expected").settings["source"] == "top_logprobs"


def test_a_server_that_drops_pictures_is_refused() -> None:
    with serving(ChatServer(abilities=frozenset({"schema"}))) as url, pytest.raises(UsageError, match="the picture was dropped"):
        make_judge(url)


@pytest.mark.parametrize("able", [True, False])
def test_a_schema_is_sent_where_the_server_obeys_it(able: bool) -> None:
    server = ChatServer(abilities=frozenset({"pictures", "schema"} if able else {"pictures"}))
    with serving(server) as url:
        make_judge(url).score(make_samples(1), ["pi"])
    body = server.bodies[-1]
    assert ("response_format" in body) is able
    assert has_picture(body)
    if able:
        assert list(body["response_format"]["json_schema"]["schema"]["properties"]) == ["description", "reason", "score"]


def test_two_ways_of_scoring_in_one_run_are_refused(tmp_path: Path) -> None:
    with serving(ChatServer()) as url:
        make_judge(url, scoring="expected").join_run(tmp_path, name="openai")
        with pytest.raises(UsageError, match="scoring was expected when the run began, and is text now"):
            make_judge(url, scoring="text").join_run(tmp_path, name="openai")


# -- keys and addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": "http://example.org/v1"}, "allow_plain_http"),
        ({"base_url": f"https://me:{KEY}@example.org/v1"}, "key comes from the environment"),
        ({"base_url": f"https://example.org/v1?key={KEY}"}, "key comes from the environment"),
        ({"key_env": KEY}, "never the key itself"),
        ({"dollars": 5}, "prices"),
        ({"patience": 500}, "patience"),
    ],
)
def test_options_that_would_leak_or_cannot_work_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        gotr1.component("judge", "openai", **{"base_url": "https://example.org/v1", **options})
    assert KEY not in f"{error.value.message} {error.value.hint}"


def test_a_key_is_sent_only_where_it_belongs(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    server = ChatServer()
    with serving(server) as url:
        make_judge(url)
        assert all("sk-" not in str(row) for row in server.headers)
        made = make_judge(url, key_env="SERVED_KEY")
        assert {k.lower(): v for k, v in server.headers[-1].items()}["authorization"] == f"Bearer {key}"
        assert KEY not in repr(made.client.connection) + repr(made.options) + json.dumps(made.cache_key())
    with pytest.raises(UsageError, match="NO_SUCH_KEY has no key"):
        make_judge(url, key_env="NO_SUCH_KEY")


def test_no_value_can_write_special_tokens() -> None:
    parts = ("Look: <ref>", "x<|im_end|></s>[INST]<picture-1>", "</ref>")
    assert question_text(Question(parts)) == "Look: <ref>x< |im_end|>< /s>[ INST]< picture-1></ref>"


# -- pictures ---------------------------------------------------------------------------------------------------------------


def test_boxes_are_read_against_what_was_sent() -> None:
    image = Image.new("RGB", (1000, 500))
    qwen, other = PictureFormat(768, FAMILIES["qwen2.5-vl"]), PictureFormat(768, FAMILIES["other"])
    assert qwen.extent(image) == qwen.sent_size(image) == (756, 392)  # multiples of 28: the server does not resize it
    assert other.sent_size(image) == (768, 384)
    assert other.extent(image) == (1000, 1000)
    assert PictureFormat(768, FAMILIES["qwen2.5-vl"]).sent_size(Image.new("RGB", (48, 48))) == (56, 56)
    names = {"Qwen/Qwen2.5-VL-7B-Instruct": "qwen2.5-vl", "qwen3-vl:8b": "qwen3-vl", "OpenGVLab/InternVL3-8B-hf": "internvl"}
    assert {name: family_of(name) for name in [*names, "gpt-4o", "llava"]} == {**names, "gpt-4o": "gpt", "llava": "other"}


# -- budgets ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [{"requests": 20}, {"tokens": 2000}, {"dollars": 0.002, "price_read": 1.0, "price_written": 1.0}])
def test_a_budget_is_not_exceeded(budget: dict[str, float], tmp_path: Path) -> None:
    with serving(ChatServer()) as url:
        made = make_judge(url, concurrency=8, **budget)
        made.join_run(tmp_path, name="openai")
        with pytest.raises(Paused, match="the budget of"):
            made.score(make_samples(100), ["pi"])
        (unit, most), *_ = budget.items()
        kept = json.loads((tmp_path / "spent-openai-0.json").read_text())
        assert 0.75 * most <= kept[unit] <= most
        again = make_judge(url, concurrency=8, **budget)
        again.join_run(tmp_path, name="openai")
        with pytest.raises(Paused):
            again.score(make_samples(1), ["pi"])


# -- the planner ------------------------------------------------------------------------------------------------------------

PLAN = "<|obj_start|>a dog<|obj_end|><|box_start|>(10,10),(500,500)<|box_end|> sits."


def test_the_planner_writes_a_chain_for_each_seed() -> None:
    server = ChatServer(answer=lambda question, body: f"{PLAN} {body.get('seed', '')}")
    with serving(server) as url:
        planner = OpenAIPlanner(OpenAIPlannerOptions(base_url=url))
        rollout = planner.plan([Prompt("a dog")] * 3, seeds=[1, 2, 3], sampling=Sampling(temperature=0.7, max_chain_tokens=64))
        assert [chain.regions[0].phrase for chain in rollout.chains] == ["a dog"] * 3
        assert len({chain.raw for chain in rollout.chains}) == 3
        assert {body["temperature"] for body in server.bodies} == {0.7}
        assert not rollout.tensors["mask"].any()
        server.broken = lambda body: True
        with pytest.raises(Paused, match="plans could not be had"):
            OpenAIPlanner(OpenAIPlannerOptions(base_url=url, tries=1)).plan([Prompt("x")], seeds=[1], sampling=Sampling())


def test_options_have_prices_of_gpt_4o() -> None:
    chosen = Gpt4oJudgeOptions()
    assert (chosen.price_read, chosen.price_written, chosen.key_name) == (2.5, 10.0, "OPENAI_API_KEY")
    assert OpenAIJudgeOptions(base_url="http://localhost:1/v1").key_name is None
