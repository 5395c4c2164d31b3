"""The question is sent over the network, by TCP, UDP and a socket of the machine.

Must: no task passes, and nothing is touched.
"""

import socket

from targets import DROP, EAR, PORT, reached

for family, kind, address in (
    (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", PORT)),
    (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", PORT)),
    (socket.AF_INET6, socket.SOCK_DGRAM, ("::1", PORT)),
    (socket.AF_UNIX, socket.SOCK_STREAM, f"{DROP}/../listening"),
    (socket.AF_UNIX, socket.SOCK_STREAM, EAR),
):
    try:
        with socket.socket(family, kind) as end:
            end.connect(address)
            end.send(b"the question")
        reached(f"{address}")
    except OSError:
        pass
