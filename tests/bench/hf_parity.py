# SPDX-License-Identifier: Apache-2.0
"""hf_parity.py SERVER CONFIG_DIR TOKENIZER_DIR [LAYERS]: the server against HuggingFace transformers at a
model's true shapes, on one GPU. Makes a checkpoint of CONFIG_DIR's shapes with LAYERS (2) layers and
random weights, asks the server over HTTP for the log-probabilities of random prompts' tokens (chunks of
the prompt through prompt attention, the last ones through the decode path: densely, and sparsely with
everything selected) and compares them with transformers' in bf16 and in fp32. Fails where the server is
further from fp32 than one and a half times bf16 transformers is. Needs torch and transformers."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

import torch
from transformers import AutoConfig, AutoModelForCausalLM

TOKENS = 700
TAIL = 96


def checkpoint(config_dir, tokenizer_dir, layers, out):
    config = AutoConfig.from_pretrained(config_dir)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    torch.manual_seed(3)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        path = os.path.join(tokenizer_dir, name)
        if os.path.exists(path):
            shutil.copy(path, out)
    return model.eval()


def reference(model, ids, vocab):
    """Log-probabilities of ids[1:], among the ids below vocab."""
    with torch.no_grad():
        logits = model(torch.tensor([ids], device="cuda")).logits[0, :-1, :vocab].double()
    return torch.log_softmax(logits, -1)[range(len(ids) - 1), ids[1:]].cpu()


def ask(url, ids, settings):
    body = {"prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0,
            "asynctls": settings}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as reply:
        answer = json.load(reply)
    scores = answer["choices"][0]["prompt_logprobs"]
    return torch.tensor([scores[i][str(ids[i])]["logprob"] for i in range(1, len(ids))],
                        dtype=torch.float64)


def serve(server, model_dir):
    log = open(os.path.join(model_dir, "server.log"), "w+")
    process = subprocess.Popen(
        [server, "--model", model_dir, "--device", "cuda", "--listen", "127.0.0.1:0",
         "--metrics-listen", "none", "--http-listen", "127.0.0.1:18472", "--dense-layers", "0",
         "--dense-below", "0", "--max-step-tokens", "256", "--max-context", "4096",
         "--kv-memory-mib", "4096"], stdout=log, stderr=subprocess.STDOUT)
    url = "http://127.0.0.1:18472"
    for _ in range(600):
        if process.poll() is not None:
            log.seek(0)
            sys.exit("the server ended: " + log.read()[-3000:])
        try:
            with urllib.request.urlopen(url + "/health", timeout=1) as reply:
                if reply.status == 200:
                    return process, url
        except OSError:
            time.sleep(0.2)
    sys.exit("the server does not become ready")


def main():
    server, config_dir, tokenizer_dir = sys.argv[1:4]
    layers = int(sys.argv[4]) if len(sys.argv) > 4 else 2
    tokenizer = json.load(open(os.path.join(tokenizer_dir, "tokenizer.json"), encoding="utf-8"))
    vocab = max(max(tokenizer["model"]["vocab"].values()),
                max(token["id"] for token in tokenizer["added_tokens"])) + 1
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint(config_dir, tokenizer_dir, layers, folder)
        generator = torch.Generator().manual_seed(5)
        prompts = [torch.randint(0, vocab - 16, (TOKENS,), generator=generator).tolist()
                   for _ in range(3)]
        half = [reference(model, ids, vocab) for ids in prompts]
        full = [reference(model.float(), ids, vocab) for ids in prompts]
        del model
        torch.cuda.empty_cache()
        process, url = serve(server, folder)
        failed = False
        try:
            for name, settings in (
                    ("dense", {"mode": "dense", "tail": TAIL}),
                    ("exact, all selected", {"mode": "exact", "budget": 4096, "blocks": 64, "tail": TAIL}),
                    ("prompt attention only", {"mode": "dense"})):
                ours = [ask(url, ids, settings) for ids in prompts]
                for what, part in (("prompt", slice(0, TOKENS - TAIL - 1)),
                                   ("tail", slice(TOKENS - TAIL - 1, None))):
                    def rms(a, b):
                        return torch.cat([x[part] - y[part] for x, y in zip(a, b)]).square().mean().sqrt()
                    server_error, torch_error = rms(ours, full), rms(half, full)
                    ok = server_error <= 1.5 * torch_error
                    failed = failed or not ok
                    print(f"{name:22s} {what:7s} from fp32: server {server_error:.5f}, transformers in "
                          f"bf16 {torch_error:.5f}, ratio {server_error / torch_error:.2f}, from it "
                          f"{rms(ours, half):.5f} {'ok' if ok else 'TOO FAR'}")
        finally:
            process.terminate()
            process.wait()
    sys.exit(failed)


if __name__ == "__main__":
    main()
