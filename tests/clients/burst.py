"""Many calls at once: for each line of standard input, COUNT threads call together, each by a client of its own.

    burst.py SDK COUNT [options of call.py]

A line of output for each burst: how many calls were answered, and how the others failed.
"""

import collections
import json
import sys
import threading

import call


def main():
    count = int(sys.argv.pop(2))
    a = call.arguments()
    print("ready", flush=True)
    for _ in sys.stdin:
        outcomes, together = collections.Counter(), threading.Barrier(count)
        # A counter's `+=` is not one step: threads that end together would lose each other's.
        counting = threading.Lock()

        def one():
            client = call.CLIENTS[a.sdk](a)
            together.wait()
            try:
                client()
                outcome = "ok"
            except BaseException as error:  # Whatever the client raises is the outcome.
                outcome = type(error).__name__
            with counting:
                outcomes[outcome] += 1

        threads = [threading.Thread(target=one) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(json.dumps(outcomes), flush=True)


main()
