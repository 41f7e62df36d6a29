"""A small Hub on the loopback interface: the calls of the huggingface_hub client, in memory, for the tests.

It keeps repositories as lists of commits and LFS objects by their SHA-256, checks what it is sent, and can break a
connection on purpose. It has no Xet storage: the client needs `HF_HUB_DISABLE_XET=1`.

    with HubServer() as hub:
        HfApi(endpoint=hub.url, token=hub.token).create_repo("tester/model")
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

USER = "tester"
# What the Hub's own .gitattributes sends to LFS, as far as the tests need it.
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".onnx", ".npz", ".npy", ".tar", ".zip", ".parquet")
LFS_SIZE = 10 << 20
CHUNK = 1 << 16
# Of a repository, in paths; that of a data set begins with "datasets/".
NAME = r"(?P<name>(?:datasets/)?[^/]+/[^/]+)"


@dataclass(frozen=True)
class File:
    """A file of a commit: its content, and whether it is an LFS object."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_sha(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_sha


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    oid: str
    files: dict[str, File]
    title: str


@dataclass
class Repository:
    """Commits, oldest first, and the names that point to them."""

    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, File], title: str, branch: str = "main") -> Commit:
        names = "".join(f"{path}{file.etag}" for path, file in sorted(files.items()))
        oid = hashlib.sha1(f"{len(self.commits)}{title}{names}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, files, title)
        self.branches[branch] = oid
        return self.commits[oid]

    def at(self, revision: str) -> Commit | None:
        oid = self.branches.get(revision, self.tags.get(revision, revision))
        return self.commits.get(oid)


@dataclass
class Fault:
    """Break the connection of the next `times` requests whose method and path match.

    `after` bytes of the body are read first; `done` carries the request out before its answer is lost.
    """

    method: str
    path: str
    times: int
    after: int = 0
    done: bool = False


class HubServer:
    """The server. `requests` lists `METHOD path` of everything asked; `stored` the LFS objects that were sent whole."""

    def __init__(self) -> None:
        self.token = "hf_" + "t" * 34
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.stored: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.hub = self
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """Content of a repository."""
        commit = self.repositories[repository].at(revision)
        assert commit is not None
        return {path: file.content for path, file in commit.files.items()}

    def titles(self, repository: str) -> list[str]:
        """Titles of the commits, oldest first."""
        return [commit.title for commit in self.repositories[repository].commits.values()]

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are meant."""


class _Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Broken(Exception):
    """The connection is broken on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create"),
        ("GET", rf"/api/(?:models/|(?=datasets/)){NAME}", "info"),
        ("GET", rf"/api/(?:models/|(?=datasets/)){NAME}/revision/(?P<revision>[^/]+)", "info"),
        ("GET", rf"/api/(?:models/|(?=datasets/)){NAME}/refs", "refs"),
        ("GET", rf"/api/(?:models/|(?=datasets/)){NAME}/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", "tree"),
        ("POST", rf"/api/(?:models/|(?=datasets/)){NAME}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"/api/(?:models/|(?=datasets/)){NAME}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"/api/(?:models/|(?=datasets/)){NAME}/(?P<kind>tag|branch)/(?P<revision>[^/]+)", "point"),
        ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/objects/(?P<oid>[0-9a-f]{64})", "store"),
        ("POST", r"/objects/verify", "verify"),
        ("GET", r"/objects/(?P<oid>[0-9a-f]{64})", "object"),
        ("GET", rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    # -- one request ------------------------------------------------------------------------------------------------

    def handle_one_method(self) -> None:
        path = urlsplit(self.path).path
        hub = self.server.hub
        with hub.lock:
            hub.requests.append(f"{self.command} {path}")
        fault = hub.fault(self.command, path)
        if fault is not None and not fault.done:
            return self._break(fault.after)
        self.body = b"".join(self._chunks())
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for expected, pattern, name in self.ROUTES:
                match = re.fullmatch(pattern, path)
                if match is not None and expected == method:
                    groups = {k: v if v is None else unquote(v) for k, v in match.groupdict().items()}
                    with hub.lock:
                        answer = getattr(self, f"on_{name}")(**groups)
                    if fault is not None:
                        return self._break(0)
                    return self._answer(*answer)
            raise _Refused(404, None, f"no such call: {self.command} {path}")
        except _Refused as error:
            headers = {"X-Error-Message": str(error)} | ({} if error.code is None else {"X-Error-Code": error.code})
            self._answer(error.status, {"error": str(error)}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one_method

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _chunks(self) -> Iterator[bytes]:
        """The body, read to its end as HTTP/1.1 wants it."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while (size := int(self.rfile.readline().split(b";")[0], 16)) > 0:
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left > 0:
            chunk = self.rfile.read(min(left, CHUNK))
            if not chunk:
                raise _Broken
            left -= len(chunk)
            yield chunk

    def _break(self, after: int) -> None:
        """Read `after` bytes of the body, then reset the connection."""
        got = 0
        chunks = self._chunks()
        while got < after and (chunk := next(chunks, b"")):
            got += len(chunk)
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        """Send JSON, or bytes (a part of them if a range was asked for)."""
        headers = {} if headers is None else dict(headers)
        if isinstance(content, bytes):
            headers.setdefault("Content-Type", "application/octet-stream")
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if status == 200 and span is not None:
                start, end = int(span[1]), int(span[2]) if span[2] else len(content) - 1
                headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
                content, status = content[start : end + 1], 206
        else:
            headers.setdefault("Content-Type", "application/json")
            content = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # -- helpers ----------------------------------------------------------------------------------------------------

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def _signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _require_token(self) -> None:
        if not self._signed_in():
            raise _Refused(401, None, "Invalid username or password.")

    def _repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self._signed_in()):
            raise _Refused(404 if self._signed_in() else 401, "RepoNotFound", "Repository not found")
        return found

    def _at(self, name: str, revision: str) -> Commit:
        commit = self._repository(name).at(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # -- the calls: each returns status, content and headers ----------------------------------------------------------

    def on_whoami(self) -> tuple:
        self._require_token()
        return 200, {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"type": "access_token"}}

    def on_validate_yaml(self) -> tuple:
        content = json.loads(self.body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        return (400 if errors else 200), {"errors": errors, "warnings": []}

    def on_create(self) -> tuple:
        self._require_token()
        wanted = json.loads(self.body)
        owner = wanted.get("organization")
        if owner not in (None, USER):
            raise _Refused(403, None, f"You don't have the rights to create a model under the namespace {owner!r}")
        name = f"{'datasets/' if wanted.get('type') == 'dataset' else ''}{USER}/{wanted['name']}"
        if name in self.hub.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repositories[name] = Repository(private)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.hub.repositories[name].commit({".gitattributes": File(attributes.encode(), False)}, "initial commit")
        return 200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name}

    def on_info(self, name: str, revision: str = "main") -> tuple:
        commit = self._at(name, revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        facts = {"private": self.hub.repositories[name].private, "siblings": siblings, "tags": []}
        name = name.removeprefix("datasets/")
        return 200, {"id": name, "modelId": name, "sha": commit.oid} | facts

    def on_refs(self, name: str) -> tuple:
        repository = self._repository(name)
        kinds = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
        return 200, {"converts": []} | {
            kind: [{"name": k, "ref": f"refs/{ref}/{k}", "targetCommit": oid} for k, oid in names.items()]
            for kind, (ref, names) in kinds.items()
        }

    def on_tree(self, name: str, revision: str, folder: str | None) -> tuple:
        prefix = "" if folder is None else folder.strip("/") + "/"
        query = parse_qs(urlsplit(self.path).query)
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        rows, folders = [], set()
        for path, file in sorted(self._at(name, revision).files.items()):
            if not path.startswith(prefix):
                continue
            if "/" in path[len(prefix) :]:
                folders.add(prefix + path[len(prefix) :].split("/")[0])
                if not recursive:
                    continue
            row: dict[str, Any] = {"type": "file", "path": path, "size": len(file.content), "oid": file.git_sha}
            if file.lfs:
                row["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
            rows.append(row)
        if prefix and not rows and not folders:
            raise _Refused(404, "EntryNotFound", f"{prefix} does not exist")
        rows += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        return 200, rows

    def on_preupload(self, name: str, revision: str) -> tuple:
        self._require_token()
        there = self._at(name, revision).files
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            binary = b"\0" in base64.b64decode(file["sample"])
            lfs = path.endswith(LFS_SUFFIXES) or binary or file["size"] > LFS_SIZE
            oid = there[path].etag if path in there and there[path].lfs == lfs else None
            answers.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid})
        return 200, {"files": answers}

    def on_batch(self, name: str) -> tuple:
        self._require_token()
        self._repository(name)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            if wanted["oid"] not in self.hub.objects:
                base = f"{self.hub.url}/objects"
                actions = {"upload": {"href": f"{base}/{wanted['oid']}"}, "verify": {"href": f"{base}/verify"}}
                wanted = wanted | {"actions": actions}
            objects.append(wanted)
        return 200, {"transfer": "basic", "objects": objects}

    def on_store(self, oid: str) -> tuple:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, None, "the content does not have this SHA-256")
        self.hub.objects[oid] = self.body
        self.hub.stored.append(oid)
        return 200, None

    def on_verify(self) -> tuple:
        wanted = json.loads(self.body)
        if len(self.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise _Refused(404, None, "no such object of this size")
        return 200, {}

    def on_commit(self, name: str, revision: str) -> tuple:
        self._require_token()
        repository, parent = self._repository(name), self._at(name, revision)
        files, header = dict(parent.files), {}
        for line in self.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise _Refused(400, None, f"{value['path']}: the LFS object was never uploaded")
                files[value["path"]] = File(self.hub.objects[value["oid"]], True)
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise _Refused(404, "EntryNotFound", f"{value['path']} does not exist")
            else:
                raise _Refused(400, None, f"unknown operation {key!r}")
        if header.get("parentCommit") not in (None, parent.oid):
            raise _Refused(412, None, "A commit has happened since. Please refresh and try again.")
        commit = repository.commit(files, header["summary"], revision)
        url = f"{self.hub.url}/{name}/commit/{commit.oid}"
        return 200, {"success": True, "commitOid": commit.oid, "commitUrl": url}

    def on_point(self, name: str, kind: str, revision: str) -> tuple:
        self._require_token()
        repository = self._repository(name)
        wanted = json.loads(self.body) if self.body else {}
        if kind == "tag":
            repository.tags[wanted["tag"]] = self._at(name, revision).oid
        else:
            repository.branches[revision] = self._at(name, wanted.get("startingPoint", "main")).oid
        return 200, {}

    def on_resolve(self, name: str, revision: str, path: str) -> tuple:
        commit = self._at(name, revision)
        if path not in commit.files:
            raise _Refused(404, "EntryNotFound", f"{path} does not exist")
        file = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.lfs:
            linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
            # Another host name, as the Hub's store has: the client takes the headers above before it follows.
            store = self.hub.url.replace("127.0.0.1", "localhost")
            return 302, None, headers | linked | {"Location": f"{store}/objects/{file.sha256}"}
        return 200, file.content, headers

    def on_object(self, oid: str) -> tuple:
        if oid not in self.hub.objects:
            raise _Refused(404, "EntryNotFound", "no such object")
        return 200, self.hub.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
