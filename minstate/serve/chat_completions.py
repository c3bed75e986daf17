"""`POST /v1/chat/completions`: the client sends the whole history, and pays for what is new in it."""

import time
from collections.abc import AsyncIterator
from typing import Any

from minstate.serve.history import read_chat_messages
from minstate.serve.request_schemas import ChatRequest
from minstate.serve.service import Asked, Service, Work, as_tool_call, logprobs_of, restrict


def asked_of(service: Service, body: ChatRequest, tenant: str, name: str | None) -> Asked:
    """What a request asks of the engine. Raises `ApiError`."""
    service.require_model(body.model)
    tools = body.tools or []
    allowed, choice = restrict(tools, body.tool_choice or "auto")
    turn: dict[str, Any] = {"tool_choice": choice, "response_format": body.response_format}
    turn |= {"parallel_tool_calls": body.parallel_tool_calls, "logprobs": bool(body.logprobs)}
    turn |= {"top_logprobs": body.top_logprobs or 0} if body.logprobs else {}
    turn |= {} if allowed is None else {"tools": allowed}
    return Asked(
        tenant,
        read_chat_messages(body.messages),
        tools,
        body.full_sampling(service.defaults, service.seed(body.seed)),
        turn,
        body.most_tokens,
        body.n or 1,
        body.chat_template_kwargs or {},
        name,
    )


def usage_of(work: Work) -> dict[str, Any]:
    """Token counts of all replies; the prompt's are those of the first one, and of the others the same."""
    stats = work.replies[0].turn.stats
    prompt, generated = stats.context + stats.delta, sum(len(reply.turn.token_ids) for reply in work.replies)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": stats.reused},
        "minstate": work.cost(),
    }


def logprob_entries(tokens: list[tuple], tokenizer) -> list[dict[str, Any]]:
    """Logprobs as both APIs write them."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([token_id])
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}

    return [{**entry(i, p), "top_logprobs": [entry(*pair) for pair in tops]} for i, p, tops in tokens]


def completion(work: Work, tokenizer, wants_logprobs: bool) -> dict[str, Any]:
    """The whole answer."""
    choices = []
    for place, reply in enumerate(work.replies):
        message: dict[str, Any] = {"role": "assistant", "content": reply.content or (None if reply.calls else "")}
        message["refusal"] = None
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.calls:
            message["tool_calls"] = [as_tool_call(call) for call in reply.calls]
        logprobs = {"content": logprob_entries(reply.tokens, tokenizer), "refusal": None}
        choice = {"index": place, "message": message, "finish_reason": reply.finish_reason}
        choices.append({**choice, "logprobs": logprobs if wants_logprobs else None})
    return {**_head(work, "chat.completion"), "choices": choices, "usage": usage_of(work)}


async def chunks(work: Work, tokenizer, body: ChatRequest) -> AsyncIterator[dict[str, Any]]:
    """The answer piece by piece."""
    head, begun = _head(work, "chat.completion.chunk"), set()

    def chunk(place: int, delta: dict, reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": place, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return {**head, "choices": [choice]}

    async for place, reply, update in work.updates():
        if place not in begun:
            begun.add(place)
            yield chunk(place, {"role": "assistant", "content": ""})
        entries = logprob_entries(logprobs_of(update), tokenizer)
        logprobs = {"content": entries, "refusal": None} if body.logprobs else None
        pieces = [_piece(delta) for delta in update.deltas] or ([{}] if body.logprobs else [])
        for piece in pieces:
            yield chunk(place, piece, None, logprobs)
            logprobs = None
        if reply.stream.read:
            yield chunk(place, {}, reply.finish_reason)
    if body.stream_options and body.stream_options.include_usage:
        yield {**head, "choices": [], "usage": usage_of(work)}


def _piece(delta) -> dict[str, Any]:
    if delta.call is None:
        return {"content": delta.content} if delta.content else {"reasoning_content": delta.reasoning}
    call: dict[str, Any] = {"index": delta.call, "function": {"arguments": delta.arguments}}
    if delta.name:
        call |= {"id": delta.id, "type": "function", "function": {"name": delta.name, "arguments": ""}}
    return {"tool_calls": [call]}


def _head(work: Work, kind: str) -> dict[str, Any]:
    made = {"id": f"chatcmpl-{work.id}", "object": kind, "created": int(time.time()), "model": work.service.model}
    return {**made, "system_fingerprint": None}
