# SPDX-License-Identifier: Apache-2.0
"""Streams a reply: python3 generate.py HOST:PORT "Once upon a time" """
import sys

from asynctls import AsyncTlsError, Client

target, prompt = sys.argv[1], sys.argv[2]
with Client(target) as client:
    try:
        with client.generate(prompt, max_tokens=100, temperature=0, timeout=60) as stream:
            for delta in stream:
                print(delta.text, end="", flush=True)
    except AsyncTlsError as error:
        sys.exit(f"\n{error} {error.violations or ''}")
    reply = stream.completions[0]
    print(f"\n[{reply.finish_reason}, {reply.usage.completion_tokens} tokens]", file=sys.stderr)
