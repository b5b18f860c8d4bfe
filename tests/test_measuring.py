"""What the tests count as covered: conftest.py measures the core in some of the tests only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
# Coverage starts as Python starts. A process of its own: two measurements in one process disturb each other.
SCRIPT = """
import os, runpy, sys
unmeasured = runpy.run_path(sys.argv[1])["unmeasured"]

def first():
    return 1

def second():
    return 2

with unmeasured():
    assert "COVERAGE_PROCESS_START" not in os.environ  # so that processes that start now do not measure themselves
    first()
assert "COVERAGE_PROCESS_START" in os.environ
second()
"""


def test_nothing_is_measured_meanwhile(tmp_path: Path) -> None:
    coverage = pytest.importorskip("coverage")
    script, settings, data = (tmp_path / name for name in ("script.py", "settings.toml", "data"))
    script.write_text(SCRIPT)
    settings.write_text(f"[tool.coverage.run]\ninclude = ['{script}']\n")
    environment = {**os.environ, "COVERAGE_PROCESS_START": str(settings), "COVERAGE_FILE": str(data)}
    start = "import coverage, runpy, sys; coverage.process_startup(); del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    subprocess.run([sys.executable, "-c", start, str(script), str(CONFTEST)], env=environment, check=True)
    kept = coverage.CoverageData(str(data))
    kept.read()
    lines = {SCRIPT.splitlines()[line - 1].strip() for line in kept.lines(str(script)) or ()}
    assert "return 2" in lines
    assert "return 1" not in lines


def test_without_coverage_nothing_happens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks: ModuleType = request.config.pluginmanager.get_plugin(str(CONFTEST))
    monkeypatch.delenv(hooks.MEASURE, raising=False)
    with hooks.unmeasured():
        assert hooks.MEASURE not in os.environ
    assert hooks.MEASURE not in os.environ
