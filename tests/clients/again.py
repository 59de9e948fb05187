"""Calls a provider every 20 ms, each time on a new connection, until a file is there; says how many calls were made
and how many were answered."""

import http.client
import json
import os
import ssl
import sys
import time

HOST = "api.openai.com"
BODY = json.dumps({"model": sys.argv[2], "messages": [{"role": "user", "content": "Hello"}]})

context = ssl.create_default_context()
made = answered = 0
slowest = 0.0
while not os.path.exists(sys.argv[1]):
    made += 1
    began = time.monotonic()
    try:
        connection = http.client.HTTPSConnection(HOST, 443, context=context, timeout=20)
        connection.request("POST", "/v1/chat/completions", BODY, {"Content-Type": "application/json"})
        connection.getresponse().read()
        answered += 1
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()
    slowest = max(slowest, time.monotonic() - began)
    time.sleep(0.02)
print(json.dumps({"made": made, "answered": answered, "slowest": slowest}))
