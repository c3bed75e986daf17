"""The fields of requests: those of OpenAI's published schemas, and some of vLLM's. Unknown fields are refused.

Fields that change nothing here (`service_tier`, `metadata`, ...) are accepted. Fields that ask for what this server
lacks (`background`, `audio`, ...) are refused unless they ask for nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from minstate.sampling import Sampling

Tokens = Annotated[int, Field(ge=1)]
Note = Annotated[str, Field(max_length=512)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Fields(BaseModel):
    """What both APIs have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    stream: bool | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    # Of vLLM.
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=100)] | None = None
    ignore_eos: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # They change nothing here.
    user: str | None = None
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], Note], Field(max_length=16)] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None

    def sampling(self, defaults: Sampling, seed: int, **more) -> Sampling:
        """How tokens are chosen: as asked, else by `defaults`."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "ignore_eos")
        asked = {name: value for name in names if (value := getattr(self, name)) is not None}
        if asked.get("top_k") == -1:
            asked["top_k"] = 0
        known = {name: getattr(defaults, name) for name in names}
        return Sampling(**{**known, **asked}, seed=seed, **more)


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: Literal[False] | None = None


class ChatRequest(_Fields):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    logprobs: bool | None = None
    response_format: dict[str, Any] | None = None
    stream_options: StreamOptions | None = None
    # They change nothing here.
    store: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    prediction: dict[str, Any] | None = None
    # What they ask for is not there.
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    moderation: None = None
    web_search_options: None = None
    functions: None = None
    function_call: None = None

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        if bad := [key for key in bias or () if not key.isascii() or not key.isdigit()]:
            raise ValueError(f"keys are token ids, not {bad[0]!r}")
        return bias

    @property
    def most_tokens(self) -> int | None:
        """The reply's length at most, if it is said."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def full_sampling(self, defaults: Sampling, seed: int) -> Sampling:
        """How tokens are chosen, and where a reply ends."""
        stops = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        return self.sampling(
            defaults,
            seed,
            stop=(*(stop for stop in stops if stop), *(self.stop_token_ids or ())),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias={int(key): value for key, value in (self.logit_bias or {}).items()},
        )


class ResponsesRequest(_Fields):
    """The body of `POST /v1/responses`."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Tokens | None = None
    text: dict[str, Any] | None = None
    store: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    # They change nothing here.
    max_tool_calls: int | None = None
    stream_options: StreamOptions | None = None
    context_management: list[dict[str, Any]] | None = None
    # What they ask for is not there.
    access_programs: None = None
    background: Literal[False] | None = None
    background_options: None = None
    image: None = None
    moderation: None = None
    conversation: None = None
    prompt: None = None

    @property
    def response_format(self) -> dict[str, Any] | None:
        """What the text has to fit."""
        return (self.text or {}).get("format")
