"""Tries to get a MARKER to a provider for so many SECONDS, again and again in one WAY; says how often, and how often
something came back: adversary.py WAY SECONDS MARKER.

A way of ways.py, with the marker in the model's name where models are refused, else in the text; or:

    names    gives TLS objects a provider's name, as fast as it can
    knock    connects to a provider that is closed to it, and sends it datagrams, several hundred times a second
"""

import json
import os
import socket
import ssl
import sys
import time

import ways

WAY, SECONDS, MARKER = sys.argv[1], float(sys.argv[2]), sys.argv[3]
IN_TEXT = {"host": MARKER, "costly": MARKER, "secret": f"secret {MARKER}"}
WITH_COVER = ("early", "retry")


def attempt(number):
    """What came back. No two requests ask for the same model."""
    own = f"{os.getpid()}-{number}"
    allowed, refused = f"gpt-4o-mini-{own}", f"gpt-4o-{MARKER}-{own}"
    if WAY in IN_TEXT:
        return ways.WAYS[WAY](allowed, text=IN_TEXT[WAY])
    if WAY in WITH_COVER:
        return ways.WAYS[WAY](refused, f"gpt-4o-cover-{own}-".ljust(len(refused), "0"))
    return ways.WAYS[WAY](refused)


def names(number, context=ssl.create_default_context()):
    for _ in range(1_000):
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=ways.HOST)


def knock(number):
    address = (ways.OTHER, 443)
    try:
        with socket.create_connection(address, timeout=20) as tcp:
            with ssl.create_default_context().wrap_socket(tcp, server_hostname=ways.OTHER) as tls:
                tls.sendall(ways.request(f"claude-{MARKER}-{number}", host=ways.OTHER, path="/v1/messages"))
                return tls.recv(65536)
    finally:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.sendto(MARKER.encode(), address)


def main():
    # What nobody wants to be stopped by has a pause of its own.
    act, pause = {"names": (names, 0), "knock": (knock, 0.002)}.get(WAY, (attempt, 0.05))
    made = answered = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        made += 1
        try:
            answered += bool(act(made))
        except OSError:
            pass
        time.sleep(pause)
    print(json.dumps({"made": made, "answered": answered}))


main()
