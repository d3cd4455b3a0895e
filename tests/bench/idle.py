#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""idle.py URL -- COMMAND...: runs a load beside a server whose metrics are at URL, and prints how long
its ranks were idle between steps while nothing but replies was computed (no prompt tokens between
two looks), and what steps took, by kind. Needs nothing but Python."""
import re
import subprocess
import sys
import time
import urllib.request

LOOK = 0.25  # seconds
GAP = "asynctls_step_gap_seconds"
DEVICE = 'asynctls_step_phase_seconds_total{phase="device"}'
READ = 'asynctls_prompt_tokens_total{source="computed"}'


def look(url):
    text = urllib.request.urlopen(url).read().decode()
    return {name: float(value) for name, value in re.findall(r"^(asynctls_\S+) (\S+)$", text, re.M)}


def difference(before, after):
    return {name: value - before.get(name, 0) for name, value in after.items()}


def main():
    url, command = sys.argv[1], sys.argv[sys.argv.index("--") + 1:]
    looks = [look(url)]
    load = subprocess.Popen(command)
    while load.poll() is None:
        time.sleep(LOOK)
        looks.append(look(url))
    gaps = idle = device = 0.0
    previous = False
    for before, after in zip(looks, looks[1:]):
        window = difference(before, after)
        decodes = window[READ] == 0 and window[GAP + "_count"] > 0
        if decodes and previous:  # the first such window may begin with other steps
            gaps += window[GAP + "_count"]
            idle += window[GAP + "_sum"]
            device += window[DEVICE]
        previous = decodes
    if gaps > 0:
        share = f", {100 * idle / (idle + device):.2f} % of the time" if device > 0 else ""
        print(f"idle between {gaps:.0f} decode steps: mean {1e6 * idle / gaps:.1f} us{share}")
    whole = difference(looks[0], looks[-1])
    for kind in ("prefill", "decode", "mixed"):
        steps = whole[f'asynctls_step_seconds_count{{kind="{kind}"}}']
        if steps > 0:
            mean = whole[f'asynctls_step_seconds_sum{{kind="{kind}"}}'] / steps
            print(f"{steps:.0f} {kind} steps: mean {1e3 * mean:.2f} ms")
    return load.returncode


if __name__ == "__main__":
    sys.exit(main())
