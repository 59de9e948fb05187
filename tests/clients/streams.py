"""Streams of one HTTP/2 connection: some that are being answered, then one more; the output is a JSON report.

    streams.py OTHERS MODEL
"""

import asyncio
import json
import sys

import httpx

CHAT = "https://api.openai.com/v1/chat/completions"


def body(model, stream):
    return {"model": model, "max_tokens": 64, "stream": stream, "messages": [{"role": "user", "content": "Hello"}]}


async def other(client, started):
    try:
        async with client.stream("POST", CHAT, json=body("gpt-4o-mini", True)) as answer:
            async for _ in answer.aiter_bytes():
                started.release()
    except httpx.HTTPError as error:
        return type(error).__name__
    return None


async def main():
    count, model = int(sys.argv[1]), sys.argv[2]
    async with httpx.AsyncClient(http2=True, timeout=60) as client:
        await client.get("https://api.openai.com/v1/models")
        started = [asyncio.Semaphore(0) for _ in range(count)]
        others = [asyncio.create_task(other(client, it)) for it in started]
        for it in started:
            await it.acquire()
        report = {"ok": True, "error": None}
        try:
            (await client.post(CHAT, json=body(model, False))).raise_for_status()
        except httpx.HTTPError as error:
            report |= {"ok": False, "error": type(error).__name__}
        report["others"] = [error for error in await asyncio.gather(*others) if error]
    print(json.dumps(report))


asyncio.run(main())
