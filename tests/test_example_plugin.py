"""The example plugin as a user gets it: built as a wheel, installed beside gotr1 in a new environment, and trained with."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tokenize
import tomllib
import venv
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from gotr1_core.plugins import Registry

pytestmark = pytest.mark.unmeasured
EXAMPLE = Path(__file__).parent.parent / "examples" / "gotr1-example-judge"
JUDGE = EXAMPLE / "src" / "gotr1_example_judge" / "judge.py"
PROJECT = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SMALL = ["steps=1", "groups=2", "plans=2", "prompts.held_out=2", "evaluation.every=0", "evaluation.greedy=false", "evaluation.best_of=0"]


def run(*words: str | Path, cwd: Path) -> str:
    """Runs a process in which a plugin that does not load is an error. Returns its stdout after it has succeeded."""
    strict = {**os.environ, "GOTR1_STRICT_PLUGINS": "1"}
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=strict, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the example installed from its wheel. All else is this environment's. No network."""
    folder = tmp_path_factory.mktemp("example")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, EXAMPLE, cwd=folder)
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "env", symlinks=True)
    made = folder / "env" / "bin" / "python"
    run(*pip, "--python", made, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    own = Path(run(made, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # addsitedir, not the bare path: editable installs are .pth files themselves.
    ours = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (own / "ours.pth").write_text("".join(f"import site; site.addsitedir({p!r})\n" for p in ours))
    return made


def gotr1(python: Path) -> list[str]:
    """Runs gotr1 in that environment. The console script is this environment's."""
    return [str(python), "-c", "from gotr1_core.cli.main import run; run()"]


def code_lines(path: Path) -> int:
    """Lines that hold code: not blank, not a comment, docstring or import."""
    source = path.read_text(encoding="utf-8")
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    docstrings = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    left_out = {line for node in [*imports, *docstrings] for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    with path.open(encoding="utf-8") as file:
        tokens = [token for token in tokenize.generate_tokens(file.readline) if token.type not in empty]
    return len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - left_out)


def test_the_readme_says_how_many_lines_the_judge_has() -> None:
    count = code_lines(JUDGE)
    assert count <= 20
    assert f"`judge.py` has {count} lines of code" in (EXAMPLE / "README.md").read_text(encoding="utf-8")


def test_lines_are_counted_as_said(tmp_path: Path) -> None:
    path = tmp_path / "counted.py"
    path.write_text('"""Not\n\nthis."""\n# nor this\nfrom a import (\n    b,\n)\n\ncounted = [  # once\n    "twice",\n]  # thrice\n')
    assert code_lines(path) == 3


def test_its_range_holds_this_gotr1() -> None:
    """Nothing else would notice: without a network the wheel is installed without its dependencies."""
    [core] = [needed for needed in map(Requirement, PROJECT["dependencies"]) if needed.name == "gotr1"]
    assert core.specifier.contains(version("gotr1"))
    assert not core.specifier.contains("99")


def test_the_example_is_installed_in_its_own_environment(python: Path, tmp_path: Path) -> None:
    script = "import gotr1_example_judge, sys; print(gotr1_example_judge.__file__); print(sys.prefix)"
    file, prefix = run(python, "-c", script, cwd=tmp_path).splitlines()
    assert Path(file).is_relative_to(prefix)
    listed = json.loads(run(*gotr1(python), "list", "--json", cwd=tmp_path))
    there = {(row["kind"], row["name"]): (row["distribution"], row["version"]) for row in listed}
    assert there["judge", "colorfulness"] == ("gotr1-example-judge", PROJECT["version"])
    here = {(p.component.kind, p.component.name) for p in Registry().provided}
    assert there.keys() - here == {("judge", "colorfulness")}


def test_its_own_tests_pass_there(python: Path, tmp_path: Path) -> None:
    assert "passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLE, cwd=tmp_path)


def test_a_run_is_rewarded_by_it(python: Path, tmp_path: Path) -> None:
    words = ["--judge", "scenes", "--judge", "colorfulness", "reward=pi * colorful", "evaluation.metric=colorful", "name=run"]
    run(*gotr1(python), "train", "--preset", "scenes", *words, *SMALL, f"output={tmp_path}", cwd=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    [step] = [row for row in rows if "seconds" in row]
    # Things on light grey: neither without colour nor all that `full` stands for.
    assert 0 < step["reward.colorful"] < 1
    assert 0 < step["reward"] < step["reward.colorful"]
    held_out = json.loads((tmp_path / "run" / "held-out.json").read_text())
    assert [len(model["colorful"]) for model in held_out.values()] == [2, 2]
    components = json.loads((tmp_path / "run" / "environment.json").read_text())["components"]
    assert components["judge colorfulness"] == {"distribution": "gotr1-example-judge", "version": PROJECT["version"]}
    assert components["judge scenes"]["distribution"] == "gotr1-scenes"
