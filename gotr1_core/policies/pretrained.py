"""Loads what a checkpoint holds, without ever running code that comes with it.

Every ``from_pretrained`` and ``from_config`` of the core and of its plugins is called here, and nowhere else.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gotr1_core.engine.out_of_memory import is_out_of_memory
from gotr1_core.errors import UsageError, first_line


def load_pretrained(kind: Any, source: Path | str, **settings: Any) -> Any:
    """Returns ``kind.from_pretrained(source, **settings)``. The checkpoint's own Python never runs.

    Args:
        kind: a class of transformers or diffusers: a model, config, tokenizer, processor or pipeline.
        source: a folder, which is read without network, or a hub name.
        settings: further arguments of ``from_pretrained``.

    Raises:
        Exception: what the library raises, such as `ValueError` for a checkpoint that cannot be loaded without its own code.
    """
    settings = {"local_files_only": isinstance(source, Path), **settings, "trust_remote_code": False}
    with _no_questions():
        return kind.from_pretrained(source, **settings)


def load_checkpoint(kind: Any, source: Path | str, **settings: Any) -> tuple[Any, Mapping[str, Any]]:
    """Returns a model with random values for weights that are missing, and ``missing_keys`` and more; of safetensors alone.

    Raises:
        UsageError: its config and its files do not fit together.
    """
    try:
        model, info = load_pretrained(kind, source, use_safetensors=True, output_loading_info=True, **settings)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        hint = "look at its config.json, download it again, or give another checkpoint"
        raise UsageError(f"{source} cannot be loaded: {type(error).__name__}: {first_line(error)}", hint=hint) from error
    return model, info


def build_from_config(kind: Any, config: Mapping[str, Any], **changes: Any) -> Any:
    """Returns ``kind.from_config(config, **changes)``, for the config of a part in memory, which loads nothing."""
    if not isinstance(config, Mapping):
        raise TypeError(f"a config in memory is needed, not {type(config).__name__}")
    return kind.from_config(config, **changes)


def check_attention(kernel: str, key: str) -> None:
    """Checks that the package of an attention kernel is installed. transformers finds that out when it has loaded the weights.

    Args:
        kernel: as transformers names it: `sdpa`, `eager` or `flash_attention_2`.
        key: the option's place in the config, for the message.

    Raises:
        UsageError: it is not.
    """
    if kernel == "flash_attention_2" and find_spec("flash_attn") is None:
        raise UsageError(f"{key}={kernel}: the package flash-attn is not installed", hint=f"set {key}=sdpa")


@contextmanager
def _no_questions() -> Iterator[None]:
    """Takes standard input away. transformers asks there whether to run code for parts that are not told ``trust_remote_code``."""
    stdin, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = stdin
