"""Processes that wait for each other longer than the backend allows, because one had a slow judge."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_processes import together

DRIVER = """
import os, signal, sys, threading, time
from datetime import timedelta

from accelerate import Accelerator, InitProcessGroupKwargs

from gotr1_core.engine.collectives import Meeting, gather_objects, leave_process_group
from gotr1_core.errors import Gotr1Error

accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=2))])
meeting = Meeting(accelerator, needed=sys.argv[1] != "do not meet", reminder=1.0)
if sys.argv[1] == "interrupt" and accelerator.process_index == 0:
    begun = time.monotonic()
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        meeting.hold()
    except KeyboardInterrupt:
        assert time.monotonic() - begun < 4  # it did not wait for the other one
        os._exit(0)
if accelerator.process_index == 1:
    time.sleep(5)
    if sys.argv[1] == "leave":
        os._exit(0)
try:
    meeting.hold()
    assert gather_objects(accelerator, accelerator.process_index) == [0, 1]
    assert sys.argv[1] == "meet"
except (Gotr1Error, RuntimeError) as error:
    assert sys.argv[1] != "meet"
    assert sys.argv[1] == "do not meet" or "another process of this run has ended" in str(error)
    sys.exit(0)
leave_process_group()
"""


@pytest.mark.parametrize("case", ["meet", "do not meet", "interrupt", "leave"])
def test_a_slow_process_is_waited_for(case: str, tmp_path: Path) -> None:
    """Without a meeting, the same wait ends both. Who waits can be interrupted, and notices that the other one has ended."""
    (tmp_path / "driver.py").write_text(DRIVER)
    together(str(tmp_path / "driver.py"), case)


def test_one_process_meets_nobody(tmp_path: Path) -> None:
    code = "from accelerate import Accelerator; from gotr1_core.engine.collectives import Meeting; "
    code += "Meeting(Accelerator(cpu=True), needed=True, reminder=1.0).hold()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
