"""``gotr1 train … -- --num-processes N``: runs the same command in N processes, as `accelerate launch` starts them.

accelerate's own parser reads the words after ``--``. They go to its launcher for several GPUs, which is torchrun. accelerate's choice of
a launcher is skipped: on a CPU, or with one GPU, it would start one process for any N.
A process writes its error to a file; the launcher prints the first error.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from gotr1_core.cli import common
from gotr1_core.cli.options import ComponentCommand
from gotr1_core.engine.console import print
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.runs.launched import LAUNCHED, is_launched

ERRORS = "TORCHELASTIC_ERROR_FILE"  # torchrun names in it the file for a process's error
MODULE = "gotr1_core.cli.main"
EXAMPLE = "for example: gotr1 train … -- --num-processes 2"
MACHINES = ("machine_rank", "main_process_ip", "main_process_port")
KNOWN = (
    *("num_processes", "num_machines", *MACHINES, "same_network", "rdzv_backend", "rdzv_conf"),
    *("gpu_ids", "num_cpu_threads_per_process", "enable_cpu_affinity"),
)
SHARDED = ("use_fsdp", "use_deepspeed", "use_megatron_lm", "use_parallelism_config")
_WORDS = "gotr1_core.cli.launch"


class LaunchCommand(ComponentCommand):
    """A command that can run in several processes. The words after ``--`` say how many and where."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Cuts off the words after ``--`` before the arguments are parsed; :func:`launch_words` returns them."""
        if "--" in args:
            at = args.index("--")
            args, ctx.meta[_WORDS] = args[:at], args[at + 1 :]
        return super().parse_args(ctx, args)


def launch_words(ctx: Any) -> list[str] | None:
    """Returns the words after ``--``; None if the line has no ``--``."""
    words: list[str] | None = ctx.meta.get(_WORDS)
    return words


def read_launch_options(words: Sequence[str], *, cpu: bool) -> Any:
    """Parses the words after ``--`` into the options of accelerate's launcher (an ``argparse.Namespace``).

    Raises:
        UsageError: a word is unknown or cannot be used here, or the numbers of processes, machines and GPUs do not fit.
    """
    from accelerate.commands.launch import launch_command_parser

    def error(message: str) -> None:
        raise UsageError(f"after --: {message}", hint=f"{EXAMPLE}; `accelerate launch --help` lists all options")

    parser = launch_command_parser()
    parser.error = error
    # Port 0: any free port. accelerate would take other defaults from its own config file.
    parser.set_defaults(num_machines=1, machine_rank=0, main_process_port=0, mixed_precision="no", dynamo_backend="no")
    options = parser.parse_args([*words, "--module", MODULE])
    if options.training_script != MODULE:
        error(f"{options.training_script} is not an option")
    named = options.nondefault - {"module", "training_script", "training_script_args"}
    for name in sorted(named):
        _check_option(name)
    _check_numbers(options, named, cpu=cpu)
    processes_here = options.num_processes // options.num_machines
    if options.num_cpu_threads_per_process is None:
        options.num_cpu_threads_per_process = int(os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // processes_here)))
    options.words = list(words)
    return options


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_option(name: str) -> None:
    """Refuses an option of accelerate that gotr1 does not support."""
    if name in SHARDED:
        raise UsageError(
            f"{_option(name)} cannot be used after --: gotr1 shards models itself",
            hint="put shard=true lora=null before --; or use lora={rank: 32}, or gradient_checkpointing=true and a smaller micro_batch",
        )
    if name not in KNOWN:
        raise UsageError(
            f"{_option(name)} cannot be used after --",
            hint=f"settings of the run go before --; known options: {', '.join(map(_option, KNOWN))}",
        )


def _check_numbers(options: Any, named: set[str], *, cpu: bool) -> None:
    """Refuses numbers of processes, machines and GPUs that do not fit."""
    processes, machines = options.num_processes, options.num_machines
    if processes is None:
        raise UsageError("-- needs --num-processes", hint=EXAMPLE)
    if processes < 1 or machines < 1 or processes % machines:
        raise UsageError(
            f"--num-processes {processes} cannot be divided among --num-machines {machines}",
            hint="--num-processes counts the processes of all machines",
        )
    if machines > 1 and not named.issuperset(MACHINES):
        raise UsageError("several machines must find each other", hint=f"give {', '.join(map(_option, MACHINES))} on each of them")
    if not cpu:
        import torch

        gpus = torch.cuda.device_count()
        if torch.cuda.is_available() and processes // machines > gpus:
            raise UsageError(
                f"{processes // machines} processes, but {gpus} GPUs", hint=f"--num-processes {gpus * machines}, or --cpu before --"
            )


def launch(options: Any, arguments: Sequence[str], folder: Path) -> None:
    """Runs ``gotr1 ARGUMENTS`` in every process and waits until all have ended. ``folder`` is the run's; it may not exist yet.

    Raises:
        Gotr1Error: a process failed. The message and exit status are those of the first one that failed.
        UsageError: torchrun could not start the processes.
    """
    import logging

    from accelerate.commands.launch import multi_gpu_launcher
    from accelerate.utils import patch_environment
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options.training_script_args = [*arguments, *(["--debug"] if common.debugging() else [])]
    settings = {
        LAUNCHED: "1",
        "PYTHONSAFEPATH": "1",  # without it, -m puts the working directory before the libraries
        "PET_SIGNALS_TO_HANDLE": "SIGHUP,SIGQUIT",  # without it, torchrun kills all processes 30 s after Ctrl-C
    }
    if not common.debugging():
        settings["PET_LOCAL_RANKS_FILTER"] = "0"  # only the first process prints; the others would repeat it
        logging.disable()
    with TemporaryDirectory(prefix="gotr1-") as logs, patch_environment(**settings), _forward_signals() as signals:
        options.log_dir = logs
        try:
            multi_gpu_launcher(options)
        except ChildFailedError as error:
            words = shlex.join(options.words)
            again = f"gotr1 train --resume {folder} -- {words} goes on" if (folder / "config.yaml").is_file() else "run it again"
            failure = _first_failure(error.failures, options.num_processes, again, stopped=bool(signals))
            _record_failure(folder, failure)
            raise failure from None
        except (ValueError, OSError, RuntimeError) as error:  # from torchrun: a wrong option, or a machine that it cannot reach
            raise UsageError(f"the processes could not be started: {error}", hint=EXAMPLE) from error
        finally:
            logging.disable(logging.NOTSET)


@contextmanager
def _forward_signals() -> Iterator[list[int]]:
    """Forwards SIGINT and SIGTERM to the processes, which run in sessions of their own. Gives the list of signals that came."""
    import psutil

    received: list[int] = []

    def forward(number: int, _: object) -> None:
        processes = psutil.Process().children()
        if not processes:
            raise KeyboardInterrupt
        if number == signal.SIGTERM and number not in received:
            print("SIGTERM: the processes finish this step and save it", file=sys.stderr)
        received.append(number)
        stuck = received.count(signal.SIGINT) > 2  # the second SIGINT ends a process, unless Python cannot handle it
        for process in processes:
            with suppress(psutil.Error):  # the process has just ended
                process.send_signal(signal.SIGKILL if stuck else number)

    handlers = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def report_to_launcher(message: str, hint: str | None) -> bool:
    """Writes an error to the file that the launcher reads. Returns False if no launcher started this process."""
    if not is_launched() or not os.environ.get(ERRORS):
        return False
    from gotr1_core.engine.files import write_atomically

    now = time.time()
    error = {"message": message, "hint": hint, "time": now, "timestamp": int(now)}
    # Atomically: torchrun kills a process whose peer died, and must not read half a file.
    write_atomically(Path(os.environ[ERRORS]), json.dumps(error))
    return True


def end_process(status: int) -> NoReturn:
    """Ends one of several processes at once with ``status``; the interpreter does not shut down.

    Threads of torch's gloo backend may still run: after an error nobody waits for them, and torch's caches of sharded weights keep their
    group. A thread that frees a tensor then waits for a lock. An interpreter that shuts down never gives that lock, so the process
    would be aborted (SIGABRT, "terminate called without an active exception").
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader is gone
            stream.flush()
    os._exit(status)


def _first_failure(failures: Mapping[int, Any], processes: int, again: str, *, stopped: bool) -> Gotr1Error:
    """Returns the error of the process that failed first. The others failed, or were ended, because of it."""
    rank, first = min(failures.items(), key=lambda item: (item[1].exitcode == -signal.SIGTERM, _failure_time(item[1])))
    name, report, status = f"process {rank + 1} of {processes}", first.error_file_data, first.exitcode
    if "hint" in report:
        error = Gotr1Error(report["message"], hint=report["hint"])
        error.code = status
    elif status < 0 and stopped:
        error = Gotr1Error("interrupted", hint=again)
        error.code = 130
    elif status < 0:
        cause = "often because memory ran out; " if status == -signal.SIGKILL else ""
        error = Gotr1Error(f"{name} was killed ({first.signal_name()})", hint=cause + again)
    else:
        error = Gotr1Error(f"{name} ended with status {status}", hint=None if common.debugging() else "run again with --debug to see why")
    return error


def _record_failure(folder: Path, failure: Gotr1Error) -> None:
    """Records the error in the run's folder. The first process was killed, or may have recorded only that another one has ended."""
    from gotr1_core.runs.outcome import outcome_of, read_outcome, write_outcome
    from gotr1_core.runs.report import write_report

    if failure.code == 130 or not (folder / "config.yaml").is_file():
        return
    with suppress(OSError, UsageError):
        if read_outcome(folder).is_bad:
            write_outcome(folder, outcome_of(failure, folder))
            write_report(folder)


def _failure_time(failure: Any) -> float:
    """Returns when a process failed, in seconds. A killed process is found up to one second after others have noticed."""
    return float(failure.error_file_data.get("time", failure.timestamp - 1))
