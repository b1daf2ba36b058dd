"""A local server whose answers are raw bytes: it may break HTTP as it likes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self


class HostileServer:
    """Answers each request with the next of `answers`, from the first again after the last, and hangs up."""

    def __init__(self, answers: Sequence[bytes] = ()) -> None:
        self.answers = list(answers)
        self.asked = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(10)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            try:
                with connection:
                    connection.settimeout(10)
                    self._answer(connection)
            except OSError:
                continue  # the client left in the middle

    def _answer(self, connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536) or b"\r\n\r\n"
        head, _, body = request.partition(b"\r\n\r\n")
        length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
        missing = int(length.partition(b":")[2]) - len(body)
        while missing > 0:
            missing -= len(connection.recv(65536)) or missing
        self.asked += 1
        connection.sendall(self.answers[(self.asked - 1) % len(self.answers)])
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def answer(body: bytes, *, status: str = "200 OK", kind: str = "application/json", more: bytes = b"") -> bytes:
    """A whole answer with this body."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
    return head.encode() + more + b"\r\n" + body
