"""Checks what ``gotr1 export`` relies on: a saved policy, loaded again, is the policy that was saved."""

from __future__ import annotations

import tempfile
from pathlib import Path

from gotr1_core.border.calls import call_save
from gotr1_core.errors import UsageError
from gotr1_testing.check import Check, Measured, NotRun
from gotr1_testing.log_probs import compare_log_probs
from gotr1_testing.subject import Subject

MERGING = 10.0
"""Factor of the limit of rounding. Merged weights are W + B A in one product where adapters make two, in every layer."""


def export_loads(subject: Subject) -> Measured:
    """Writes the whole model with adapters merged, loads it, and compares log-probabilities. Writes the adapters alone as well."""
    subject.require_trainable()
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    subject.with_lora()
    drawn = subject.draw(sampling)
    expected = subject.log_prob(drawn)
    with tempfile.TemporaryDirectory() as name:
        whole, adapters = Path(name) / "whole", Path(name) / "adapters"
        for folder in (whole, adapters):
            folder.mkdir()
            try:
                call_save(subject.policy, folder, adapter=folder == adapters)
            except UsageError as reason:
                if folder == whole:
                    raise NotRun(f"it cannot be exported: {reason.message}") from None
                adapters.joinpath("refused").touch()
            if not any(folder.iterdir()):
                return Measured(0, 1, f"files written by {'save_adapter' if folder == adapters else 'save'}", at_least=True)
        if subject.load is None:
            count = sum(1 for path in whole.rglob("*") if path.is_file())
            return Measured(count, 1, "files written; not loaded, as it has no option `model`, or the test gives no `load`", at_least=True)
        loaded = Subject(subject.load(whole), subject.segment, subject.case)
        gap = compare_log_probs(subject, loaded.log_prob(drawn), expected, sampling, "of the policy that was saved and loaded")
    return Measured(gap.value, MERGING * gap.limit, gap.note)


EXPORTS = (
    Check("export-loads", "a saved policy, loaded again, has the log-probabilities of the one that was saved", export_loads, changes=True),
)
