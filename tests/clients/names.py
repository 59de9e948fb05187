"""Calls a provider that is closed to this process, then has others say of addresses whose they are: says where it may
still connect to. Arguments: an address that is nobody's."""

import json
import socket
import subprocess
import sys
import time

PROVIDER, OTHER = "api.openai.com", "api.anthropic.com"
NOBODY = 65534

# In a network namespace of its own, anybody is a name server.
FORGE = """
import fcntl, socket, struct, sys
name, address = sys.argv[1:]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 0x41))  # SIOCSIFFLAGS: up, running
asked = b"".join(bytes([len(it)]) + it.encode() for it in name.split(".")) + b"\\0\\0\\1\\0\\1"
record = struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(address)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
s.connect(("127.0.0.1", 53))
s.send(struct.pack(">6H", 77, 0x0100, 1, 0, 0, 0) + asked)
_, client = server.recvfrom(512)
server.sendto(struct.pack(">6H", 77, 0x8180, 1, 1, 0, 0) + asked + record, client)
s.recv(512)
"""

# Another user calls whoever it likes by a provider's name.
CALL = """
import socket, ssl, sys
name, address = sys.argv[1:]
context = ssl._create_unverified_context()
try:
    s = socket.create_connection((address, 443), 2)
    s.settimeout(0.5)
    context.wrap_socket(s, server_hostname=name)
except OSError as error:
    print(error, file=sys.stderr)
"""


def may_connect(address):
    try:
        socket.create_connection((address, 443), 2).close()
        return True
    except PermissionError:
        return False


def first_call():
    import ssl

    try:
        with socket.create_connection((PROVIDER, 443), 5) as s:
            s.settimeout(10)
            with ssl.create_default_context().wrap_socket(s, server_hostname=PROVIDER) as tls:
                tls.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\n"
                            b"Content-Length: 23\r\n\r\n{\"model\":\"gpt-4o-mini\"}")
                return "answered" if tls.recv(1) else "ended"
    except OSError:
        return "ended"


def others_say(name, address):
    subprocess.run(["unshare", "--net", sys.executable, "-c", FORGE, name, address], check=True)
    subprocess.run(["/usr/bin/python3", "-c", CALL, name, address], check=True, user=NOBODY)
    time.sleep(0.5)


def main():
    nobodys = sys.argv[1]
    listener = socket.create_server((nobodys, 443), backlog=16)
    report = {"call": first_call()}
    time.sleep(0.5)
    provider = socket.gethostbyname(PROVIDER)
    where = lambda: {"provider": may_connect(provider), "nobody's": may_connect(nobodys)}
    report["before"] = where()
    others_say(PROVIDER, nobodys)
    report["after closing"] = where()
    others_say(OTHER, provider)
    report["after opening"] = where()
    listener.close()
    print(json.dumps(report))


main()
