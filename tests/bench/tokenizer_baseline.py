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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", default="deploy/models/demo-qwen3/tokenizer.json")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("texts", nargs="+")
    args = parser.parse_args()
    tokenizer = tokenizers.Tokenizer.from_file(args.tokenizer)
    print(f"tokenizers {tokenizers.__version__}, one thread")
    for path in args.texts:
        with open(path, encoding="utf-8", newline="") as f:
            text = f.read()
        best = float("inf")
        for _ in range(args.runs):
            start = time.perf_counter()
            ids = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
            best = min(best, time.perf_counter() - start)
        size = os.path.getsize(path)
        print(f"{os.path.basename(path):24} {size:10} bytes {len(ids):10} tokens {size / best / 1e6:8.2f} MB/s")


if __name__ == "__main__":
    main()
