"""Markdown and HTML with links to pages of the site in place of links to files, and with links at names of code."""

import re
from collections.abc import Callable
from html import unescape

FENCE = re.compile(r"^(?P<indent>[ >]*)(?P<ticks>```+|~~~+).*?^[ >]*(?P=ticks)[ ]*$", flags=re.MULTILINE | re.DOTALL)
LABEL = r"(?:[^\[\]`]|`[^`]*`|!?\[(?:[^\[\]`]|`[^`]*`)*\](?:\([^()]*\))?)*"
INLINE = re.compile(
    rf"(?P<link>(?P<open>!?)\[(?P<label>{LABEL})\]\((?P<target>[^()\s]+)(?P<title>\s+\"[^\"]*\")?\))"
    r"|(?P<skip>^[ ]{0,3}\#[^\n]*$|<a\b.*?</a>|\$\$.*?\$\$|``.*?``|<summary>.*?</summary>)"
    r"|`(?P<code>[^`\n]+)`",
    flags=re.MULTILINE | re.DOTALL,
)
HTML = re.compile(
    r"(?P<skip><pre\b.*?</pre>)"
    r'|<a\b(?P<before>[^>]*?) href="(?P<target>[^"]+)"(?P<rest>[^>]*>.*?</a>)'
    r"|<code>(?P<code>[^<]+)</code>",
    flags=re.DOTALL,
)
OUTSIDE = re.compile(r"[a-z][a-z0-9+.-]*:|#|$")  # a URL, a place on the same page, or nothing

Target = Callable[[str], str | None]  # a file's page, seen from this one; None if it has none
Mention = Callable[[str], str | None]  # the address of what a text in code font names; None if it names nothing


def markdown(text: str, target: Target, mention: Mention) -> str:
    """`text` with its links and names resolved. Code blocks, headings and formulas stay as they are.

    A link whose target has no page keeps its text and is no longer a link.
    """
    done, at = [], 0
    for fence in FENCE.finditer(text):
        done += [_prose(text[at : fence.start()], target, mention), _fenced(fence.group(), target, mention)]
        at = fence.end()
    return "".join([*done, _prose(text[at:], target, mention)])


def _fenced(text: str, target: Target, mention: Mention) -> str:
    """A fenced block: code as it is; of the description of a Python object, the text below its signature."""
    head, line, body = text.partition("\n")
    if "{py:" not in head:
        return text
    body, _, tail = body.rpartition("\n")
    return f"{head}{line}{markdown(body, target, mention)}\n{tail}"


def _prose(text: str, target: Target, mention: Mention) -> str:
    def replace(found: re.Match) -> str:
        if code := found["code"]:
            address = mention(code)
            return f'<a class="source" href="{address}">`{code}`</a>' if address else found.group()
        if found["skip"] or OUTSIDE.match(found["target"]):
            return found.group()
        label = found["label"] if found["open"] else _prose_links_only(found["label"], target)
        page = target(found["target"])
        if page is None:
            return "" if found["open"] else label
        if found["open"] or ".html" not in page:
            return f"{found['open']}[{label}]({page}{found['title'] or ''})"
        return f'<a class="source" href="{page}">{label}</a>'

    return INLINE.sub(replace, text)


def _prose_links_only(label: str, target: Target) -> str:
    """A link's label, in which a picture may stand."""
    return _prose(label, target, lambda _: None) if "](" in label else label


def html(text: str, target: Target, mention: Mention) -> str:
    """The same for HTML that a cell displays. A link without a page leads nowhere."""

    def replace(found: re.Match) -> str:
        if code := found["code"]:
            address = mention(unescape(code))
            return f'<a class="source" href="{address}">{found.group()}</a>' if address else found.group()
        if found["skip"] or OUTSIDE.match(found["target"]):
            return found.group()
        page = target(found["target"])
        return f"<a{found['before']}" + (f' href="{page}"' if page else "") + found["rest"]

    return HTML.sub(replace, text)


def as_html(address: str | None) -> str | None:
    """The address of the page that Sphinx makes of a file, for a link that Sphinx does not read."""
    return address and re.sub(r"\.(md|ipynb)(?=$|#)", ".html", address)
