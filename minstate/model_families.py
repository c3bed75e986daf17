"""Families of models: what their layers have, beyond what `config.json` says.

Each is a decoder of attention and MLP layers with residuals. They differ in where norms stand, what is normalised,
which keys a query may read, and what is multiplied. `Model.forward` has a line for each of these, and asks for no
family.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What the layers of a `model_type` have, where `config.json` does not decide it.

    norms         names of the RMS norms: before attention, of attention's output, before the MLP, of the MLP's output
    norm_offset   what is added to the weights of all norms
    qk_norm       how q and k are normalised: "head" by head, all heads of a "row" at once, or "" for not at all
    qkv_bias      whether the projections to q, k and v have a bias; None: as `attention_bias` in `config.json` says
    o_bias        whether the projection of attention's output has a bias; None as above
    fused         whether q, k and v, and gate and up, are one matrix each in the files
    partial_rope  whether `partial_rotary_factor` counts
    full_every    which layers have no sliding window: every so many-th; 0: none of them; None: all, unless
                  `use_sliding_window` in `config.json` says otherwise
    no_rope_every which layers do not see positions: every so many-th; 0: none of them
    theta         the base of rotary frequencies where `config.json` names none
    local_theta   the base in layers with a sliding window, whose rotation is then never scaled; None: as elsewhere
    scaled        whether embeddings are multiplied by the root of their size
    tied          whether input and output share their embeddings where `config.json` does not say
    """

    norms: tuple[str, str, str, str] = ("input_layernorm", "", "post_attention_layernorm", "")
    norm_offset: float = 0.0
    qk_norm: str = ""
    qkv_bias: bool | None = None
    o_bias: bool | None = None
    fused: bool = False
    partial_rope: bool = False
    full_every: int | None = None
    no_rope_every: int = 0
    theta: float = 10_000.0
    local_theta: float | None = None
    scaled: bool = False
    tied: bool = False


NORMS_BEHIND = ("", "post_attention_layernorm", "", "post_feedforward_layernorm")
SANDWICH = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
FAMILIES = {
    "llama": Family(),
    "mistral": Family(full_every=0),
    "qwen2": Family(qkv_bias=True, o_bias=False),
    "qwen3": Family(qk_norm="head"),
    "smollm3": Family(no_rope_every=4, theta=2_000_000.0, tied=True),
    "olmo2": Family(NORMS_BEHIND, qk_norm="row"),
    "olmo3": Family(NORMS_BEHIND, qk_norm="row", full_every=4, theta=500_000.0, local_theta=500_000.0),
    "granite": Family(),
    "phi3": Family(fused=True, partial_rope=True, full_every=0),
    "gemma3_text": Family(
        SANDWICH, norm_offset=1.0, qk_norm="head", full_every=6, theta=1_000_000.0, local_theta=10_000.0,
        scaled=True, tied=True,
    ),
}  # fmt: skip
