"""A model to the hub: huggingface_hub's own client against a hub of a few lines that listens on this machine."""

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from runs import tiny_run

from selecttkd_jax import models
from selecttkd_jax.cli import main

pytestmark = [pytest.mark.usefixtures("lenient_promotion"), pytest.mark.one_stack]

TOKEN = "hf_" + "t" * 34


class Hub(ThreadingHTTPServer):
    """Makes repositories, and takes commits whose files come within them."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.requests, self.repositories, self.files, self.refusal = [], {}, {}, None

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        name = self.path.removeprefix("/api/models/").partition("/revision")[0]
        self.answer({"id": name, "private": self.server.repositories.get(name), "siblings": [], "sha": "0" * 40})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.path, self.headers.get("Authorization")))
        hub, parts = self.server, self.path.split("/")
        if hub.refusal is not None:
            self.answer({"error": f"no, {TOKEN}"}, hub.refusal)
        elif self.path == "/api/repos/create":
            said = json.loads(body)
            name = f"{said.get('organization') or 'me'}/{said['name']}"
            hub.repositories.setdefault(name, said.get("private", said.get("visibility") == "private"))
            self.answer({"url": f"{hub.address}/{name}", "id": name})
        elif parts[-2] == "preupload":
            files = json.loads(body)["files"]
            self.answer(
                {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]}
            )
        elif parts[-2] == "commit":
            for line in body.splitlines():
                said = json.loads(line)
                if said["key"] == "file":
                    hub.files[said["value"]["path"]] = base64.b64decode(said["value"]["content"])
            commit = f"{hub.address}/me/small/commit/{'0' * 40}"
            self.answer({"commitUrl": commit, "commitOid": "0" * 40, "pullRequestUrl": None})
        else:
            self.answer({"errors": [], "warnings": []})  # the front matter of the card

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A model's directory, in which something lies that is not for others."""
    directory = tmp_path_factory.mktemp("push")
    config = tiny_run.build(directory)
    pruned = models.from_pretrained(config.models.student)
    models.save_pretrained(directory / "out", pruned, card=models.pruned_card(directory / "teacher", (0, 2), 3))
    (directory / "out/.env").write_text("KEY=secret")
    (directory / "out/notes.txt").write_text("mine")
    return directory / "out"


def test_a_model_s_files_go_to_a_private_repository_and_nothing_else_does(hub, student, capsys):
    assert main(["push", str(student), "me/small"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == f"{hub.address}/me/small"
    assert hub.repositories == {"me/small": True}
    assert set(hub.files) == {path.name for path in student.iterdir()} - {".env", "notes.txt"}
    assert hub.files["model.safetensors"] == (student / "model.safetensors").read_bytes()
    assert "README.md" in hub.files and "not uploaded, since no model's: .env, notes.txt" in err
    assert all(authorization == f"Bearer {TOKEN}" for _, authorization in hub.requests)
    assert TOKEN not in out + err
    assert main(["push", str(student), "me/open", "--public"]) == 0
    assert hub.repositories["me/open"] is False


def test_of_what_is_nested_named_templates_alone_go(hub, student, tmp_path, capsys):
    shutil.copytree(student, tmp_path / "out")
    for name in ("old/model.safetensors", "checkpoints/a/b.safetensors", "additional_chat_templates/tools.jinja"):
        (tmp_path / "out" / name).parent.mkdir(parents=True)
        (tmp_path / "out" / name).write_text("{{ messages }}")
    assert main(["push", str(tmp_path / "out"), "me/small"]) == 0
    assert {name for name in hub.files if "/" in name} == {"additional_chat_templates/tools.jinja"}
    assert "old/model.safetensors" in capsys.readouterr().err
    hub.files.clear()
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "out/additional_chat_templates/more.jinja").symlink_to(tmp_path / "secret")
    assert main(["push", str(tmp_path / "out"), "me/small"]) == 2
    assert "additional_chat_templates/more.jinja leads out of" in capsys.readouterr().err and not hub.files


def test_of_a_run_the_student_goes(hub, student, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    for name in ("config.toml", "metrics.jsonl"):
        (tmp_path / "run" / name).write_text("")
    assert main(["push", str(tmp_path / "run"), "me/small"]) == 2
    assert "neither a student nor a checkpoint" in capsys.readouterr().err
    (tmp_path / "run/student").symlink_to(student)
    assert main(["push", str(tmp_path / "run"), "me/small"]) == 0
    assert "model.safetensors" in hub.files
    assert main(["push", str(tmp_path / "run"), "me/small", "--adapter"]) == 2
    assert "has no adapter" in capsys.readouterr().err


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_refusal_is_one_line_without_the_token(hub, student, status, capsys):
    hub.refusal = status
    assert main(["push", str(student), "me/small"]) == 2
    out, err = capsys.readouterr()
    assert "selecttkd: error: the hub" in err and "Traceback" not in err and TOKEN not in out + err
    assert ("hf auth login" in err) == (status != 500)


def test_what_should_not_go_is_refused_before_the_hub_is_asked(hub, student, tmp_path, capsys):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/home/me/base"}))
    for directory, expected in (
        (tmp_path / "adapter", "names its base model by a path of this machine, /home/me/base"),
        (tmp_path / "nothing", "is no directory"),
        (tmp_path, "is no model's directory"),
    ):
        assert main(["push", str(directory), "me/small"]) == 2
        assert expected in capsys.readouterr().err
    assert main(["push", str(student), "a/b/c"]) == 2
    assert "is no name of a repository" in capsys.readouterr().err
    assert not hub.files
