# SPDX-License-Identifier: Apache-2.0
"""Encoding speed of HuggingFace's tokenizers library on the texts of tokenizer_bench --write.

Development only: pip install tokenizers. Prints one line per text and checks nothing.
"""
import argparse
import os
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import tokenizers  # noqa: E402


def pieces(text, size=1 << 16):
    """The text cut at line ends into pieces of about `size` characters."""
    out, begin = [], 0
    while begin < len(text):
        end = text.find("\n", begin + size) + 1 or len(text)
        out.append(text[begin:end])
        begin = end
    return out


def seconds(tokenizer, texts, runs):
    best = float("inf")
    for _ in range(runs):
        start = time.process_time()
        tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        best = min(best, time.process_time() - start)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", default="deploy/models/demo-qwen3/tokenizer.json")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("texts", nargs="+")
    args = parser.parse_args()
    tokenizer = tokenizers.Tokenizer.from_file(args.tokenizer)
    print(f"tokenizers {tokenizers.__version__}, one thread; MB/s of the whole text, and of it in pieces of 64 KiB")
    for path in args.texts:
        with open(path, encoding="utf-8", newline="") as f:
            text = f.read()
        size = os.path.getsize(path)
        rates = []
        for texts in ([text], pieces(text)):
            try:
                rates.append(f"{size / seconds(tokenizer, texts, args.runs) / 1e6:8.2f}")
            except BaseException as error:  # the library panics on some of the hostile texts
                rates.append(f"refused: {error}")
        print(f"{os.path.basename(path):20} {size:10} bytes", *rates)


if __name__ == "__main__":
    main()
