"""Keeps what accelerate reads in the environment out of the mathematics: gotr1 sets it itself, or refuses it.

`accelerate launch` writes its options and its `default_config.yaml` into such variables. docs/scaling.md lists them all.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from gotr1_core.engine.console import print
from gotr1_core.errors import UsageError

OFF = ("", "0", "n", "no", "f", "false", "off", "none")
SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")
"""What accelerate would do to a model if `ACCELERATE_USE_…` is on."""

REFUSED = {
    "ACCELERATE_USE_SAGEMAKER": "gotr1 starts its own processes: gotr1 train … -- --num-processes N",
    "ACCELERATE_FP8_BACKEND": "gotr1 trains in float32, or with mixed_precision=bf16 or fp16",
    "ACCELERATE_INIT_INCLUDE_BUFFERS": "it would leave buffers of a model without values",
    "ACCELERATE_TORCH_DEVICE": "use --cpu, or CUDA_VISIBLE_DEVICES",
}
"""Variables that an argument cannot replace, with a hint for each."""


def refuse_settings(*, cpu: bool) -> None:
    """Refuses variables that would change what a run computes. ``cpu``: the run uses the CPU.

    Raises:
        UsageError: such a variable is on.
    """
    for name in SHARDING:
        if _value(f"ACCELERATE_USE_{name}"):
            raise sharding_error(name)
    hints = REFUSED if cpu else REFUSED | {"ACCELERATE_USE_CPU": "use gotr1's own --cpu, which also places the judges"}
    for name, hint in hints.items():
        if value := _value(name):
            raise UsageError(f"{name}={value} would change what is computed", hint=f"unset it; {hint}")


def sharding_error(requested: str) -> UsageError:
    """Makes the error for a way to share a model that gotr1 does not use."""
    return UsageError(
        f"accelerate was asked for {requested}, but gotr1 shards models itself",
        hint="gotr1 train … shard=true lora=null -- --num-processes N",
    )


def explicit_settings(mixed_precision: str) -> dict[str, Any]:
    """Returns arguments of ``Accelerator`` in place of variables; says which variables have no effect because of that."""
    from accelerate.utils import GradientAccumulationPlugin, TorchDynamoPlugin

    own_settings = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "gotr1 sums the gradients of its micro-batches (micro_batch) itself"),
        "ACCELERATE_MIXED_PRECISION": (mixed_precision, f"the run's own mixed_precision={mixed_precision} counts"),
        "ACCELERATE_DYNAMO_BACKEND": ("no", "gotr1 does not compile models"),
    }
    for name, (own, reason) in own_settings.items():
        if (value := _value(name)) not in ("", own):
            print(f"note: {name}={value} has no effect: {reason}", file=sys.stderr)
    return {
        "mixed_precision": mixed_precision,
        "gradient_accumulation_plugin": GradientAccumulationPlugin(num_steps=1),
        "dynamo_plugin": TorchDynamoPlugin(
            backend="no",
            mode="default",
            fullgraph=False,
            dynamic=False,
            use_regional_compilation=False,
        ),
    }


def _value(name: str) -> str:
    """A variable's value; empty if it is not set or off."""
    value = os.environ.get(name, "").strip()
    return "" if value.lower() in OFF else value
