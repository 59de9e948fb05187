"""A call by a process whose parent has ended: `orphan.py HOW MODEL [GATE]`.

`fork`: this program, forked twice. `exec`: curl in a session of its own. `leader`: this program, forked twice,
by a thread that goes on when the first one has ended. With a GATE the call waits until that file is there.
"""

import ctypes
import http.client
import json
import os
import sys
import threading
import time

HOST = "api.openai.com"
PATH = "/v1/chat/completions"


def orphaned():
    """Becomes a grandchild, whose parent has ended; the program that was started waits for it."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)  # the next program of the grandchild has it too
    child = os.fork()
    if child:
        os.close(writer)
        os.waitpid(child, 0)
        os.read(reader, 1)  # nothing comes: the grandchild has ended
        os._exit(0)
    middle = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == middle:
        time.sleep(0.001)


def call(how, body):
    if how == "exec":
        os.setsid()
        headers = ["--header", "Content-Type: application/json"]
        arguments = ["--silent", "--max-time", "20", *headers, "--data-binary", body]
        os.execvp("curl", ["curl", *arguments, f"https://{HOST}{PATH}"])
    connection = http.client.HTTPSConnection(HOST, timeout=20)
    connection.request("POST", PATH, body, {"Content-Type": "application/json"})
    connection.getresponse().read()


def act(how, model, gate):
    orphaned()
    while gate and not os.path.exists(gate):
        time.sleep(0.01)
    messages = [{"role": "user", "content": "Hello"}]
    call(how, json.dumps({"model": model, "max_tokens": 9, "messages": messages}))


how, model, gate = [*sys.argv[1:], None][:3]
if how == "leader":

    def later():
        time.sleep(0.2)
        try:
            act(how, model, gate)
        finally:
            os._exit(0)

    threading.Thread(target=later).start()
    ctypes.CDLL(None).pthread_exit(None)
act(how, model, gate)
