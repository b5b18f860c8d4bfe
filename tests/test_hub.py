"""Where weights come from: folders, the cache, and a hub that answers, refuses, or never answers."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gotr1_core.errors import UsageError
from gotr1_core.policies.hub import DEADLINE, find_weights

NAME = "owner/model"
KEY = "planner.model"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of two shards with 6 and 20 numbers, and their index."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "toy"}')
    save_file({"a": torch.zeros(2, 3)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(4, 5, dtype=torch.bfloat16)}, folder / "model-00002-of-00002.safetensors")
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    return folder


def fill(cache: Path, checkpoint: Path) -> Path:
    """Writes the cache as the hub's library does, with files as links into its store."""
    blobs, snapshot = cache / "models--owner--model" / "blobs", cache / "models--owner--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    shutil.copytree(checkpoint, blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    refs = cache / "models--owner--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    return snapshot


class Hub(ThreadingHTTPServer):
    """A server that gives everybody the same status, headers and text, except to the question who may have a gated model."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.error, self.body, self.gate = 200, "", "", 200
        self.asked: list[str] = []

    def knows(self, files: dict[str, int], **more: Any) -> None:
        siblings = [{"rfilename": name, "size": size} for name, size in files.items()]
        self.body = json.dumps({"id": NAME, "siblings": siblings, "config": {"model_type": "toy"}} | more)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Hub)
        server.asked.append(self.path)
        gate = self.path.endswith("/auth-check")
        status, error = (server.gate, "GatedRepo") if gate else (server.status, server.error)
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        body = server.body.encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


def refusal(model: str | Path = NAME) -> UsageError:
    """The error of a model that is refused. It must say all that a user needs, and come soon."""
    start = time.monotonic()
    with pytest.raises(UsageError) as caught:
        find_weights(str(model), key=KEY)
    assert time.monotonic() - start < 5
    error = caught.value
    assert KEY in error.message
    assert str(model)[:20] in error.message
    assert "\n" not in error.message
    assert error.hint is not None
    assert KEY in error.hint
    assert "gotr1 train --preset scenes" in error.hint
    return error


def with_command(error: UsageError) -> UsageError:
    assert error.hint is not None
    assert f"`hf download {NAME} --local-dir DIR`, then {KEY}=DIR" in error.hint
    return error


# -- folders ----------------------------------------------------------------------------------------------------------------


def test_a_whole_folder(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_weights(str(checkpoint), key=KEY)
    assert found.folder == checkpoint
    assert found.config == {"model_type": "toy"}
    assert found.parameters == 26
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert find_weights("~/checkpoint", key=KEY).folder == checkpoint
    monkeypatch.chdir(checkpoint.parent)
    assert find_weights("checkpoint", key=KEY).parameters == 26


def test_a_real_model(tiny_janus: Path) -> None:
    with safe_open(tiny_janus / "model.safetensors", framework="pt") as file:
        numbers = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert find_weights(str(tiny_janus), key=KEY).parameters == numbers


SECOND = "model-00002-of-00002.safetensors"


def cut(folder: Path) -> None:
    whole = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(whole[:-1])


def lengthen(folder: Path) -> None:
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes() + b"x")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json that cannot be read"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "config.json that cannot be read"),
        (lambda f: (f / "config.json").write_text("[1]"), "not a JSON object"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json that cannot be read"),
        (lambda f: (f / "config.json").write_text('{"model_type": ["janus"]}'), "config.json whose model_type is no text"),
        (lambda f: [p.unlink() for p in f.glob("*.safetensors*")], r"has no \*.safetensors"),
        (lambda f: (f / SECOND).unlink(), f"lacks {SECOND}"),
        (cut, f"{SECOND} that is cut off"),
        (lengthen, f"{SECOND} that is cut off or damaged"),
        (lambda f: (f / SECOND).write_bytes(b""), f"{SECOND} that is cut off"),
        (
            lambda f: (f / SECOND).write_text("version 1 of a pointer, as git keeps one"),
            f"{SECOND} that is cut off or damaged",
        ),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "without a weight_map"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}'), "without a weight_map"),
    ],
)
def test_an_incomplete_folder(checkpoint: Path, damage: Any, said: str) -> None:
    damage(checkpoint)
    error = refusal(checkpoint)
    assert re.search(said, error.message)
    assert error.hint is not None
    assert "hf download" in error.hint


def test_a_pipeline(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(checkpoint, folder / "unet")
    (folder / "scheduler").mkdir()
    index = {"_class_name": "ToyPipeline", "unet": ["toys", "Unet"], "scheduler": ["toys", "Scheduler"], "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    found = find_weights(str(folder), key=KEY)
    assert (found.parameters, found.config["_class_name"]) == (26, "ToyPipeline")
    cut(folder / "unet")
    assert f"unet/{SECOND} that is cut off" in refusal(folder).message
    shutil.rmtree(folder / "scheduler")
    assert "lacks the part scheduler" in refusal(folder).message


NEITHER = ["", " ", "model", "a/b/c", "./owner/model", "/nowhere/at/all", "a b/c", "x" * 5000, "a/\0", "~nobody-here/x", "a/b\n"]


@pytest.mark.parametrize("model", NEITHER)
def test_text_that_is_neither_a_folder_nor_a_hub_name(server: Hub, model: str) -> None:
    assert "neither a folder that exists nor a hub name owner/name" in refusal_of_text(model).message
    assert not server.asked


def refusal_of_text(model: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        find_weights(model, key=KEY)
    assert len(caught.value.message) < 300
    assert "\n" not in caught.value.message
    assert "gotr1 train --preset scenes" in str(caught.value.hint)
    return caught.value


def test_a_file_is_no_folder(checkpoint: Path) -> None:
    assert "neither a folder" in refusal_of_text(str(checkpoint / "config.json")).message


def test_what_a_component_cannot_load_is_reported_before_weights_are_read(checkpoint: Path, server: Hub) -> None:
    def check(config: Any) -> None:
        raise UsageError(f"not {config['model_type']}")

    cut(checkpoint)
    with pytest.raises(UsageError, match=r"^not toy$"):
        find_weights(str(checkpoint), key=KEY, check=check)
    server.knows({"pytorch_model.bin": 1})
    with pytest.raises(UsageError, match=r"^not toy$"):
        find_weights(NAME, key=KEY, check=check)


# -- the cache --------------------------------------------------------------------------------------------------------------


def test_the_cache_is_enough(cache: Path, checkpoint: Path, server: Hub) -> None:
    snapshot = fill(cache, checkpoint)
    found = find_weights(NAME, key=KEY)
    assert (found.folder, found.parameters) == (snapshot, 26)
    assert not server.asked


def test_half_a_copy_in_the_cache_does_not_count(cache: Path, checkpoint: Path, server: Hub) -> None:
    (fill(cache, checkpoint) / SECOND).unlink()
    server.knows({"model.safetensors": 1})
    assert find_weights(NAME, key=KEY).folder is None
    server.status = 503
    assert f"are in the local cache, but the copy lacks {SECOND}" in with_command(refusal()).message


# -- the hub ----------------------------------------------------------------------------------------------------------------


def test_a_hub_that_has_it(server: Hub) -> None:
    server.knows({"config.json": 10, "model.safetensors": 1000}, safetensors={"parameters": {"F16": 500}, "total": 500})
    found = find_weights(NAME, key=KEY)
    assert (found.folder, found.config["model_type"], found.parameters) == (None, "toy", 500)
    assert len(server.asked) == 1
    server.knows({"model.safetensors": 1000}, gated="manual")  # to somebody who may have it
    assert find_weights(NAME, key=KEY).folder is None


@pytest.mark.parametrize(
    ("status", "error", "body", "said"),
    [
        (404, "RepoNotFound", "{}", "no such model, or a private one"),
        (401, "RepoNotFound", "{}", "no such model, or a private one"),
        (401, "", "{}", "answers with status 401"),
        (404, "", "", "answers with status 404"),  # a proxy's
        (403, "GatedRepo", "{}", "accepted their terms"),
        (503, "", "busy", "answers with status 503"),
        (429, "", "", "answers with status 429"),
        (200, "", "<html>log in to this network</html>", "cannot be reached"),
        (200, "", "[]", "cannot be reached"),
    ],
)
def test_a_hub_that_refuses(server: Hub, status: int, error: str, body: str, said: str) -> None:
    server.status, server.error, server.body = status, error, body
    refused = with_command(refusal())
    assert said in refused.message
    assert f"there is no folder {NAME}" in refused.message
    assert len(server.asked) == 1  # no retries


def test_a_gated_model(server: Hub) -> None:
    server.knows({"model.safetensors": 1}, gated="auto")
    server.gate = 403
    refused = with_command(refusal())
    assert "accepted their terms" in refused.message
    assert "HF_TOKEN" in str(refused.hint)


def test_a_pipeline_that_a_hub_has_in_one_variant(server: Hub) -> None:
    files = {"model_index.json": 10, "unet/diffusion_pytorch_model.fp16.safetensors": 1000, "vae/diffusion_pytorch_model.safetensors": 10}
    server.knows(files)
    refused = with_command(refusal())
    assert "the hub has its unet only in the variant fp16" in refused.message
    assert str(refused.hint).startswith(f"set {KEY.removesuffix('model')}variant=fp16, or ")
    assert find_weights(NAME, key=KEY, variant="fp16").folder is None
    server.knows({**files, "unet/diffusion_pytorch_model-00001-of-00002.safetensors": 1000})
    assert find_weights(NAME, key=KEY).folder is None


def test_a_hub_without_safe_weights(server: Hub) -> None:
    server.knows({"config.json": 10, "pytorch_model.bin": 1000})
    assert "no *.safetensors" in refusal().message


def test_a_disk_without_room(server: Hub, cache: Path, checkpoint: Path) -> None:
    server.knows({"model.safetensors": 10**18})
    assert "1000000000.0 GB, and the cache's disk has" in with_command(refusal()).message
    server.knows({"model-00001-of-00002.safetensors": 10**18, SECOND: 1000})
    assert "1000000000.0 GB" in refusal().message
    (fill(cache, checkpoint) / SECOND).unlink()  # the first is there already
    assert find_weights(NAME, key=KEY).folder is None
    server.knows({"unet/model.fp16.safetensors": 10**18})  # nobody knows whether this one would be downloaded
    assert find_weights(NAME, key=KEY).folder is None


def test_offline(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in with_command(refusal()).message
    assert not server.asked


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert "cannot be reached" in with_command(refusal()).message


def test_a_hub_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system accepts connections, and nobody reads from them."""
    assert DEADLINE < 4  # the command itself needs time to start
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with_command(refusal())


def test_a_hub_that_answers_a_byte_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read is in time, so that the client's own timeout never fires."""
    done = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not done.wait(0.2):
                connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as slow:
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{slow.getsockname()[1]}")
        thread = threading.Thread(target=drip, args=(slow,))
        thread.start()
        refused = with_command(refusal())
        done.set()
        thread.join()
    assert f"did not answer within {DEADLINE:g} seconds" in refused.message


def test_name_resolution_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang(*args: object, **named: object) -> Any:
        over.wait()
        raise OSError("no name server answers")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(hub, "ENDPOINT", "http://hub.invalid")
    refused = with_command(refusal())
    over.set()
    assert f"did not answer within {DEADLINE:g} seconds" in refused.message
