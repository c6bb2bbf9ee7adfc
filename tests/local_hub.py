"""A stand-in for the hub on loopback: as much of its interface as huggingface_hub needs to upload and download models.

Files above LARGE bytes go by git LFS, as weights do.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN, OWNER, LARGE = "hf_right", "owner", 10_000


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, dict[str, bytes]] = {}
        """{repository: {path: content}}"""
        self.private: set[str] = set()
        self.commits: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.refuses_objects = False


@contextmanager
def running():
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *unused):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def route(self):
        """Calls the method whose pattern fits; everything but reading wants the token."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command in ("POST", "PUT") or "whoami" in self.path:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}" and not self.path.startswith("/objects/"):
                return self.answer({"error": "Invalid credentials"}, 401)
        for pattern, method in _ROUTES.items():
            if match := re.fullmatch(pattern, f"{self.command} {self.path.partition('?')[0]}"):
                return method(self, body, *match.groups())
        return self.answer({"error": "no such place"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = route

    # -------------------------------------------------------------------------------------------------- upload

    def whoami(self, body):
        self.answer({"type": "user", "name": OWNER, "orgs": []})

    def create(self, body):
        asked = json.loads(body)
        owner = asked.get("organization", OWNER)
        repository = f"{owner}/{asked['name']}"
        if owner != OWNER:
            return self.answer({"error": "You don't have the rights"}, 403)
        if asked.get("private"):
            self.server.private.add(repository)
        status = 409 if repository in self.server.files else 200
        self.server.files.setdefault(repository, {})
        self.answer({"url": f"{self.server.address}/{repository}"}, status)

    def validate(self, body):
        self.answer({"errors": [], "warnings": []})

    def modes(self, body, repository):
        asked = json.loads(body)["files"]
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["size"] > LARGE else "regular", "shouldIgnore": False}
            for f in asked
        ]
        self.answer({"files": files})

    def batch(self, body, repository):
        objects = [
            each | {"actions": {"upload": {"href": f"{self.server.address}/objects/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def put(self, body, oid):
        if self.server.refuses_objects:
            return self.answer({"error": "out of space"}, 507)
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self.answer(b"")

    def commit(self, body, repository):
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "file":
                self.server.files[repository][value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                self.server.files[repository][value["path"]] = self.server.objects[value["oid"]]
        self.server.commits.append(repository)
        self.answer({"commitUrl": f"{self.server.address}/{repository}/commit/1", "commitOid": "1" * 40})

    # ------------------------------------------------------------------------------------------------ download

    def revision(self, body, repository):
        if repository not in self.server.files:
            return self.answer({"error": "Repository not found"}, 401, X_Error_Code="RepoNotFound")
        files = [{"rfilename": path} for path in self.server.files[repository]]
        self.answer({"id": repository, "sha": "1" * 40, "siblings": files})

    def resolve(self, body, repository, path):
        content = self.server.files[repository][path]
        self.answer(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit="1" * 40)


_REPOSITORY = r"([\w.-]+/[\w.-]+)"
_ROUTES = {
    r"GET /api/whoami-v2": _Handler.whoami,
    r"POST /api/repos/create": _Handler.create,
    r"POST /api/validate-yaml": _Handler.validate,
    rf"POST /api/models/{_REPOSITORY}/preupload/main": _Handler.modes,
    rf"POST /{_REPOSITORY}.git/info/lfs/objects/batch": _Handler.batch,
    r"PUT /objects/(\w+)": _Handler.put,
    rf"POST /api/models/{_REPOSITORY}/commit/main": _Handler.commit,
    rf"GET /api/models/{_REPOSITORY}(?:/revision/main)?": _Handler.revision,
    rf"(?:GET|HEAD) /{_REPOSITORY}/resolve/\w+/(.+)": _Handler.resolve,
}
