"""Numbers and pictures of a run to an experiment tracker, through accelerate: a listener like any other plugin's."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gotr1_core.components.preflight import check_tracker
from gotr1_core.config.models import RunConfig, flat
from gotr1_core.hookspecs import hookimpl
from gotr1_core.pictures.sample_files import overlay

if TYPE_CHECKING:
    from gotr1_core.samples import Sample

PROJECT = "gotr1"
SHOWN = 8  # pictures of a step or an evaluation


class Tracker:
    """Listens to a run and passes on what it hears.

    A run that is resumed goes on in its own record. Steps that it had sent after its last checkpoint are forgotten by tensorboard and
    ignored by wandb; trackio keeps both, which are equal.
    """

    def __init__(self, config: RunConfig) -> None:
        assert config.tracker is not None
        check_tracker(config.tracker)
        self.name, self.every = config.tracker, config.save_samples
        self.tracker: Any = None

    @hookimpl
    def gotr1_run_started(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        name = run.resolve().name
        # The same id for the same folder: a resumed run goes on in its own record.
        identity = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
        arguments: dict[str, dict[str, Any]] = {
            "tensorboard": {"run_name": "tensorboard", "logging_dir": str(run), "purge_step": step + 1},
            "wandb": {"run_name": PROJECT, "name": name, "id": identity, "resume": "allow", "dir": str(run)},
            "trackio": {"run_name": PROJECT, "name": f"{name}-{identity[:8]}", "resume": "allow"},  # it knows runs by their names
        }
        self.tracker = LOGGER_TYPE_TO_CLASS[self.name](**arguments[self.name])
        with redirect_stdout(sys.stderr):  # stdout is data
            self.tracker.start()
        if self.name != "tensorboard" or step == 0:  # which would show it as one more run
            self.tracker.store_init_configuration({key: _plain(value) for key, value in flat(config).items()})

    @hookimpl
    def gotr1_step_finished(self, step: int, metrics: Mapping[str, float], samples: Sequence[Sample]) -> None:
        self.tracker.log(dict(metrics), step=step)
        if self.every and (step == 1 or step % self.every == 0):
            self._pictures("samples", samples, step)

    @hookimpl
    def gotr1_evaluated(self, step: int, name: str, samples: Sequence[Sample]) -> None:
        from gotr1_core.evaluation import summary

        self.tracker.log({f"{name}/{score}": value.mean for score, value in summary(samples).items()}, step=step)
        self._pictures(name, samples, step)

    @hookimpl
    def gotr1_run_finished(self) -> None:
        if self.tracker is None:
            return
        with redirect_stdout(sys.stderr):
            if self.name == "trackio":  # else it finishes once more when Python ends
                import trackio

                trackio.finish()
            else:
                self.tracker.finish()

    def _pictures(self, name: str, samples: Sequence[Sample], step: int) -> None:
        """The first samples that were drawn, their plans over them."""
        import numpy as np

        pictures = [overlay(sample) for sample in samples if sample.image is not None][:SHOWN]
        if not pictures:
            return
        if self.name == "trackio":  # accelerate has no pictures for it
            import trackio

            self.tracker.log({f"{name}/{i:02d}": trackio.Image(np.asarray(p)) for i, p in enumerate(pictures)}, step=step)
        elif self.name == "tensorboard":
            same = [np.asarray(p) for p in pictures if p.size == pictures[0].size]
            self.tracker.log_images({name: np.stack(same)}, step=step, dataformats="NHWC")
        else:
            self.tracker.log_images({name: pictures}, step=step)


def _plain(value: Any) -> bool | int | float | str:
    """What every tracker takes as a setting."""
    return value if isinstance(value, bool | int | float | str) else str(value)
