"""Writes a request to api.openai.com from a file of which no page ever comes: pages.py DIRECTORY. Needs root.

A file system in user space (FUSE, include/uapi/linux/fuse.h, protocol 7.31) is mounted at DIRECTORY, in this process's own
mount namespace. A child serves it, and answers everything but reads. Says `writes`; ends with its standard input: not even
SIGKILL ends a process that waits for such a page.
"""

import ctypes
import mmap
import os
import select
import socket
import ssl
import struct
import sys

HOST = "api.openai.com"
SIZE = 8192
ROOT, FILE = 1, 2
LOOKUP, FORGET, GETATTR, OPEN, READ, INIT, INTERRUPT, BATCH_FORGET = 1, 2, 3, 14, 15, 26, 36, 42
libc = ctypes.CDLL(None, use_errno=True)


def attributes(node):
    mode, size = (0o40755, 0) if node == ROOT else (0o100644, SIZE)
    return struct.pack("<QQQQQQIIIIIIIIII", node, size, 16, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(kind, node):
    """What is said to a request; none where nobody waits, or nobody gets an answer."""
    if kind == INIT:
        return 0, struct.pack("<IIIIHHIIHHI28x", 7, 31, 65536, 0, 16, 12, 65536, 1, 16, 0, 0)
    if kind == LOOKUP:
        return 0, struct.pack("<QQQQII", FILE, 0, 3600, 3600, 0, 0) + attributes(FILE)
    if kind == GETATTR:
        return 0, struct.pack("<QII", 3600, 0, 0) + attributes(node)
    if kind == OPEN:
        return 0, struct.pack("<QII", 1, 0, 0)
    if kind in (FORGET, READ, INTERRUPT, BATCH_FORGET):
        return None
    return -38, b""


def serve(device):
    while select.select([device, 0], [], [])[0] == [device]:
        request = os.read(device, 1 << 20)
        _, kind, unique, node = struct.unpack_from("<IIQQ", request)
        said = answer(kind, node)
        if said:
            error, body = said
            os.write(device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)
    os._exit(0)


directory = sys.argv[1]
os.makedirs(directory, exist_ok=True)
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
if libc.mount(b"fuse", directory.encode(), b"fuse", 0, options.encode()) != 0:
    sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
if os.fork() == 0:
    serve(device)
os.close(device)
file = os.open(os.path.join(directory, "request"), os.O_RDONLY)
pages = mmap.mmap(file, SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
plain = socket.create_connection((HOST, 443), timeout=20)
connection = ssl.create_default_context().wrap_socket(plain, server_hostname=HOST)
print("writes", flush=True)
connection.sendall(pages)
