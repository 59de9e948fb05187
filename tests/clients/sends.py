"""A request that is refused: how the send call of its connection ended, how a later one did, and how soon."""

import errno
import json
import socket
import ssl
import sys
import time

HOST = "api.openai.com"
BODY = json.dumps({"model": "o1-pro", "messages": [{"role": "user", "content": "Hello"}]}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nContent-Type: application/json\r\n"
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


def timed(attempt):
    begun = time.monotonic()
    try:
        attempt()
        outcome = "passed"
    except OSError as error:
        outcome = errno.errorcode.get(error.errno, "ended")
    return {"outcome": outcome, "seconds": time.monotonic() - begun}


def flush():
    if data := outgoing.read():
        tcp.sendall(data)


def handshake():
    while True:
        try:
            tls.do_handshake()
            return flush()
        except ssl.SSLWantReadError:
            flush()
            incoming.write(tcp.recv(1 << 16))


def request():
    tls.write(REQUEST)
    flush()


def ended():
    while tcp.recv(1 << 16):
        pass
    raise ConnectionResetError


# Over memory BIOs, the send call and its error are our own.
tcp = socket.create_connection((HOST, 443), timeout=20)
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=HOST)
handshake()
# The agent hears of the connection, and tells the kernel where a provider is closed to this process.
time.sleep(float(sys.argv[1]))
send, answer = timed(request), timed(ended)
again = timed(lambda: tcp.send(b"more"))
print(json.dumps({"send": send, "answer": answer, "again": again}))
