"""Fills in the chat template of a checkpoint, in a process of its own that cannot take all time or memory."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from gotr1_core.errors import UsageError

SECONDS, MEMORY, CHARACTERS = 5, 2**30, 1_000_000
"""What a template may take: seconds of processor time, bytes of memory, characters of text."""
DEADLINE = 60.0
"""Seconds after which the process is ended, its start included: on a busy machine, or where the system counts no processor time."""
HALF_PAIR = re.compile("[\ud800-\udfff]")
_PROGRAM = Path(__file__).with_name("render_template.py")
_HINT = "give the checkpoint's own chat template"


def fill_template(tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **variables: Any) -> str:
    """Returns a conversation as text, as ``tokenizer.apply_chat_template`` does it. One that was filled in before is remembered.

    Args:
        tokenizer: of transformers. Its template and its special tokens are used.
        messages: the conversation: mappings with ``role`` and ``content``.
        add_generation_prompt: True to end the text where the model begins to write.
        variables: further variables of the template.

    Raises:
        UsageError: there is no template, it is wrong or raises an error, or it takes more time, memory or text than is allowed.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise UsageError(f"the chat template cannot be chosen: {error}", hint=_HINT) from error
    given = {
        **{name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        **variables,
        "messages": messages,
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    limits = {"seconds": SECONDS, "memory": MEMORY, "characters": CHARACTERS}
    answer = json.loads(_run(json.dumps({"template": template, "variables": given, "limits": limits}), DEADLINE))
    if "error" in answer:
        raise UsageError(f"the chat template cannot be filled in: {answer['error']}", hint=_HINT)
    text = str(answer["text"])
    if not text.isascii() and HALF_PAIR.search(text):  # no tokenizer takes it
        raise UsageError("the chat template cannot be filled in: it writes half of a surrogate pair", hint=_HINT)
    return text


@lru_cache(maxsize=64)
def _run(asked: str, deadline: float) -> str:
    """Returns what the program answers.

    Raises:
        UsageError: the deadline passed. Then the machine may be busy, and the next call tries again.
    """
    try:
        # -P: the folder of the program is not one to import from.
        done = subprocess.run(
            [sys.executable, "-P", str(_PROGRAM)], input=asked, capture_output=True, text=True, timeout=deadline, check=False
        )
    except subprocess.TimeoutExpired:
        message = f"the chat template was not filled in within {deadline:g} seconds"
        raise UsageError(message, hint=f"try again when the machine is less busy, or {_HINT}") from None
    if done.returncode:  # it was ended: by the limit of time, or because the template is nested too deeply for Python
        is_slow = done.returncode == -getattr(signal, "SIGXCPU", 0)
        return json.dumps({"error": f"it takes more than {SECONDS} seconds of processor time" if is_slow else "it cannot be read"})
    return done.stdout
