"""Writes the bundled calibration text: conversations about generated documents, from the training key words.

The evaluation sets use other key words and other seeds, so nothing of the task sets is in it. Standard library only.
"""
import argparse

import textgen


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--tokenizer", required=True, help="tokenizer.json of the demo models")
    p.add_argument("--tokens", type=int, default=8192, help="tokens of one conversation")
    p.add_argument("--count", type=int, default=3, help="number of conversations")
    p.add_argument("--out", required=True)
    a = p.parse_args()
    tok = textgen.Tokenizer(a.tokenizer)
    special = {tok.im_start: "<|im_start|>", tok.im_end: "<|im_end|>", tok.think: "<think>", tok.think_end: "</think>"}
    pieces = {i: t for t, i in tok.vocab.items()}
    back = {c: b for b, c in tok.chars.items()}
    source = textgen.Sequences(tok, "calibration")
    with open(a.out, "wb") as f:
        for _ in range(a.count):
            for i in source.make(a.tokens)[0]:
                f.write(special[i].encode() if i in special else bytes(back[c] for c in pieces[i]))
            f.write(b"\n")


if __name__ == "__main__":
    main()
