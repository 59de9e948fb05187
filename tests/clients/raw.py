"""Sends bytes over TLS as they are given, in base64, and reads what comes; an HTTP client would not.

    raw.py NAME BASE64 SECONDS-OF-SILENCE
"""

import base64
import json
import socket
import ssl
import sys


def main():
    name, payload, patience = sys.argv[1], base64.b64decode(sys.argv[2]), float(sys.argv[3])
    received = 0
    with socket.create_connection((name, 443), timeout=patience) as tcp:
        with ssl.create_default_context().wrap_socket(tcp, server_hostname=name) as tls:
            tls.sendall(payload)
            try:
                while part := tls.recv(65536):
                    received += len(part)
            except OSError:  # Silence for as long as we wait is an answer, too.
                pass
    print(json.dumps({"ok": True, "error": None, "answer": received, "seconds": 0}))


main()
