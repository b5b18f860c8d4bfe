"""A run as the loop sees it: what happens goes to its records, and to everyone who listens through the lifecycle hooks."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from gotr1_core.config.models import RunConfig
from gotr1_core.doctor.rules import Finding, examine_run, look, look_held_out
from gotr1_core.engine.collectives import wait
from gotr1_core.engine.rollout_metrics import missing_shares
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
    """One run's folder and listeners. On other processes than the main one it writes nothing and tells nobody."""

    def __init__(self, folder: Path, config: RunConfig, manager: pluggy.PluginManager, *, main: bool = True) -> None:
        self.folder, self.config, self.manager, self.main = folder, config, manager, main
        self.records = Records(folder, main=main)
        self.warned: set[tuple[str, str]] = set()  # causes, as the doctor names them
        self._dropped: list[object] = []  # listeners that failed

    def started(self, step: int) -> None:
        """The components are built. What a resumed run was warned of it is not warned of again."""
        self.warned = {finding.cause for finding in examine_run(self.records.rows, self.config)}
        self.tell("gotr1_run_started", config=self.config.model_dump(mode="json"), step=step)

    def stepped(self, step: int, metrics: Mapping[str, float], samples: Sequence[Sample]) -> None:
        """One step is done; the first is 1."""
        self.records.metrics({"step": step, **metrics})
        every = self.config.save_samples
        if every and (step == 1 or step % every == 0):
            self.records.samples(f"step-{step:06d}", samples)
        self.tell("gotr1_step_finished", step=step, metrics=metrics, samples=samples)
        self._heed(look([row for row in self.records.rows if "evaluation" not in row], self.config))

    def _heed(self, findings: Sequence[Finding]) -> None:
        """Warns of what the doctor finds, once for each cause; three of its rules stop the run.

        Raises:
            Gotr1Error: going on would waste the run.
        """
        for finding in findings:
            if self.main and not finding.rule.stops and finding.cause not in self.warned:
                print(f"warning: {finding.message} What to do: {finding.rule.hint}", file=sys.stderr)
            self.warned.add(finding.cause)
        for finding in findings:
            if finding.rule.stops:
                raise Gotr1Error(finding.message, hint=finding.rule.hint)

    def evaluated(self, name: str, step: int, samples: Sequence[Sample]) -> None:
        """Held-out samples were drawn and judged. What is compared at the end is kept in full."""
        means = {score: value.mean for score, value in summary(samples).items()}
        self.records.metrics({"step": step, "evaluation": name, "prompts": len(samples), **means, **missing_shares(samples)})
        self._heed(look_held_out([row for row in self.records.rows if "evaluation" in row], self.config))
        if name != ON_THE_WAY:
            self.records.samples(f"held-out-{name.replace(' ', '-').replace(',', '')}", samples)
            self.records.evaluation(name, columns(samples))
        self.tell("gotr1_evaluated", step=step, name=name, samples=samples)

    def has_evaluation(self, name: str) -> bool:
        """True if this evaluation was recorded, by this process or before a resume."""
        return name in self.records.held_out

    def save(self, trainer: Trainer) -> None:
        """A checkpoint of where the trainer is."""
        self.records.sync()
        checkpoint = save_trainer(trainer, self.folder, len(self.records.rows))
        self.tell("gotr1_checkpoint_saved", step=trainer.at.step, checkpoint=checkpoint)
        wait(trainer.accelerator)

    def finished(self, outcome: str) -> None:
        """The run is over, whichever way."""
        rows = self.records.held_out.items()
        means = {name: {score: estimate(values).mean for score, values in row.items()} for name, row in rows}
        with suppress(OSError):  # a full disk has its own error
            if self.main and rows:
                write_report(self.folder)
        self.tell("gotr1_run_finished", outcome=outcome, summary=means)

    def tell(self, hook: str, **what: Any) -> None:
        """Calls one lifecycle hook of every listener, each in its own ``try``: a run outlives a listener that fails."""
        if not self.main:
            return
        given = {"run": self.folder, **what}
        for listener in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            if listener.plugin in self._dropped:
                continue
            try:
                listener.function(*[given[name] for name in listener.argnames])
            except Exception as error:
                if os.environ.get(STRICT) == "1":
                    raise
                print(f"warning: {listener.plugin_name} failed in {hook} and hears no more of this run: {one_line(error)}", file=sys.stderr)
                self._dropped.append(listener.plugin)
