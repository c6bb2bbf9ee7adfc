"""Stands between a client and a server on loopback and gets in the way: 503s, cut connections, silence, an end."""

import contextlib
import http.client
import random
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no news."""


class FaultyProxy:
    """Inside its `with`, `address` answers as `server` does, but for a share `rate` of the requests.

    `counts` says how many were refused, cut off before or after the server had them, or kept waiting. From the first
    request on whose path matches `away_from` all are refused, until that changes.
    """

    def __init__(self, server: str, rate: float, silence: float, seed: int = 0) -> None:
        self.rate, self.away_from = rate, ""
        self.counts = {"503": 0, "cut before": 0, "cut after": 0, "silence": 0, "passed": 0}
        rng, lock = random.Random(seed), threading.Lock()
        finished: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}  # answers to uploads, by their session
        proxy, backend = self, server.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self._body()
                with lock:
                    if proxy.away_from and re.search(proxy.away_from, self.path):
                        proxy.away_from = "."
                    fault = (
                        rng.choice(("503", "cut before", "cut after", "silence")) if rng.random() < proxy.rate else ""
                    )
                    fault = "503" if proxy.away_from == "." else fault
                    proxy.counts[fault or "passed"] += 1
                if fault == "503":
                    return self._answer(503, [], b"try again")
                if self.path in finished:  # Google answers it again; the server behind has forgotten the session
                    return self._answer(*finished[self.path])
                if fault == "cut before":
                    return self._cut()
                if fault == "silence":
                    time.sleep(silence)
                connection = http.client.HTTPConnection(backend, timeout=60)
                headers = {name: value for name, value in self.headers.items()
                           if name.lower() not in ("host", "transfer-encoding", "content-length")}  # fmt: skip
                connection.request(self.command, self.path, body, headers | {"Host": backend})
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                if "upload_id=" in self.path and answer.status in (200, 201):
                    finished[self.path] = answer.status, answer.getheaders(), content
                if fault == "cut after":
                    return self._cut()
                self._answer(answer.status, answer.getheaders(), content)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_any

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts = []
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                        self.send_header(name, value.replace(backend, proxy.address.removeprefix("http://")))
                self.send_header("Content-Length", str(len(content)))
                try:
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(content)
                except ConnectionError:  # it would not wait
                    self.close_connection = True

            def _cut(self) -> None:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *unused: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultyProxy":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._server.shutdown()
        self._server.server_close()
