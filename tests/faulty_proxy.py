"""A proxy in front of object storage that fails at random, as networks and servers do."""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

FAULTS: Final = (
    "reset",  # the connection is reset before the request arrives
    "lost",  # the request succeeds, but the connection is reset instead of an answer
    "late",  # the request arrives after the client has given it up
    "cut",  # the answer breaks off
    "slow",
    "500",
    "500 after success",
    "503",
)


class FaultyProxy:
    """Forward requests to a server; a part of the requests suffers a fault."""

    def __init__(self, server: str, *, rate: float, seed: int) -> None:
        self.rate = rate
        self.faults: tuple[str, ...] = FAULTS
        self.counts = Counter[str]()
        self.only = ""  # part of the paths of requests that may suffer a fault
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        address = urlsplit(server).netloc
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, address))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def fault(self, path: str) -> str | None:
        """Return the fault of the next request, or None."""
        with self._lock:
            self.counts["requests"] += 1
            if self.only not in path or self._random.random() >= self.rate:
                return None
            fault = self._random.choice(self.faults)
            self.counts[fault] += 1
            return fault

    def close(self) -> None:
        """Stop forwarding."""
        self._http.shutdown()
        self._http.server_close()


def _handler(proxy: FaultyProxy, address: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:
                self.close_connection = True

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy.fault(self.path)
            if fault == "slow":
                time.sleep(0.3)
            if fault == "late":
                threading.Timer(0.3, self.upstream, [body]).start()
            if fault in {"reset", "late"}:
                self.reset()
                return
            if fault in {"500", "503"}:
                self.answer(int(fault), [], b"")
                return
            status, headers, content = self.upstream(body)
            if fault == "lost":
                self.reset()
            elif fault == "500 after success":
                self.answer(500, [], b"")
            else:
                self.answer(status, headers, content, is_cut=fault == "cut")

        def upstream(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(address)
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            content = response.read()
            connection.close()
            return response.status, response.getheaders(), content

        def answer(
            self,
            status: int,
            headers: list[tuple[str, str]],
            content: bytes,
            *,
            is_cut: bool = False,
        ) -> None:
            self.send_response_only(status)
            names = {name.lower() for name, _ in headers}
            for name, value in headers:
                if name.lower() not in {"connection", "transfer-encoding"}:
                    self.send_header(name, value)
            if "content-length" not in names:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if is_cut:
                self.wfile.write(content[: len(content) // 2])
                self.reset()
            elif self.command != "HEAD":
                self.wfile.write(content)

        def reset(self) -> None:
            # With this option, closing sends a reset instead of an orderly end.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.wfile.flush()
            self.connection.close()

        def log_message(self, *_: Any) -> None:
            pass

    for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.forward)
    return Handler
