"""One engine in a process of its own: reads requests, answers with token ids and seconds.

Runs in the environment of the engine that it serves, where minstate is not installed: standard library only. The
argument is a JSON object with `engine` (a module beside this file), `mode`, `dtype`, `threads`, `model` (a folder)
and perhaps `gguf` (a file). Its `load(spec)` returns a version and a function `generate(token_ids, count)`, which
returns `count` new ids, chosen greedily and not ended by any stop token.

    → {"token_ids": [...], "count": 48}
    ← {"token_ids": [...], "seconds": 1.2}
"""

import importlib
import json
import os
import sys
import time


def main() -> None:
    spec = json.loads(sys.argv[1])
    os.environ["OMP_NUM_THREADS"] = str(spec["threads"])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not come between the answers
    version, generate = importlib.import_module(spec["engine"]).load(spec)
    print(json.dumps({"version": version}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        token_ids = generate(request["token_ids"], request["count"])
        seconds = time.perf_counter() - start
        assert len(token_ids) == request["count"], f"{len(token_ids)} tokens, not {request['count']}"
        print(json.dumps({"token_ids": token_ids, "seconds": seconds}), file=answers)


if __name__ == "__main__":
    main()
