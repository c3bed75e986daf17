"""The server as a process: its ready line, a request, and a signal that lets the turns under way end."""

import re
import signal
import subprocess
import sys

import openai
import pytest

from minstate.errors import BadValue
from minstate.serve.__main__ import read_keys

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


def test_a_port_that_is_taken_ends_the_process_with_an_error():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as first:
        port = re.search(r":(\d+)/", first.stdout.readline())[1]
        second = [sys.executable, "-c", PROGRAM.replace("port=0", f"port={port}")]
        done = subprocess.run(second, capture_output=True, text=True, timeout=60)
        first.send_signal(signal.SIGINT)
        assert done.returncode and "ready" not in done.stdout and "in use" in done.stderr
        assert first.wait(30) == 0


def test_keys_are_read_a_line_each():
    assert read_keys("# mine\nalone\n\n team : k1 \nteam:k2\n") == {"alone": "default", "k1": "team", "k2": "team"}
    for text in ("team:\n", "a:same\nb:same"):
        with pytest.raises(BadValue):
            read_keys(text)
