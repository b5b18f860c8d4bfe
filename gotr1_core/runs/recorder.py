"""Passes on what happens in a run: to its records on disk, and to listeners through the lifecycle hooks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from gotr1_core.border.contract import Call, ContractError
from gotr1_core.config.models import RunConfig
from gotr1_core.doctor.rules import Finding, add_examples, evaluation_findings, examine_run, step_findings
from gotr1_core.engine.collectives import wait_for_all
from gotr1_core.engine.console import print
from gotr1_core.engine.files import DISK_FULL
from gotr1_core.engine.intervals import known_mean
from gotr1_core.engine.rollout_metrics import nan_fractions
from gotr1_core.engine.threads import ThreadPolicy
from gotr1_core.errors import Gotr1Error, one_line, place_of
from gotr1_core.evaluation import ON_THE_WAY, columns, summary
from gotr1_core.pictures.sample_files import words_row
from gotr1_core.plugins import STRICT
from gotr1_core.runs.outcome import OUTCOME, Outcome, clear_outcome, write_outcome
from gotr1_core.runs.records import REPORT, Records
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
        if self.main:
            clear_outcome(self.folder)
        self.threads = ThreadPolicy(self.config.threads)
        self.warned = {finding.cause for finding in examine_run(self.records.rows, self.config)}
        self.call_listeners("gotr1_run_started", config=self.config.model_dump(mode="json"), step=step)

    def stepped(self, step: int, metrics: Mapping[str, float], samples: Sequence[Sample]) -> None:
        """Records step number ``step``, from 1 on; every ``save_samples`` steps samples too.

        Raises:
            Gotr1Error: the doctor found that going on would waste the run.
        """
        metrics = {**metrics, "threads": self.threads.threads}
        self.threads.adjust()
        self.records.add_metrics({"step": step, **metrics})
        every = self.config.save_samples
        if every and (step == 1 or step % every == 0):
            self.records.add_samples(f"step-{step:06d}", samples)
        self.call_listeners("gotr1_step_finished", step=step, metrics=metrics, samples=samples)
        self._act_on(step_findings([row for row in self.records.rows if "evaluation" not in row], self.config), samples)

    def _act_on(self, findings: Sequence[Finding], samples: Sequence[Sample]) -> None:
        """Warns of each cause that the doctor finds, once. A finding of one of its stopping rules raises a :class:`Gotr1Error`."""
        findings = add_examples(findings, [words_row(s).get("words", {}) for s in samples]) if findings else []
        stopping = {finding.rule.hint for finding in findings if finding.rule.stops}  # the error says what these hints say
        for finding in findings:
            if self.main and finding.rule.hint not in stopping and finding.cause not in self.warned:
                print(f"warning: {finding.message} What to do: {finding.rule.hint}", file=sys.stderr)
            self.warned.add(finding.cause)
        for finding in findings:
            if finding.rule.stops:
                raise Gotr1Error(finding.message, hint=finding.rule.hint)

    def evaluating(self, name: str, step: int, total: int, samples: Sequence[Sample]) -> None:
        """Tells listeners how far an evaluation is: this process has these ``samples`` of ``total``."""
        self.threads.adjust()
        self.call_listeners("gotr1_evaluating", step=step, name=name, total=total, samples=samples)

    def evaluated(self, name: str, step: int, samples: Sequence[Sample]) -> None:
        """Records an evaluation of held-out samples after ``step`` steps. Evaluations that are compared at the end are kept in full.

        Raises:
            Gotr1Error: the doctor found that going on would waste the run.
        """
        row = {"step": step, "evaluation": name, "prompts": len(samples), **summary(samples), **nan_fractions(samples)}
        if not any(earlier.get("evaluation") == name and earlier["step"] == step for earlier in self.records.rows):
            self.records.add_metrics(row)  # otherwise it was made again, because its scores were lost
        self._act_on(evaluation_findings([row for row in self.records.rows if "evaluation" in row], self.config), samples)
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

    def finished(self, outcome: Outcome) -> None:
        """Writes how the run ended, and the report. Then it tells listeners."""
        rows = self.records.held_out.items()
        means = {name: {score: known_mean(values) for score, values in row.items()} for name, row in rows}
        if self.main:
            self._write(OUTCOME, lambda: write_outcome(self.folder, outcome))
            self._write(REPORT, lambda: write_report(self.folder))
        self.call_listeners("gotr1_run_finished", outcome=outcome.outcome, summary=means)

    def _write(self, name: str, write: Callable[[], object]) -> None:
        """Writes one of the last files. Whatever is wrong with the files of the run never takes its end with it."""
        try:
            write()
        except Exception as error:
            if not (isinstance(error, OSError) and error.errno in DISK_FULL):  # a full disk has an error of its own
                print(f"warning: {self.folder / name} could not be written: {one_line(error)}", file=sys.stderr)

    def call_listeners(self, hook: str, **values: Any) -> None:
        """Calls a lifecycle hook of every listener. A listener that fails is dropped with a warning, and the run continues."""
        if not self.main:
            return
        arguments = {"run": self.folder, **values}
        for listener in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            if listener.plugin in self._dropped:
                continue
            call = Call("listener", listener.plugin, hook)
            try:
                with call.told():
                    call.need((returned := listener.function(*[arguments[name] for name in listener.argnames])) is None, returned, "None")
            except Exception as error:
                if os.environ.get(STRICT) == "1":
                    raise
                cause = error.__cause__ if isinstance(error, ContractError) and error.__cause__ else error
                what = f"failed in {hook} and gets no more events of this run: {one_line(cause)} ({place_of(listener.function, cause)})"
                print(f"warning: {listener.plugin_name} {what}", file=sys.stderr)
                self._dropped.append(listener.plugin)
