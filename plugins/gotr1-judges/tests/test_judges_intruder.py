"""No judge runs the Python that comes with its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from gotr1_core.cli.main import call

CHECKPOINTS = {
    "qwen-vl": "qwen3_vl",
    "internvl": "internvl",
    "detector": "tiny_owl",
    "hps": "tiny_clip",
    "pickscore": "tiny_clip",
    "clip": "tiny_clip",
}


@pytest.mark.parametrize("judge", CHECKPOINTS)
def test_its_own_python_does_not_run(
    judge: str, intruder: Callable[[Path], Path], tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    name = CHECKPOINTS[judge]
    model = intruder(request.getfixturevalue(name) if name.startswith("tiny_") else request.getfixturevalue("tiny")(name))
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    status = call(["score", str(tmp_path / "x.png"), "--prompt", "a red circle", "--judge", judge, f"judge.model={model}"])
    said = capsys.readouterr()
    assert "[y/N]" not in said.out + said.err
    assert status in (0, 2)
    if status == 2:
        assert said.err.splitlines()[-1].startswith("hint: copy ")
