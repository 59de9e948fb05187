"""Calls a provider that is closed to it, over TCP three times and by UDP; says how each attempt ended."""

import errno
import http.client
import json
import socket
import ssl
import time

HOST = "api.openai.com"
BODY = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]})


def call():
    connection = http.client.HTTPSConnection(HOST, 443, context=ssl.create_default_context(), timeout=20)
    connection.request("POST", "/v1/chat/completions", BODY, {"Content-Type": "application/json"})
    return connection.getresponse().read()


def outcome(attempt):
    try:
        attempt()
    except (ssl.SSLError, http.client.HTTPException):
        # An end within TLS: its number is OpenSSL's, not the system's.
        return "ended"
    except OSError as error:
        return errno.errorcode.get(error.errno, "ended")
    return "passed"


def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(b"\0" * 1200, (HOST, 443))


def connected():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect((HOST, 443))
        udp.send(b"\0" * 1200)


calls = []
for _ in range(3):
    calls.append(outcome(call))
    # The agent tells the kernel after the first refusal.
    time.sleep(0.5)
print(json.dumps({"calls": calls, "udp": [outcome(datagram), outcome(connected)]}))
