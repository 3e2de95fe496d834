#!/usr/bin/env python3
"""One TCP stream: `receive` prints bytes a second, `send HOST` fills it for two seconds. For run.py."""

import socket
import sys
import time

PORT = 7800
SECONDS = 2.0


def receive():
    with socket.create_server(("0.0.0.0", PORT)) as server:
        connection, _ = server.accept()
        buffer = bytearray(1 << 20)
        start, counted = time.monotonic(), 0
        begin = None
        while n := connection.recv_into(buffer):
            now = time.monotonic()
            # Slow start does not count.
            if now - start < SECONDS / 4:
                continue
            begin = begin or now
            end, counted = now, counted + n
        print(counted / (end - begin))


def send(host):
    with socket.create_connection((host, PORT)) as connection:
        data, end = bytes(1 << 20), time.monotonic() + SECONDS
        while time.monotonic() < end:
            connection.sendall(data)


receive() if sys.argv[1] == "receive" else send(sys.argv[2])
