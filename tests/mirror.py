"""A mirror of the Hugging Face hub in small: what `HF_ENDPOINT` may name."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

COMMIT = "a" * 40


class Mirror(http.server.ThreadingHTTPServer):
    """Serves repositories, {name: {file: bytes}}, as huggingface_hub asks for them.

    `name@revision` is another state of a repository; without one it is the main branch.

    Attributes:
        sent: files that were sent, in order; those sent in part as `file+START`.
        broken: files whose sending fails.
        cut: files whose next sending breaks off after half of it.
    """

    def __init__(self, repos: dict[str, dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.sent: list[str] = []
        self.broken: set[str] = set()
        self.cut: set[str] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def files(self, name: str, revision: str) -> dict[str, bytes] | None:
        """A repository's files at a branch, tag or commit."""
        for known, files in self.repos.items():
            own, _, branch = known.partition("@")
            if own == name and revision in (branch or "main", commit(branch)):
                return files
        return None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()


def commit(revision: str = "") -> str:
    """Commit of a branch; none is the main one."""
    return hashlib.sha1(revision.encode()).hexdigest() if revision not in ("", "main") else COMMIT


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
            # .../revision/REVISION or .../tree/REVISION
            revision = unquote(words[5]) if len(words) > 5 else "main"
            files = server.files("/".join(words[2:4]), revision)
            about = self._about(words, files or {}, revision)
            self._send(404 if files is None else 200, about, {"X-Error-Code": "RevisionNotFound"}
                       if files is None and len(words) > 5 else {})  # fmt: skip
            return
        if len(words) < 5:  # somebody looks whether the hub is there
            self._send(200, b"")
            return
        name, revision, file = "/".join(words[:2]), unquote(words[3]), "/".join(words[4:])
        blob = (server.files(name, revision) or {}).get(file)
        if blob is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET":
            if file in server.broken:
                self._send(500, b"")
                return
        tag = hashlib.sha1(blob).hexdigest()
        known = next(r for r in (revision, "main") if server.files(name, r) is not None)
        headers = {"X-Repo-Commit": self._commit_of(known), "ETag": f'"{tag}"'}
        if self.command == "HEAD":
            self._send(200, blob, headers)
            return
        asked = self.headers.get("Range", "bytes=0-")
        start = int(asked.removeprefix("bytes=").partition("-")[0])
        server.sent.append(f"{file}+{start}" if start else file)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(blob) - 1}/{len(blob)}"
        half = file in server.cut
        server.cut.discard(file)
        self._send(206 if start else 200, blob[start:], headers, cut=half)

    @staticmethod
    def _commit_of(revision: str) -> str:
        return revision if len(revision) == 40 else commit(revision)

    @classmethod
    def _about(cls, words: list[str], files: dict[str, bytes], revision: str) -> bytes:
        if "tree" in words:
            rows = [
                {"type": "file", "path": f, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for f, b in files.items()
            ]
            return json.dumps(rows).encode()
        name = "/".join(words[2:4])
        siblings = [{"rfilename": f, "size": len(b)} for f, b in files.items()]
        sha = cls._commit_of(revision)
        about = {"id": name, "modelId": name, "sha": sha, "siblings": siblings}
        return json.dumps({**about, "private": False, "tags": [], "downloads": 0}).encode()

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.connection.close()

    def log_message(self, *args: Any) -> None:
        pass
