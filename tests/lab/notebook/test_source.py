"""Source listings in notebooks are the text of the package's files, and nothing else."""

from inspect import getsource
from types import SimpleNamespace

import pytest

from minstate.lab.notebook.source import cpp_source, source
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


CPP = """#include <cmath>
constexpr int WIDTH = 8;

// A pair.
struct Pair {
    int one, other;
};

// Twice x.
//
// For all types.
template <class T>
static T twice(T x) {
    if (x > 0) {
        return x + x;
    }

    return 2 * x;
}

inline float one(const float* at) { return *at; }
inline int one(const int* at) { return *at; }

extern "C" {
int twice_of_int(int x) { return twice(x) + one(&x); }
}
"""


def test_of_a_cpp_file_definitions_are_shown_with_their_comments(tmp_path):
    (tmp_path / "twice.cpp").write_text(CPP)

    def shown(*names):
        return cpp_source(tmp_path / "twice.cpp", *names).data.removeprefix("```cpp\n").removesuffix("\n```")

    assert shown("twice") == CPP[CPP.index("// Twice") : CPP.index("\n\ninline")]
    assert shown("Pair") == "// A pair.\nstruct Pair {\n    int one, other;\n};"
    assert shown("one").split("\n\n") == [line for line in CPP.splitlines() if line.startswith("inline")]
    assert shown("twice_of_int", "Pair").startswith(
        "int twice_of_int(int x) { return twice(x) + one(&x); }\n\n// A pair."
    )
    with pytest.raises(LookupError, match="thrice"):
        shown("thrice")
