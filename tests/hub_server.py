"""A local fake of the Hugging Face Hub: as much of its HTTP API as pushing and pulling needs."""

import base64
import hashlib
import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Files = dict[str, bytes]
JSON = "application/json"


@dataclass
class FakeHub:
    """Repositories, with every commit of each.

    Attributes:
        root: The server's address.
        commits: Repository -> hash of a commit -> its files; the last one is `main`.
        tokens: What each request that changed something was signed with.
        private: Those that were made private.
    """

    root: str = ""
    commits: dict[str, dict[str, Files]] = field(default_factory=dict)
    tokens: list[str | None] = field(default_factory=list)
    private: list[str] = field(default_factory=list)

    def commit(self, repo: str, files: Files, deleted: Collection[str] = ()) -> str:
        """Add a commit that changes `files`, and has none of `deleted`; its hash."""
        commits = self.commits.setdefault(repo, {})
        before = list(commits.values())[-1] if commits else {}
        whole = {n: data for n, data in before.items() if n not in deleted} | files
        name = hashlib.sha1(f"{repo} {len(commits)}".encode()).hexdigest()
        commits[name] = whole
        return name

    def revision(self, repo: str, name: str) -> str | None:
        """The commit that a revision means."""
        commits = self.commits.get(repo, {})
        if name == "main":
            return list(commits)[-1] if commits else None
        return name if name in commits else None


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Runs while open."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.root = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3])
        else:
            self._missing("EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        self.hub.tokens.append(self.headers.get("Authorization"))
        if not self.headers.get("Authorization"):
            return self._send(401, {"error": "Invalid credentials"})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
            return (self._preupload if found[2] == "preupload" else self._commit)(found[1], body)
        return self._missing("EntryNotFound")

    def _create(self, asked: dict[str, Any]) -> None:
        repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        if repo in self.hub.commits:
            return self._send(409, {"error": "exists", "url": f"{self.hub.root}/{repo}"})
        self.hub.commits[repo] = {}
        self.hub.commit(repo, {".gitattributes": b""})
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.append(repo)
        return self._send(200, {"url": f"{self.hub.root}/{repo}", "name": repo, "id": repo})

    def _preupload(self, _: str, body: bytes) -> None:
        names = [file["path"] for file in json.loads(body)["files"]]
        found = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
        self._send(200, {"files": found})

    def _commit(self, repo: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        files, deleted = (
            [line["value"] for line in lines if line["key"] == key]
            for key in ("file", "deletedFile")
        )
        changed = {file["path"]: base64.b64decode(file["content"]) for file in files}
        name = self.hub.commit(repo, changed, [file["path"] for file in deleted])
        url = f"{self.hub.root}/{repo}/commit/{name}"
        self._send(200, {"success": True, "commitOid": name, "commitUrl": url})

    def _info(self, repo: str, revision: str) -> None:
        name = self.hub.revision(repo, revision)
        if name is None:
            known = repo in self.hub.commits
            return self._missing("RevisionNotFound" if known else "RepoNotFound")
        siblings = [{"rfilename": one} for one in self.hub.commits[repo][name]]
        return self._send(200, {"id": repo, "modelId": repo, "sha": name, "siblings": siblings})

    def _file(self, repo: str, revision: str, path: str) -> None:
        name = self.hub.revision(repo, revision)
        data = self.hub.commits[repo][name].get(path) if name else None
        if data is None:
            return self._missing("EntryNotFound")
        etag = hashlib.sha1(data).hexdigest()
        return self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": str(name)})

    def _missing(self, code: str) -> None:
        self._send(404, {"error": f"fake: {code}"}, {"X-Error-Code": code})

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.send_header("Content-Type", JSON)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _chunks(self) -> bytes:
        parts = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return parts
