"""Passes on what happens in a run: to its records on disk, and to listeners through the lifecycle hooks."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from gotr1_core.config.models import RunConfig
from gotr1_core.doctor.rules import Finding, evaluation_findings, examine_run, step_findings
from gotr1_core.engine.collectives import wait_for_all
from gotr1_core.engine.rollout_metrics import nan_fractions
from gotr1_core.errors import Gotr1Error
from gotr1_core.evaluation import ON_THE_WAY, columns, estimate, summary
from gotr1_core.plugins import STRICT, one_line
from gotr1_core.runs.records import Records
from gotr1_core.runs.report import write_report
from gotr1_core.runs.trainer_state import save_trainer
from gotr1_core.samples import Sample

if TYPE_CHECKING:
    from gotr1_core.loop import Trainer


class Run:
    """One run's folder, its config, its ``records`` on disk and its listeners, which ``manager`` has.

    Only the main process (``main``) writes files and calls listeners. ``warned`` has the causes of all warnings so far.
    """

    def __init__(self, folder: Path, config: RunConfig, manager: pluggy.PluginManager, *, main: bool = True) -> None:
        self.folder, self.config, self.manager, self.main = folder, config, manager, main
        self.records = Records(folder, main=main)
        self.warned: set[tuple[str, str]] = set()
        self._dropped: list[object] = []  # listeners that failed

    def started(self, step: int) -> None:
        """Tells listeners that the run starts after ``step`` steps. A resumed run does not repeat warnings."""
        self.warned = {finding.cause for finding in examine_run(self.records.rows, self.config)}
        self.call_listeners("gotr1_run_started", config=self.config.model_dump(mode="json"), step=step)

    def stepped(self, step: int, metrics: Mapping[str, float], samples: Sequence[Sample]) -> None:
        """Records step number ``step``, from 1 on; every ``save_samples`` steps samples too.

        Raises:
            Gotr1Error: the doctor found that going on would waste the run.
        """
        self.records.add_metrics({"step": step, **metrics})
        every = self.config.save_samples
        if every and (step == 1 or step % every == 0):
            self.records.add_samples(f"step-{step:06d}", samples)
        self.call_listeners("gotr1_step_finished", step=step, metrics=metrics, samples=samples)
        self._act_on(step_findings([row for row in self.records.rows if "evaluation" not in row], self.config))

    def _act_on(self, findings: Sequence[Finding]) -> None:
        """Warns of each cause that the doctor finds, once. A finding of one of its three stopping rules raises a :class:`Gotr1Error`."""
        for finding in findings:
            if self.main and not finding.rule.stops and finding.cause not in self.warned:
                print(f"warning: {finding.message} What to do: {finding.rule.hint}", file=sys.stderr)
            self.warned.add(finding.cause)
        for finding in findings:
            if finding.rule.stops:
                raise Gotr1Error(finding.message, hint=finding.rule.hint)

    def evaluated(self, name: str, step: int, samples: Sequence[Sample]) -> None:
        """Records an evaluation of held-out samples after ``step`` steps. Evaluations that are compared at the end are kept in full.

        Raises:
            Gotr1Error: the doctor found that going on would waste the run.
        """
        means = {score: value.mean for score, value in summary(samples).items()}
        self.records.add_metrics({"step": step, "evaluation": name, "prompts": len(samples), **means, **nan_fractions(samples)})
        self._act_on(evaluation_findings([row for row in self.records.rows if "evaluation" in row], self.config))
        if name != ON_THE_WAY:
            self.records.add_samples(f"held-out-{name.replace(' ', '-').replace(',', '')}", samples)
            self.records.add_evaluation(name, columns(samples))
        self.call_listeners("gotr1_evaluated", step=step, name=name, samples=samples)

    def has_evaluation(self, name: str) -> bool:
        """True if this evaluation was recorded, in this process or before a resume."""
        return name in self.records.held_out

    def save(self, trainer: Trainer) -> None:
        """Writes a checkpoint of the trainer's state. Every process has to call it."""
        self.records.sync()
        checkpoint = save_trainer(trainer, self.folder, len(self.records.rows))
        self.call_listeners("gotr1_checkpoint_saved", step=trainer.at.step, checkpoint=checkpoint)
        wait_for_all(trainer.accelerator)

    def finished(self, outcome: str) -> None:
        """Writes the report and tells listeners the ``outcome``: finished, interrupted or failed."""
        rows = self.records.held_out.items()
        means = {name: {score: estimate(values).mean for score, values in row.items()} for name, row in rows}
        with suppress(OSError):  # a full disk has its own error
            if self.main and rows:
                write_report(self.folder)
        self.call_listeners("gotr1_run_finished", outcome=outcome, summary=means)

    def call_listeners(self, hook: str, **values: Any) -> None:
        """Calls a lifecycle hook of every listener. A listener that fails is dropped with a warning, and the run continues."""
        if not self.main:
            return
        arguments = {"run": self.folder, **values}
        for listener in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            if listener.plugin in self._dropped:
                continue
            try:
                listener.function(*[arguments[name] for name in listener.argnames])
            except Exception as error:
                if os.environ.get(STRICT) == "1":
                    raise
                print(
                    f"warning: {listener.plugin_name} failed in {hook} and gets no more events of this run: {one_line(error)}",
                    file=sys.stderr,
                )
                self._dropped.append(listener.plugin)
