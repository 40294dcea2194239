"""A stand-in for the Hugging Face Hub on this machine: the endpoints that an upload uses, and what they received."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens that the stand-in knows: one may write, the other may not."""


@dataclass
class StandIn:
    """State of the hub.

    Attributes:
        address: For HF_ENDPOINT.
        repos: Visibility and files by repository.
        commits: Files of each commit, in order.
        deleted: Files that each commit took away.
        calls: Method and path of every request.
        blobs: Large files by SHA-256.
        broken: Answer every commit with this status instead.
    """

    address: str = ""
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)
    deleted: list[list[str]] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    broken: int | None = None


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A running hub on a free port of the loopback device."""
    hub = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """No lines on standard error."""

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self._body())

    def do_PUT(self) -> None:
        self._serve(self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _answer(self, status: int, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _serve(self, body: bytes) -> None:
        path = self.path.partition("?")[0]
        self.hub.calls.append((self.command, path))
        if self.command == "PUT":  # addresses of blobs are signed, not authorised
            return self._blob(path.rpartition("/")[2], body)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (WRITER, READER):
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        if token == READER and self.command == "POST" and not path.endswith("validate-yaml"):
            return self._answer(403, {"error": "You don't have the rights to write under this namespace"})
        return self._route(path, body)

    def _route(self, path: str, body: bytes) -> None:
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if path.endswith("/preupload/main"):
            return self._preupload(json.loads(body))
        if path.endswith("/commit/main"):
            return self._commit(path.split("/commit/")[0].removeprefix("/api/models/"), body)
        repo = path.removeprefix("/api/models/")
        if repo not in self.hub.repos:
            return self._answer(404, {"error": "Repository not found"})
        state = self.hub.repos[repo]
        files = [{"rfilename": name} for name in state["files"]]
        return self._answer(200, {"id": repo, "private": state["private"], "siblings": files, "sha": self._head()})

    def _head(self) -> str:
        return f"{len(self.hub.commits):040d}"

    def _create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted['organization']}/{wanted['name']}"
        if repo in self.hub.repos:
            return self._answer(
                409, {"error": "You already created this model repo", "url": f"{self.hub.address}/{repo}"}
            )
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        self.hub.repos[repo] = {"private": private, "files": {}}
        return self._answer(200, {"url": f"{self.hub.address}/{repo}"})

    def _preupload(self, wanted: dict[str, Any]) -> None:
        files = [
            {
                "path": row["path"],
                "uploadMode": "lfs" if row["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for row in wanted["files"]
        ]
        return self._answer(200, {"files": files})

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = [
            {**row, "actions": {"upload": {"href": f"{self.hub.address}/blobs/{row['oid']}"}}}
            for row in wanted["objects"]
        ]
        return self._answer(200, {"transfer": "basic", "objects": objects})

    def _blob(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        return self._answer(200, {})

    def _commit(self, repo: str, body: bytes) -> None:
        if self.hub.broken is not None:
            return self._answer(self.hub.broken, {"error": "Something is broken"})
        names, deleted = [], []
        for row in map(json.loads, body.splitlines()):
            value = row["value"]
            if row["key"] == "header" and value.get("parentCommit", self._head()) != self._head():
                return self._answer(412, {"error": "A commit has happened since"})
            if row["key"] == "deletedFile":
                del self.hub.repos[repo]["files"][value["path"]]
                deleted.append(value["path"])
                continue
            if row["key"] == "file":
                self.hub.repos[repo]["files"][value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                self.hub.repos[repo]["files"][value["path"]] = self.hub.blobs[value["oid"]]
            names += [value["path"]] if row["key"] != "header" else []
        self.hub.commits.append(names)
        self.hub.deleted.append(deleted)
        oid = self._head()
        return self._answer(200, {"commitUrl": f"{self.hub.address}/{repo}/commit/{oid}", "commitOid": oid})
