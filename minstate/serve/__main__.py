"""Serve a model to OpenAI's clients.

    python -m minstate.serve --model FOLDER --port 8000

`MINSTATE_API_KEYS`, or the file of `--api-keys`, holds keys: one a line, `KEY` or `TENANT:KEY`. Tenants share nothing.
Without keys, everybody who reaches the port is one tenant. Ctrl-C lets the turns that are under way end.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from minstate.engine import Engine
from minstate.errors import MinstateError
from minstate.sampling import Sampling
from minstate.serve.async_engine import AsyncEngine
from minstate.serve.service import Limits, Service
from minstate.weights import find_model


def read_keys(text: str) -> dict[str, str]:
    """Tenant by key, from lines `KEY` or `TENANT:KEY`. Empty lines, and those that begin with #, are left out."""
    lines = [line.strip() for line in text.splitlines()]
    pairs = [line.rpartition(":") for line in lines if line and not line.startswith("#")]
    return {key: tenant or "default" for tenant, _, key in pairs}


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m minstate.serve", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", help="a folder or a Hub id; the default model if it is left out")
    parser.add_argument("--served-model-name", help="by which clients ask for the model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-keys", type=Path, help="a file of keys")
    parser.add_argument("--dtype", help="float32 or bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-pages", type=int, help="of the KV pool, of 16 tokens each")
    parser.add_argument("--no-speculation", action="store_true", help="never guess tokens")
    parser.add_argument("--max-turns", type=int, default=Limits.turns, help="at once; others get status 429")
    parser.add_argument("--timeout", type=float, default=Limits.turn_s, help="seconds of a turn")
    return parser.parse_args()


def main() -> None:
    """Serve until Ctrl-C."""
    given = arguments()
    try:
        import uvicorn

        from minstate.serve.app import Server
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed: pip install 'minstate[serve]'")
    try:
        folder, defaults = find_model(given.model), Sampling.from_pretrained(given.model)
    except MinstateError as error:
        sys.exit(f"error: {error}")
    settings = {"dtype": given.dtype, "device": given.device, "num_pages": given.num_pages}
    make = partial(Engine.from_pretrained, given.model, **settings, speculation=not given.no_speculation)
    name = given.served_model_name or folder.name
    defaults = Sampling(temperature=1.0) if defaults == Sampling() else defaults
    limits = Limits(turns=given.max_turns, turn_s=given.timeout)
    service = Service(AsyncEngine(make), name, limits=limits, defaults=defaults)
    keys = read_keys(given.api_keys.read_text() if given.api_keys else os.environ.get("MINSTATE_API_KEYS", ""))
    local = given.host in ("127.0.0.1", "localhost", "::1")
    if not local and not keys:
        print("warning: everybody who reaches this port may use the model; --api-keys changes that", file=sys.stderr)
    print(f"serving {name} at http://{given.host}:{given.port}/v1, {len(keys) or 'no'} keys", flush=True)
    app = Server(service, keys, local=local).app
    uvicorn.run(app, host=given.host, port=given.port, ws="none", log_level="info", timeout_graceful_shutdown=60)


if __name__ == "__main__":
    main()
