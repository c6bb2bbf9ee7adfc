"""A stand-in for Google's TPU API on loopback: enough of it for the real gcloud to create, queue, see and delete."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class FakeTpuApi:
    """Machines are READY at once unless `created` says otherwise; bodies of all creations are kept."""

    def __init__(self, created=lambda name, node: None, deleted=lambda name: None):
        """`created` is called with each new machine, `deleted` before one goes."""
        self.nodes, self.requests, self.bodies, self.deletions = {}, {}, [], []
        self.refusals = []
        """(HTTP code, status) of the next creations, used up from the front."""
        self.types, self.images = ["v2-8", "v3-8", "v3-16", "v4-8"], ["tpu-ubuntu2204-base"]
        self.services = ["tpu.googleapis.com", "storage.googleapis.com", "compute.googleapis.com"]
        self.members = []
        """Who may edit the project."""
        self.operation_error = None
        """{"code", "message"} that the operations of creations end with."""
        self._created, self._deleted, self._operations = created, deleted, {}
        api = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}") if length else {}
                code, answer = api.answer(self.command, self.path, body)
                data = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = do_PATCH = _answer

            def log_message(self, *unused):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *unused):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home):
        """What leads the real gcloud here, with a home of its own."""
        return {
            "HOME": str(home), "CLOUDSDK_CONFIG": str(home / "gcloud"), "CLOUDSDK_AUTH_ACCESS_TOKEN": "fake",
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1", "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": f"{self.address}/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{self.address}/compute/v1/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_SERVICEUSAGE": f"{self.address}/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDRESOURCEMANAGER": f"{self.address}/",
        }  # fmt: skip

    # ------------------------------------------------------------------------------------------------- the API

    def answer(self, method, path, body):
        url = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if match := re.fullmatch(r"/v[12]/(projects/[^/]+/locations/[^/]+)/(\w+)(?:/([^/:]+))?(?::(\w+))?", url.path):
            return self._tpu(method, *match.groups(), query, body)
        if url.path.startswith("/compute/v1/projects/"):
            return 200, {"name": "p", "commonInstanceMetadata": {"items": []}}
        if url.path.endswith("/services"):
            return 200, {"services": [{"name": f"x/{name}", "config": {"name": name}} for name in self.services]}
        if url.path.endswith(":getIamPolicy"):
            return 200, {
                "bindings": [{"role": "roles/editor", "members": self.members}],
                "etag": "BwWWja0YfJA=",
                "version": 1,
            }
        if "/projects/" in url.path:
            return 200, {"projectId": url.path.rsplit("/", 1)[-1], "lifecycleState": "ACTIVE",
                         "projectNumber": "1234"}  # fmt: skip
        return _error(404, "NOT_FOUND", path)

    def _tpu(self, method, parent, kind, name, verb, query, body):
        if kind == "operations":
            return 200, self._operations[name]
        if kind in ("acceleratorTypes", "runtimeVersions"):
            names = self.types if kind == "acceleratorTypes" else self.images
            field = "type" if kind == "acceleratorTypes" else "version"
            return 200, {kind: [{"name": f"{parent}/{kind}/{each}", field: each} for each in names]}
        there = {"nodes": self.nodes, "queuedResources": self.requests}[kind]
        if method == "POST" and name is None:
            return self._create(parent, kind, query, body)
        if name is None:
            return 200, {kind: list(there.values())}
        if name not in there:
            return _error(404, "NOT_FOUND", f"Resource '{parent}/{kind}/{name}' was not found")
        if method == "DELETE":
            self.deletions.append(name)
            if self.nodes.pop(name, None):
                self._deleted(name)
            self.requests.pop(name, None)
            return 200, self._operation(parent, {})
        if verb == "getGuestAttributes":
            return 200, {"guestAttributes": [{"queryValue": {"items": []}}]}
        if method == "PATCH":
            there[name].setdefault("metadata", {}).update(body.get("metadata", {}))
            return 200, self._operation(parent, there[name])
        return 200, there[name]

    def _create(self, parent, kind, query, body):
        if self.refusals:
            return _error(*self.refusals.pop(0), "refused for a test")
        self.bodies.append((kind, body))
        if self.operation_error:
            operation = self._operation(parent, {})
            operation.update(error=self.operation_error)
            del operation["response"]
            return 200, operation
        if kind == "nodes":
            name, node = query["nodeId"], body
        else:
            request = query["queuedResourceId"]
            (spec,) = body["tpu"]["nodeSpec"]
            name, node = spec["nodeId"], spec["node"]
            self.requests[request] = {
                **body, "name": f"{parent}/queuedResources/{request}", "state": {"state": "ACTIVE"},
            }  # fmt: skip
        self.nodes[name] = {
            **node, "name": f"{parent}/nodes/{name}", "state": "READY", "health": "HEALTHY",
            "networkEndpoints": [{"ipAddress": "10.0.0.2", "accessConfig": {"externalIp": "127.0.0.1"}}],
        }  # fmt: skip
        self._created(name, self.nodes[name])
        return 200, self._operation(parent, {"name": f"{parent}/nodes/{name}"})

    def _operation(self, parent, response):
        """One that is done; gcloud may ask for it again, and for what its response names."""
        number = str(len(self._operations))
        self._operations[number] = {
            "name": f"{parent}/operations/{number}", "done": True, "response": response,
        }  # fmt: skip
        return self._operations[number]


def _error(code, status, message):
    return code, {"error": {"code": code, "status": status, "message": message}}
