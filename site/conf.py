"""How Sphinx builds the site. What it reads is written by `python -m minstate.lab.site`; no notebook is executed.

Formulas become MathML at build time, so that no page loads a script or a font from another site.
"""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.errors import ExtensionError

project = "minstate"
author = "the minstate authors"
html_title = "minstate"
extensions = ["myst_nb"]
exclude_patterns = ["extra"]
html_extra_path = ["extra"]

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
suppress_warnings = ["myst.header"]  # a quiz has no chapters, so its questions are headings of the third level
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["minstate.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_math_renderer = "mathml"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0B5E91", "color-brand-content": "#0B5E91"},
    "dark_css_variables": {"color-brand-primary": "#7CC0EA", "color-brand-content": "#7CC0EA"},
}


def mathml(formula: str, display: str) -> str:
    """A formula as MathML. Raises ExtensionError, which names the formula, if it cannot be read."""
    try:
        return convert(formula, display=display)
    except Exception as error:
        raise ExtensionError(f"the formula {formula!r} cannot be converted: {error!r}") from error


def inline_formula(writer, node: nodes.math) -> None:
    """Write `$...$`."""
    writer.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def displayed_formula(writer, node: nodes.math_block) -> None:
    """Write `$$...$$`, in a block that scrolls where it is wider than the page."""
    writer.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app) -> dict:
    """Register the renderer of formulas."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (displayed_formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
