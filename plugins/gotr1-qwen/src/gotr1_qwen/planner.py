"""Planner ``qwen``: a Qwen-VL, or a Qwen without eyes, writes the chain (Qwen2.5-VL, arXiv 2502.13923; Qwen3, 2505.09388)."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gotr1_core.chain import Chain
from gotr1_core.policies.context import Window
from gotr1_core.policies.decoder import Continuation, checkpoint_activations, given_plans, write_plans
from gotr1_core.policies.hub import local_folder
from gotr1_core.policies.lora import merged_state, save_adapter
from gotr1_core.protocols import Loss
from gotr1_core.samples import PLAN, Example, Prompt, Rollout, Sampling
from gotr1_core.sampling import Tokens
from gotr1_qwen import checkpoint
from gotr1_qwen.conversation import Conversation
from gotr1_qwen.instruction import read_instruction
from gotr1_qwen.module import QwenModule
from gotr1_qwen.options import QwenOptions

PROCESSOR = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
"""Files of a Qwen-VL that its tokenizer knows nothing of; a saved model is as whole as the one it was made of."""


class QwenPlanner:
    """Writes the chain as the answer of a conversation; ``module`` scores it in one forward pass, the end of the turn included."""

    def __init__(self, options: QwenOptions, *, device: torch.device | str = "cpu") -> None:
        # Again for those who make a policy without a preflight; of what is on disk it reads headers.
        instruction = read_instruction(options.instruction)
        source, kind = checkpoint.source(options.model)
        from transformers.utils import logging

        if not sys.stderr.isatty():  # a bar of a logged run is noise
            logging.disable_progress_bar()
        tokenizer = checkpoint.load_tokenizer(source)
        text = Conversation(tokenizer, instruction, options.tags)
        model = checkpoint.load_model(source, kind, _dtype(options.dtype, torch.device(device)))
        self._set_up(model, text, options, device)

    @classmethod
    def around(cls, model: Any, tokenizer: Any, options: QwenOptions, *, device: torch.device | str = "cpu") -> QwenPlanner:
        """A planner of a model that is in memory, as it is; ``options.model`` says no more than where it came from."""
        made = cls.__new__(cls)
        made._set_up(model, Conversation(tokenizer, read_instruction(options.instruction), options.tags), options, device)
        return made

    def _set_up(self, model: Any, text: Conversation, options: QwenOptions, device: torch.device | str) -> None:
        self.options, self.base = options, options.model
        self.text, self.tokenizer = text, text.tokenizer
        self.module = QwenModule(model.to(device).eval(), chunk=options.chunk)
        language = self.module.language
        language.set_attn_implementation(options.attention)
        if hasattr(model.model, "visual"):
            model.model.visual.requires_grad_(False)  # a prompt is text
        self.lora_prefix = next(f"{name}." for name, part in self.module.named_modules() if part is language)
        config = model.config.get_text_config()
        self.features = config.hidden_size
        self.window = Window(self.text, config.max_position_embeddings)

    @staticmethod
    def preflight(options: QwenOptions, *, key: str = "planner") -> dict[str, int]:
        """What can be told before weights are loaded; see :func:`gotr1_qwen.checkpoint.preflight`."""
        return checkpoint.preflight(options, key)

    def check_prompts(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Refuses what could not be planned, with a `UsageError`: a blank prompt, or one too long for the model's context."""
        for prompt in prompts:
            self.window.encode(prompt.text, sampling.max_chain_tokens)

    # -- plans --------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        """One chain per prompt and seed. Equal prompts that stand together share the prefill of their prefix."""
        asked = [self.window.encode(p.text, sampling.max_chain_tokens)[0].to(self.module.device) for p in prompts]

        def write(context: Tensor, lengths: Tensor, uniform: Tensor) -> Tokens:
            from transformers import DynamicCache

            language, model = self.module.language, self.module.model
            cache = DynamicCache(config=language.config)
            rows = Continuation(language, model.get_input_embeddings(), context, lengths, steps=uniform.shape[1], cache=cache)
            return rows.generate(model.lm_head, uniform, sampling.temperature, stop=self.text.stop)

        return write_plans(asked, write, self.text.decode_chain, seeds=seeds, sampling=sampling)

    def given(self, prompts: Sequence[Prompt], chains: Sequence[Chain], sampling: Sampling) -> Rollout:
        """Chains that somebody else wrote as a rollout, the end of the turn as their last token."""
        encoded = [self.window.encode(p.text, c) for p, c in zip(prompts, chains, strict=True)]
        return given_plans(encoded, self.text.stop, chains, sampling=sampling, device=self.module.device)

    # -- stage one ----------------------------------------------------------------------------------------------------------

    def supervised_loss(self, module: nn.Module, examples: Sequence[Example], *, seed: int) -> Loss:
        """-log p of chains and of the ends of their turns. Pictures are not looked at, and nothing is random."""
        del seed
        plan = self.given([e.prompt for e in examples], [e.chain for e in examples], Sampling())
        mask = plan.tensors["mask"]
        return Loss({PLAN: -(module({PLAN: plan})[PLAN].log_prob * mask).sum()}, {PLAN: mask.sum()})

    def enable_gradient_checkpointing(self) -> None:
        """In the language model, while gradients are taken. Refused where the model has dropout, which would then be on."""
        checkpoint_activations(self.module.language)
        self.module.checkpointing = True

    # -- on disk ------------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """The whole model as a transformers checkpoint, adapters merged, tokenizer and processor's files included."""
        self.module.model.save_pretrained(folder, state_dict=merged_state(self.module.model))
        self.tokenizer.save_pretrained(folder)
        base = local_folder(self.base, key="model")
        for name in PROCESSOR:
            if base is not None and (base / name).is_file():
                shutil.copyfile(base / name, folder / name)

    def save_adapter(self, folder: Path) -> None:
        """The adapters alone, for peft to load onto the checkpoint that the options name."""
        save_adapter(self.module, "model", folder, base=self.base)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, name)
    return dtype
