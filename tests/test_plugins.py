"""Plugins: found by entry points; broken ones are isolated; names become components."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Never, cast

import pytest
from pydantic import BaseModel, ConfigDict, Field

from gotr1_core.components.build import component_class, make_component
from gotr1_core.config.models import ComponentConfig
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.hookspecs import Component, hookimpl
from gotr1_core.plugins import Provided, Registry, options_of


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    threshold: float = Field(0.5, ge=0)
    limit: int = 3


class Judge:
    rewards: Mapping[str, str] = {"yes": "plan"}
    score = print

    def __init__(self, options: Options | None) -> None:
        self.options = options


def judge(name: str = "toy", options: str | None = f"{__name__}:Options", kind: Any = "judge") -> Component:
    return Component(kind, name, f"{__name__}:Judge", options, "says yes")


class Plugin:
    """Registers components, and records finished steps."""

    def __init__(self, *components: Any) -> None:
        self.components = components
        self.steps: list[int] = []

    @hookimpl
    def gotr1_components(self) -> Iterator[Any]:
        yield from self.components

    @hookimpl
    def gotr1_step_finished(self, step: int) -> None:
        self.steps.append(step)


@dataclass
class Point:
    """The part of an entry point that the registry uses."""

    name: str
    load: Callable[[], object]
    distribution: str = "gotr1-toy"

    @property
    def dist(self) -> SimpleNamespace:
        return SimpleNamespace(name=self.distribution, version="1.2")


def registry(*points: Point) -> Registry:
    return Registry(cast("list[EntryPoint]", points))


def providing(*components: Any, name: str = "toy", distribution: str = "gotr1-toy") -> Point:
    return Point(name, lambda: Plugin(*components), distribution)


def raising(error: BaseException) -> Callable[[], object]:
    def load() -> object:
        raise error

    return load


# -- discovery --------------------------------------------------------------------------------------------------------------


def test_the_projects_own_plugins_are_found() -> None:
    found = {(p.component.kind, p.component.name, p.distribution) for p in Registry().provided}
    assert {
        ("planner", "janus", "gotr1-janus"),
        ("renderer", "janus", "gotr1-janus"),
        ("algorithm", "grpo", "gotr1-rl"),
        ("judge", "scenes", "gotr1-scenes"),
        ("source", "scenes", "gotr1-scenes"),
        ("benchmark", "scenes", "gotr1-scenes"),
        ("preset", "scenes", "gotr1-scenes"),
    } <= found
    assert Registry().broken == []


def test_a_plugin_may_be_a_module_or_an_object_and_a_distribution_may_have_two() -> None:
    module = SimpleNamespace(gotr1_components=hookimpl(lambda: [judge("from-module")]))
    found = registry(Point("one", lambda: module), providing(judge("from-object"), name="two"))
    assert [p.component.name for p in found.of_kind("judge")] == ["from-module", "from-object"]
    assert found.broken == []
    assert found.provided[0] == Provided(judge("from-module"), "gotr1-toy", "1.2")


def test_a_plugin_without_components_may_listen() -> None:
    plugin = SimpleNamespace(seen=[])
    plugin.gotr1_step_finished = hookimpl(lambda run, step, metrics: plugin.seen.append((run, step, metrics)))
    found = registry(Point("tracker", lambda: plugin))
    found.manager.hook.gotr1_step_finished(run=Path("r"), step=3, metrics={}, samples=[])
    assert plugin.seen == [(Path("r"), 3, {})]


# -- broken ones ------------------------------------------------------------------------------------------------------------


class Misspelt(Plugin):
    @hookimpl
    def gotr1_componets(self) -> list[Component]:
        return []


class WrongArguments(Plugin):
    @hookimpl
    def gotr1_run_finished(self, rune: Path) -> None:
        """The parameter ``rune`` does not exist."""


class Raising(Plugin):
    @hookimpl
    def gotr1_components(self) -> Iterator[Any]:
        yield judge("half")
        raise RuntimeError("no\n  more")


class Unmarked:
    def gotr1_run_started(self, run: Path) -> None:
        """Nobody would call it."""


class Wordy:
    @hookimpl
    def gotr1_components(self) -> list[Component]:
        return [Component("judge", "toy", f"{__name__}:Judge", sumary="says yes")]  # type: ignore[call-arg]


BROKEN: dict[str, tuple[Callable[[], object], str]] = {
    "import": (raising(ImportError("no module named nothing")), "ImportError: no module named nothing"),
    "syntax": (raising(SyntaxError("invalid")), "SyntaxError: invalid"),
    "exit": (raising(SystemExit(3)), "SystemExit: 3"),
    "midway": (lambda: Raising(judge()), "RuntimeError: no more"),  # in one line
    "nonsense": (lambda: Plugin(judge("half"), "a judge"), f"registers 'a judge', which is no Component ({__file__}:"),
    "kind": (lambda: Plugin(judge(kind="juge")), "registers the juge 'toy' with kind='juge'; did you mean 'judge'? kinds: planner, "),
    "name": (lambda: Plugin(judge(name=cast("str", None))), "registers the judge None with name=None, which is no text"),
    "empty name": (
        lambda: Plugin(judge(name=" ")),
        "registers the judge ' ' with name=' '; a name has letters",
    ),
    "a name that no key can have": (
        lambda: Plugin(judge(name="a.b=c")),
        "registers the judge 'a.b=c' with name='a.b=c'; a",
    ),
    "a name that a terminal obeys": (
        lambda: Plugin(judge(name="a\x1b[31m")),
        r"registers the judge 'a\x1b[31m' with name=",
    ),
    "target": (
        lambda: Plugin(Component("judge", "toy", "package.module.Judge")),
        "registers the judge 'toy' with target='package.module.Judge'; did you mean 'package.module:Judge'? write module:name",
    ),
    "bare target": (lambda: Plugin(Component("judge", "toy", "Judge")), "registers the judge 'toy' with target='Judge'; write module:name"),
    "options": (
        lambda: Plugin(judge(options="package.module.Options")),
        "registers the judge 'toy' with options='package.module.Options'; did you mean 'package.module:Options'? write module:name",
    ),
    "preset": (
        lambda: Plugin(Component("preset", "toy", "package/toy.yaml")),
        "registers the preset 'toy' with target='package/toy.yaml'; did you mean 'package:toy.yaml'? write package:path/to/file.yaml",
    ),
    "a preset that is no YAML file": (
        lambda: Plugin(Component("preset", "toy", "package:Toy")),
        "registers the preset 'toy' with target='package:Toy', which is no YAML file in the package; write package:path/to/file.yaml",
    ),
    "a preset outside its package": (
        lambda: Plugin(Component("preset", "toy", "package:../toy.yaml")),
        "registers the preset 'toy' with target='package:../toy.yaml', which is no YAML file in the package; write",
    ),
    "keyword": (lambda: Wordy(), "TypeError: Component.__init__() got an unexpected keyword argument 'sumary'"),
    "twice": (lambda: Plugin(judge(), judge()), "registers the judge 'toy' twice"),
    "none": (lambda: SimpleNamespace(gotr1_components=lambda: 3), "gotr1_components returned 3; expected Components"),
    "misspelt": (lambda: Misspelt(judge()), f"there is no hook gotr1_componets; did you mean 'gotr1_components'? ({__file__}:"),
    "nothing like it": (
        lambda: SimpleNamespace(gotr1_xyz123=hookimpl(lambda: 3)),
        "there is no hook gotr1_xyz123; hooks: gotr1_components, gotr1_commands",
    ),
    "arguments": (
        lambda: WrongArguments(judge()),
        "the hook gotr1_run_finished takes 'rune'; did you mean 'run'? arguments: run, outcome, summary (",
    ),
    "no mark": (lambda: Unmarked(), "the hook gotr1_run_started is not marked with @hookimpl ("),
}


@pytest.mark.parametrize(("load", "error"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_gives_one_line_and_stops_no_other(
    load: Callable[[], object], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: list[object] = []

    def keep() -> object:
        kept.append(load())
        return kept[-1]

    found = registry(Point("a-bad", keep, "gotr1-bad"), providing(judge("good"), name="b-good"))
    [broken] = found.broken
    assert (broken.name, broken.distribution) == ("a-bad", "gotr1-bad")
    assert broken.error.startswith(error)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"warning: plugin a-bad of gotr1-bad does not load: {broken.error}\n"
    # Nothing of it is left, not even what came before the mistake.
    assert [p.component.name for p in found.provided] == ["good"]
    found.manager.hook.gotr1_step_finished(run=Path(), step=1, metrics={}, samples=[])
    assert not [step for plugin in kept for step in getattr(plugin, "steps", [])]


def interrupted() -> Never:
    signal.raise_signal(signal.SIGINT)
    raise AssertionError("the signal did not arrive")


def test_ctrl_c_is_no_broken_plugin() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            registry(Point("slow", interrupted))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_plugin_that_raises_as_ctrl_c_does_is_broken() -> None:
    (broken,) = registry(Point("odd", raising(KeyboardInterrupt()))).broken
    assert "KeyboardInterrupt" in broken.error


# -- what the environment lets load -----------------------------------------------------------------------------------------


THREE = [
    providing(judge("a"), name="alpha", distribution="gotr1-one"),
    providing(judge("b"), name="beta", distribution="gotr1_one"),
    providing(judge("c"), name="gamma", distribution="gotr1-two"),
]


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({}, "abc"),
        ({"GOTR1_PLUGINS": "beta"}, "b"),
        ({"GOTR1_PLUGINS": " beta, gamma ,"}, "bc"),
        ({"GOTR1_PLUGINS": "gotr1-one"}, "ab"),  # all of a distribution, however its name is written
        ({"GOTR1_PLUGINS": "GOTR1_One,gotr1-two"}, "abc"),
        ({"GOTR1_PLUGINS": ""}, ""),
        ({"GOTR1_PLUGINS": ","}, ""),
        ({"GOTR1_DISABLE_PLUGINS": "gotr1-one"}, "c"),
        ({"GOTR1_DISABLE_PLUGINS": ""}, "abc"),
        ({"GOTR1_PLUGINS": "gotr1-one", "GOTR1_DISABLE_PLUGINS": "alpha"}, "b"),
        ({"GOTR1_PLUGINS": "gotr1-one", "GOTR1_DISABLE_PLUGINS": "gamma"}, "ab"),
    ],
)
def test_the_environment_says_what_loads(variables: dict[str, str], names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert "".join(p.component.name for p in registry(*THREE).provided) == names


@pytest.mark.parametrize("variable", ["GOTR1_PLUGINS", "GOTR1_DISABLE_PLUGINS"])
def test_the_environment_names_what_is_installed(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "alpha,gama")
    with pytest.raises(UsageError) as caught:
        registry(*THREE)
    assert caught.value.message == f"{variable} names 'gama', which is not installed"
    assert caught.value.hint == "did you mean 'gamma'? installed: alpha, beta, gamma, gotr1-one, gotr1-two"
    with pytest.raises(UsageError) as caught:
        registry()
    assert caught.value.hint == "installed: none"


def test_a_disabled_plugin_is_not_imported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GOTR1_DISABLE_PLUGINS", "bad")
    found = registry(Point("bad", raising(ImportError("no"))), *THREE)
    assert (len(found.provided), found.broken) == (3, [])
    assert capsys.readouterr().err == ""


def test_with_strict_plugins_a_broken_plugin_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bad = Point("bad", raising(ImportError("no\nmore")), "gotr1-bad")
    for value in ("", "0"):
        monkeypatch.setenv("GOTR1_STRICT_PLUGINS", value)
        assert len(registry(bad).broken) == 1
    monkeypatch.setenv("GOTR1_STRICT_PLUGINS", "1")
    capsys.readouterr()
    with pytest.raises(Gotr1Error) as caught:
        registry(bad, *THREE)
    assert caught.value.message.startswith(f"plugin bad of gotr1-bad does not load: ImportError: no more ({__file__}:")
    assert caught.value.hint == "mend it, or leave it out: GOTR1_DISABLE_PLUGINS=bad"
    assert caught.value.code == 1
    assert capsys.readouterr().err == ""
    assert len(registry(*THREE).provided) == 3
    monkeypatch.setenv("GOTR1_STRICT_PLUGINS", "yes")
    with pytest.raises(UsageError, match="GOTR1_STRICT_PLUGINS is 'yes'"):
        registry()


# -- names ------------------------------------------------------------------------------------------------------------------


def test_two_plugins_may_claim_a_name() -> None:
    found = registry(
        providing(judge("same"), name="a", distribution="gotr1-one"), providing(judge("same"), name="b", distribution="gotr1-two")
    )
    with pytest.raises(UsageError, match="more than one plugin provides the judge 'same'") as caught:
        found.find("judge", "same")
    assert caught.value.hint == "say gotr1-one:same or gotr1-two:same"
    assert found.find("judge", "gotr1-one:same").distribution == "gotr1-one"
    assert found.find("judge", "gotr1-two:same").distribution == "gotr1-two"


def test_kinds_do_not_claim_each_others_names() -> None:
    found = registry(providing(judge("same"), judge("same", kind="planner")))
    assert found.find("judge", "same").component.kind == "judge"
    assert found.find("planner", "same").component.kind == "planner"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("detectr", "did you mean 'detector'? known: detector, hps"),
        ("other:detector", "did you mean 'detector'? known: detector, hps"),
        ("zzz", "known: detector, hps"),
        ("", "known: detector, hps"),
    ],
)
def test_an_unknown_name_names_the_nearest(name: str, hint: str) -> None:
    found = registry(providing(judge("hps"), judge("detector")))
    with pytest.raises(UsageError, match="there is no judge") as caught:
        found.find("judge", name)
    assert caught.value.hint == hint
    assert repr(name) in caught.value.message


def test_where_there_is_nothing_the_hint_says_so() -> None:
    with pytest.raises(UsageError) as caught:
        registry().find("benchmark", "scenes")
    assert caught.value.hint == "known: none; install a plugin"


# -- components and their options -------------------------------------------------------------------------------------------


def test_a_component_is_called_with_its_options() -> None:
    found = registry(providing(judge(), judge("bare", options=None)))
    made = make_component(found, "judge", ComponentConfig(name="toy", threshold=0.25))
    assert isinstance(made, Judge)
    assert made.options == Options(threshold=0.25)
    assert make_component(found, "judge", ComponentConfig(name="bare")).options is None


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"treshold": 1}, "unknown key judge.treshold", "did you mean judge.threshold?"),
        ({"zzz": 1}, "unknown key judge.zzz", "see `gotr1 show judge toy`"),
        ({"threshold": "high"}, "judge.threshold: Input should be a valid number, unable to parse string as a number, not 'high'", "see "),
        ({"threshold": -1}, "judge.threshold: Input should be greater than or equal to 0, not -1", "see "),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        options_of(judge(), options)
    assert caught.value.message == message
    assert (caught.value.hint or "").startswith(hint)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inner: Options | None = None
    several: list[Options] = []


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"inner": {"treshold": 1}}, "unknown key judge.inner.treshold", "did you mean judge.inner.threshold?"),
        ({"threshold": 1}, "unknown key judge.threshold", "did you mean judge.inner.threshold?"),  # the right key in the wrong place
        ({"iner": {}}, "unknown key judge.iner", "did you mean judge.inner?"),
        ({"inner": {"limit": "x"}}, "judge.inner.limit: Input should be a valid integer, unable", "see `gotr1 show judge toy`"),
        ({"several": [{}, {"limit": 1.5}]}, "judge.several.1.limit: Input should be a valid integer", "see `gotr1 show judge toy`"),
    ],
)
def test_wrong_options_further_down_are_named(options: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        options_of(judge(options=f"{__name__}:Outer"), options)
    assert caught.value.message.startswith(message)
    assert caught.value.hint == hint


def test_options_of_what_has_none_are_refused() -> None:
    with pytest.raises(UsageError, match="judge 'toy' has no options, but threshold was given"):
        options_of(judge(options=None), {"threshold": 1})
    assert options_of(judge(options=None), {}) is None


@pytest.mark.parametrize("target", ["gotr1_nothing.judge:Judge", f"{__name__}:Nothing", "gotr1_exits:Judge"])
def test_a_target_that_does_not_exist_is_reported(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gotr1_exits.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    found = registry(providing(Component("judge", "toy", target)))
    with pytest.raises(Gotr1Error, match="cannot be") as caught:
        make_component(found, "judge", ComponentConfig(name="toy"))
    assert caught.value.code == 1  # the plugin's fault, not the user's
    assert "install" in (caught.value.hint or "")


def test_a_preset_is_a_file_of_its_package() -> None:
    path = Registry().preset("scenes")
    assert path.is_file()
    assert path.suffix == ".yaml"
    with pytest.raises(UsageError, match="there is no preset 'scene'"):
        Registry().preset("scene")


class Plain:
    """Options that are no pydantic model."""


class Crashing(BaseModel):
    """Options whose own check has a mistake."""

    threshold: float = 0.5

    def model_post_init(self, context: Any) -> None:
        raise KeyError("q")


MADE = Judge(None)


def test_options_that_are_no_pydantic_model() -> None:
    with pytest.raises(Gotr1Error) as caught:
        options_of(judge(options=f"{__name__}:Plain"), {})
    assert caught.value.message == f"the judge 'toy' has options='{__name__}:Plain', which is no class of pydantic"
    assert (caught.value.hint or "").startswith(f"see {__file__}:")


def test_options_whose_own_check_crashes() -> None:
    """The line is that of the plugin, not pydantic's."""
    with pytest.raises(Gotr1Error) as caught:
        options_of(judge(options=f"{__name__}:Crashing"), {})
    package = __name__.partition(".")[0]
    assert caught.value.message == f"the judge 'toy' of {package} failed in model_validate(): KeyError: 'q'"
    line = inspect.getsourcelines(Crashing.model_post_init)[1] + 1
    assert (caught.value.hint or "").startswith(f"see {__file__}:{line};")


def test_a_target_that_is_an_object_and_no_class() -> None:
    found = registry(providing(Component("judge", "toy", f"{__name__}:MADE")))
    with pytest.raises(Gotr1Error, match=r"has target='.*:MADE', which is no class"):
        component_class(found.find("judge", "toy"))
