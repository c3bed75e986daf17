"""Solutions to the exercises of 15 · Your own log. Each section runs behind the cell it names."""


# %% log-parts: be the doctor
# The first pair that differs is the place. If all pairs are equal, the request must be at least as long as what the
# session has had: a shorter one has left something out at its end.
def parts_at(before: list[str], now: list[str]) -> int | None:
    for number, message in enumerate(before):
        if number >= len(now) or now[number] != message:
            return number
    return None


def cases(random):
    yield ["system", "hello", "hi"], ["system", "hello", "hi", "bye"]
    yield ["system 08:00", "hello", "hi"], ["system 08:01", "hello", "hi", "bye"]
    yield ["system", "hello", "hi", "bye"], ["system", "hi", "bye", "again"]
    yield ["system", "hello", "hi"], ["system", "hello"]
    yield ["system", "hello"], ["system", "hello"]
    yield [], ["system"]
    yield ["system"], []
    for _ in range(8):
        before = [f"message {random.randint(0, 3)}" for _ in range(random.randint(1, 9))]
        now = [*before, "new"]
        if random.random() < 0.7:
            at = random.randrange(len(now))
            now[at : at + 1] = random.choice([[], ["edited"]])
        yield before, now


# %% log-trim: how much to trim
# With `keep` equal to `room`, every request behind the first full one computes the whole window: 901,000 tokens for
# 1,000 requests of 10. With half of it, the conversation grows for a long time before it is cut again: 18,820.
def computed(count: int, step: int, room: int, keep: int) -> int:
    total = length = 0
    for _ in range(count):
        length += step
        if length > room:
            length = keep
            total += keep
        else:
            total += step
    return total


def cases(random):
    yield 3, 10, 100, 50
    yield 4, 10, 30, 30
    yield 4, 10, 30, 20
    yield 1000, 10, 1000, 1000
    yield 1000, 10, 1000, 500
    yield 0, 10, 30, 20
    for _ in range(8):
        step = random.randint(1, 20)
        room = step * random.randint(2, 12) + random.randint(0, 5)
        yield random.randint(1, 60), step, room, random.randint(step, room)
