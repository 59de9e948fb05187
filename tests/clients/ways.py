"""One request to api.openai.com for a model, sent in an unusual WAY: ways.py WAY MODEL. A line of what came back.

    pieces   memory BIO, and each record in packets of three bytes, then the rest
    early    a write of another model before the handshake is over, which OpenSSL does not take
    rewrite  the same, and the same bytes again once it is
    mapped   from the pages of a file that the process has not touched
    long     the same, longer than the socket takes at once
    bio      OpenSSL's BIO interface: no call of SSL_write
    child    a forked child goes on with its parent's TLS object, ten bytes first
    retry    a write that OpenSSL can't end since the socket is full, tried again with another model's bytes
    late     memory BIO, and the record is sent when the TLS object has been gone for a while
    blank    twelve empty lines before the head
    crooked  a target with another one in its query
    host     the host field names another provider
    secret   the text comes last, after 48 KiB, and in writes of their own
    costly   a hundred answers, and two limits of which the first is small
"""

import ctypes
import json
import mmap
import os
import socket
import ssl
import sys
import tempfile
import time

HOST = "api.openai.com"
OTHER = "api.anthropic.com"
PATH = "/v1/chat/completions"
TEXT = "Hello"


def request(model, text=TEXT, host=HOST, path=PATH, last=False, **more):
    rest = {"messages": [{"role": "user", "content": text}], **more}
    body = json.dumps({**rest, "model": model} if last else {"model": model, **rest}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def connect(room=None):
    plain = socket.create_connection((HOST, 443), timeout=20)
    if room:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
    return ssl.create_default_context().wrap_socket(plain, server_hostname=HOST)


def answer_to(*parts):
    with connect() as connection:
        for part in parts:
            connection.sendall(part)
        return connection.recv(65536)


class Memory:
    """A TLS object whose records the program sends itself."""

    def __init__(self, cut):
        self.incoming, self.outgoing, self.cut = ssl.MemoryBIO(), ssl.MemoryBIO(), cut
        context = ssl.create_default_context()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=HOST)
        self.socket = socket.create_connection((HOST, 443), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def push(self):
        data = self.outgoing.read()
        while self.cut and data:
            size = 5 + int.from_bytes(data[3:5], "big")
            self.socket.send(data[:3])
            self.socket.send(data[3:size])
            data = data[size:]
        if data:
            self.socket.sendall(data)

    def until(self, step):
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self.push()
                data = self.socket.recv(65536)
                if not data:
                    return b""
                self.incoming.write(data)

    def call(self, data):
        self.until(self.tls.do_handshake)
        self.push()
        self.tls.write(data)
        self.push()
        return self.until(lambda: self.tls.read(65536))


def pieces(model):
    return Memory(cut=True).call(request(model))


def early(model, first=None):
    memory = Memory(cut=False)
    real = request(model)
    other = request(first or "gpt-4o-mini")
    assert first or len(other) == len(real)
    try:
        memory.tls.write(other)
    except ssl.SSLWantReadError:
        pass
    return memory.call(real)


def long(model):
    return mapped(model, "Hello" * 100_000, 16 << 10)


def mapped(model, text="Hello", room=None):
    data = request(model, text)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        connection = connect(room)
        pages = mmap.mmap(file.fileno(), len(data), flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        connection.sendall(pages)
        return connection.recv(65536)


def bio(model):
    libssl, libcrypto = ctypes.CDLL("libssl.so.3"), ctypes.CDLL("libcrypto.so.3")
    pointer = ctypes.c_void_p
    for function in ("TLS_client_method", "SSL_CTX_new", "BIO_new_ssl_connect"):
        getattr(libssl, function).restype = pointer
    control = libcrypto.BIO_ctrl
    control.argtypes, control.restype = [pointer, ctypes.c_int, ctypes.c_long, pointer], ctypes.c_long
    it = pointer(libssl.BIO_new_ssl_connect(pointer(libssl.SSL_CTX_new(pointer(libssl.TLS_client_method())))))
    control(it, 100, 0, ctypes.cast(ctypes.c_char_p(HOST.encode()), pointer))
    control(it, 100, 1, ctypes.cast(ctypes.c_char_p(b"443"), pointer))
    tls = pointer()
    control(it, 110, 0, ctypes.cast(ctypes.byref(tls), pointer))
    libssl.SSL_ctrl(tls, 55, ctypes.c_long(0), HOST.encode())
    try:
        if control(it, 101, 0, None) != 1:
            return b""
        data, answer = request(model), ctypes.create_string_buffer(65536)
        libcrypto.BIO_write(it, data, len(data))
        count = libcrypto.BIO_read(it, answer, 65536)
        return answer.raw[: max(count, 0)]
    finally:
        libcrypto.BIO_free_all(it)


def child(model):
    connection, data = connect(), request(model)
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            connection.send(data[:10])
            connection.sendall(data[10:])
            os.write(writer, connection.recv(65536))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read(65536)
    os.wait()
    return answer


def retry(model, other=None):
    text = "x" * 30_000
    # In the last record, which is the one that finds no room.
    real = request(model, text, last=True)
    instead = request((other or "gpt-4o-mini").ljust(len(model), "0"), text, last=True)
    with socket.socket() as tcp:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        tcp.settimeout(20)
        tcp.connect((HOST, 443))
        with ssl.create_default_context().wrap_socket(tcp, server_hostname=HOST) as connection:
            connection.setblocking(False)
            left, end = real, time.monotonic() + 20
            while left and time.monotonic() < end:
                try:
                    left = left[connection.send(left):]
                except ssl.SSLWantWriteError:
                    left = instead[-len(left):]
                    time.sleep(0.01)
            connection.settimeout(20)
            return connection.recv(65536)


def late(model):
    memory = Memory(cut=False)
    memory.until(memory.tls.do_handshake)
    memory.push()
    memory.tls.write(request(model))
    record = memory.outgoing.read()
    del memory.tls
    time.sleep(1.5)
    memory.socket.sendall(record)
    return b"something" if memory.socket.recv(65536) else b""


def secret(model, text=TEXT):
    data = request(model, "x" * 48_000 + " " + text)
    cut = data.index(text.encode())
    return answer_to(data[:16_000], data[16_000:cut], data[cut:])


WAYS = {
    "pieces": pieces,
    "early": early,
    "rewrite": lambda model: early(model, first=model),
    "mapped": mapped,
    "long": long,
    "bio": bio,
    "child": child,
    "retry": retry,
    "late": late,
    "blank": lambda model: answer_to(b"\r\n" * 12 + request(model)),
    "crooked": lambda model: answer_to(request(model, path=f"{PATH}?next=http://files.example.test/")),
    "host": lambda model, text=TEXT: answer_to(request(model, text, host=OTHER)),
    "secret": secret,
    "costly": lambda model, text=TEXT: answer_to(
        request(model, text, n=100, max_tokens=9, max_completion_tokens=16_000)
    ),
}


def main():
    try:
        answer = WAYS[sys.argv[1]](sys.argv[2])
        print(answer.split(b"\r\n")[0].decode() or "closed")
    except OSError as error:
        print(f"failed: {error!r}")


if __name__ == "__main__":
    main()
