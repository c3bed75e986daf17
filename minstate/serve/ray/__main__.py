"""Serve a model by several replicas, on this machine or on a Ray cluster.

    python -m minstate.serve.ray --replicas 2 --port 8000
    python -m minstate.serve.ray --replicas 4-100 --address ray://HEAD:10001 --gpus 1 --host 0.0.0.0 --api-keys FILE

Further options are those of `python -m minstate.serve`. Requests of one conversation go to one replica. If it dies,
another one goes on. Ctrl-C lets the turns that are under way end.
"""

import argparse
import signal
import socket
import sys
import threading

from minstate.serve.__main__ import limits_of, parser, prepared


def arguments() -> argparse.Namespace:
    """What the command line says."""
    known = parser("python -m minstate.serve.ray", __doc__)
    known.add_argument("--replicas", default="2", help="how many; 2-8: at least 2, at most 8, as requests need")
    known.add_argument("--address", help="of a Ray cluster; without it, Ray is started on this machine")
    known.add_argument("--doors", type=int, default=1, help="processes that read requests and pass answers on")
    known.add_argument("--cpus", type=float, default=1, help="of each replica")
    known.add_argument("--gpus", type=float, default=0, help="of each replica")
    given = known.parse_args()
    least, _, most = given.replicas.partition("-")
    if not (least.isdigit() and (most or least).isdigit() and 1 <= int(least) <= int(most or least)):
        known.error("--replicas is a number above 0, or two of them: 2-8")
    given.replicas = (int(least), int(most)) if most else int(least)
    return given


def free_port(host: str) -> int:
    """A port that nobody listens on."""
    with socket.create_server((host, 0)) as found:
        return found.getsockname()[1]


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    given = arguments()
    try:
        import ray
        from ray import serve

        from minstate.serve.ray.deployment import application
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed: pip install 'minstate[serve,ray]'")
    from minstate.serve.ray.replica import Settings

    make, model, keys, defaults, local = prepared(given)
    settings = Settings(make, model, keys, limits_of(given), defaults, local)
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    ray.init(given.address, include_dashboard=False if given.address is None else None, log_to_driver=False)
    try:
        port = given.port or free_port(given.host)
        serve.start(http_options={"host": given.host, "port": port})
        options = {"replicas": given.replicas, "doors": given.doors, "cpus": given.cpus, "gpus": given.gpus}
        app = application(settings, **options)
        serve.run(app, name="minstate", route_prefix="/")
        print(f"ready: http://{given.host}:{port}/v1 serves {model} with {given.replicas} replicas", flush=True)
        done.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
