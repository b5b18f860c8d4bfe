"""Configs: merging, KEY=VALUE words, files, and error messages that name the nearest key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, strategies as st

from gotr1_core.config.merge import merge, merge_layers, parse_overrides, read_yaml
from gotr1_core.config.messages import ADVICE, ALIASES, dotted_keys
from gotr1_core.config.models import ComponentConfig, RunConfig, SftConfig, dump, validate
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry, options_of
from gotr1_core.workflows.judging import ScoreConfig

LEAST: dict[str, Any] = {"planner": "toy", "renderer": "toy", "judge": "toy"}

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(scalars | st.lists(scalars, max_size=3), lambda inner: st.dictionaries(st.text(min_size=1), inner, max_size=3))
mappings = st.dictionaries(st.text(min_size=1), trees, max_size=3)


def refused(data: dict[str, Any], model: Any = RunConfig) -> UsageError:
    with pytest.raises(UsageError) as caught:
        validate(model, data)
    assert caught.value.code == 2
    assert "\n" not in caught.value.message
    return caught.value


# -- merging ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
        ({"a": {"b": {"x": 1}}}, {"a": {"b": {"y": 2}}}, {"a": {"b": {"x": 1, "y": 2}}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),  # lists are replaced
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),  # lora: null
        # A component of another name takes nothing from the one it replaces, however it is written.
        ({"p": {"name": "one", "x": 1}}, {"p": "two"}, {"p": {"name": "two"}}),
        ({"p": {"name": "one", "x": 1}}, {"p": {"name": "two", "y": 2}}, {"p": {"name": "two", "y": 2}}),
        ({"p": "one"}, {"p": {"name": "two", "y": 2}}, {"p": {"name": "two", "y": 2}}),
        ({"p": "one"}, {"p": "two"}, {"p": "two"}),
        # The same one keeps its options, and takes more.
        ({"p": {"name": "one", "x": 1}}, {"p": "one"}, {"p": {"name": "one", "x": 1}}),
        ({"p": {"name": "one", "x": 1}}, {"p": {"name": "one", "y": 2}}, {"p": {"name": "one", "x": 1, "y": 2}}),
        ({"p": {"name": "one", "x": 1}}, {"p": {"y": 2}}, {"p": {"name": "one", "x": 1, "y": 2}}),
        ({"p": "one"}, {"p": {"y": 2}}, {"p": {"name": "one", "y": 2}}),
        # Deeper down as well.
        (
            {"prompts": {"source": {"name": "one", "x": 1}, "seed": 3}},
            {"prompts": {"source": "two"}},
            {"prompts": {"source": {"name": "two"}, "seed": 3}},
        ),
    ],
)
def test_merge(base: dict[str, Any], over: dict[str, Any], expected: dict[str, Any]) -> None:
    before = repr((base, over))
    assert merge(base, over) == expected
    assert repr((base, over)) == before  # neither is changed


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("judge.x=1", [{"name": "one", "x": 1, "y": 2}]),
        ("judge.one.x=1", [{"name": "one", "x": 1, "y": 2}]),
        ("judge.one=3", [{"name": "one", "one": 3, "y": 2}]),
        ("judge={name: two}", {"name": "two"}),
        ("judge=[two]", ["two"]),
    ],
)
def test_options_of_the_only_component_in_a_list(word: str, expected: Any) -> None:
    assert merge({"judge": [{"name": "one", "y": 2}]}, parse_overrides([word])) == {"judge": expected}


def test_options_of_one_of_several() -> None:
    listed = {"judge": ["one", {"name": "two", "x": 1}]}
    assert merge(listed, parse_overrides(["judge.one.x=3", "judge.two.y=4"])) == {
        "judge": [{"name": "one", "x": 3}, {"name": "two", "x": 1, "y": 4}]
    }
    assert parse_overrides(["judge.two.y=4", "judge=[one, two]"]) == {"judge": [{"name": "one"}, {"name": "two", "y": 4}]}
    for word in ("judge.x=3", "judge.one=3", "judge.three.x=3"):
        with pytest.raises(UsageError, match="the config has 2 components under judge") as caught:
            merge(listed, parse_overrides([word]))
        assert caught.value.hint == "say which one: judge.NAME.KEY=…; NAME is one of one, two"


def test_options_of_one_of_two_judges_with_the_same_name() -> None:
    listed = {"judge": ["one", {"name": "one", "as": "two", "x": 1}]}
    assert merge(listed, parse_overrides(["judge.two.x=3"])) == {"judge": [{"name": "one"}, {"name": "one", "as": "two", "x": 3}]}
    with pytest.raises(UsageError) as caught:
        merge(listed, parse_overrides(["judge.x=3"]))
    assert caught.value.hint == "say which one: judge.NAME.KEY=…; NAME is one of one, two"


def test_a_judge_of_one_of_two_distributions_is_called_by_its_name() -> None:
    listed = {"judge": ["one", {"name": "toy:two", "x": 1}, {"name": "toy:two", "as": "three"}]}
    merged = merge(listed, parse_overrides(["judge.two.x=3"]))
    config = validate(ScoreConfig, merged)
    assert [(judge.name, judge.label, judge.options) for judge in config.judge] == [
        ("one", "one", {}),
        ("toy:two", "two", {"x": 3}),
        ("toy:two", "three", {}),
    ]


@pytest.mark.parametrize("label", ["a.b", "", "3", "a b", "a-", None, 3, ["a"]])
def test_a_name_that_no_reward_can_say_is_refused(label: Any) -> None:
    with pytest.raises(UsageError, match=r"judge\.0: as: .* is not a valid judge name"):
        validate(ScoreConfig, {"judge": [{"name": "one", "as": label}]})


@given(mappings)
def test_merging_nothing_changes_nothing(tree: dict[str, Any]) -> None:
    assert merge(tree, {}) == tree
    assert merge({}, tree) == tree
    assert merge(tree, tree) == tree


PRESET: dict[str, Any] = {
    "planner": {"name": "one", "x": 1},
    "renderer": "one",
    "steps": 5,
    "variants": {
        "planner": {"two": {"planner": {"y": 2}, "renderer": {"name": "one", "x": 1}, "steps": 6}},
        "renderer": {"two": {"renderer": {"z": 3}, "sampling": {"guidance_scale": 2.0}}},
        "judge": {"three": {"judge": [{"name": "three", "u": 5}, "one"], "reward": "three.r"}},
    },
}
PLAIN = {key: value for key, value in PRESET.items() if key != "variants"}


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ([], {"planner": {"name": "one", "x": 1}, "renderer": "one", "steps": 5}),
        ([{"planner": "three"}], {"planner": {"name": "three"}, "renderer": "one", "steps": 5}),
        ([{"planner": "two"}], {"planner": {"name": "two", "y": 2}, "renderer": {"name": "one", "x": 1}, "steps": 6}),
        # A word later is laid over it; a name of a distribution is a name.
        (
            [{"planner": {"name": "toy:two"}}, {"planner": {"y": 4}, "steps": 7}],
            {"planner": {"name": "toy:two", "y": 4}, "renderer": {"name": "one", "x": 1}, "steps": 7},
        ),
        # Each on its own, and both: the renderer's comes last, and takes nothing from the other's.
        (
            [{"renderer": "two"}],
            {"planner": {"name": "one", "x": 1}, "renderer": {"name": "two", "z": 3}, "steps": 5, "sampling": {"guidance_scale": 2.0}},
        ),
        (
            [{"planner": "two", "renderer": "two"}],
            {
                "planner": {"name": "two", "y": 2},
                "renderer": {"name": "two", "z": 3},
                "steps": 6,
                "sampling": {"guidance_scale": 2.0},
            },
        ),
        # Of judges one alone; what its variant lists beside it stays.
        ([{"judge": "three"}], {**PLAIN, "judge": [{"name": "three", "u": 5}, "one"], "reward": "three.r"}),
        ([{"judge": ["three"]}], {**PLAIN, "judge": [{"name": "three", "u": 5}, "one"], "reward": "three.r"}),
        (
            [{"judge": [{"name": "three", "v": 6}]}, {"judge": {"three": {"u": 7}}}],
            {**PLAIN, "judge": [{"name": "three", "u": 7, "v": 6}, {"name": "one"}], "reward": "three.r"},
        ),
        *(
            (
                [{"judge": name}, {"judge": {**words, "one": {"w": 8}}}],
                {**PLAIN, "judge": [{"name": "three", "u": 7}, {"name": "one", "w": 8}], "reward": "three.r"},
            )
            for name in ("three", ["three"])
            for words in ({"u": 7}, {"three": {"u": 7}})  # --judge three judge.u=7, and judge.three.u=7
        ),
        ([{"judge": ["three", "four"]}], {**PLAIN, "judge": ["three", "four"]}),
        # What counts is who is asked for in the end.
        ([{"planner": "two"}, {"planner": "one"}], {"planner": {"name": "one"}, "renderer": "one", "steps": 5}),
    ],
)
def test_variants_of_a_preset(over: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    before = yaml.safe_dump(PRESET)
    assert merge_layers(PRESET, *over) == expected
    assert yaml.safe_dump(PRESET) == before


@pytest.mark.parametrize("variants", [[], {"prompts": {"two": {}}}, {"planner": ["two"]}, {"planner": {"two": "three"}}, "two"])
def test_invalid_variants(variants: Any) -> None:
    with pytest.raises(UsageError, match="variants"):
        merge_layers({"planner": "one", "variants": variants})


def test_only_a_preset_has_variants() -> None:
    assert "variants" in refused({**LEAST, "variants": {}}).message


# -- KEY=VALUE --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("steps=20", {"steps": 20}),
        ("optimizer.learning_rate=1e-4", {"optimizer": {"learning_rate": 1e-4}}),
        ("optimizer.learning_rate=.5E-3", {"optimizer": {"learning_rate": 5e-4}}),
        ("optimizer.learning_rate=-2.5e3", {"optimizer": {"learning_rate": -2500.0}}),
        ("segments.image.kl=0.1", {"segments": {"image": {"kl": 0.1}}}),
        ("reward=pi * (sem + spa) / 2", {"reward": "pi * (sem + spa) / 2"}),
        ("planner.model=a=b", {"planner": {"model": "a=b"}}),  # the first = counts
        ("lora=null", {"lora": None}),
        ("prune=false", {"prune": False}),
        ("judge=[a, b]", {"judge": ["a", "b"]}),
        ("planner={name: janus, model: x}", {"planner": {"name": "janus", "model": "x"}}),
        ("name=", {"name": None}),
        ("name='1e4'", {"name": "1e4"}),  # quoted: text
        ("name=2026-01-02", {"name": "2026-01-02"}),  # a date stays text
        ("name=2026-13-45", {"name": "2026-13-45"}),  # and so does what is none
        ("name=nan", {"name": "nan"}),
    ],
)
def test_words(word: str, expected: dict[str, Any]) -> None:
    found = parse_overrides([word])
    assert found == expected
    assert repr(found) == repr(expected)  # 20 is not 20.0, True is not 1


def test_later_words_override_earlier_ones() -> None:
    assert parse_overrides(["a.x=1", "a.y=2", "b=3", "b=4"]) == {"a": {"x": 1, "y": 2}, "b": 4}
    assert parse_overrides([]) == {}


def test_a_component_keeps_options_given_with_it() -> None:
    for words in (["planner=toy", "planner.model=x"], ["planner.model=x", "planner=toy"]):
        assert parse_overrides(words) == {"planner": {"name": "toy", "model": "x"}}
        assert merge({"planner": {"name": "other", "old": 1}}, parse_overrides(words)) == {"planner": {"name": "toy", "model": "x"}}


@pytest.mark.parametrize("word", ["steps", "=20", "", "--steps", "steps:20"])
def test_words_without_a_key_and_a_value_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match="is not KEY=VALUE") as caught:
        parse_overrides([word])
    assert "steps=20" in (caught.value.hint or "")


@pytest.mark.parametrize("word", ["name=\udce7\udc8c\udcab", "\udce7=1", "\udce7"])
def test_a_word_that_is_not_valid_text_is_refused(word: str) -> None:
    """Python reads the bytes of a command line so in a locale that has no such letters."""
    with pytest.raises(UsageError, match="is not valid text") as caught:
        parse_overrides([word])
    assert "UTF-8" in (caught.value.hint or "")


@pytest.mark.parametrize("value", ["[1, 2", "*x", "@y", "{x: 1, x: 2}", "[\n", "0x_", "{a: b: c}", "'", "\0", "[" * 5000])
def test_a_value_that_is_not_yaml_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="the value of a is not YAML") as caught:
        parse_overrides([f"a={value}"])
    assert "\n" not in caught.value.message


# -- complaints -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "unknown", "near"),
    [
        ("step=3", "step", "steps"),
        ("optimiser.learning_rate=1e-4", "optimiser", "optimizer.learning_rate"),
        ("optimizer.learning_rat=1e-4", "optimizer.learning_rat", "optimizer.learning_rate"),
        ("segments.plan.kll=1", "segments.plan.kll", "segments.plan.kl"),
        ("lora.rnak=8", "lora.rnak", "lora.rank"),
        ("evaluation.evry=8", "evaluation.evry", "evaluation.every"),
        # The right key in the wrong place: where it belongs.
        ("learning_rate=1e-4", "learning_rate", "optimizer.learning_rate"),
        ("kl=0.1", "kl", "segments.plan.kl or segments.image.kl"),
        ("guidance_scale=2", "guidance_scale", "sampling.guidance_scale"),
    ],
)
def test_an_unknown_key_names_the_nearest(word: str, unknown: str, near: str) -> None:
    error = refused(merge(LEAST, parse_overrides([word])))
    assert error.message == f"unknown key {unknown}"
    assert error.hint == f"did you mean {near}?"


TABLE = (Path(__file__).parent.parent / "docs" / "concepts.md").read_text(encoding="utf-8").partition("## What other tools call it")[2]
NAMES = {tuple(row[0].split("`")[1::2]): tuple(row[1].split("`")[1::2]) for row in re.findall(r"^\| (`.*) \| (`.*) \|$", TABLE, re.M)}


def test_the_table_of_other_tools_names_is_complete() -> None:
    assert {" ".join(keys): " ".join(aliases) for keys, aliases in NAMES.items()} == ALIASES
    aliases = [alias for row in NAMES.values() for alias in row]
    assert len(aliases) == len(set(aliases))  # each is in one line
    known = {*dotted_keys(RunConfig), *dotted_keys(SftConfig), "dtype"}
    options = {f"{kind}.{name}" for kind in ("planner", "policy") for name in ("model", "attention", "dtype")}
    options |= {"renderer.dtype", "algorithm.kl"}
    assert [key for keys in NAMES for key in keys if key not in known | options] == []


def test_the_table_of_names_without_a_key_is_complete() -> None:
    rows = re.findall(r"^\| (`.*) \| ((?!`\w+`)\S.*) \|$", TABLE, re.M)
    assert {advice: " ".join(names.split("`")[1::2]) for names, advice in rows} == ADVICE
    for advice, names in ADVICE.items():
        for name in names.split():
            assert refused({**LEAST, name: 1}).hint == advice


@pytest.mark.parametrize("keys", NAMES, ids="-".join)
def test_another_tools_name_leads_to_the_key(keys: tuple[str, ...]) -> None:
    for alias in NAMES[keys]:
        for model, least in ((RunConfig, LEAST), (SftConfig, {"policy": "toy", "data": "toy"})):
            known = dotted_keys(model)
            expected = " or ".join(key for key in keys if key in known or key.rpartition(".")[0] in known)
            if expected and alias not in known:
                assert refused(merge(least, {alias: 1}), model).hint == f"did you mean {expected}?"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("optimizer.lr=1", "optimizer.learning_rate"),
        ("optimizer.LR=1", "optimizer.learning_rate"),
        ("renderer_optimizer.lr=1", "renderer_optimizer.learning_rate"),
        ("evaluation.sampling.cfg-weight=1", "evaluation.sampling.guidance_scale"),
        ("evaluation.batch_size=1", "evaluation.batch"),
        ("segments.image.beta=1", "segments.image.kl"),
        ("segments.beta=1", "segments.plan.kl or segments.image.kl"),
        ("optimizer.clip=1", "optimizer.max_grad_norm"),
        ("actor_rollout_ref.rollout.n=8", "plans"),
        ("actor.optim.lr=1", "optimizer.learning_rate"),
        ("sample.num_steps=10", "sampling.denoising_steps"),
        ("train.learning_rate=1", "optimizer.learning_rate"),
        ("trainer.seed=1", "seed"),
    ],
)
def test_another_tools_name_is_understood_at_any_level(word: str, hint: str) -> None:
    assert refused(merge(LEAST, parse_overrides([word]))).hint == f"did you mean {hint}?"


def test_a_key_of_the_run_among_a_components_options() -> None:
    registry = Registry()
    for kind, name, options, hint in (
        ("algorithm", "grpo", {"epsilon": 0.1}, "segments.plan.clip_low"),
        ("algorithm", "grpo", {"beta": 0.1}, "segments.plan.kl"),  # not algorithm.kl, which is an estimator
        ("renderer", "janus", {"guidance_scale": 5}, "sampling.guidance_scale"),
        ("planner", "qwen", {"lora": True}, "lora"),
        ("planner", "qwen", {"torch_dtype": "auto"}, "planner.dtype"),
        ("planner", "qwen", {"model_name_or_path": "x"}, "planner.model"),
        ("judge", "internvl", {"batch_size": 3}, "judge.batch"),
    ):
        with pytest.raises(UsageError) as caught:
            options_of(registry.find(kind, name).component, options)  # type: ignore[arg-type]
        assert caught.value.hint == f"did you mean {hint}?"


@pytest.mark.parametrize("name", ["zzz", "max_prompt_length", "adam_epsilon", "torch_compile", "use_vllm", "ddp_timeout", "snr_gamma"])
def test_an_unknown_key_like_no_other_has_a_hint_too(name: str) -> None:
    """A key that is only a little like another is not suggested."""
    assert refused({**LEAST, name: 1}).hint == "see `gotr1 config schema`"


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("steps=many", "steps: "),
        ("steps=0", "steps: "),
        ("steps=1.5", "steps: "),
        ("train=all", "'planner', 'renderer' or 'both', not 'all'"),
        ("sampling=3", "sampling: "),
        ("sampling.temperature=-1", "sampling.temperature: "),
        ("sampling.temperature=nan", "sampling.temperature: "),
        ("sampling.temperature=1e-300", "sampling.temperature: 1e-300 is too close to 0"),  # logits / 1e-300 is infinite
        ("sampling.image_temperature=0.001", "sampling.image_temperature: 0.001 is too close to 0"),
        ("sampling.temperature=1e300", "sampling.temperature: "),
        ("sampling.guidance_scale=1e300", "sampling.guidance_scale: "),
        ("optimizer.betas=[0.9]", "optimizer.betas.1: "),
        ("optimizer.betas=[1, 1]", "optimizer.betas.0: "),
        ("planner=3", "planner: "),
        ("judge=[1]", "judge.0: "),
        ("lora.rank=0", "lora.rank: "),
        ("prompts.held_out=0", "prompts.held_out"),
        ("prompts.held_out=-1", "prompts.held_out"),
        ("evaluation.every=-1", "evaluation.every: "),
        ("nan_limit=2", "nan_limit: "),
        ("1=2", "unknown key 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(word: str, part: str) -> None:
    assert part in refused(merge(LEAST, parse_overrides([word]))).message


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (RunConfig, {"prompts": {"held_out": 0}}, "prompts.held_out: Input should be greater than 0, not 0"),
        (RunConfig, {"lora": {"targets": [1]}}, "lora.targets.0: Input should be a valid string, not 1"),
        (RunConfig, {"lora": {"targets": 3}}, "lora.targets: Input should be a valid list, not 3"),
        (RunConfig, {"judge": 3}, "judge: Input should be a name, or a mapping with a name, not 3"),
        (RunConfig, {"judge": {"x": 1}}, "judge.name: Field required"),
        (RunConfig, {"sampling": 3}, "sampling: Input should be a mapping of keys to values, not 3"),
        (RunConfig, {"steps": ["x" * 200]}, f"steps: Input should be a valid integer, not ['{'x' * 97}…"),
        (SftConfig, {"data": 3}, "data: Input should be a name, or a mapping with a name, not 3"),
        (SftConfig, {"data": {"x": 1}}, "data.name: Field required"),
        (SftConfig, {"data": "x", "weights": {"plam": 1}}, "weights.plam: Input should be 'plan' or 'image', not 'plam'"),
    ],
)
def test_an_error_names_its_place_in_the_config_and_no_other(model: Any, data: dict[str, Any], message: str) -> None:
    """pydantic also names members of a union and classes. The error does not."""
    error = refused({**(LEAST if model is RunConfig else {"policy": "x"}), **data}, model)
    assert error.message == message
    assert error.hint == ("see `gotr1 config schema`" if model is RunConfig else "see `gotr1 config schema --stage sft`")


@pytest.mark.parametrize("word", ["mixed_precision=no", 'mixed_precision="no"'])
def test_no_mixed_precision_can_be_said(word: str) -> None:
    assert validate(RunConfig, LEAST | parse_overrides([word])).mixed_precision == "no"


@pytest.mark.parametrize("said", ["no", "off", "yes", "on", "No", "y"])
def test_words_are_texts_and_where_a_switch_is_asked_for_they_switch(said: str) -> None:
    assert parse_overrides([f"name={said}"]) == {"name": said}
    assert validate(RunConfig, LEAST | parse_overrides([f"name={said}"])).name == said
    assert validate(RunConfig, LEAST | parse_overrides([f"prune={said}"])).prune == (said in ("yes", "on", "y"))
    assert parse_overrides(["prune=false", "shard=True"]) == {"prune": False, "shard": True}


def test_what_is_missing_is_named() -> None:
    assert refused({}).message == "the config names no planner"
    assert refused({"planner": "toy", "judge": "toy"}).message == "the config names no renderer"
    assert refused({**LEAST, "planner": {"model": "x"}}).message == "planner.name: Field required"


def test_keys_are_those_of_the_model() -> None:
    found = dotted_keys(RunConfig)
    assert {
        "planner",
        "segments.image.clip_high",
        "lora.rank",
        "renderer_optimizer.learning_rate",
        "evaluation.sampling.temperature",
    } <= set(found)
    assert len(found) == len(set(found))


# -- files ------------------------------------------------------------------------------------------------------------------


def test_here_is_the_files_own_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a: b #c"  # which YAML would read otherwise, were it put in before reading
    folder.mkdir()
    file = folder / "run.yaml"
    file.write_text("planner: {name: toy, model: '${HERE}/weights'}\nall: ['${HERE}', 3]\n# ${HERE}\n")
    assert read_yaml(file) == {"planner": {"name": "toy", "model": f"{folder}/weights"}, "all": [str(folder), 3]}


def test_numbers_read_alike_in_files_and_words(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("\ufefflearning_rate: 1e-4\nname: 2026-01-02\nquoted: '1e-4'\n", encoding="utf-8")
    assert read_yaml(file) == {"learning_rate": 1e-4, "name": "2026-01-02", "quoted": "1e-4"}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"\x89PNG\r\n\x1a\n\0\xff", "is not YAML"),
        (b"a: b\0", "is not YAML"),
        (b"a: [1, 2\n", "is not YAML"),
        (b"a: 0x_\n", "is not YAML"),
        (b"[" * 5000, "is not YAML"),
        (b"steps: 3\nseed: 1\n'steps': 4\n", "is not YAML: the key 'steps' is there twice, line 3"),
        (b"a: &a {x: 1}\nb: {<<: *a, y: {x: 1, y: 2, x: 3}}\n", "the key 'x' is there twice, line 2"),
        (b"caf\xe9: 1", "is not YAML: it is not UTF-8 text"),
        (b"!!python/object/apply:os.system ['true']", "is not YAML"),  # and is not run
        (b"", "is not a mapping"),
        (b"- a\n- b\n", "is not a mapping"),
        (b"just text", "is not a mapping"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes, part: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=part) as caught:
        read_yaml(file)
    assert str(file) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_key_overrides_a_merged_one(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\nd: *b\n")
    assert read_yaml(file) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 3, "y": 4}, "d": {"x": 3, "y": 2}}


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="Is a directory"):
        read_yaml(tmp_path)


# -- as JSON Schema ---------------------------------------------------------------------------------------------------------


def test_the_schema_allows_what_a_config_may_say() -> None:
    """Bare names, one judge or several, options of the default algorithm: all that the model converts before it validates."""
    schema = RunConfig.model_json_schema()
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["planner", "renderer", "judge"]
    properties = schema["properties"]
    assert {kind["type"] for kind in properties["planner"]["anyOf"]} == {"string", "object"}
    assert {kind["type"] for kind in properties["judge"]["anyOf"]} == {"string", "object", "array"}
    assert all("required" not in kind for kind in properties["algorithm"]["anyOf"])
    assert properties["steps"].items() >= {"default": 1000, "exclusiveMinimum": 0, "title": "Steps", "type": "integer"}.items()
    assert properties.keys() == RunConfig.model_fields.keys()
    assert {kind["type"] for kind in SftConfig.model_json_schema()["properties"]["data"]["anyOf"]} == {"string", "object"}


# -- there and back ---------------------------------------------------------------------------------------------------------

WORDS = [
    "planner={name: toy, model: /weights, instruction: '{prompt}', nested: {a: [1, null]}}",
    "judge=[one, {name: two, rate: 1e-4}]",
    "optimizer.learning_rate=1e-7",
    "optimizer.betas=[0.9, 0.99]",
    "prompts.file=mine.txt",
    "prompts.held_out=held.jsonl",
    "evaluation.sampling.guidance_scale=1",
    "lora.targets=[q_proj, v_proj]",
    "renderer_optimizer.learning_rate=2e-5",
    "name='ünï: #1'",
]


def test_a_dumped_config_reads_back_equal(tmp_path: Path) -> None:
    for words in ([], WORDS, ["lora=null"]):
        config = validate(RunConfig, merge(LEAST, parse_overrides(words)))
        file = tmp_path / "config.yaml"
        file.write_text(dump(config), encoding="utf-8")
        assert validate(RunConfig, read_yaml(file)) == config
    assert validate(RunConfig, LEAST) != validate(RunConfig, merge(LEAST, parse_overrides(["steps=3"])))


def test_a_dumped_sft_config_reads_back_equal() -> None:
    for data in ("pairs.jsonl", "scenes", {"name": "scenes", "noise": 0.1}):
        config = validate(SftConfig, {"policy": "toy", "data": data})
        assert isinstance(config.data, Path) == (data == "pairs.jsonl")
        assert validate(SftConfig, yaml.safe_load(dump(config))) == config


def test_components_are_names_with_options() -> None:
    config = validate(RunConfig, {**LEAST, "judge": ["one", {"name": "two", "x": 1}]})
    assert config.planner == ComponentConfig(name="toy")
    assert [(judge.name, judge.options) for judge in config.judge] == [("one", {}), ("two", {"x": 1})]


def test_an_option_of_the_default_algorithm_needs_no_name() -> None:
    assert validate(RunConfig, {**LEAST, "algorithm": {"ratio": "token"}}).algorithm == ComponentConfig(name="grpo", ratio="token")
    assert validate(RunConfig, {**LEAST, "algorithm": "ppo"}).algorithm == ComponentConfig(name="ppo")


def test_defaults_are_the_papers() -> None:
    """The training recipe of the GoT-R1 paper."""
    config = validate(RunConfig, LEAST)
    assert (config.steps, config.groups, config.plans, config.images) == (1000, 8, 16, 1)
    assert (config.optimizer.learning_rate, config.optimizer.schedule) == (1e-5, "cosine")
    assert config.lora is not None
    assert (config.lora.rank, config.lora.alpha) == (32, 32)
    assert (config.sampling.temperature, config.sampling.image_temperature, config.sampling.guidance_scale) == (1, 1, 5)
    assert config.algorithm.name == "grpo"
