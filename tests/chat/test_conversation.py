"""A conversation in a model's own template: how it opens, how replies end, thoughts, beginnings, options."""

import pytest
import templates
import tiny
from dialects import TOKENS, template

from minstate import BadMessage, Engine, Sampling
from minstate.chat.conversation import Chat
from minstate.chat.messages import normalise
from minstate.chat.transcript import Options, Transcript
from minstate.lab.engines.small_engine import byte_tokenizer, small_engine

CHATML = templates.CHATML_TOKENS
USER = {"role": "user", "content": "go on"}


def styled(source: str, tokens=CHATML, eos=(2,)) -> Engine:
    """A small engine with a template of one's own."""
    e = small_engine(eos_ids=list(eos), num_pages=600)
    e.tokenizer = byte_tokenizer(source, list(tokens))
    e.core.output.tokenizer = e.tokenizer
    return e


def ended_by(end: str) -> str:
    """A template that writes this behind a reply."""
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        f"{{{{ {end!r} if m['role'] == 'assistant' else '<|im_end|>\n' }}}}{{% endfor %}}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


@pytest.mark.parametrize("end", ["<|im_end|>\n", " <|im_end|>", "\n<|im_end|>", "<|endoftext|><|im_end|>\n"])
def test_the_end_of_a_reply_is_written_once_wherever_it_stands(end):
    tokenizer = byte_tokenizer(ended_by(end), CHATML)
    chat = Chat(tokenizer, frozenset([2]))
    token = 0 if end.startswith("<|endoftext|>") else 2
    assert chat.end_of_reply == token and token in chat.template.ends
    known = Transcript((USER, {"role": "assistant", "content": "x"}), in_log=2)
    written = end.split(tokenizer.decode([token]), 1)[1]
    stopped = tokenizer.decode(chat.delta(known, [USER], token))
    assert stopped == f"{written}<|im_start|>user\ngo on<|im_end|>\n<|im_start|>assistant\n"
    cut_off = tokenizer.decode(chat.delta(known, [USER], 70))
    assert cut_off == end + stopped[len(written) :]


def test_another_end_than_the_template_s_is_replaced_by_it():
    """As gpt-oss does it: a reply ends with <|return|>, and in a history with <|end|>."""
    e = styled(ended_by("<|im_end|>\n"), eos=(0, 2))
    session = e.open()
    session.send("hi", replay=[*e.chat.encode("yes"), 0])
    turn = session.send("and?", replay=[*e.chat.encode("no"), 2])
    assert "yes<|im_end|>\n<|im_start|>user\nand?" in e.tokenizer.decode(session.token_ids)
    stats = turn.stats
    assert 0 not in session.token_ids and stats.prefilled == stats.delta - stats.shared and stats.recomputed == 0
    e.check()


def test_the_template_s_end_ends_a_turn_whatever_the_configuration_says():
    e = styled(ended_by("<|im_end|>\n"), eos=(0,))
    session = e.open()
    script = iter([*e.chat.encode("so"), 2, 70, 71])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minstate.output.choose", lambda *_, **__: next(script))
        turn = session.send("hi", max_new_tokens=9)
    assert (turn.text, turn.finish_reason) == ("so", "stop")


WANTS_A_QUESTION = (
    "{% if not messages | selectattr('role', 'equalto', 'user') | list %}{{ raise_exception('no user message') }}"
    "{% endif %}" + ended_by("<|im_end|>\n")
)


def test_a_system_message_opens_a_session_though_the_template_wants_a_question_first():
    e = styled(WANTS_A_QUESTION)
    session = e.open([{"role": "system", "content": "Be brief."}])
    session.send("hi", replay="ho")
    whole = e.tokenizer.decode(session.token_ids)
    assert whole.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>")
    with pytest.raises(BadMessage, match="no user message"):
        e.open([{"role": "assistant", "content": "I begin."}])


THINKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'].split('</think>')[-1] }}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)


def test_thoughts_that_the_prompt_begins_are_told_from_the_answer():
    e = styled(THINKS, [*CHATML, "<think>", "</think>"])
    session = e.open()
    turn = session.send("hi", replay="Let me see.\n</think>\n\nHo.")
    assert (turn.reasoning, turn.text) == ("Let me see.", "Ho.")
    assert session.messages[-1] == {"role": "assistant", "content": "Ho.", "reasoning_content": "Let me see."}
    cut = session.send("and?", replay=e.chat.encode("Still thinking"))
    assert (cut.reasoning, cut.text) == ("Still thinking", "")
    rest = session.send(token_ids=[], replay=" of it.\n</think>\n\nYes.")
    assert (rest.reasoning, rest.text) == (" of it.", "Yes.")
    assert session.messages[-1]["reasoning_content"] == "Still thinking of it."
    assert session.messages[-1]["content"] == "Yes."
    drift = session.drift(session.messages)
    assert drift.reason == "template", "the prompt's <think> is the template's doing, and no other spelling"


def test_what_a_template_is_asked_for_is_kept(tmp_path):
    e = styled(THINKS, [*CHATML, "<think>", "</think>"])
    session = e.open(template_options={"enable_thinking": False})
    turn = session.send("hi", replay="Ho.")
    assert (turn.reasoning, turn.text) == ("", "Ho.")
    assert e.tokenizer.decode(session.token_ids).endswith("<think>\n\n</think>\n\nHo.<|im_end|>")
    session.save(tmp_path / "session")
    for other in (session.fork(), e.load(tmp_path / "session")):
        assert other.transcript.options == Options({"enable_thinking": False})
        other.send("and?", replay="No.")
        assert e.tokenizer.decode(other.token_ids).endswith("</think>\n\nNo.<|im_end|>")


def test_a_last_message_of_the_assistant_begins_the_reply():
    e = tiny.engine(num_pages=600, positions=2000)
    session = e.open()
    turn = session.send([USER, {"role": "assistant", "content": "Sure: "}], replay=[*e.chat.encode("done"), 2])
    assert turn.text == "done" and session.messages[-1]["content"] == "Sure: done"
    assert e.tokenizer.decode(session.token_ids).endswith("<|im_start|>assistant\nSure: done<|im_end|>")
    assert session.drift(session.messages).extends
    session.send([USER, {"role": "assistant", "content": "Again: "}], replay=[*e.chat.encode("so"), 2])
    assert session.messages[-1]["content"] == "Again: so" and session.drift(session.messages).extends
    with pytest.raises(BadMessage, match="needs a message in front"):
        session.send({"role": "assistant", "content": "x"})
    e.check()


def test_results_are_matched_by_id_whatever_their_order():
    chat = Chat(byte_tokenizer(template("a JSON list with ids"), TOKENS), frozenset([2]))
    calls = [{"id": "aaaaaaaaa", "name": "f", "arguments": {}}, {"id": "bbbbbbbbb", "name": "g", "arguments": {}}]
    results = [
        {"role": "tool", "tool_call_id": "bbbbbbbbb", "content": "of g"},
        {"role": "tool", "tool_call_id": "aaaaaaaaa", "content": "of f"},
    ]
    talk = normalise([USER, {"role": "assistant", "content": "", "tool_calls": calls}, *results])
    text = chat.render(talk, reply=False)
    assert text.index("of f") < text.index("of g") and '"aaaaaaaaa"' in text
    known = Transcript(talk[:2], in_log=2)
    delta = chat.tokenizer.decode(chat.delta(known, talk[2:], 2))
    assert delta.index("of f") < delta.index("of g")


def test_a_character_that_two_turns_make_up_is_one_in_the_message():
    e = tiny.engine(num_pages=600, positions=2000)
    session = e.open()
    first, *rest = e.chat.encode("é")
    turn = session.send("q", replay=[*e.chat.encode("caf"), first])
    assert turn.text == "caf\ufffd"
    session.send(token_ids=[], replay=[*rest, 2])
    assert session.messages[-1]["content"] == "café"


def test_what_a_stop_string_cuts_off_is_in_the_message_because_it_is_in_the_log():
    e = tiny.engine(num_pages=600, positions=2000)
    session = e.open()
    script = iter(e.chat.encode("one; two; three"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minstate.output.choose", lambda *_, **__: next(script))
        turn = session.send("q", sampling=Sampling(stop="; t"), max_new_tokens=20)
    assert turn.text == "one" and session.messages[-1]["content"] == "one; t"
    assert session.drift(session.messages).extends
