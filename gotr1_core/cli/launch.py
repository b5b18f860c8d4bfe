"""``gotr1 train … -- --num-processes N``: the same command in N processes, started as `accelerate launch` starts them.

What follows ``--`` is read by accelerate's own parser and goes to its launcher for several GPUs, which is torchrun. How accelerate
chooses a launcher is left out: on a CPU, or a machine with one GPU, it would start one process however many it is asked for.
Processes leave their errors to the launcher, which tells the first one.
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
from gotr1_core.errors import Gotr1Error, UsageError

LAUNCHED = "GOTR1_LAUNCHED"  # set in the processes
ERRORS = "TORCHELASTIC_ERROR_FILE"  # where torchrun looks for what a process has to say
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
    """A command that may be started in several processes: what follows ``--`` says how."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keeps what follows ``--`` from becoming arguments."""
        if "--" in args:
            at = args.index("--")
            args, ctx.meta[_WORDS] = args[:at], args[at + 1 :]
        return super().parse_args(ctx, args)


def words_of(ctx: Any) -> list[str] | None:
    """What followed ``--``; None where there was none."""
    found: list[str] | None = ctx.meta.get(_WORDS)
    return found


def read(words: Sequence[str], *, cpu: bool) -> Any:
    """The words after ``--`` as accelerate's launcher takes them (an ``argparse.Namespace``).

    Raises:
        UsageError: a word that it does not know or that has no meaning here, or numbers that do not go together.
    """
    from accelerate.commands.launch import launch_command_parser

    def error(message: str) -> None:
        raise UsageError(f"after --: {message}", hint=f"{EXAMPLE}; `accelerate launch --help` lists all words")

    parser = launch_command_parser()
    parser.error = error
    # Port 0 is any that is free. What is not given here accelerate would take from a file of its own.
    parser.set_defaults(num_machines=1, machine_rank=0, main_process_port=0, mixed_precision="no", dynamo_backend="no")
    options = parser.parse_args([*words, "--module", MODULE])
    if options.training_script != MODULE:
        error(f"{options.training_script} is no option")
    given = options.nondefault - {"module", "training_script", "training_script_args"}
    for name in sorted(given):
        _check_known(name)
    _check_numbers(options, given, cpu=cpu)
    local = options.num_processes // options.num_machines
    if options.num_cpu_threads_per_process is None:
        options.num_cpu_threads_per_process = int(os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // local)))
    options.words = list(words)
    return options


def _word(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_known(name: str) -> None:
    if name in SHARDED:
        raise UsageError(
            f"{_word(name)} has no meaning after --: gotr1 spreads models over processes itself",
            hint="put shard=true lora=null before --; or use lora={rank: 32}, or gradient_checkpointing=true and a smaller micro_batch",
        )
    if name not in KNOWN:
        raise UsageError(
            f"{_word(name)} has no meaning after --", hint=f"settings of the run stand before it; known: {', '.join(map(_word, KNOWN))}"
        )


def _check_numbers(options: Any, given: set[str], *, cpu: bool) -> None:
    processes, machines = options.num_processes, options.num_machines
    if processes is None:
        raise UsageError("-- needs --num-processes", hint=EXAMPLE)
    if processes < 1 or machines < 1 or processes % machines:
        raise UsageError(
            f"--num-processes {processes} cannot be shared by --num-machines {machines}", hint="processes are counted over all machines"
        )
    if machines > 1 and not given.issuperset(MACHINES):
        raise UsageError("several machines have to find each other", hint=f"give {', '.join(map(_word, MACHINES))} on each of them")
    if not cpu:
        import torch

        gpus = torch.cuda.device_count()
        if torch.cuda.is_available() and processes // machines > gpus:
            raise UsageError(
                f"{processes // machines} processes, and {gpus} GPUs", hint=f"--num-processes {gpus * machines}, or --cpu before --"
            )


def launch(options: Any, arguments: Sequence[str], folder: Path) -> None:
    """Runs ``gotr1 ARGUMENTS`` in every process and waits for them; ``folder`` is the run's, which need not be there yet.

    Raises:
        Gotr1Error: what the first process that failed has to say, with its status; or that it was killed.
    """
    import logging

    from accelerate.commands.launch import multi_gpu_launcher
    from accelerate.utils import patch_environment
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options.training_script_args = [*arguments, *(["--debug"] if common.debugging() else [])]
    settings = {
        LAUNCHED: "1",
        "PYTHONSAFEPATH": "1",  # -m would put the working directory before the libraries
        "PET_SIGNALS_TO_HANDLE": "SIGHUP,SIGQUIT",  # torchrun would end everything 30 s after Ctrl-C, whatever is under way
    }
    if not common.debugging():
        settings["PET_LOCAL_RANKS_FILTER"] = "0"  # the others have nothing to say that the first does not
        logging.disable()
    with TemporaryDirectory(prefix="gotr1-") as logs, patch_environment(**settings), _passing_on() as heard:
        options.log_dir = logs
        try:
            multi_gpu_launcher(options)
        except ChildFailedError as error:
            words = shlex.join(options.words)
            again = f"gotr1 train --resume {folder} -- {words} goes on" if (folder / "config.yaml").is_file() else "run it again"
            raise _failure(error.failures, options.num_processes, again, stopped=bool(heard)) from None
        except (ValueError, OSError, RuntimeError) as error:  # what torchrun says of words, and of machines that it cannot reach
            raise UsageError(f"the processes could not be started: {error}", hint=EXAMPLE) from error
        finally:
            logging.disable(logging.NOTSET)


@contextmanager
def _passing_on() -> Iterator[list[int]]:
    """SIGINT and SIGTERM go to the processes, which are in sessions of their own; gives those that came."""
    import psutil

    heard: list[int] = []

    def hear(number: int, frame: object) -> None:
        del frame
        processes = psutil.Process().children()
        if not processes:
            raise KeyboardInterrupt
        if number == signal.SIGTERM and number not in heard:
            print("SIGTERM: the processes finish this step and save it", file=sys.stderr)
        heard.append(number)
        stuck = heard.count(signal.SIGINT) > 2  # the second one leaves, unless Python does not get to hear it
        for process in processes:
            with suppress(psutil.Error):  # it has just ended
                process.send_signal(signal.SIGKILL if stuck else number)

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def told(message: str, hint: str | None) -> bool:
    """Leaves an error to the launcher, if this process has one."""
    if LAUNCHED not in os.environ or not os.environ.get(ERRORS):
        return False
    from gotr1_core.engine.files import write_atomically

    now = time.time()
    said = {"message": message, "hint": hint, "time": now, "timestamp": int(now)}
    # At once: torchrun kills a process whose peer died, and would then read half a file.
    write_atomically(Path(os.environ[ERRORS]), json.dumps(said))
    return True


def end(status: int) -> NoReturn:
    """Ends one of several processes, and does not take its interpreter down.

    Threads of torch's gloo backend may still be there: after an error nobody waits for them, and of sharded weights torch's caches keep
    their group. One that lets go of a tensor meanwhile waits for a lock that an interpreter which ends gives to nobody, and the process
    is aborted (SIGABRT, "terminate called without an active exception").
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


def _failure(failures: Mapping[int, Any], processes: int, again: str, *, stopped: bool) -> Gotr1Error:
    """The error of the process that failed first: the others lost it, or were ended because of it."""
    rank, first = min(failures.items(), key=lambda item: (item[1].exitcode == -signal.SIGTERM, _time(item[1])))
    who, said, status = f"process {rank + 1} of {processes}", first.error_file_data, first.exitcode
    if "hint" in said:
        error = Gotr1Error(said["message"], hint=said["hint"])
        error.code = status
    elif status < 0 and stopped:
        error = Gotr1Error("interrupted", hint=again)
        error.code = 130
    elif status < 0:
        usual = "often for want of memory; " if status == -signal.SIGKILL else ""
        error = Gotr1Error(f"{who} was killed ({first.signal_name()})", hint=usual + again)
    else:
        error = Gotr1Error(f"{who} ended with status {status}", hint=None if common.debugging() else "run again with --debug to see why")
    return error


def _time(failure: Any) -> float:
    """When a process failed. What was killed is found dead up to a second after others have noticed."""
    return float(failure.error_file_data.get("time", failure.timestamp - 1))
