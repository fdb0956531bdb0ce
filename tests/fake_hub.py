"""A model hub on this machine: the few routes that the hub's client asks when it downloads a snapshot."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class FakeHub:
    """Serves folders as repositories until it is closed.

    Args:
        repositories: "owner/name" to revision ("main", a tag) to folder.

    `asked` has the paths that were asked for.
    """

    def __init__(self, repositories: dict[str, dict[str, Path]]) -> None:
        self.asked: list[str] = []
        self._commits = {
            (name, revision): hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()
            for name, revisions in repositories.items()
            for revision in revisions
        }
        self._folders = {
            (name, self._commits[name, revision]): folder
            for name, revisions in repositories.items()
            for revision, folder in revisions.items()
        }
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, with_body=False)

            def log_message(self, *given: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append(path)
        code, headers, body = self._find(path)
        request.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        if with_body:
            request.wfile.write(body)

    def _find(self, path: str) -> tuple[int, dict[str, str], bytes]:
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            name = "/".join(parts[2:4])
            kind, revision = (parts[4], parts[5]) if len(parts) > 5 else ("revision", "main")
            commit = self._commits.get((name, revision), revision)
            folder = self._folders.get((name, commit))
            if folder is None:
                known = any(repository == name for repository, _ in self._commits)
                return 404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}, b'{"error": "not found"}'
            files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            if kind == "tree":
                entries = [
                    {"type": "file", "path": file, "size": (folder / file).stat().st_size, "oid": _hash(folder / file)}
                    for file in files
                ]
                return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()
            info = {
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
            info["siblings"] = [{"rfilename": file} for file in files]
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        if len(parts) > 4 and parts[2] == "resolve":
            name, revision = "/".join(parts[:2]), parts[3]
            commit = self._commits.get((name, revision), revision)
            file = self._folders[name, commit] / "/".join(parts[4:])
            if file.is_file():
                return 200, {"X-Repo-Commit": commit, "ETag": f'"{_hash(file)}"'}, file.read_bytes()
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 404, {}, b""


def _hash(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
