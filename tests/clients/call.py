"""One call to an AI provider by a real client; the last line of output is a JSON report.

The clients are used as their documentation says. The time is that of the call, without imports.
"""

import argparse
import asyncio
import json
import time

CHAT = "https://api.openai.com/v1/chat/completions"


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("sdk", choices=sorted(CLIENTS))
    parser.add_argument("--api", default="chat", choices=["chat", "responses", "embeddings", "models"])
    parser.add_argument("--model", default="gpt-4o-mini")
    parser.add_argument("--then", help="model of a second call, made when a line comes on standard input")
    parser.add_argument("--text", default="What is the capital of France?")
    parser.add_argument("--bytes", type=int, default=0, help="length of the text instead")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--repeat", type=int, default=1, help="calls on the same client, one after another")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between them")
    a = parser.parse_args()
    if a.bytes:
        a.text = "x" * a.bytes
    return a


def patient():
    """httpx closes a connection that was idle for five seconds; a slow machine needs longer between two calls."""
    import httpx

    return httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=600)


def openai(a):
    from openai import DefaultHttpxClient, OpenAI

    client = OpenAI(max_retries=0, timeout=60, http_client=DefaultHttpxClient(limits=patient()))

    def call():
        messages = [{"role": "user", "content": a.text}]
        if a.api == "models":
            return [model.id for model in client.models.list()]
        if a.api == "embeddings":
            return len(client.embeddings.create(model=a.model, input=a.text).data[0].embedding)
        if a.api == "responses":
            if not a.stream:
                return client.responses.create(model=a.model, input=a.text).output_text
            events = client.responses.create(model=a.model, input=a.text, stream=True)
            return "".join(e.delta for e in events if e.type == "response.output_text.delta")
        if not a.stream:
            answer = client.chat.completions.create(model=a.model, messages=messages, max_tokens=a.max_tokens)
            return answer.choices[0].message.content
        chunks = client.chat.completions.create(
            model=a.model, messages=messages, max_tokens=a.max_tokens,
            stream=True, stream_options={"include_usage": True},
        )
        return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)

    return call


def openai_async(a):
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    client = AsyncOpenAI(max_retries=0, timeout=60, http_client=DefaultAsyncHttpxClient(limits=patient()))

    async def one():
        messages = [{"role": "user", "content": a.text}]
        answer = await client.chat.completions.create(model=a.model, messages=messages, max_tokens=a.max_tokens)
        return answer.choices[0].message.content

    return on_one_loop(one)


def anthropic(a):
    from anthropic import Anthropic, DefaultHttpxClient

    client = Anthropic(max_retries=0, timeout=60, http_client=DefaultHttpxClient(limits=patient()))

    def call():
        request = {
            "model": a.model, "max_tokens": a.max_tokens, "messages": [{"role": "user", "content": a.text}],
        }
        if not a.stream:
            return client.messages.create(**request).content[0].text
        with client.messages.stream(**request) as stream:
            return "".join(stream.text_stream)

    return call


def body(a):
    fields = {
        "model": a.model, "max_tokens": a.max_tokens, "messages": [{"role": "user", "content": a.text}],
    }
    if a.stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return fields


KEY = {"Authorization": "Bearer test-key"}


def requests(a):
    import requests

    session = requests.Session()

    def call():
        answer = session.post(CHAT, json=body(a), headers=KEY, timeout=60, stream=a.stream)
        answer.raise_for_status()
        if a.stream:
            return sum(1 for line in answer.iter_lines() if line)
        return answer.json()["choices"][0]["message"]["content"]

    return call


def httpx(a, http2=False):
    import httpx

    client = httpx.Client(http2=http2, timeout=60, limits=patient())

    def call():
        answer = client.post(CHAT, json=body(a), headers=KEY)
        answer.raise_for_status()
        assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1"), answer.http_version
        return len(answer.text)

    return call


def httpx_http2(a):
    return httpx(a, http2=True)


def aiohttp(a):
    import ssl

    import aiohttp

    session = None

    async def one():
        nonlocal session
        session = session or aiohttp.ClientSession(connector=aiohttp.TCPConnector(keepalive_timeout=600))
        context = a.__dict__.setdefault("context", ssl.create_default_context())
        async with session.post(CHAT, json=body(a), headers=KEY, ssl=context) as answer:
            answer.raise_for_status()
            return len(await answer.text())

    return on_one_loop(one)


def on_one_loop(one):
    """Calls of an asynchronous client, which keeps its connections as long as its loop runs."""
    loop = asyncio.new_event_loop()
    return lambda: loop.run_until_complete(one())


CLIENTS = {
    "openai": openai, "openai-async": openai_async, "anthropic": anthropic, "requests": requests,
    "httpx": httpx, "httpx-http2": httpx_http2, "aiohttp": aiohttp,
}


def main():
    a = arguments()
    call = CLIENTS[a.sdk](a)
    for index in range(2 if a.then else a.repeat):
        if index and a.then:
            input()
            a.model = a.then
        elif index:
            time.sleep(a.pause)
        report = {"ok": True, "error": None, "answer": None}
        begun = time.monotonic()
        try:
            report["answer"] = call()
        except Exception as error:  # Whatever the client raises is the report.
            report |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
        report["seconds"] = time.monotonic() - begun
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
