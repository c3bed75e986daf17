"""Source listings in notebooks are the text of the package's files, and nothing else."""

from inspect import getsource
from types import SimpleNamespace

import pytest

from minstate.lab.notebook.source import source
from minstate.paged_kv import PageTable, page_runs


def test_a_function_is_shown_as_it_stands_in_its_file():
    assert source(page_runs).data == f"```python\n{getsource(page_runs)}```"


def test_a_method_begins_at_the_margin():
    shown = source(PageTable.append).data
    assert shown.startswith("```python\ndef append(self") and "\n    " in shown


def test_several_objects_stand_apart_in_their_order():
    one, other = source(page_runs).data, source(PageTable).data
    assert source(page_runs, PageTable).data == one.removesuffix("```") + "\n" + other.removeprefix("```python\n")


def test_a_kernel_is_shown_by_its_python_function():
    kernel = SimpleNamespace(fn=page_runs)
    assert source(kernel).data == source(page_runs).data


def test_what_has_no_source_is_refused():
    with pytest.raises(TypeError):
        source(3)
