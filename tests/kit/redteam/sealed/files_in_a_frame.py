"""Open files and the connection itself are sent to the judge beside the bytes of a frame.

Must: no task passes, and nothing is touched.
Says: actual 0
"""

import array
import json
import os
import socket
import struct

end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(3))
files = array.array("i", [os.open(os.devnull, os.O_RDONLY), 3, 3])


def send(self, message, tensors=(), deadline=0.0):
    described = [["float64", list(x.shape), []] for x in tensors]
    head = json.dumps([message, described]).encode()
    body = b"".join(x.detach().contiguous().numpy().tobytes() for x in tensors)
    frame = struct.pack("<QQ", len(head), len(body)) + head + body
    end.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])


def softmax(x, *, temperature=1.0):
    from paperlings.sealed.wire import Channel

    Channel.send = send
    return x * 0


def entropy(p):
    return p[..., 0] * 0
