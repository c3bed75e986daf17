"""The Ray Serve application: doors, replicas with an engine each, and the store of their turns' ends.

    client ──HTTP──▶ Ray's proxy ──▶ Door ──key──▶ ConsistentHashRouter ──▶ Replica 1 ──┐
                                     (any of them)                          Replica 2 ──┼──▶ turn store
                                                                            ...       ──┘

Ray Serve starts, watches and replaces replicas, scales them, and routes
(https://docs.ray.io/en/latest/serve/advanced-guides/custom-request-router.html). A session keeps its replica until that
one is full or gone; then the next replica on the ring goes on from the turn that the store has.
"""

import logging
import os
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from starlette.requests import Request
from starlette.responses import Response

from minstate.serve.api_errors import ApiError
from minstate.serve.ray.door import Gone, answer
from minstate.serve.ray.replica import Forwarded, Replica, Settings
from minstate.serve.ray.turn_store import NAME, NAMESPACE, Record, TurnStore

DRAIN_S = 60.0  # that a replica may take for the turns under way
QUEUED = 2  # requests that may wait at a door, for each turn that a replica takes


class RemoteStore:
    """`TurnStore` in a process of its own, which outlives replicas, and is made by the first that asks for it."""

    def __init__(self) -> None:
        options = {"name": NAME, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True, "num_cpus": 0}
        self._actor: Any = ray.remote(TurnStore).options(**options, max_restarts=-1).remote()

    async def _call(self, method: str, *args: Any) -> Any:
        """What the store answers; None while it is being started again, which makes it forget its records."""
        try:
            return await getattr(self._actor, method).remote(*args)
        except RayActorError as error:
            logging.getLogger(__name__).warning("the store of turns does not answer: %s", error)
            return None

    async def put(self, record: Record) -> None:
        """As `TurnStore.put`."""
        await self._call("put", record)

    async def find(self, tenant: str, id_: str) -> bytes | None:
        """As `TurnStore.find`."""
        return await self._call("find", tenant, id_)

    async def find_ending(self, tenant: str, keys: Sequence[bytes]) -> bytes | None:
        """As `TurnStore.find_ending`."""
        return await self._call("find_ending", tenant, list(keys))

    async def forget(self, tenant: str, id_: str) -> None:
        """As `TurnStore.forget`."""
        await self._call("forget", tenant, id_)


class EngineReplica(Replica):
    """A `Replica` as Ray Serve runs it: it takes requests once its model is loaded."""

    async def __init__(self, settings: Settings):
        super().__init__(settings, RemoteStore(), serve.get_replica_context().replica_id.unique_id)
        await self.start()

    async def __del__(self) -> None:
        await self.stop()

    async def check_health(self) -> None:
        """Ray Serve replaces a replica for which this raises: its engine's thread has ended."""
        await self.service.engine.call(lambda _: None)

    def whoami(self) -> tuple[str, int]:
        """This replica's name, and the id of its process."""
        return self.name, os.getpid()


class Door:
    """What Ray's proxies hand requests to."""

    def __init__(self, replicas: Any, most_bytes: int):
        self._replicas, self._most_bytes = replicas, most_bytes

    async def __call__(self, request: Request) -> Response:
        """As Ray Serve asks for it."""
        return await answer(request, self._forward, self._most_bytes)

    async def _forward(self, asked: Forwarded) -> AsyncGenerator[dict[str, Any]]:
        messages = self._replicas.options(stream=True, session_id=asked.key).answer.remote(asked)
        try:
            async for message in messages:
                yield message
        except BackPressureError as error:
            headers = {"retry-after": "1"}
            raise ApiError(429, "all replicas are full: try again", code="overloaded", headers=headers) from error
        except RayActorError as error:
            raise Gone from error
        finally:
            messages.cancel()  # a client that has left takes its turn with it; does nothing behind the end


def application(
    settings: Settings, *, replicas: int | tuple[int, int], doors: int = 1, cpus: float = 1, gpus: float = 0
) -> Any:
    """What `ray.serve.run` takes.

    replicas    how many; or at least and at most, as many as keep each replica half full
    cpus, gpus  of each replica
    """
    deploy: Any = serve.deployment  # Ray's own types are narrower than what these two take
    router: Any = RequestRouterConfig
    turns = settings.limits.turns
    scale: dict[str, Any] = {"num_replicas": replicas}
    if isinstance(replicas, tuple):
        least, most = replicas
        target = max(1, turns // 2)
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=least, max_replicas=most, target_ongoing_requests=target
            )
        }
    engines = deploy(EngineReplica).options(
        name="Replica",
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        max_ongoing_requests=turns,
        max_queued_requests=QUEUED * turns,
        graceful_shutdown_timeout_s=DRAIN_S,
        health_check_period_s=5,
        request_router_config=router(request_router_class=ConsistentHashRouter),
        **scale,
    )
    door = deploy(Door).options(
        name="Door", num_replicas=doors, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000
    )
    return door.bind(engines.bind(settings), settings.limits.body_bytes)
