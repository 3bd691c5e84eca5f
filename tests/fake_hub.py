"""A hub on this machine: the few routes that `huggingface_hub` calls, served over real HTTP.

Answers as https://huggingface.co does, headers included: a question for a revision, and `resolve` with
a redirect to another place for files that are kept apart (LFS). What can go wrong can be asked for.
"""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

REPOSITORY = "org/tiny"


def commit_of(files: dict[str, bytes]) -> str:
    """A made-up commit for these files, 40 hex digits."""
    names = sorted((name, hashlib.sha256(content).hexdigest()) for name, content in files.items())
    return hashlib.sha1(json.dumps(names).encode(), usedforsecurity=False).hexdigest()


def blob_id(content: bytes) -> str:
    """Git's id of a content, see gitformat-pack(5)."""
    header = f"blob {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def is_apart(name: str) -> bool:
    """Whether a file is kept outside git, as a hub does with weights."""
    return name.endswith((".safetensors", ".bin"))


@dataclass
class FakeHub:
    """One repository, and what is wrong with the hub at the moment.

    Attributes:
        commits: Commit -> files.
        branches: Branch or tag -> commit.
        status: Answer to every question with this status and error code, when not 0.
        download_status: The same for files only.
        body: Name -> the bytes that are sent instead of the file's.
        announced_size: Name -> the size that is said of a file when it is fetched.
        breaks: Name -> how many times its transfer breaks off half-way.
        stalls: Names of which only half is ever sent, over a connection that stays open.
        has_stalled: Set once that has happened.
        requests: `METHOD path` of every request.
        fetched: Names of all files of which content was asked for.
        tokens: Place (`hub` or `storage`) -> tokens that were seen there.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    status: tuple[int, str] = (0, "")
    download_status: tuple[int, str] = (0, "")
    body: dict[str, bytes] = field(default_factory=dict)
    announced_size: dict[str, int] = field(default_factory=dict)
    breaks: dict[str, int] = field(default_factory=dict)
    stalls: set[str] = field(default_factory=set)
    has_stalled: threading.Event = field(default_factory=threading.Event)
    requests: list[str] = field(default_factory=list)
    fetched: set[str] = field(default_factory=set)
    tokens: dict[str, list[str]] = field(default_factory=lambda: {"hub": [], "storage": []})

    def __enter__(self) -> Self:
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Handler) for _ in range(2)]
        self._threads = []
        self.is_over = threading.Event()
        for server, place in zip(self._servers, ("hub", "storage"), strict=True):
            server.hub, server.place, server.daemon_threads = self, place, True  # type: ignore[attr-defined]
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    @property
    def endpoint(self) -> str:
        """For `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def storage(self) -> str:
        """Where files that are kept apart are fetched from: another origin."""
        return f"http://localhost:{self._servers[1].server_port}"

    def push(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Make these the files of a branch; returns the commit."""
        commit = commit_of(files)
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def hub(self) -> FakeHub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    @property
    def place(self) -> str:
        return self.server.place  # type: ignore[attr-defined,no-any-return]

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path, _, _ = self.path.partition("?")
        self.hub.requests.append(f"{self.command} {self.path}")
        if token := self.headers.get("Authorization"):
            self.hub.tokens[self.place].append(token)
        if self.place == "storage":
            commit, name = path.lstrip("/").split("/", 1)
            self._send_file(commit, urllib.parse.unquote(name))
        elif path.startswith("/api/models/"):
            self._answer_api(path.removeprefix("/api/models/"))
        else:
            repository, _, rest = path.lstrip("/").partition("/resolve/")
            commit, _, name = rest.partition("/")
            self._resolve(repository, commit, urllib.parse.unquote(name))

    def _fail(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _answer_api(self, rest: str) -> None:
        repository, _, revision = rest.partition("/revision/")
        revision = urllib.parse.unquote(revision)
        if self.hub.status[0]:
            self._fail(*self.hub.status)
        elif repository != REPOSITORY:
            self._fail(404, "RepoNotFound")
        elif (commit := self.hub.branches.get(revision, revision)) not in self.hub.commits:
            self._fail(404, "RevisionNotFound")
        else:
            siblings = []
            for name, content in self.hub.commits[commit].items():
                sibling: dict[str, Any] = {"rfilename": name, "size": len(content)}
                sibling["blobId"] = blob_id(content)
                if is_apart(name):
                    digest = hashlib.sha256(content).hexdigest()
                    sibling["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 130}
                siblings.append(sibling)
            answer = {"id": REPOSITORY, "sha": commit, "siblings": siblings}
            body = json.dumps(answer).encode()
            self._send(200, body, {"Content-Type": "application/json"})

    def _resolve(self, repository: str, commit: str, name: str) -> None:
        files = self.hub.commits.get(commit, {})
        if self.hub.download_status[0]:
            self._fail(*self.hub.download_status)
        elif repository != REPOSITORY or name not in files:
            self._fail(404, "EntryNotFound")
        elif is_apart(name):
            content = files[name]
            size = self.hub.announced_size.get(name, len(content))
            headers = {
                "Location": f"{self.hub.storage}/{commit}/{urllib.parse.quote(name)}",
                "X-Repo-Commit": commit,
                "X-Linked-Size": str(size),
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "ETag": f'"{blob_id(content)}"',
            }
            self._send(302, b"", headers)
        else:
            self._send_file(commit, name)

    def _send_file(self, commit: str, name: str) -> None:
        whole = self.hub.commits[commit][name]
        content = self.hub.body.get(name, whole)
        if self.command == "GET":
            self.hub.fetched.add(name)
        start, status = 0, 200
        headers = {"ETag": f'"{blob_id(whole)}"', "X-Repo-Commit": commit}
        if range_ := self.headers.get("Range"):
            start, status = int(range_.removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        headers["Content-Length"] = str(len(body))
        if self.command == "GET" and self.hub.breaks.get(name, 0) > 0:
            self.hub.breaks[name] -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        if self.command == "GET" and name in self.hub.stalls:
            body = body[: len(body) // 2]
        self._send(status, body, headers)
        if self.command == "GET" and name in self.hub.stalls:
            self.hub.has_stalled.set()
            self.hub.is_over.wait(60)
