"""Serve a model to OpenAI's clients.

    python -m minstate.serve --model FOLDER --port 8000

`MINSTATE_API_KEYS`, or the file of `--api-keys`, holds keys: one a line, `KEY` or `TENANT:KEY`. Tenants share nothing.
Without keys, everybody who reaches the port is one tenant. A line `ready: ...` says that requests are answered. Ctrl-C
lets the turns that are under way end.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from minstate.engine import Engine
from minstate.errors import BadValue, MinstateError
from minstate.sampling import Sampling
from minstate.serve.async_engine import AsyncEngine
from minstate.serve.service import Limits, Service
from minstate.weights import find_model


def read_keys(text: str) -> dict[str, str]:
    """Tenant by key, from lines `KEY` or `TENANT:KEY`. Empty lines, and those that begin with #, are left out.

    Raises `BadValue` for a line without a key, and for a key that two tenants have.
    """
    keys: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        tenant, _, key = (part.strip() for part in line.rpartition(":"))
        if not key:
            raise BadValue(f"line {number} of the API keys has no key")
        if keys.setdefault(key, tenant or "default") != (tenant or "default"):
            raise BadValue(f"line {number} of the API keys gives a second tenant to a key")
    return keys


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m minstate.serve", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", help="a folder or a Hub id; the default model if it is left out")
    parser.add_argument("--served-model-name", help="by which clients ask for the model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any port that is free")
    parser.add_argument("--api-keys", type=Path, help="a file of keys")
    parser.add_argument("--dtype", help="float32 or bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-pages", type=int, help="of the KV pool, of 16 tokens each")
    parser.add_argument("--no-speculation", action="store_true", help="never guess tokens")
    parser.add_argument(
        "--max-turns", type=int, default=Limits.turns, help="of a tenant, at once; others get status 429"
    )
    parser.add_argument("--timeout", type=float, default=Limits.turn_s, help="seconds of a turn")
    given = parser.parse_args()
    if given.max_turns < 1 or not given.timeout > 0:
        parser.error("--max-turns and --timeout are above 0")
    return given


def main() -> None:
    """Serve until Ctrl-C."""
    given = arguments()
    try:
        from minstate.serve.listening import listen
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed: pip install 'minstate[serve]'")
    try:
        folder, defaults = find_model(given.model), Sampling.from_pretrained(given.model)
        keys = read_keys(given.api_keys.read_text() if given.api_keys else os.environ.get("MINSTATE_API_KEYS", ""))
    except (MinstateError, OSError) as error:
        sys.exit(f"error: {error}")
    settings = {"dtype": given.dtype, "device": given.device, "num_pages": given.num_pages}
    make = partial(Engine.from_pretrained, given.model, **settings, speculation=not given.no_speculation)
    name = given.served_model_name or folder.name
    defaults = Sampling(temperature=1.0) if defaults == Sampling() else defaults
    limits = Limits(turns=given.max_turns, turn_s=given.timeout)
    local = given.host in ("127.0.0.1", "localhost", "::1")
    if not local and not keys:
        print("warning: everybody who reaches this port may use the model; --api-keys changes that", file=sys.stderr)
    service = Service(AsyncEngine(make), name, limits=limits, defaults=defaults)
    sys.exit(listen(service, keys, host=given.host, port=given.port, local=local))


if __name__ == "__main__":
    main()
