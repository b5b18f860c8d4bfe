"""Sends a run's numbers and pictures to an experiment tracker, through accelerate. It is a listener like those of plugins."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gotr1_core.components.preflight import check_tracker
from gotr1_core.config.models import RunConfig, flatten_keys
from gotr1_core.hookspecs import hookimpl
from gotr1_core.pictures.sample_files import draw_overlay

if TYPE_CHECKING:
    from gotr1_core.samples import Sample

PROJECT = "gotr1"
SHOWN = 8  # pictures of a step or an evaluation


class Tracker:
    """Passes on a run's events to the config's tracker.

    A resumed run continues its own record. It repeats the steps after its last checkpoint: tensorboard forgets the first ones, wandb
    ignores the second ones, and trackio keeps both, which are equal.
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
        # One folder always has one id, so that a resumed run continues its own record.
        identity = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
        arguments: dict[str, dict[str, Any]] = {
            "tensorboard": {"run_name": "tensorboard", "logging_dir": str(run), "purge_step": step + 1},
            "wandb": {"run_name": PROJECT, "name": name, "id": identity, "resume": "allow", "dir": str(run)},
            "trackio": {"run_name": PROJECT, "name": f"{name}-{identity[:8]}", "resume": "allow"},  # it identifies runs by name
        }
        self.tracker = LOGGER_TYPE_TO_CLASS[self.name](**arguments[self.name])
        with redirect_stdout(sys.stderr):  # stdout is for data
            self.tracker.start()
        if self.name != "tensorboard" or step == 0:  # a resumed run would appear there as a second one
            # Types that every tracker takes as a setting.
            settings = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in flatten_keys(config).items()}
            self.tracker.store_init_configuration(settings)

    @hookimpl
    def gotr1_step_finished(self, step: int, metrics: Mapping[str, float], samples: Sequence[Sample]) -> None:
        self.tracker.log(dict(metrics), step=step)
        if self.every and (step == 1 or step % self.every == 0):
            self._pictures("samples", samples, step)

    @hookimpl
    def gotr1_evaluated(self, step: int, name: str, samples: Sequence[Sample]) -> None:
        from gotr1_core.evaluation import summary

        self.tracker.log({f"{name}/{score}": mean for score, mean in summary(samples).items()}, step=step)
        self._pictures(name, samples, step)

    @hookimpl
    def gotr1_run_finished(self) -> None:
        if self.tracker is None:
            return
        with redirect_stdout(sys.stderr):
            if self.name == "trackio":  # otherwise it finishes again when Python ends
                import trackio

                trackio.finish()
            else:
                self.tracker.finish()

    def _pictures(self, name: str, samples: Sequence[Sample], step: int) -> None:
        """Sends the first pictures, with their plans drawn over them."""
        import numpy as np

        pictures = [draw_overlay(sample) for sample in samples if sample.image is not None][:SHOWN]
        if not pictures:
            return
        if self.name == "trackio":  # accelerate cannot send pictures to it
            import trackio

            self.tracker.log({f"{name}/{i:02d}": trackio.Image(np.asarray(p)) for i, p in enumerate(pictures)}, step=step)
        elif self.name == "tensorboard":
            same_size = [np.asarray(p) for p in pictures if p.size == pictures[0].size]
            self.tracker.log_images({name: np.stack(same_size)}, step=step, dataformats="NHWC")
        else:
            self.tracker.log_images({name: pictures}, step=step)
