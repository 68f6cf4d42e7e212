"""A mirror of the Hugging Face hub in small: what `HF_ENDPOINT` may name."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
from pathlib import Path
from typing import Any, Self

COMMIT = "a" * 40


class Mirror(http.server.ThreadingHTTPServer):
    """Serves repositories, {name: {file: bytes}}, as huggingface_hub asks for them.

    Attributes:
        sent: files that were sent, in order.
        broken: files whose sending fails.
    """

    def __init__(self, repos: dict[str, dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.sent: list[str] = []
        self.broken: set[str] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()


def environment(mirror: Mirror, folder: Path) -> dict[str, str]:
    """Of a process that knows no hub but the mirror, with caches of its own."""
    return {
        **{k: v for k, v in os.environ.items() if not k.endswith("OFFLINE")},
        "HF_ENDPOINT": mirror.url,
        "HF_HOME": str(folder / "hub"),
        "DIPTYCH_CACHE": str(folder / "cache"),
    }


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server: Any = self.server
        words = self.path.partition("?")[0].strip("/").split("/")
        if words[:2] == ["api", "models"]:
            files = server.repos.get("/".join(words[2:4]))
            self._send(404 if files is None else 200, self._about(words, files or {}))
            return
        name, file = "/".join(words[:2]), "/".join(words[4:])
        blob = server.repos.get(name, {}).get(file)
        if blob is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET":
            if file in server.broken:
                self._send(500, b"")
                return
            server.sent.append(file)
        tag = hashlib.sha1(blob).hexdigest()
        self._send(200, blob, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'})

    @staticmethod
    def _about(words: list[str], files: dict[str, bytes]) -> bytes:
        if "tree" in words:
            rows = [
                {"type": "file", "path": f, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for f, b in files.items()
            ]
            return json.dumps(rows).encode()
        name = "/".join(words[2:4])
        siblings = [{"rfilename": f} for f in files]
        about = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}
        return json.dumps({**about, "private": False, "tags": [], "downloads": 0}).encode()

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass
