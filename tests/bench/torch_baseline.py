# SPDX-License-Identifier: Apache-2.0
"""torch_baseline.py > FILE: what gpu_bench is compared with, as JSON lines: torch's scaled dot
product attention (the better of the cuDNN and the flash backend, grouped query heads enabled) for
decoding and for prompts, in captured graphs with cold caches. Needs torch and a GPU."""

import json
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def median_ms(calls, body):
    """Median milliseconds of one of `calls` calls that body() makes, replayed as a graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        body()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    graph.replay()
    times = []
    for _ in range(11):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times) / calls


def emit(name, shape, ms, **more):
    print(json.dumps({"name": name, "shape": shape, "ms": ms, **more}), flush=True)


def best(calls, body):
    """The better backend's time, and both."""
    times = {}
    for name, backend in BACKENDS.items():
        try:
            with sdpa_kernel(backend):
                times[name] = median_ms(calls, body)
        except RuntimeError as error:
            print(f"{name}: {error}", file=sys.stderr)
    return min(times.values()), times


def decode(rows, length, q_heads, kv_heads, dim=128):
    size = rows * length * kv_heads * dim * 4
    sets = max(2, min(12, (24 << 30) // size))
    problems = []
    for _ in range(sets):
        q = torch.randn(rows, q_heads, 1, dim, device="cuda", dtype=torch.bfloat16)
        k = torch.randn(rows, kv_heads, length, dim, device="cuda", dtype=torch.bfloat16)
        v = torch.randn(rows, kv_heads, length, dim, device="cuda", dtype=torch.bfloat16)
        problems.append((q, k, v))

    def body():
        for q, k, v in problems:
            F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    ms, times = best(sets, body)
    emit("dense_decode", f"{rows}x{length // 1024}k/{q_heads}:{kv_heads}", ms, backends=times)


def prefill(length, q_heads=32, kv_heads=8, dim=128):
    q = torch.randn(1, q_heads, length, dim, device="cuda", dtype=torch.bfloat16)
    k = torch.randn(1, kv_heads, length, dim, device="cuda", dtype=torch.bfloat16)
    v = torch.randn(1, kv_heads, length, dim, device="cuda", dtype=torch.bfloat16)

    def body():
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    ms, times = best(1, body)
    emit("prefill", f"{length // 1024}k", ms, backends=times)


def top_k(rows, count, keep):
    x = [torch.rand(rows, count, device="cuda") for _ in range(24)]

    def body():
        for row in x:
            torch.topk(row, keep, sorted=False)

    emit("top_k", f"{rows}x{count}:{keep}", median_ms(len(x), body))


def product(rows, features, width):
    sets = max(2, min(24, (1 << 30) // (features * width * 2)))
    w = [torch.randn(features, width, device="cuda", dtype=torch.bfloat16) for _ in range(sets)]
    x = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)

    def body():
        for matrix in w:
            F.linear(x, matrix)

    name = "product_decode" if rows <= 64 else "product"
    emit(name, f"{rows}x{features}x{width}", median_ms(sets, body))


def main():
    quick = sys.argv[1:] == ["--quick"]
    for shape in [(1, 48), (1, 64), (1, 96), (1, 128), (4, 96), (8, 32), (8, 64), (8, 96), (8, 128),
                  (16, 48)]:
        decode(shape[0], shape[1] * 1024, 32, 8)
        torch.cuda.empty_cache()
    decode(8, 64 * 1024, 40, 8)
    torch.cuda.empty_cache()
    for rows in (8, 64):
        top_k(rows, 1024, 64)
        top_k(rows, 4096, 1024)
    for length in (32, 64) if quick else (32, 64, 128):
        prefill(length * 1024)
    for rows in (1, 8, 32, 512, 2048, 8192):
        for features, width in ((6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288)):
            product(rows, features, width)
        if rows <= 32:
            product(rows, 151936, 4096)


if __name__ == "__main__":
    main()
