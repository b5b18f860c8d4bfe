"""Planner ``qwen``: a Qwen-VL or a text-only Qwen writes the chain (Qwen2.5-VL, arXiv 2502.13923; Qwen3, 2505.09388)."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gotr1_core.chain import Chain
from gotr1_core.config.models import LoraConfig
from gotr1_core.data.prompts import prompt_texts
from gotr1_core.policies.context import ContextWindow
from gotr1_core.policies.continuation import Continuation
from gotr1_core.policies.decoder import checkpoint_activations, generate_plans, plans_from_chains
from gotr1_core.policies.hub import local_folder
from gotr1_core.policies.lora import check_lora_targets, merged_state, save_adapter
from gotr1_core.protocols import Loss
from gotr1_core.samples import PLAN, Example, Prompt, Rollout, Sampling
from gotr1_core.sampling import Tokens
from gotr1_qwen import checkpoint
from gotr1_qwen.conversation import Conversation
from gotr1_qwen.instruction import read_instruction
from gotr1_qwen.module import QwenModule
from gotr1_qwen.options import QwenOptions

PROCESSOR = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
"""Files of a Qwen-VL that saving model and tokenizer does not write. They are copied, so that a saved model is complete."""


class QwenPlanner:
    """Samples the chain as the answer in a conversation. ``module`` computes its log-probabilities, end of turn included."""

    def __init__(self, options: QwenOptions, *, device: torch.device | str = "cpu") -> None:
        # Repeats the preflight's checks for callers without one. It is cheap: it reads headers only.
        instruction = read_instruction(options.instruction)
        source, kind = checkpoint.find_qwen(options.model)
        from transformers.utils import logging

        if not sys.stderr.isatty():  # no progress bars in log files
            logging.disable_progress_bar()
        tokenizer = checkpoint.load_tokenizer(source)
        text = Conversation(tokenizer, instruction, options.tags)
        model = checkpoint.load_model(source, kind, _dtype(options.dtype, torch.device(device)))
        self._set_up(model, text, options, device)

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, options: QwenOptions, *, device: torch.device | str = "cpu") -> QwenPlanner:
        """A planner of a ``model`` in memory, which is not copied. ``options.model`` is only recorded as where it came from."""
        planner = cls.__new__(cls)
        planner._set_up(model, Conversation(tokenizer, read_instruction(options.instruction), options.tags), options, device)
        return planner

    def _set_up(self, model: Any, text: Conversation, options: QwenOptions, device: torch.device | str) -> None:
        self.options, self.base = options, options.model
        self.text, self.tokenizer = text, text.tokenizer
        self.module = QwenModule(model.to(device).eval(), chunk=options.chunk)
        language = self.module.language
        language.set_attn_implementation(options.attention)
        if hasattr(model.model, "visual"):
            model.model.visual.requires_grad_(False)  # prompts have no pictures
        self.lora_prefix = next(f"{name}." for name, module in self.module.named_modules() if module is language)
        config = model.config.get_text_config()
        self.features = config.hidden_size
        self.window = ContextWindow(self.text, config.max_position_embeddings)

    @staticmethod
    def preflight(options: QwenOptions, *, key: str = "planner") -> dict[str, int]:
        """Checks the checkpoint and returns its sizes; see :func:`gotr1_qwen.checkpoint.preflight`."""
        return checkpoint.preflight(options, key)

    @staticmethod
    def preflight_lora(options: QwenOptions, config: LoraConfig) -> None:
        """Raises `UsageError` if a checkpoint on disk has no layer that `lora.targets` names."""
        check_lora_targets(options.model, config)

    @staticmethod
    def preflight_prompts(options: QwenOptions, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """The same as `check_prompts`, before weights are loaded. Checks nothing before a download."""
        if (window := checkpoint.qwen_window(options)) is not None:
            window.check(prompt_texts(prompts), sampling.max_chain_tokens)

    def check_prompts(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Checks that every prompt can be planned. Raises `UsageError` if one is blank or too long for the model's context."""
        self.window.check(prompt_texts(prompts), sampling.max_chain_tokens)

    # -- plans --------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        """Samples one chain per prompt and seed. Neighbouring equal prompts share one prefill."""
        encoded = [self.window.encode(p.text, sampling.max_chain_tokens)[0].to(self.module.device) for p in prompts]

        def write(context: Tensor, lengths: Tensor, uniform: Tensor) -> tuple[Tokens, None]:
            language, model = self.module.language, self.module.model
            embed = model.get_input_embeddings()
            rows = Continuation.read(language, embed, context, lengths, steps=uniform.shape[1], fixed=self.options.cache == "static")
            return rows.generate(model.lm_head, embed, uniform, sampling.temperature, stop=self.text.stop), None

        return generate_plans(encoded, write, self.text.decode_chain, seeds=seeds, sampling=sampling)

    def encode_plans(self, prompts: Sequence[Prompt], chains: Sequence[Chain], sampling: Sampling) -> Rollout:
        """Chains from elsewhere as a plan rollout. Each ends with the end of the turn; its ``log_prob`` is unknown (NaN)."""
        encoded = [self.window.encode(p.text, c) for p, c in zip(prompts, chains, strict=True)]
        return plans_from_chains(encoded, self.text.stop, chains, sampling=sampling, device=self.module.device)

    # -- stage one ----------------------------------------------------------------------------------------------------------

    def supervised_loss(self, module: nn.Module, examples: Sequence[Example], *, seed: int) -> Loss:
        """-log p of chains and of their ends of turn, summed over tokens. Ignores pictures and ``seed``: nothing is random."""
        del seed
        plan = self.encode_plans([e.prompt for e in examples], [e.chain for e in examples], Sampling())
        mask = plan.tensors["mask"]
        return Loss({PLAN: -(module({PLAN: plan})[PLAN].log_prob * mask).sum()}, {PLAN: mask.sum()})

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes the language model's activations in the backward pass. Raises `UsageError` if it has dropout: that would be on."""
        checkpoint_activations(self.module.language)
        self.module.checkpointing = True

    # -- on disk ------------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Writes the full model as a transformers checkpoint, adapters merged, with the files of tokenizer and processor."""
        self.module.model.save_pretrained(folder, state_dict=merged_state(self.module.model))
        self.tokenizer.save_pretrained(folder)
        base = local_folder(self.base, key="model")
        for name in PROCESSOR:
            if base is not None and (base / name).is_file():
                shutil.copyfile(base / name, folder / name)

    def save_adapter(self, folder: Path) -> None:
        """Writes the adapters alone. peft loads them onto the checkpoint that the options name."""
        save_adapter(self.module, "model", folder, base=self.base)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, name)
    return dtype
