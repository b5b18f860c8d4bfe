"""Whole processes: what commands that only read import, and a broken distribution beside working ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "diffusers", "accelerate", "numpy")


def python(*words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs Python in another process, in which the contents of ``path`` are installed."""
    start = f"import sys; sys.path.insert(0, {str(path)!r}); " if path else ""
    return subprocess.run([sys.executable, "-c", start + words[0], *words[1:]], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["train", "--help"], ["plugins"], ["plugins", "--json"], ["list"], ["list", "judge", "--json"]),
        *(["show", "preset", "scenes"], ["config", "show"], ["config", "schema"]),
    ],
)
def test_looking_costs_no_heavy_import(arguments: list[str]) -> None:
    script = (
        "import sys; from gotr1_core.cli.main import call; status = call(sys.argv[1:]); "
        f"print(status, sorted({set(HEAVY)!r} & sys.modules.keys()), file=sys.stderr)"
    )
    done = python(script, *arguments)
    assert done.stderr == "0 []\n"
    assert len(done.stdout) > 100


def test_a_broken_distribution_is_listed_and_the_rest_works(tmp_path: Path) -> None:
    (tmp_path / "gotr1_bad.py").write_text("import a_module_that_is_not_there\n")
    info = tmp_path / "gotr1_bad-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gotr1-bad\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[gotr1]\nbad = gotr1_bad\n")
    script = "import sys; from gotr1_core.cli.main import run; run(sys.argv[1:])"
    done = python(script, "plugins", "--json", path=tmp_path)
    assert done.returncode == 0
    listed = json.loads(done.stdout)
    error = f"ModuleNotFoundError: No module named 'a_module_that_is_not_there' ({tmp_path / 'gotr1_bad.py'}:1)"
    assert listed["failed"] == [{"name": "bad", "plugin": "gotr1-bad", "error": error}]
    assert "grpo" in [row["name"] for row in listed["components"]]
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("warning: plugin bad of gotr1-bad does not load: ModuleNotFoundError")
    (info / "METADATA").unlink()  # what an installation that broke off may leave
    assert json.loads(python(script, "plugins", "--json", path=tmp_path).stdout)["failed"][0]["name"] == "bad"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gotr1-bad\nVersion: 0.3\n")
    shown = python(script, "plugins", path=tmp_path)
    assert "failed" in shown.stdout
    assert "gotr1-bad" in shown.stdout
