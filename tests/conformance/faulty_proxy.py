"""A door between a client and a PostgreSQL server that can be slammed at the worst moment."""

from __future__ import annotations

import contextlib
import socket
import threading


class FaultyProxy:
    """Forwards bytes to a server's socket file.

    Attributes:
        drop_answers: How many of the next answers are thrown away, together with their connections: the
            server has done what was asked, and the client never hears of it.
        drop_questions: The same for questions: the server never hears of them.
        refuses: Whether new connections are closed at once.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.drop_answers = 0
        self.drop_questions = 0
        self.refuses = False
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # Ends the accept that is waiting, which a close alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self):
        """Close all connections."""
        for one in tuple(self._open):
            self._close(one)

    def _close(self, one: socket.socket):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
        self._open.discard(one)

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuses:
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._server)
            self._open |= {client, server}
            for source, target, kind in ((client, server, "drop_questions"), (server, client, "drop_answers")):
                threading.Thread(target=self._pump, args=(source, target, kind), daemon=True).start()

    def _drops(self, kind: str) -> bool:
        with self._lock:
            left = getattr(self, kind)
            setattr(self, kind, max(left - 1, 0))
            return left > 0

    def _pump(self, source: socket.socket, target: socket.socket, kind: str):
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if self._drops(kind):
                    break
                target.sendall(data)
        self._close(source)
        self._close(target)
