# ruff: noqa: D100, F821, PIE790


# ---- Step 6: two sessions in one ragged batch
@torch.inference_mode()
def forward_batch(model, parts):
    """What `forward` gives for each of `parts`, (ids, cache), in one pass: all new tokens lie side by side."""
    ...


def run(model, sessions):
    """Complete the turns that `sessions` have begun: each pass is for all whose reply is not complete."""
    ...
