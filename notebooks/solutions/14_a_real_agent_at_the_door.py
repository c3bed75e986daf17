"""Solutions to the exercises of 12 · A real agent at the door. Each section runs behind the cell it names."""


# %% door-11: find the session
# Key number i stands for the first i messages. The last key would leave nothing to answer: the walk begins before it.
def find(keys: list[str], filed: dict[str, str]) -> tuple[str | None, int]:
    messages = len(keys) - 1
    for at in range(messages - 1, 0, -1):
        if keys[at] in filed:
            return filed[keys[at]], messages - at
    return None, messages


# %% door-24: price an edit
# K/V behind an edit is lost. So all messages from the edited one on are computed, and the new one in any case.
def price(sizes: list[int], edited: int | None, new: int) -> int:
    return new + (0 if edited is None else sum(sizes[edited:]))
