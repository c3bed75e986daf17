"""The server as a process: its ready line, a request, and a signal that lets the turns under way end."""

import re
import signal
import socket
import subprocess
import sys

import openai
import pytest

from minstate.errors import BadValue
from minstate.lab.engines.small_engine import small_engine
from minstate.serve import AsyncEngine
from minstate.serve.__main__ import read_keys
from minstate.serve.listening import listen
from minstate.serve.service import Service

PROGRAM = """
import sys
from minstate.lab.engines.small_engine import small_engine
from minstate.serve import AsyncEngine
from minstate.serve.listening import listen
from minstate.serve.service import Service

service = Service(AsyncEngine(lambda: small_engine(num_pages=512)), "small")
sys.exit(listen(service, {}, host="127.0.0.1", port=0, local=True))
"""


def test_a_signal_lets_the_turn_under_way_end():
    started = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        ready = process.stdout.readline()
        found = re.fullmatch(r"ready: (http://127\.0\.0\.1:\d+/v1) serves small with 512 pages of 4 tokens\n", ready)
        assert found, ready
        with openai.OpenAI(base_url=found[1], api_key="none", max_retries=0) as client:
            wanted = {"model": "small", "messages": [{"role": "user", "content": "long"}], "max_tokens": 200}
            stream = client.chat.completions.create(**wanted, stream=True, extra_body={"ignore_eos": True})
            next(stream)
            process.send_signal(signal.SIGINT)
            assert list(stream)[-1].choices[0].finish_reason == "length"
        assert process.wait(30) == 0, process.stderr.read()
        with pytest.raises(openai.APIConnectionError):
            openai.OpenAI(base_url=found[1], api_key="none", max_retries=0).models.list()


def test_a_port_that_is_taken_ends_the_server_before_it_is_ready(capfd):
    service = Service(AsyncEngine(lambda: small_engine(num_pages=16)), "small")
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(SystemExit) as ended:
        sys.exit(listen(service, {}, host="127.0.0.1", port=other.getsockname()[1], local=True))
    assert ended.value.code and "ready" not in capfd.readouterr().out
    assert service.closing  # and the engine's thread has ended


def test_keys_are_read_a_line_each():
    assert read_keys("# mine\nalone\n\n team : k1 \nteam:k2\n") == {"alone": "default", "k1": "team", "k2": "team"}
    for text in ("team:\n", "a:same\nb:same"):
        with pytest.raises(BadValue):
            read_keys(text)
