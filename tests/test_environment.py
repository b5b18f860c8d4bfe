"""`gotr1 doctor` without a run: every check, passing and failing, and each failure with a remedy."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import EntryPoint, version
from pathlib import Path

import huggingface_hub.constants as hub
import pytest
import torch

from gotr1_core.cli.main import call
from gotr1_core.doctor import environment
from gotr1_core.doctor.environment import diagnose
from gotr1_core.hookspecs import Diagnosis, hookimpl
from gotr1_core.plugins import Registry

Captured = pytest.CaptureFixture[str]
Diagnosed = Callable[..., dict[str, Diagnosis]]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tests of the hub wait for the hub."""
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)


@pytest.fixture
def diagnosed() -> Diagnosed:
    """The findings by name, with these plugins and no others."""

    def find(*plugins: object) -> dict[str, Diagnosis]:
        registry = Registry([])
        for number, plugin in enumerate(plugins):
            registry.add(plugin, f"plugin-{number}", "3")
        found = list(diagnose(registry))
        assert len({d.name for d in found}) == len(found)
        assert all(d.hint for d in found if not d.healthy)
        return {d.name: d for d in found}

    return find


def test_this_installation_is_healthy(diagnosed: Diagnosed) -> None:
    found = diagnosed()
    assert [d for d in found.values() if not d.healthy] == []
    assert found["python"].found == platform.python_version()
    assert found["torch"].found == torch.__version__
    assert {"accelerate", "pydantic", "disk of runs", "disk of models", "model hub"} <= found.keys()
    assert any(name == "device" or name.startswith("GPU") for name in found)
    assert {name for name, d in found.items() if d.hint} == {"model hub"}  # the note that it is not asked


# -- packages ---------------------------------------------------------------------------------------------------------------


def test_packages_that_a_plugin_misses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    info = tmp_path / "gotr1_needy-1.dist-info"
    info.mkdir()
    needs = ["numpy<1", "pluggy", "gotr1-absent>=2", 'gotr1-extra; extra == "more"', 'gotr1-elsewhere; python_version < "3"']
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: gotr1-needy\nVersion: 1\n" + "".join(f"Requires-Dist: {n}\n" for n in needs)
    )
    registry = Registry([])
    registry.add(object(), "gotr1-needy", "1")
    failed = {d.name: d for d in diagnose(registry) if not d.healthy}
    assert failed == {
        "numpy": Diagnosis("numpy", False, f"{version('numpy')}, but gotr1-needy needs numpy<1", "pip install 'numpy<1'"),
        "gotr1-absent": Diagnosis(
            "gotr1-absent", False, "not installed, but gotr1-needy needs gotr1-absent>=2", "pip install 'gotr1-absent>=2'"
        ),
    }


# -- devices and disks ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees this machine's GPU")
def test_a_gpu_that_torch_does_not_see(diagnosed: Diagnosed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = diagnosed()["device"]
    assert (found.healthy, found.found) == (False, f"nvidia-smi is installed, but torch {torch.__version__} sees no GPU")
    assert "CUDA" in found.hint


@pytest.mark.gpu
def test_gpus(diagnosed: Diagnosed) -> None:
    assert re.fullmatch(r".+, \d+ of \d+ GB free", diagnosed()["GPU 0"].found)


@pytest.mark.parametrize(("disk", "way"), [("runs", "output=DIR"), ("models", "HF_HOME")])
def test_a_disk_without_room(diagnosed: Diagnosed, monkeypatch: pytest.MonkeyPatch, disk: str, way: str) -> None:
    monkeypatch.setitem(environment.ROOM, disk, 1e9)
    failed = [d for d in diagnosed().values() if not d.healthy]
    assert [d.name for d in failed] == [f"disk of {disk}"]
    assert way in failed[0].hint


def test_the_disk_of_models_is_that_of_the_cache(diagnosed: Diagnosed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "not" / "there"))
    assert diagnosed()["disk of models"].found.endswith(f"GB free at {tmp_path}")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_disk_that_cannot_be_written_to(diagnosed: Diagnosed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o555)
    monkeypatch.chdir(tmp_path)
    assert diagnosed()["disk of runs"].found == f"{tmp_path} cannot be written to"


# -- the hub ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def answering() -> Iterator[str]:
    """The address of a server that answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def closed() -> str:
    """The address of a port where nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


def test_the_hub_answers(diagnosed: Diagnosed, answering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "ENDPOINT", answering)
    assert diagnosed()["model hub"] == Diagnosis("model hub", True, "answers")


def test_a_hub_that_cannot_be_reached_is_a_note(diagnosed: Diagnosed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "ENDPOINT", closed())
    found = diagnosed()["model hub"]
    assert found.healthy
    assert found.found.startswith("the hub cannot be reached (")
    assert "hf download" in found.hint


# -- plugins ----------------------------------------------------------------------------------------------------------------


class Serving:
    """A plugin whose judge is a server."""

    def __init__(self, address: str) -> None:
        self.address = address

    @hookimpl
    def gotr1_checks(self) -> Iterator[Diagnosis]:
        host, port = self.address.removeprefix("http://").split(":")
        with socket.socket() as one:
            there = one.connect_ex((host, int(port))) == 0
        yield Diagnosis("judge's server", there, "answers" if there else "does not answer", "" if there else "start it")


def test_what_a_plugin_checks_itself(diagnosed: Diagnosed, answering: str) -> None:
    assert diagnosed(Serving(answering))["judge's server"] == Diagnosis("judge's server", True, "answers")
    assert diagnosed(Serving(closed()))["judge's server"] == Diagnosis("judge's server", False, "does not answer", "start it")


class Failing:
    def __init__(self, given: object) -> None:
        self.given = given

    @hookimpl
    def gotr1_checks(self) -> object:
        if isinstance(self.given, BaseException):
            raise self.given
        return self.given


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (ValueError("no\nluck"), "ValueError: no luck"),
        (SystemExit(3), "SystemExit: 3"),
        (None, "TypeError: 'NoneType' object is not iterable"),
        ([1], "TypeError: 1 is not a Diagnosis of texts"),
        ([Diagnosis("x", True, 3)], "TypeError: Diagnosis(name='x', healthy=True, found=3, hint='') is not a Diagnosis of texts"),  # type: ignore[arg-type]
    ],
)
def test_checks_that_fail_themselves(diagnosed: Diagnosed, answering: str, given: object, said: str) -> None:
    """If a plugin's checks raise an error, the next plugin's checks are still made."""
    found = diagnosed(Failing(given), Serving(answering))
    assert found["checks of plugin-0"] == Diagnosis("checks of plugin-0", False, said, "the checks fail: tell the authors of plugin-0")
    assert found["judge's server"].healthy


def test_a_plugin_that_does_not_load(capsys: Captured) -> None:
    registry = Registry([EntryPoint("lost", "gotr1_no_such_module", "gotr1")])
    failed = [d for d in diagnose(registry) if not d.healthy]
    assert [(d.name, d.found) for d in failed] == [("plugin lost", "ModuleNotFoundError: No module named 'gotr1_no_such_module'")]
    assert "GOTR1_DISABLE_PLUGINS=lost" in failed[0].hint
    assert "does not load" in capsys.readouterr().err


# -- the command ------------------------------------------------------------------------------------------------------------


CHECKS = """
from gotr1_core.hookspecs import Diagnosis, hookimpl

@hookimpl
def gotr1_checks():
    yield Diagnosis("key", {healthy}, "not set", "put it into MY_KEY")
"""


def test_the_command(toy: Path, capsys: Captured) -> None:
    """A failure, a note, and the exit status of both."""
    for healthy, status, word in ((True, 0, "note"), (False, 1, "FAILED")):
        (toy / "checking.py").write_text(CHECKS.format(healthy=healthy))
        assert call(["doctor", "--plugin", "checking.py"]) == status
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["what", "found", "what", "to", "do"]
        [line] = [line for line in lines if line.split()[1:2] == ["key"]]
        assert line.split("  ")[0] == word
        assert line.endswith("put it into MY_KEY")
        assert any(re.match(r"ok +plugin toy +gotr1-toy 3, components: \d", line) for line in lines)
        assert call(["doctor", "--json", "--plugin", "checking.py"]) == status
        rows = json.loads(capsys.readouterr().out)
        assert {"name": "key", "healthy": healthy, "found": "not set", "hint": "put it into MY_KEY"} in rows
        del sys.modules["checking"]
