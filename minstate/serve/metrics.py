"""`GET /metrics`: counters in Prometheus' text format, under vLLM's names where they mean the same."""

from minstate.engine import Engine
from minstate.serve.service import Service


async def metrics_text(service: Service) -> str:
    """All metrics, one a line, each with its type in front."""

    def look(engine: Engine) -> tuple[int, int, float]:
        scheduler, allocator = engine.scheduler, engine.pool.allocator
        used = 1 - allocator.num_free / allocator.num_pages
        return len(scheduler.running), len(scheduler.requests) - len(scheduler.running), used

    running, waiting, used = await service.engine.call(look)
    totals = service.totals
    values = [
        ("gauge", "vllm:num_requests_running", running),
        ("gauge", "vllm:num_requests_waiting", waiting),
        ("gauge", "vllm:kv_cache_usage_perc", round(used, 6)),
        ("counter", "vllm:prompt_tokens_total", totals["prompt"]),
        ("counter", "vllm:generation_tokens_total", totals["generated"]),
        ("counter", "vllm:prefix_cache_queries_total", totals["prompt"]),
        ("counter", "vllm:prefix_cache_hits_total", totals["cached"]),
        ("counter", "vllm:num_preemptions_total", totals["preempted"]),
        ("counter", "minstate:prefilled_tokens_total", totals["prefilled"]),
        ("counter", "minstate:turns_total", totals["requests"]),
        ("counter", "minstate:refused_requests_total", service.refused),
        ("gauge", "minstate:remembered_turns", len(service.conversations.stored)),
        ("gauge", "minstate:remembered_tokens", service.conversations.tokens),
    ]
    return "".join(f"# TYPE {name} {kind}\n{name} {value}\n" for kind, name, value in values)
