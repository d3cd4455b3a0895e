#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""soak.py [--minutes N] [--build DIR] [--model DIR] [--json FILE]

Runs asynctls-server under `asynctls bench` at a full queue, with cancels, deadlines, slow readers
and malformed requests, and watches the server's memory, descriptors and threads. Exit code 0: all
invariants held. The slopes are of the second half, for the first fills caches and pools."""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

SEQUENCES, WAITING = 16, 32
EVERY_SECONDS = 5
ALLOWED = ("length", "cancelled", "deadline_exceeded", "invalid_argument", "resource_exhausted")


def start_server(args):
    server = subprocess.Popen(
        [f"{args.build}/server/asynctls-server", "--model", args.model,
         "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
         "--max-sequences", str(SEQUENCES), "--max-waiting-requests", str(WAITING),
         "--kv-memory-mib", "512", "--dense-below", "512", "--sparse.budget", "256", "--log-level", "warn"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    metrics = port = None
    for line in server.stdout:
        found = re.match(r"(metrics on|asynctls-server listening on) \S*:(\d+)", line)
        if found and found[1] == "metrics on":
            metrics = int(found[2])
        elif found:
            port = int(found[2])
            break
    if port is None:
        sys.exit("the server did not start")
    return server, port, metrics


def start_bench(args, port, output):
    return subprocess.Popen(
        [f"{args.build}/client/asynctls", "bench", "--target", f"127.0.0.1:{port}",
         "--concurrency", str(SEQUENCES + WAITING - 2), "--connections", "4",
         "--duration", str(args.minutes * 60),
         "--prompt-tokens", "16:1500", "--max-tokens", "1:120", "--shared-prefix-tokens", "128",
         "--shared-prefixes", "8", "--cancel-fraction", "0.2", "--deadline-fraction", "0.05",
         "--deadline-seconds", "2", "--malformed-fraction", "0.01", "--slow-fraction", "0.05",
         "--slow-delay", "20", "--json"],
        stdout=output, stderr=subprocess.DEVNULL)


def process_state(pid):
    with open(f"/proc/{pid}/status") as status:
        text = status.read()
    rss = int(re.search(r"VmRSS:\s+(\d+)", text)[1])
    threads = int(re.search(r"Threads:\s+(\d+)", text)[1])
    listing = subprocess.run(["ls", f"/proc/{pid}/fd"], capture_output=True, text=True, check=True)
    return {"rss_kib": rss, "threads": threads, "descriptors": len(listing.stdout.split())}


def scrape(port):
    """All samples of /metrics: by name, summed over labels, and with labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    values = {}
    for line in text.splitlines():
        found = re.match(r"asynctls_([a-z_]+)(\{[^}]*\})? (\S+)$", line)
        if found:
            values[found[1]] = values.get(found[1], 0) + float(found[3])
            values[found[1] + (found[2] or "")] = float(found[3])
    return values


def slope_per_minute(samples, key):
    half = samples[len(samples) // 2:]
    times = [s["t"] for s in half]
    values = [s[key] for s in half]
    mean_t, mean_v = sum(times) / len(times), sum(values) / len(values)
    spread = sum((t - mean_t) ** 2 for t in times)
    if spread == 0:
        return 0.0
    return 60 * sum((t - mean_t) * (v - mean_v) for t, v in zip(times, values)) / spread


def broken_invariants(m, report):
    broken = []
    open_requests = m["requests_running"] + m["requests_waiting"]
    if m["requests_started_total"] != m["requests_finished_total"] + open_requests:
        broken.append("started != finished + running + waiting")
    if open_requests != 0:
        broken.append("requests are left")
    used, cached, free, total = (
        m['kv_blocks{state="%s"}' % state] for state in ("used", "cached", "free", "total"))
    if used != 0:
        broken.append("blocks are left")
    if used + cached + free != total:
        broken.append("used + cached + free != total")
    if m['requests_finished_total{reason="failed"}'] != 0:
        broken.append("requests have failed")
    for row in report["outcomes"]:
        if row["outcome"] not in ALLOWED:
            broken.append(f"{row['kind']}: {row['outcome']}")
    return broken


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--build", default="build-cpu")
    parser.add_argument("--model", default="deploy/models/demo-qwen3")
    parser.add_argument("--json")
    args = parser.parse_args()
    server, port, metrics_port = start_server(args)
    try:
        output = tempfile.TemporaryFile(mode="w+")
        bench = start_bench(args, port, output)
        begun, samples = time.monotonic(), []
        while bench.poll() is None:
            time.sleep(EVERY_SECONDS)
            samples.append({"t": time.monotonic() - begun, **process_state(server.pid)})
        output.seek(0)
        report = json.load(output)
        time.sleep(2)  # what the last cancels leave
        metrics = scrape(metrics_port)
        broken = broken_invariants(metrics, report)
        if server.poll() is not None:
            broken.append("the server is gone")
    finally:
        server.terminate()
        if server.wait(timeout=60) != 0:
            sys.exit(f"the server ended with {server.returncode}")
    result = {
        "minutes": args.minutes,
        "bench": report,
        "first": samples[0], "last": samples[-1],
        "per_minute": {key: slope_per_minute(samples, key)
                       for key in ("rss_kib", "descriptors", "threads")},
        "started": metrics["requests_started_total"],
        "finished": metrics["requests_finished_total"],
        "broken": broken,
    }
    if args.json:
        with open(args.json, "w") as out:
            json.dump(result, out, indent=1)
    result["bench"] = report["outcomes"]
    print(json.dumps(result, indent=1))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
