"""One engine in a process of its own: it reads requests, and writes token ids and seconds.

This file uses the standard library only, because it runs in the engine's own environment, without minstate. Its
argument, `spec`, is a JSON object with `engine` (a module beside this file), `mode`, `dtype`, `threads`, `model` (a
folder) and, for some engines, `gguf` (a file). The module's `load(spec)` returns a version and a function
`generate(token_ids, count)`. The function samples `count` new ids greedily, and ignores stop tokens. It returns the ids
and the seconds until the first of them.

    → {"token_ids": [...], "count": 48}
    ← {"token_ids": [...], "seconds": 1.2, "first_s": 0.3}
"""

import importlib
import json
import os
import sys
import time


def main() -> None:
    """Load the engine, write its version, and answer each line of standard input."""
    spec = json.loads(sys.argv[1])
    os.environ["OMP_NUM_THREADS"] = str(spec["threads"])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # so that no library prints between the answers
    version, generate = importlib.import_module(spec["engine"]).load(spec)
    print(json.dumps({"version": version}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        token_ids, first_s = generate(request["token_ids"], request["count"])
        seconds = time.perf_counter() - start
        assert len(token_ids) == request["count"], f"{len(token_ids)} tokens, not {request['count']}"
        print(json.dumps({"token_ids": token_ids, "seconds": seconds, "first_s": first_s}), file=answers)


if __name__ == "__main__":
    main()
