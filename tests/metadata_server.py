"""The metadata server of a Google machine, on loopback, as far as it is asked."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class MetadataServer:
    """`preempted` may change while it runs."""

    def __init__(self, attributes):
        self.preempted = "FALSE"
        self.failures = {}
        """{attribute: how often it is answered with 503 first}."""
        self._attributes = attributes
        found = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                assert self.headers["Metadata-Flavor"] == "Google"
                path = self.path.removeprefix("/computeMetadata/v1/instance/")
                name, answer = path.removeprefix("attributes/"), found._answer(path)
                found.failures[name] = found.failures.get(name, 0) - 1
                away = found.failures[name] >= 0
                answer = "503 Service Unavailable" if away else answer
                self.send_response(503 if away else 404 if answer is None else 200)
                self.end_headers()
                self.wfile.write((answer or "").encode())

            def log_message(self, *unused):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *unused: None  # who asks may be gone before the answer
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    def _answer(self, path):
        if path == "preempted":
            return self.preempted
        return self._attributes.get(path.removeprefix("attributes/"))

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def pod_attributes(number, workers):
    """What tells JAX which host of how many this is."""
    return {
        "agent-worker-number": str(number),
        "worker-network-endpoints": ",".join(["unknown:unknown:127.0.0.1"] * workers),
        "tpu-env": f"ACCELERATOR_TYPE: 'v3-{8 * workers}'\nWORKER_ID: '{number}'\n",
    }
