"""`POST /v1/responses`: a response goes on from an earlier one by its id, and costs what is new in it."""

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from minstate.serve.api_errors import ApiError, api_error
from minstate.serve.chat_completions import logprob_entries
from minstate.serve.conversations import Branch, Stored
from minstate.serve.history import keys_of, read_items
from minstate.serve.request_schemas import ResponsesRequest
from minstate.serve.service import Asked, Service, Work, logprobs_of, restrict

LOGPROBS = "message.output_text.logprobs"


def asked_of(service: Service, body: ResponsesRequest, tenant: str, name: str | None) -> tuple[Asked, Stored | None]:
    """What a request asks of the engine, and the response from which it goes on. Raises `ApiError`.

    The instructions of the earlier response are not carried over: if they differ, the history begins otherwise.
    """
    service.require_model(body.model)
    previous = service.conversations.get(tenant, body.previous_response_id) if body.previous_response_id else None
    if body.previous_response_id and not previous:
        why = f"Previous response with id '{body.previous_response_id}' not found."
        raise ApiError(400, why, param="previous_response_id", code="previous_response_not_found")
    tools = [_function(tool) for tool in body.tools or []]
    history = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if previous:
        history += previous.messages[1:] if previous.instructions else previous.messages
    messages = history + read_items(body.input, _referred(service, body.input, tenant))
    if not messages:
        raise ApiError(400, "the input is empty", param="input")
    allowed, choice = restrict(tools, body.tool_choice or "auto")
    wants = LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    turn: dict[str, Any] = {"tool_choice": choice, "response_format": body.response_format, "logprobs": wants}
    turn |= {"parallel_tool_calls": body.parallel_tool_calls, "top_logprobs": body.top_logprobs or 0}
    turn |= {} if allowed is None else {"tools": allowed}
    turn |= {"on_overflow": "drop_oldest"} if body.truncation == "auto" else {}
    sampling = body.sampling(service.defaults, service.seed(body.seed))
    template = body.chat_template_kwargs or {}
    return Asked(tenant, messages, tools, sampling, turn, body.max_output_tokens, 1, template, name), previous


async def branch(service: Service, asked: Asked, previous: Stored | None) -> Branch | None:
    """A fork of the earlier response, if the request's history is its history; None: whatever the history extends."""
    if previous:
        keys = keys_of(asked.tenant, asked.tools, asked.template, asked.messages)
        at = len(previous.messages)
        if len(keys) > at + 1 and keys[at] == previous.keys[-1]:
            service.conversations.use(previous)
            session = await service.conversations.fork(previous.session)
            return Branch(session, asked.messages[at:], None)
    return None


def _referred(service: Service, items: Any, tenant: str) -> dict[str, Mapping]:
    """The tenant's output items by id, if the input refers to any."""
    if isinstance(items, str) or all(item.get("type") != "item_reference" for item in items):
        return {}
    stored = service.conversations.stored.values()
    return {each["id"]: each for one in stored if one.tenant == tenant and one.body for each in one.body["output"]}


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    if tool.get("type") != "function":
        raise ApiError(400, f"tools of type {tool.get('type')!r} are not supported: functions are", param="tools")
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


class Writer:
    """The response as an object, and as a stream of typed events."""

    def __init__(self, work: Work, body: ResponsesRequest, tokenizer):
        self.work, self.body, self.tokenizer = work, body, tokenizer
        self.id, self.created = f"resp_{work.id}", int(time.time())
        self.output: list[dict[str, Any]] = []
        self._events = 0

    def response(self, status: str, **more) -> dict[str, Any]:
        """The response object."""
        body, asked = self.body, self.work.asked
        tools = [{"strict": None, "parameters": None, **tool} for tool in body.tools or []]
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": None,
            "incomplete_details": None, "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
            "model": body.model, "output": list(self.output),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id, "reasoning": {"effort": None, "summary": None},
            "store": body.store is not False, "temperature": asked.sampling.temperature, "top_p": asked.sampling.top_p,
            "text": body.text or {"format": {"type": "text"}}, "tool_choice": body.tool_choice or "auto",
            "tools": tools, "truncation": body.truncation or "disabled", "usage": None, "user": body.user,
            "metadata": body.metadata or {}, "background": False, "service_tier": "default",
            "top_logprobs": body.top_logprobs or 0, **more,
        }  # fmt: skip

    def finished(self) -> dict[str, Any]:
        """The whole response, once its turn is over. It is remembered from then on."""
        if not self.output:
            self._write_output()
        reply = self.work.replies[0]
        stats, cut = reply.turn.stats, reply.turn.finish_reason == "length"
        prompt, generated = stats.context + stats.delta, stats.generated
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": stats.reused, "cache_write_tokens": stats.prefilled},
            "output_tokens": generated,
            "output_tokens_details": {
                "reasoning_tokens": len(self.tokenizer.encode(reply.reasoning, add_special_tokens=False))
            },
            "total_tokens": prompt + generated,
            "minstate": self.work.cost(),
        }
        details = {"reason": "max_output_tokens"} if cut else None
        whole = self.response("incomplete" if cut else "completed", usage=usage, incomplete_details=details)
        if self.body.store is False:  # remembered for histories that extend it, and found by no id
            self.work.keep(self.id)
        else:
            self.work.keep(self.id, body=whole, items=self._items(), instructions=self.body.instructions)
        return whole

    def _items(self) -> list[dict[str, Any]]:
        given = self.body.input
        given = [{"role": "user", "content": given}] if isinstance(given, str) else given
        items = []
        for place, item in enumerate(given):
            one: dict[str, Any] = {"id": f"item_{self.work.id}_{place}", "type": "message", **item}
            if isinstance(text := item.get("content"), str):
                is_reply = item.get("role") == "assistant"
                one["content"] = [_part("message", text) if is_reply else {"type": "input_text", "text": text}]
            if not isinstance(one["id"], str):
                one["id"] = f"item_{self.work.id}_{place}"
            items.append(one)
        return items

    def _write_output(self) -> None:
        reply = self.work.replies[0]
        if reply.reasoning:
            self.output.append(self._item("reasoning", 0, reply.reasoning))
        if reply.content or not reply.calls:
            self.output.append(self._item("message", len(self.output), reply.content))
            self.output[-1]["content"][0]["logprobs"] = logprob_entries(reply.tokens, self.tokenizer)
        for call in reply.calls:
            self.output.append(self._item("function_call", len(self.output), call["arguments"], call))
        if reply.turn.finish_reason == "length":
            self.output[-1]["status"] = "incomplete"

    def _item(self, kind: str, place: int, text: str, call: Mapping[str, str] | None = None) -> dict[str, Any]:
        """An output item that is complete. Its id is the same while it grows."""
        begin = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        item: dict[str, Any] = {"id": f"{begin}_{self.work.id}_{place}", "type": kind, "status": "completed"}
        if kind == "reasoning":
            return {**item, "summary": [], "content": [{"type": "reasoning_text", "text": text}]}
        if kind == "message":
            return {**item, "role": "assistant", "content": [_part(kind, text)]}
        assert call
        return {**item, "call_id": call["id"], "name": call["name"], "arguments": text}

    def event(self, kind: str, **more) -> dict[str, Any]:
        """One event, numbered."""
        self._events += 1
        return {"type": f"response.{kind}", "sequence_number": self._events - 1, **more}

    async def events(self) -> AsyncIterator[dict[str, Any]]:  # noqa: C901  one event after the other
        """All events, while the reply grows."""
        yield self.event("created", response=self.response("in_progress"))
        yield self.event("in_progress", response=self.response("in_progress"))
        open_: tuple[str, int, Any] | None = None  # kind, place and call of the item that grows
        place, text = -1, ""
        try:
            async for _, reply, update in self.work.updates():
                logprobs = logprob_entries(logprobs_of(update), self.tokenizer)
                for delta in update.deltas:
                    kind = "function_call" if delta.call is not None else "message" if delta.content else "reasoning"
                    call = reply.calls[delta.call] if delta.call is not None else None
                    if open_ is None or (open_[0], open_[2]) != (kind, call):
                        for event in self._closed(open_, text):
                            yield event
                        place, text = place + 1, ""
                        open_ = kind, place, call
                        for event in self._opened(*open_):
                            yield event
                    piece = delta.content or delta.reasoning or delta.arguments
                    text += piece
                    if piece:
                        yield self._grown(kind, place, piece, logprobs)
                        logprobs = []
            if open_ is None:
                open_ = "message", 0, None
                for event in self._opened(*open_):
                    yield event
            for event in self._closed(open_, text):
                yield event
            whole = self.finished()
            yield self.event(whole["status"], response=whole)
        except Exception as error:  # noqa: BLE001  the stream ends with an event that says so
            told = api_error(error)
            failure = {"code": "server_error", "message": str(told)}
            yield self.event("failed", response=self.response("failed", error=failure))

    def _opened(self, kind: str, place: int, call: Mapping[str, str] | None) -> list[dict[str, Any]]:
        item = {**self._item(kind, place, "", call), "status": "in_progress"}
        if "content" in item:
            item["content"] = []
        events = [self.event("output_item.added", output_index=place, item=item)]
        if call is None:
            part = {"item_id": item["id"], "output_index": place, "content_index": 0, "part": _part(kind, "")}
            events.append(self.event("content_part.added", **part))
        return events

    def _grown(self, kind: str, place: int, piece: str, logprobs: list) -> dict[str, Any]:
        where = {"item_id": self._item(kind, place, "", {"id": "", "name": ""})["id"], "output_index": place}
        if kind == "function_call":
            return self.event("function_call_arguments.delta", **where, delta=piece)
        more = {"logprobs": logprobs} if kind == "message" else {}
        name = "output_text" if kind == "message" else "reasoning_text"
        return self.event(f"{name}.delta", **where, content_index=0, delta=piece, **more)

    def _closed(self, open_: tuple[str, int, Any] | None, text: str) -> list[dict[str, Any]]:
        if open_ is None:
            return []
        kind, place, call = open_
        item = self._item(kind, place, text, call)
        where = {"item_id": item["id"], "output_index": place}
        if call is not None:
            more = {"arguments": text, "name": call["name"]}
            events = [self.event("function_call_arguments.done", **where, **more)]
        else:
            name, more = ("output_text", {"logprobs": []}) if kind == "message" else ("reasoning_text", {})
            events = [self.event(f"{name}.done", **where, content_index=0, text=text, **more)]
            events.append(self.event("content_part.done", **where, content_index=0, part=_part(kind, text)))
        return [*events, self.event("output_item.done", output_index=place, item=item)]


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
