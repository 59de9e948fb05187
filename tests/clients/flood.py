"""`hammer SECONDS`: is refused a provider once, then goes on connecting, 200 times a second; says when it was refused,
first, and how much later each time after that.
`calm`: calls it, and waits for a line. `watch SECONDS`: calls on the connection that it has, and connects anew, again and
again; says when, and what came of both. `once`: connects. `loop SECONDS`: is refused a provider once, waits for a line, then
connects as fast as it can; says how often it was refused. `objects COUNT`: writes a request into the memory of so many TLS
objects, and frees them; says how many."""

import errno
import http.client
import json
import socket
import ssl
import sys
import time

HOST = "api.openai.com"
BODY = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]})
CONTEXT = ssl.create_default_context()
EVERY = 0.005


def call(connection=None):
    connection = connection or http.client.HTTPSConnection(HOST, 443, context=CONTEXT, timeout=20)
    connection.request("POST", "/v1/chat/completions", BODY, {"Content-Type": "application/json"})
    connection.getresponse().read()
    return connection


def outcome(attempt):
    try:
        attempt()
    except (ssl.SSLError, http.client.HTTPException):
        # An end within TLS: its number is OpenSSL's, not the system's.
        return "ended"
    except OSError as error:
        return errno.errorcode.get(error.errno, "ended")
    return "passed"


def connect():
    """When it was tried, in milliseconds, and what came of it."""
    at = time.monotonic_ns() // 1_000_000
    with socket.socket() as tcp:
        return at, outcome(lambda: tcp.connect((HOST, 443)))


def hammer(seconds):
    first = outcome(call)
    # The agent tells the kernel after the first refusal.
    time.sleep(0.5)
    begins, tried = time.monotonic(), []
    while time.monotonic() < begins + seconds:
        tried.append(connect())
        time.sleep(max(0, begins + EVERY * len(tried) - time.monotonic()))
    refused = [at for at, said in tried if said == "EPERM"]
    later = [at - before for before, at in zip(refused, refused[1:])]
    return {"first": first, "refused": refused[:1] + later}


def loop(seconds):
    first = outcome(call)
    time.sleep(0.5)
    address = socket.getaddrinfo(HOST, 443, type=socket.SOCK_STREAM)[0][4]
    print("ready", flush=True)
    sys.stdin.readline()
    refused, ends = 0, time.monotonic() + seconds
    while time.monotonic() < ends:
        with socket.socket() as tcp:
            refused += outcome(lambda: tcp.connect(address)) == "EPERM"
    return {"first": first, "refused": refused}


def calm():
    connection, tried = call(), []
    print("ready", flush=True)
    for line in sys.stdin:
        ends = time.monotonic() + float(line.removeprefix("watch "))
        while time.monotonic() < ends:
            tried.append((*connect(), outcome(lambda: call(connection))))
            time.sleep(0.05)
    return tried


def objects(count):
    body = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}".encode()
    for _ in range(int(count)):
        tls = CONTEXT.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=HOST)
        try:
            tls.write(body)
        except ssl.SSLWantReadError:
            pass
        time.sleep(EVERY)
    return int(count)


MODE, *REST = sys.argv[1:]
MODES = {"hammer": hammer, "calm": calm, "once": connect, "loop": loop, "objects": objects}
print(json.dumps(MODES[MODE](*map(float, REST))))
