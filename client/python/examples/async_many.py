# SPDX-License-Identifier: Apache-2.0
"""Many replies at the same time: python3 async_many.py HOST:PORT [COUNT]"""
import asyncio
import sys
import time

from asynctls import AsyncClient


async def main(target: str, count: int) -> None:
    async with AsyncClient(target) as client:
        begin = time.monotonic()
        questions = [[{"role": "user", "content": f"Tell me about the number {i}."}] for i in range(count)]
        replies = await asyncio.gather(*(client.chat(q, max_tokens=32) for q in questions))
        tokens = sum(reply.usage.completion_tokens for reply in replies)
        print(f"{count} replies, {tokens} tokens, {tokens / (time.monotonic() - begin):.1f} tokens/s")


asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 16))
