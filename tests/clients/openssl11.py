"""One chat completion through OpenSSL 1.1, which a wheel on PyPI still brings, by its C functions."""

import ctypes
import glob
import json
import os
import socket
import sysconfig
import time

NAME = "api.openai.com"
SET_TLSEXT_HOSTNAME = 55


def library(pattern):
    place = sysconfig.get_path("platlib")
    path, = glob.glob(f"{place}/psycopg2_binary.libs/{pattern}")
    return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


def main():
    library("libcrypto-*.so.1.1")
    ssl = library("libssl-*.so.1.1")
    time.sleep(2)  # A file that nobody has seen before is looked at a moment after it was mapped.
    for function in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(ssl, function).restype = ctypes.c_void_p
    context = ctypes.c_void_p(ssl.SSL_CTX_new(ctypes.c_void_p(ssl.TLS_client_method())))
    assert ssl.SSL_CTX_load_verify_locations(context, os.environ["SSL_CERT_FILE"].encode(), None) == 1
    ssl.SSL_CTX_set_verify(context, 1, None)
    tcp = socket.create_connection((NAME, 443))
    tcp.setblocking(True)
    tls = ctypes.c_void_p(ssl.SSL_new(context))
    assert ssl.SSL_ctrl(tls, SET_TLSEXT_HOSTNAME, ctypes.c_long(0), NAME.encode()) == 1
    assert ssl.SSL_set_fd(tls, tcp.fileno()) == 1
    begun = time.monotonic()
    assert ssl.SSL_connect(tls) == 1
    body = json.dumps({
        "model": "gpt-4o-mini", "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    assert ssl.SSL_write(tls, head + body, len(head + body)) == len(head + body)
    answer, part = b"", ctypes.create_string_buffer(65536)
    while (read := ssl.SSL_read(tls, part, len(part))) > 0:
        answer += part.raw[:read]
    print(json.dumps({
        "ok": answer.startswith(b"HTTP/1.1 200"), "error": None, "answer": len(answer),
        "seconds": time.monotonic() - begun,
    }))


main()
