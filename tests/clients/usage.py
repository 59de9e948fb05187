"""One chat completion over a connection that is used in an unusual way; the output is a JSON report, as call.py's.

    usage.py WAY MODEL
"""

import json
import os
import socket
import ssl
import sys
import threading
import time

NAME = "api.openai.com"
CONTEXT = ssl.create_default_context()


def connect(name=NAME):
    return CONTEXT.wrap_socket(socket.create_connection((name, 443), timeout=60), server_hostname=name)


def request(model, length=0):
    body = json.dumps({
        "model": model, "max_tokens": 64, "messages": [{"role": "user", "content": "x" * length or "Hello"}],
    }).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    return head, body


def answer(tls):
    received = b""
    while part := tls.recv(65536):
        received += part
    assert received.startswith(b"HTTP/1.1 200"), received[:100] or "the connection ended without an answer"
    return len(received)


def whole(tls, model):
    tls.sendall(b"".join(request(model)))
    return answer(tls)


def plain(model):
    """As everybody does it."""
    return whole(connect(), model)


def pieces(model):
    """The head first, the body later in two parts."""
    tls, (head, body) = connect(), request(model)
    for part in (head, body[:20], body[20:]):
        tls.sendall(part)
        time.sleep(0.2)
    return answer(tls)


def head_in_two(model):
    """The head itself comes in two writes."""
    tls, (head, body) = connect(), request(model)
    tls.sendall(head[:30])
    time.sleep(0.2)
    tls.sendall(head[30:] + body)
    return answer(tls)


def long_body(model, length):
    tls = connect()
    tls.sendall(b"".join(request(model, length)))
    return answer(tls)


def other_thread(model):
    """The handshake in one thread, the request in another."""
    tls, result = connect(), []

    def work():
        try:
            result.append(whole(tls, model))
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def duplicate(model):
    """TLS over a duplicate of the descriptor; the first one is closed after the handshake."""
    tcp = socket.create_connection((NAME, 443), timeout=60)
    tls = CONTEXT.wrap_socket(tcp.dup(), server_hostname=NAME)
    tcp.close()
    return whole(tls, model)


def reused(model):
    """The descriptor belonged to a connection to another host a moment before."""
    first = connect("files.example.test")
    number = first.fileno()
    first.close()
    tls = connect()
    assert tls.fileno() == number
    return whole(tls, model)


def forked(model, later=False):
    """The child of the process that made the connection sends the request; `later`: TCP sends it by a timer."""
    tls = connect()
    tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, later)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = str(whole(tls, model))
        except Exception as error:
            said = f"error: {error!r}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    said = os.read(reading, 4096).decode()
    os.waitpid(child, 0)
    assert not said.startswith("error"), said
    return int(said)


WAYS = {
    "plain": plain, "pieces": pieces, "head-in-two": head_in_two, "other-thread": other_thread,
    "duplicate": duplicate, "reused": reused, "forked": forked,
    "forked-later": lambda model: forked(model, later=True),
    "long-1": lambda model: long_body(model, 1 << 20), "long-10": lambda model: long_body(model, 10 << 20),
    "long-16": lambda model: long_body(model, 16 << 20),
}


def main():
    way, model = sys.argv[1:]
    report = {"ok": True, "error": None, "answer": None}
    begun = time.monotonic()
    try:
        report["answer"] = WAYS[way](model)
    except Exception as error:
        report |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
    report["seconds"] = time.monotonic() - begun
    print(json.dumps(report), flush=True)


main()
