"""Asks a server of run.sh: eight prompts one by one, then all at once. Prints one JSON line, with how many texts were the same: on
a GPU not always all, as its products may round otherwise for another number of rows. Fails when a request fails."""

import json
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

BASE = f"http://127.0.0.1:{sys.argv[1]}"
PROMPTS = [f"{start} the {noun}" for start in ("Read", "Open") for noun in ("file", "table", "list of names", "answer")]


def ask(prompt):
    body = json.dumps({"model": "default", "prompt": prompt, "max_tokens": 24, "temperature": 0}).encode()
    request = urllib.request.Request(f"{BASE}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["choices"][0]["text"]


def wait_for_server():
    for _ in range(90):
        try:
            return urllib.request.urlopen(f"{BASE}/health", timeout=2).read()
        except OSError:
            time.sleep(1)
    sys.exit("no server after 90 s")


wait_for_server()
alone = [ask(prompt) for prompt in PROMPTS]
started = time.monotonic()
with ThreadPoolExecutor(len(PROMPTS)) as pool:
    together = list(pool.map(ask, PROMPTS))
seconds = time.monotonic() - started
same = sum(one == other for one, other in zip(alone, together))
print(json.dumps({"requests": len(PROMPTS), "same_text": same, "seconds": round(seconds, 3), "first": together[0]}))
