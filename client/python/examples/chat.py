# SPDX-License-Identifier: Apache-2.0
"""A conversation: python3 chat.py HOST:PORT. Ends with Ctrl-D."""
import sys

from asynctls import Client

messages = []
with Client(sys.argv[1]) as client:
    for line in sys.stdin:
        messages.append({"role": "user", "content": line.strip()})
        with client.generate(messages, max_tokens=200) as stream:
            for delta in stream:
                print(delta.text, end="", flush=True)
        print()
        messages.append({"role": "assistant", "content": stream.completions[0].text})
