"""A server on loopback that speaks the protocol of the Hugging Face hub, as its own client uses it, and that client.

Repositories of models with their commits: creation, preupload, Git LFS (batch, upload, verify), commit; info, tree and
files of a revision. The client runs in a process of its own, since it reads the hub's address when it is imported.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

OWNER, OWNER_TOKEN, OTHER_TOKEN = "owner", "hf_owner", "hf_other"
LFS_SUFFIXES = (".safetensors", ".png", ".pt", ".npz")
Files = dict[str, bytes]


class Commit(NamedTuple):
    message: str
    files: Files
    """All files of the repository then."""

    @property
    def oid(self) -> str:
        contents = [f"{path}:{git_oid(data)}" for path, data in sorted(self.files.items())]
        return hashlib.sha1("\n".join([self.message, *contents]).encode()).hexdigest()


@dataclasses.dataclass
class Repository:
    commits: list[Commit]
    private: bool = False
    gated: str | None = None
    """What is said to whoever asks for a file, and has not accepted its licence: nobody has."""

    def at(self, revision: str) -> Commit | None:
        """The commit that a revision stands for."""
        found = (commit for commit in self.commits if commit.oid == revision)
        return self.commits[-1] if revision == "main" else next(found, None)


class Hub(ThreadingHTTPServer):
    """The repositories of one owner. `OWNER_TOKEN` may write them; nobody else may, nor read private ones."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        """Git LFS objects by sha256."""
        self.asked: list[tuple[str, str]] = []
        """(method, path) of each request."""
        self.tokens: set[str | None] = set()
        """What came with them as Authorization."""

    def publish(self, name: str, files: Files, gated: str | None = None) -> None:
        """Adds a repository as if its owner had pushed it."""
        self.repositories[name] = Repository([Commit("initial commit", files)], gated=gated)


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def oid(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if is_lfs(path) else git_oid(data)


class RefusedError(Exception):
    """A request that is answered with a status, an error code, words of the hub, and further keys of a JSON object."""

    def __init__(self, status: int, code: str, words: str, **more: str) -> None:
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": words}
        self.body = json.dumps({"error": words, **more}).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append((self.command, path))
        self.server.tokens.add(self.headers.get("Authorization"))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self._send(200, *self._route(path.strip("/").split("/")))
        except RefusedError as refused:
            self._send(refused.status, refused.body, refused.headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _route(self, parts: list[str]) -> tuple[bytes, dict[str, str]]:
        """(body, headers) of the answer."""
        match self.command, parts:
            case "POST", ["api", "repos", "create"]:
                return self._json(self._create())
            case "POST", ["api", "validate-yaml"]:
                return self._json({"warnings": []})
            case "POST", ["api", "models", owner, name, "preupload", "main"]:
                return self._json(self._preupload(self._writable(f"{owner}/{name}")))
            case "POST", ["api", "models", owner, name, "commit", "main"]:
                return self._json(self._commit(self._writable(f"{owner}/{name}"), f"{owner}/{name}"))
            case "POST", [owner, repository, "info", "lfs", "objects", "batch"]:
                self._writable(f"{owner}/{repository.removesuffix('.git')}")
                return self._json(self._batch())
            case "PUT", ["lfs", sha256]:  # a signed address: no token
                assert hashlib.sha256(self.body).hexdigest() == sha256
                self.server.blobs[sha256] = self.body
                return b"", {}
            case "POST", ["lfs", "verify"]:
                assert len(self.server.blobs[json.loads(self.body)["oid"]]) == json.loads(self.body)["size"]
                return b"", {}
            case "GET", ["api", "models", owner, name, *rest]:
                return self._json(self._describe(f"{owner}/{name}", rest))
            case "GET" | "HEAD", [owner, name, "resolve", revision, *path]:
                return self._file(f"{owner}/{name}", unquote(revision), unquote("/".join(path)))
        raise RefusedError(404, "NotFound", f"no {self.command} {self.path} here")

    def _json(self, value: Any) -> tuple[bytes, dict[str, str]]:
        return json.dumps(value).encode(), {"Content-Type": "application/json"}

    # ---- who may ------------------------------------------------------------------------------------------------

    def _check_owner(self, name: str) -> None:
        token = self.headers.get("Authorization")
        if token is None:
            raise RefusedError(401, "", "Invalid username or password.")
        if token != f"Bearer {OWNER_TOKEN}" or not name.startswith(f"{OWNER}/"):
            raise RefusedError(403, "", f'You don\'t have the rights to write to "{name}"')

    def _writable(self, name: str) -> Repository:
        self._check_owner(name)
        return self._readable(name)

    def _readable(self, name: str) -> Repository:
        repository, token = self.server.repositories.get(name), self.headers.get("Authorization")
        if repository is None or (repository.private and token != f"Bearer {OWNER_TOKEN}"):
            raise RefusedError(404 if token else 401, "RepoNotFound", "Repository not found")
        return repository

    def _revision(self, name: str, revision: str) -> Commit:
        commit = self._readable(name).at(revision)
        if commit is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # ---- in -----------------------------------------------------------------------------------------------------

    def _create(self) -> dict[str, str]:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        self._check_owner(name)
        if name in self.server.repositories:
            raise RefusedError(409, "", "You already created this model repo", url=f"{self.server.uri}/{name}")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.server.repositories[name] = Repository([Commit("initial commit", {})], private)
        return {"url": f"{self.server.uri}/{name}"}

    def _preupload(self, repository: Repository) -> dict[str, Any]:
        there = repository.commits[-1].files
        return {
            "files": [
                {
                    "path": path,
                    "uploadMode": "lfs" if is_lfs(path) else "regular",
                    "shouldIgnore": False,
                    **({"oid": oid(path, there[path])} if path in there else {}),
                }
                for path in (file["path"] for file in json.loads(self.body)["files"])
            ]
        }

    def _batch(self) -> dict[str, Any]:
        actions = {"verify": {"href": f"{self.server.uri}/lfs/verify"}}
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.server.uri}/lfs/{wanted['oid']}"}}
            known = wanted["oid"] in self.server.blobs
            objects.append(wanted if known else {**wanted, "actions": {**upload, **actions}})
        return {"transfer": "basic", "objects": objects}

    def _commit(self, repository: Repository, name: str) -> dict[str, Any]:
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        files = dict(repository.commits[-1].files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile" and value["oid"] in self.server.blobs:
                files[value["path"]] = self.server.blobs[value["oid"]]
            else:
                raise RefusedError(400, "", f"cannot commit {operation}")
        repository.commits.append(Commit(header["value"]["summary"], files))
        new = repository.commits[-1].oid
        return {"commitUrl": f"{self.server.uri}/{name}/commit/{new}", "commitOid": new}

    # ---- out ----------------------------------------------------------------------------------------------------

    def _describe(self, name: str, rest: Sequence[str]) -> Any:
        match rest:
            case [] | ["revision", _]:
                commit = self._revision(name, unquote(rest[1]) if rest else "main")
                private = self.server.repositories[name].private
                return {
                    "id": name,
                    "sha": commit.oid,
                    "private": private,
                    "siblings": [{"rfilename": path} for path in commit.files],
                }
            case ["tree", revision]:
                return [self._entry(*file) for file in self._revision(name, unquote(revision)).files.items()]
        raise RefusedError(404, "NotFound", "not here")

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
        return (
            {**entry, "lfs": {"oid": oid(path, data), "size": len(data), "pointerSize": 130}} if is_lfs(path) else entry
        )

    def _file(self, name: str, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        commit = self._revision(name, revision)
        if (words := self.server.repositories[name].gated) is not None:
            raise RefusedError(403 if self.headers.get("Authorization") else 401, "GatedRepo", words)
        if path not in commit.files:
            raise RefusedError(404, "EntryNotFound", "Entry not found")
        data = commit.files[path]
        return data, {"ETag": f'"{oid(path, data)}"', "X-Repo-Commit": commit.oid}


# ---- the client -----------------------------------------------------------------------------------------------------

_COMMANDS = """
import json, os, sys
import click
from click.testing import CliRunner
from gsae_ray.cli.main import main
for token, asked in json.load(sys.stdin):
    os.environ.pop("HF_TOKEN", None)
    os.environ |= {"HF_TOKEN": token} if token else {}
    code = click.Command("code", callback=lambda: exec(asked, {}))
    done = CliRunner().invoke(*((code, []) if isinstance(asked, str) else (main, asked)))
    print(json.dumps([done.exit_code, done.stdout, done.stderr, repr(done.exception)]))
"""


class Done(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str
    exception: str


def commands(uri: str, folder: Path, *asked: tuple[str | None, Sequence[object] | str]) -> list[Done]:
    """Runs commands of ours one after the other, each with a token, in a process that knows the hub at `uri`.

    Args:
        uri: the hub's address.
        folder: where they run; the hub's cache is `home` in it.
        asked: (token, arguments) of each; or Python code in the arguments' place.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    # Without Xet, the hub's newer way of transfer, whose client wants a storage server besides.
    own |= {"HF_ENDPOINT": uri, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    plan = json.dumps(
        [[token, what if isinstance(what, str) else [str(word) for word in what]] for token, what in asked]
    )
    command = [sys.executable, "-c", _COMMANDS]
    done = subprocess.run(command, input=plan, env=own, cwd=folder, capture_output=True, text=True, timeout=250)
    answers = [Done(*json.loads(line)) for line in done.stdout.splitlines()]
    assert len(answers) == len(asked), done.stderr
    return answers


def refusal(done: Done) -> str:
    """The one line of a command that was refused."""
    (line,) = done.stderr.strip().splitlines()
    assert done.exit_code == 2, done
    return line
