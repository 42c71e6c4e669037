"""Clients that only read, in a process of their own: what they do costs the server nothing. Standard library alone.

Run by `benchmarks.http_path`, which writes the request to its standard input.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
from time import monotonic


def read(port: int, streams: int, tokens: int, requests: int) -> None:
    """Every stream asks so often on its one connection. Prints the times of all reads, in monotonic seconds."""
    message = sys.stdin.buffer.read()
    left: dict[socket.socket, int] = {}
    with selectors.DefaultSelector() as selector:
        for _ in range(streams):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(connection, selectors.EVENT_READ)
            left[connection] = requests
            connection.sendall(message)
        events, times = 0, []
        while left:
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                connection = key.fileobj
                received = connection.recv(65536)
                times.append(monotonic())
                events += received.count(b"data: ")
                if not received:
                    raise ConnectionError("the server has closed a stream")
                if received.endswith(b"0\r\n\r\n"):
                    left[connection] -= 1
                    if left[connection]:
                        connection.sendall(message)
                    else:
                        selector.unregister(connection)
                        connection.close()
                        del left[connection]
    expected = streams * requests * (tokens + 3)  # the first and the last chunk, and [DONE]
    assert 0.98 * expected <= events <= expected, f"{events} events instead of {expected}: tokens came together"
    print(json.dumps(times))


if __name__ == "__main__":
    read(*map(int, sys.argv[1:]))
