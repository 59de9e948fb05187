"""Many calls by real clients that end in different ways; the last line of output is a JSON report.

    money.py CLIENT.WAY:COUNT [..] [--together N] [--text TEXT] [--most TOKENS] [--patience SECONDS] [--customer NAME ..]

A way is a client and what it does with an answer: reads it (`plain`, `stream`), reads a stream whose usage it did not
ask for (`unasked`), reads it raw (`raw`), or leaves it after so many tokens (`leave`). Each call is on a client of the
way, which keeps its connections as its makers want. An answer whose end never comes is left after the patience.
"""

import argparse
import asyncio
import collections
import concurrent.futures
import itertools
import json
import threading

CHAT = "https://api.openai.com/v1/chat/completions"
GPT, CLAUDE, GEMINI = "gpt-4o-mini", "claude-haiku-4-5", "gemini-2.5-flash"
WITH_USAGE = {"include_usage": True}


class Leaves(Exception):
    """The client has seen enough."""


def messages(a):
    return [{"role": "user", "content": a.text}]


def leaving(tokens):
    """The header that lets the provider wait after so many tokens, so that who leaves there leaves midway."""
    return {"x-pause-after": str(tokens)}


# Where a client leaves, call by call: early, in the middle, late.
cuts = itertools.cycle([12, 20, 31])
cut_lock = threading.Lock()


def next_cut():
    with cut_lock:
        return next(cuts)


def timeout(a, kind):
    """Patience with an answer; with what comes before it, which a busy machine delays, much more."""
    return kind(60, read=a.patience)


def openai(a):
    from openai import OpenAI, Timeout

    client = OpenAI(max_retries=0, timeout=timeout(a, Timeout))
    create = client.chat.completions.create
    request = {"model": GPT, "messages": messages(a), "max_tokens": a.most}

    def plain():
        return create(**request).choices[0].message.content

    def stream():
        chunks = create(**request, stream=True, stream_options=WITH_USAGE)
        return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)

    def unasked():
        return "".join(c.choices[0].delta.content or "" for c in create(**request, stream=True))

    def raw():
        streaming = client.chat.completions.with_streaming_response
        with streaming.create(**request, stream=True, stream_options=WITH_USAGE) as answer:
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    return line
        raise RuntimeError("no end of the stream")

    def leave():
        cut = next_cut()
        with create(**request, stream=True, extra_headers=leaving(cut)) as chunks:
            leave_after(cut, (c.choices[0].delta.content for c in chunks))

    def responses():
        events = client.responses.create(model=GPT, input=a.text, max_output_tokens=a.most, stream=True)
        return "".join(e.delta for e in events if e.type == "response.output_text.delta")

    return locals()


def leave_after(tokens, pieces):
    for seen, _ in enumerate((piece for piece in pieces if piece), 1):
        if seen == tokens:
            raise Leaves
    raise RuntimeError("the stream ended before its client left it")


def loop_of_its_own():
    """A loop of `asyncio` that runs on a thread."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def openai_async(a):
    from openai import AsyncOpenAI, Timeout

    request = {"model": GPT, "messages": messages(a), "max_tokens": a.most, "stream": True}
    loop, client = loop_of_its_own(), None

    async def chunks(**more):
        nonlocal client
        client = client or AsyncOpenAI(max_retries=0, timeout=timeout(a, Timeout))
        return await client.chat.completions.create(**request, **more)

    async def streamed():
        all_of = await chunks(stream_options=WITH_USAGE)
        return "".join([c.choices[0].delta.content or "" async for c in all_of if c.choices])

    async def left():
        cut, seen = next_cut(), 0
        async with await chunks(extra_headers=leaving(cut)) as some:
            async for chunk in some:
                seen += bool(chunk.choices[0].delta.content)
                if seen == cut:
                    raise Leaves

    def stream():
        return asyncio.run_coroutine_threadsafe(streamed(), loop).result()

    def leave():
        return asyncio.run_coroutine_threadsafe(left(), loop).result()

    return locals()


def anthropic(a):
    from anthropic import Anthropic, Timeout

    client = Anthropic(max_retries=0, timeout=timeout(a, Timeout))
    request = {"model": CLAUDE, "messages": messages(a), "max_tokens": a.most}

    def plain():
        return client.messages.create(**request).content[0].text

    def stream():
        with client.messages.stream(**request) as events:
            return "".join(events.text_stream)

    def leave():
        cut = next_cut()
        with client.messages.stream(**request, extra_headers=leaving(cut)) as events:
            leave_after(cut, events.text_stream)

    return locals()


def genai(a):
    from google import genai

    def client_of(headers=None):
        options = {"timeout": int(a.patience * 1000), "headers": headers or {}}
        return genai.Client(http_options=options)

    client = client_of()
    request = {"model": GEMINI, "contents": a.text, "config": {"max_output_tokens": a.most}}

    def plain():
        return client.models.generate_content(**request).text

    def stream():
        return "".join(c.text for c in client.models.generate_content_stream(**request))

    def leave():
        # Eight tokens a chunk.
        one = client_of(leaving(16))
        leave_after(2, (c.text for c in one.models.generate_content_stream(**request)))

    return locals()


def httpx2(a):
    """One connection for all: a stream that is left is reset, and the connection goes on.

    On a loop: threads that share a connection of `httpcore` may send the numbers of their streams out of order, and a
    server then ends the connection.
    """
    import httpx

    body = {"model": GPT, "messages": messages(a), "max_tokens": a.most, "stream": True}
    key = {"Authorization": "Bearer test-key"}
    loop, client = loop_of_its_own(), None

    def asking(headers, **more):
        nonlocal client
        client = client or httpx.AsyncClient(http2=True, timeout=timeout(a, httpx.Timeout))
        return client.stream("POST", CHAT, json=body | more, headers=key | headers)

    async def streamed():
        async with asking({}, stream_options=WITH_USAGE) as answer:
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    return answer.http_version
        raise RuntimeError("no end of the stream")

    async def left():
        cut, seen = next_cut(), 0
        async with asking(leaving(cut)) as answer:
            async for line in answer.aiter_lines():
                seen += bool(line and json.loads(line[6:])["choices"][0]["delta"].get("content"))
                if seen == cut:
                    raise Leaves
        raise RuntimeError("the stream ended before its client left it")

    def stream():
        return asyncio.run_coroutine_threadsafe(streamed(), loop).result()

    def leave():
        return asyncio.run_coroutine_threadsafe(left(), loop).result()

    return locals()


def customers(a):
    """Calls for one customer after another, each named in a header."""
    from openai import OpenAI, Timeout

    client = OpenAI(max_retries=0, timeout=timeout(a, Timeout))
    names = itertools.cycle(a.customer)

    def call():
        headers = {"x-customer": next(names)}
        answer = client.chat.completions.create(
            model=GPT, messages=messages(a), max_tokens=a.most, extra_headers=headers)
        return answer.choices[0].message.content

    return locals()


CLIENTS = {
    "openai": openai, "openai-async": openai_async, "anthropic": anthropic, "genai": genai, "httpx2": httpx2,
    "customers": customers,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("ways", nargs="+", metavar="CLIENT.WAY:COUNT")
    parser.add_argument("--together", type=int, default=1)
    parser.add_argument("--text", default="What is the capital of France?")
    parser.add_argument("--most", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--patience", type=float, default=3.0)
    parser.add_argument("--customer", nargs="+", default=["nobody"])
    a = parser.parse_args()
    clients, calls = {}, []
    for way in a.ways:
        name, count = way.split(":")
        client, way = name.split(".")
        if client not in clients:
            clients[client] = CLIENTS[client](a)
        calls.append([(name, clients[client][way])] * int(count))
    # By turns, so that the ways run beside each other.
    turns = [call for turn in itertools.zip_longest(*calls) for call in turn if call]
    outcomes = collections.Counter()

    def one(call):
        name, call = call
        try:
            call()
            return name, "ok"
        except Leaves:
            return name, "left"
        except Exception as error:  # Whatever the client raises is the outcome.
            return name, type(error).__name__

    with concurrent.futures.ThreadPoolExecutor(a.together) as pool:
        for name, outcome in pool.map(one, turns):
            outcomes[f"{name} {outcome}"] += 1
    print(json.dumps(outcomes), flush=True)


main()
