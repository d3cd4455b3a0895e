"""Which selection rule keeps the answers? A PyTorch study on the trained demo model, for development only.

Every sample's document is prefilled densely with transformers. The last TAIL prompt tokens and the answer then pass
through the layers with sparse attention, each query with its own selection, teacher forced, so that all of them go
through a layer together. A reply counts when every answer token is the most likely one. The directions, means and
steps of the key codes come from the bundled calibration text, which shares neither key words nor seeds with the
evaluation set. Results: engine/sparse/README.md.

    python3 tests/study/selection_study.py --counts 32768:3,98304:5 --seconds 400      (one GPU; torch, transformers)
"""
import argparse
import json
import math
import multiprocessing as mp
import os
import sys
import time

import torch

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, os.path.join(ROOT, "deploy", "models", "train"))
import textgen  # noqa: E402

MODEL = os.path.join(ROOT, "deploy", "models", "demo-qwen3")
SET = os.path.join(ROOT, "deploy", "models", "eval")
P, SINKS, WINDOW, TAIL, DENSE_LAYERS = 64, 16, 64, 64, 2
STEP = 0.3352  # of a 4-bit code, in standard deviations: least squares for a Gaussian
TOK = textgen.Tokenizer(os.path.join(MODEL, "tokenizer.json"))
WORDS = textgen.load_words(os.path.join(SET, "keywords.json"))


def sample(job):
    task, length, seed = job
    s = textgen.eval_sample(task, length, seed, WORDS, TOK)
    e = TOK.encode
    prompt = [TOK.im_start] + e("user\n") + e(s["messages"][0]["content"]) + [TOK.im_end] + e("\n")
    return task, length, prompt + [TOK.im_start] + e("assistant\n"), e(s["expected"]) + [TOK.im_end]


def rms(x, w, eps=1e-6):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w


def rope(x, pos, theta=1e6):
    d = x.shape[-1]
    f = pos[:, None].double() * theta ** (-torch.arange(0, d, 2, device=x.device).double() / d)
    c, s = f.cos().float()[:, None], f.sin().float()[:, None]
    a, b = x.chunk(2, -1)
    return torch.cat((a * c - b * s, b * c + a * s), -1)


class Study:
    """The model, the calibration and the rules."""

    def __init__(self):
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM
        self.cfg = json.load(open(os.path.join(MODEL, "config.json")))
        self.L, self.G = self.cfg["num_hidden_layers"], self.cfg["num_key_value_heads"]
        self.H, self.d = self.cfg["num_attention_heads"], self.cfg["head_dim"]
        self.w = {k: v.float().cuda() for k, v in load_file(os.path.join(MODEL, "model.safetensors")).items()}
        self.model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16, attn_implementation="sdpa").cuda().eval()
        torch.backends.cuda.matmul.allow_tf32 = False
        self.moments, self.bases = {}, {}
        self.calibrate()

    def qkv(self, l, h, pos):
        p = f"model.layers.{l}."
        x = rms(h, self.w[p + "input_layernorm.weight"])

        def proj(n, heads):
            return (x @ self.w[p + f"self_attn.{n}_proj.weight"].t()).view(-1, heads, self.d)

        q = rope(rms(proj("q", self.H), self.w[p + "self_attn.q_norm.weight"]), pos)
        k = rope(rms(proj("k", self.G), self.w[p + "self_attn.k_norm.weight"]), pos)
        return q, k, proj("v", self.G)

    @torch.no_grad()
    def calibrate(self):
        from transformers import AutoTokenizer
        text = open(os.path.join(ROOT, "deploy", "models", "calibration.txt"), encoding="utf-8").read()
        ids = AutoTokenizer.from_pretrained(MODEL)(text)["input_ids"]
        out = self.model(input_ids=torch.tensor([ids], device="cuda"), output_hidden_states=True, logits_to_keep=1)
        pos = torch.arange(len(ids), device="cuda")
        for l in range(self.L):
            q, k, _ = self.qkv(l, out.hidden_states[l][0].float(), pos)
            for g in range(self.G):
                r = self.H // self.G
                qf, kf = q[:, g * r:(g + 1) * r].reshape(-1, self.d).double(), k[:, g].double()
                self.moments[l, g] = qf.t() @ qf / len(qf), kf.t() @ kf / len(kf), kf.mean(0)

    def basis(self, l, g, centred, r):
        """Directions that keep q . k best: encode [d, r], turn [d, r], mean [r], standard deviation [r]."""
        key = l, g, centred, r
        if key not in self.bases:
            cq, ck, mean = self.moments[l, g]
            cq = cq + 1e-3 * cq.diag().mean() * torch.eye(self.d, device="cuda", dtype=torch.double)
            cov = ck - torch.outer(mean, mean)
            e, u = torch.linalg.eigh(cq)
            root, inv = u @ torch.diag(e.sqrt()) @ u.t(), u @ torch.diag(e.rsqrt()) @ u.t()
            _, u = torch.linalg.eigh(root @ (cov if centred else ck) @ root)
            u = u.flip(1)[:, :r]
            enc, turn = root @ u, inv @ u
            self.bases[key] = enc.float(), turn.float(), (enc.t() @ mean).float(), (enc.t() @ cov @ enc).diag().sqrt().float()
        return self.bases[key]

    def code(self, rule, l, g, q, k):
        """Approximate logits [T, R, n]. Rules: full (32 x 4 bits), first16 (16 x 4 bits), high (32 x 2 bits),
        mixed (8 x 4 bits + 16 x 2 bits), fill (bits by variance, 64 in all); +raw = directions of the uncentred moment."""
        name, centred = rule.replace("+raw", ""), not rule.endswith("+raw")
        enc, turn, mean, std = self.basis(l, g, centred, 48 if name == "fill" else 32)
        x = (k @ enc - mean) / std
        c = ((x / STEP).floor() + 8).clamp(0, 15)
        full, high, zero = (c - 7.5) * STEP, ((c / 4).floor() - 1.5) * 4 * STEP, torch.zeros_like(x)
        if name == "full":
            y = full
        elif name == "first16":
            y = torch.cat((full[:, :16], zero[:, 16:]), 1)
        elif name == "high":
            y = high
        elif name == "mixed":
            y = torch.cat((full[:, :8], high[:, 8:24], zero[:, 24:]), 1)
        elif name == "fill":
            y = fill(x, std, 64)
        else:
            raise ValueError(rule)
        return (q @ turn) @ (y * std).t() / math.sqrt(self.d)

    def block_scores(self, rule, l, g, q, k, logits):
        if rule == "bound":                                  # Quest's bound, which the paper writes as one product
            pad = (-k.shape[0]) % P
            b = torch.cat((k, k[-1:].expand(pad, -1))).view(-1, P, k.shape[1])
            return ((q.clamp(min=0) @ b.amax(1).t() + q.clamp(max=0) @ b.amin(1).t()) / math.sqrt(self.d)).amax(1)
        s = logits if rule == "oracle" else self.code(rule, l, g, q, k)
        s = torch.nn.functional.pad(s, (0, (-s.shape[-1]) % P), value=-1e30)
        return s.view(*s.shape[:2], -1, P).amax(-1).amax(1)

    def token_scores(self, rule, l, g, q, k, logits):
        if rule == "oracle":
            return logits
        if rule == "channels":                               # the paper's: 32 channels of 4 bits, scale and zero per token
            cq, ck, _ = self.moments[l, g]
            ch = (cq.diag() * ck.diag()).topk(32).indices
            y = k[:, ch]
            lo, hi = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)
            step = (hi - lo).clamp(min=1e-8) / 15
            return q[..., ch] @ (((y - lo) / step).round() * step + lo).t() / math.sqrt(self.d)
        return self.code(rule, l, g, q, k)

    def select(self, rule, l, g, q, k, logits, pos):
        """Boolean [T, n]: what each query attends to."""
        n = k.shape[0]
        keys = torch.arange(n, device=k.device)
        causal = keys[None] <= pos[:, None]
        forced = (keys[None] < SINKS) | (keys[None] > pos[:, None] - WINDOW)
        cand = causal
        if rule["blocks"]:
            b = self.block_scores(rule["first"], l, g, q, k, logits)
            ids, cur = torch.arange(b.shape[-1], device=k.device), (pos // P)[:, None]
            b = b.masked_fill(ids[None] > cur, -1e30)
            b = b.masked_fill((ids[None] == 0) | ((ids[None] <= cur) & (ids[None] >= cur - 1)), 1e30)
            keep = torch.zeros_like(b, dtype=torch.bool).scatter_(1, b.topk(min(rule["blocks"], b.shape[-1]), -1).indices, True)
            if rule["lag"]:
                keep = torch.cat((keep[:1], keep[:-1])) | (ids[None] == 0) | ((ids[None] <= cur) & (ids[None] >= cur - 1))
            cand = keep.repeat_interleave(P, 1)[:, :n] & causal
        if not rule["tokens"]:
            return cand
        t = self.token_scores(rule["second"], l, g, q, k, logits).masked_fill(~cand[:, None], -1e30)
        t = torch.softmax(t, -1).sum(1).masked_fill(~cand, -1).masked_fill(forced & cand, 1e30)
        return torch.zeros_like(cand).scatter_(1, t.topk(min(rule["tokens"], n), -1).indices, True) & cand

    @torch.no_grad()
    def run_tail(self, cache, tail, start, rule, mass):
        pos = torch.arange(start, start + len(tail), device="cuda")
        h = self.w["model.embed_tokens.weight"][tail]
        r = self.H // self.G
        for l in range(self.L):
            q, kn, vn = self.qkv(l, h, pos)
            out = []
            for g in range(self.G):
                k, v = torch.cat((cache[l][0][g], kn[:, g])), torch.cat((cache[l][1][g], vn[:, g]))
                qg = q[:, g * r:(g + 1) * r]
                logits = qg @ k.t() / math.sqrt(self.d)
                logits = logits.masked_fill((torch.arange(len(k), device="cuda")[None] > pos[:, None])[:, None], -1e30)
                if rule is not None and l >= DENSE_LAYERS:
                    mask = self.select(rule, l, g, qg, k, logits, pos)
                    mass.append((torch.softmax(logits, -1) * mask[:, None]).sum(-1).mean().item())
                    logits = logits.masked_fill(~mask[:, None], -1e30)
                out.append(torch.softmax(logits, -1) @ v)
            p = f"model.layers.{l}."
            h = h + torch.cat(out, 1).reshape(len(tail), -1) @ self.w[p + "self_attn.o_proj.weight"].t()
            x = rms(h, self.w[p + "post_attention_layernorm.weight"])
            gate, up = (x @ self.w[p + f"mlp.{n}_proj.weight"].t() for n in ("gate", "up"))
            h = h + (torch.nn.functional.silu(gate) * up) @ self.w[p + "mlp.down_proj.weight"].t()
        return rms(h, self.w["model.norm.weight"]) @ self.w["model.embed_tokens.weight"].t()


def fill(x, std, total):
    """Bits where they lower the squared error most, least-squares Gaussian steps."""
    step = {1: 1.596, 2: 0.9957, 3: 0.586, 4: 0.3352, 5: 0.1881, 6: 0.1041}
    error = [1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.00104]
    bits, var = [0] * len(std), (std ** 2).tolist()
    for _ in range(total):
        i = max(range(len(bits)), key=lambda i: var[i] * (error[bits[i]] - error[bits[i] + 1]) if bits[i] < 6 else -1)
        bits[i] += 1
    b = torch.tensor(bits, device=x.device)
    s = torch.tensor([step.get(i, 1.0) for i in bits], device=x.device)
    top = 2.0 ** (b - 1) - 0.5
    return torch.minimum(torch.maximum((x / s).floor() + 0.5, -top), top) * s * (b > 0)


def rules():
    yield "dense", None
    for blocks, tokens in ((64, 1024), (64, 512), (32, 512), (16, 256)):
        for first, second in (("bound", "channels"), ("first16+raw", "full+raw"), ("first16", "full"), ("high", "full"),
                              ("mixed", "full"), ("fill", "full"), ("oracle", "oracle")):
            yield f"{first}, {second}, {blocks} blocks, {tokens} tokens", dict(first=first, second=second, blocks=blocks, tokens=tokens, lag=False)
    yield "bound, channels, 128 blocks, 1024 tokens", dict(first="bound", second="channels", blocks=128, tokens=1024, lag=False)
    yield "mixed, full, 64 blocks, 1024 tokens, lagged", dict(first="mixed", second="full", blocks=64, tokens=1024, lag=True)
    yield "level 1 only: mixed, 16 blocks", dict(first="mixed", second="", blocks=16, tokens=0, lag=False)
    yield "level 2 only: full, 1024 tokens", dict(first="", second="full", blocks=0, tokens=1024, lag=False)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--counts", default="32768:3,98304:5", help="length:samples per task, ...")
    a.add_argument("--seconds", type=float, default=400, help="stop starting samples after this long")
    a = a.parse_args()
    seeds = json.load(open(os.path.join(SET, "seeds.json")))["samples"]
    counts = [tuple(int(y) for y in x.split(":")) for x in a.counts.split(",")]
    jobs = [(t, n, seeds[t][str(n)][i]) for n, c in counts for i in range(c) for t in textgen.TASKS]
    pool = mp.get_context("fork").Pool(max(1, (os.cpu_count() or 2) - 2))
    samples, begin = pool.imap(sample, jobs), time.time()
    study, right, mass = Study(), {}, {}
    for _, length, prompt, answer in samples:
        if time.time() - begin > a.seconds:
            break
        n0 = len(prompt) - TAIL
        with torch.no_grad():
            c = study.model(input_ids=torch.tensor([prompt[:n0]], device="cuda"), use_cache=True, logits_to_keep=1).past_key_values
        cache = [(x.keys[0].float(), x.values[0].float()) for x in c.layers]
        tail = torch.tensor(prompt[n0:] + answer, device="cuda")
        for name, rule in rules():
            m = mass.setdefault((length, name), [])
            got = study.run_tail(cache, tail[:-1], n0, rule, m).argmax(-1)[-len(answer):].tolist()
            r = right.setdefault((length, name), [0, 0, 0, 0])
            for i, x in enumerate((got == answer, 1, sum(x == y for x, y in zip(got, answer)), len(answer))):
                r[i] += x
        del c, cache
    for length, _ in counts:
        print(f"\n## {length // 1024}k\n| rule | replies right | tokens right % | mass kept |\n|---|---|---|---|")
        for name, _ in rules():
            if (length, name) in right:
                r, m = right[length, name], mass[length, name] or [1.0]
                print(f"| {name} | {r[0]} of {r[1]} | {100 * r[2] / r[3]:.2f} | {sum(m) / len(m):.3f} |")
    print(f"\n{time.time() - begin:.0f} s on {torch.cuda.get_device_name()}")
    pool.terminate()


if __name__ == "__main__":
    main()
