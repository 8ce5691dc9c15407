"""A small HTTP server of the agent's own: few connections at once, threads, nothing printed."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from firmament.log import logger

log = logger("agent.http")


class BoundedServer(ThreadingHTTPServer):
    """Closes a connection at once while `max_connections` are being served."""

    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], *, max_connections: int, name: str
    ) -> None:
        if ":" in address[0]:
            import socket

            self.address_family = socket.AF_INET6
        self.request_queue_size = max_connections
        self.name: Final = name
        self._places = threading.BoundedSemaphore(max_connections)
        super().__init__(address, handler)

    @property
    def bound(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.server_address[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Serve in a thread of its own."""
        threading.Thread(target=self.serve_forever, name=self.name, daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve in a thread, as long as there are not too many."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Give the place back when it is over."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log, where the library would print."""
        del request
        log.debug("http.client-left", server=self.name, address=str(client_address))
