"""Chat templates of checkpoints by others: they mean the same as in transformers, and cannot take all time or memory."""

from __future__ import annotations

import resource
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from structure import ROOT

from gotr1_core.cli.main import call
from gotr1_core.errors import UsageError
from gotr1_core.policies import chat_template
from gotr1_core.policies.chat_template import fill_template
from gotr1_core.policies.pretrained import load_pretrained

WEIGHTS = ROOT / "plugins/gotr1-scenes/src/gotr1_scenes/weights"
MESSAGES = [{"role": "user", "content": "a \ue000 cät\n"}, {"role": "assistant", "content": "<b> & 'c'"}]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
DOUBLING = "{% set n = namespace(x='x') %}{% for _ in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
HOSTILE = {
    "loops": (LOOP, "it takes more than 5 seconds of processor time"),
    "a power without end": ("{{ 10 ** (10 ** 10) }}", "it "),
    "a text of gigabytes": ("{{ 'x' * 10 ** 11 }}", "it takes too much memory"),
    "a text that doubles": (DOUBLING, "it takes too much memory"),
    "a format of gigabytes": ("{{ '%99999999999d' % 1 }}", ""),
    "a centred text": ("{{ 'x' | center(10 ** 11) }}", "it takes too much memory"),
    "output without end": ("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "it writes more than 1000000 characters"),
    "nested too deeply": ("{{ " + "(" * 50_000 + ")" * 50_000 + " }}", ""),
    "a macro that calls itself": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "maximum recursion depth exceeded"),
    "Python's classes": ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
    "a namespace of Python's names": ("{% set n = namespace(__init__=1) %}", "a namespace has no name '__init__'"),
    "half of a surrogate pair": ("{{ 'x\\ud800' }}", "it writes half of a surrogate pair"),
    "its own error": ("{{ raise_exception('no system\nprompt') }}", "no system"),
    "not a template": ("{% if %}", "Expected an expression, got 'end of statement block'"),
}
FEATURES = [
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ m.content | trim | tojson }}{% endfor %}",
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n  {% continue %}\n  {% endif %}\n-{% break %}\n{% endfor %}",
    "{% set n = namespace(a=1) %}{% for m in messages %}{% set n.a = n.a + 1 %}{% endfor %}{{ n.a }}{{ tools is none }}{{ documents }}",
    "{% for m in messages %}{% generation %}{% set x = 1 %}{{ m.content }}{% endgeneration %}{{ x }}{% endfor %}{{ enable_thinking }}",
    "{{ messages | tojson(indent=2) }}{{ strftime_now('%Y') }}{% if add_generation_prompt %}now{% endif %}{{ eos_token }}{{ nothing }}",
    "{{ dict(a=1).items() | list }}{{ messages[-1]['content'].split('&')[1].strip() }}{{ '%s' | format('x') }}{{ pad_token | upper }}",
]


@pytest.fixture
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return load_pretrained(AutoTokenizer, WEIGHTS / "janus")


@pytest.mark.parametrize("template", FEATURES)
def test_a_template_means_the_same_as_in_transformers(template: str, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    for prompt in (True, False):
        theirs = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=prompt, tokenize=False, enable_thinking=False)
        assert fill_template(tokenizer, MESSAGES, add_generation_prompt=prompt, enable_thinking=False) == theirs


@pytest.mark.parametrize("kind", ["janus", "qwen", "internvl"])
def test_shipped_templates_mean_the_same(kind: str) -> None:
    from transformers import AutoTokenizer

    shipped = load_pretrained(AutoTokenizer, WEIGHTS / kind)
    messages = [{"role": "user", "content": "a \ue000" if kind == "qwen" else [{"type": "text", "text": "a \ue000"}]}]
    theirs = shipped.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert fill_template(shipped, messages, add_generation_prompt=True) == theirs


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused(name: str, tokenizer: Any) -> None:
    template, reason = HOSTILE[name]
    tokenizer.chat_template = template
    started, memory = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError) as caught:
        fill_template(tokenizer, MESSAGES, add_generation_prompt=True)
    assert caught.value.message.startswith(f"the chat template cannot be filled in: {reason}")
    assert "\n" not in caught.value.message
    assert caught.value.hint == "give the checkpoint's own chat template"
    assert time.perf_counter() - started < chat_template.DEADLINE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000  # kilobytes of this process


def test_the_deadline_holds_where_processor_time_is_not_counted(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 1000)
    monkeypatch.setattr(chat_template, "DEADLINE", 2.0)
    tokenizer.chat_template = LOOP
    with pytest.raises(UsageError, match="was not filled in within 2 seconds") as caught:
        fill_template(tokenizer, MESSAGES, add_generation_prompt=True)
    assert caught.value.hint == "try again when the machine is less busy, or give the checkpoint's own chat template"


def test_a_template_that_met_a_busy_machine_is_tried_again(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.chat_template = "a busy machine"
    run = subprocess.run

    def busy(*words: Any, **settings: Any) -> Any:
        raise subprocess.TimeoutExpired("python", settings["timeout"])

    monkeypatch.setattr(subprocess, "run", busy)
    with pytest.raises(UsageError, match="was not filled in within 60 seconds"):
        fill_template(tokenizer, MESSAGES, add_generation_prompt=True)
    monkeypatch.setattr(subprocess, "run", run)
    assert fill_template(tokenizer, MESSAGES, add_generation_prompt=True) == "a busy machine"


def test_several_templates_without_a_default(tokenizer: Any) -> None:
    tokenizer.chat_template = {"a": "x", "b": "y"}
    with pytest.raises(UsageError, match=r"^the chat template cannot be chosen: "):
        fill_template(tokenizer, MESSAGES, add_generation_prompt=True)


@pytest.mark.parametrize(("kind", "role"), [("janus", "planner"), ("qwen", "planner"), ("internvl", "judge")])
def test_every_component_refuses_it_in_two_lines(kind: str, role: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Path(shutil.copytree(WEIGHTS / kind, tmp_path / kind))
    (model / "chat_template.jinja").write_text("{{ 'x' * 10 ** 11 }}")
    for command in (["train", "--dry-run"], ["train"]):
        words = [*command, "--preset", "scenes", f"--{role}", kind, f"{role}.model={model}", f"output={tmp_path}"]
        assert call([word.replace("judge.model", "judge.internvl.model") for word in words]) == 2
        error, hint = capsys.readouterr().err.splitlines()
        assert error == "error: the chat template cannot be filled in: it takes too much memory"
        assert hint == "hint: give the checkpoint's own chat template"
