"""A figure as part of a page: SVG that stands in HTML beside others, or a PNG where the SVG would be too large.

Every id and every reference to one carries the figure's own prefix; styles, comments and metadata of the file are left out,
for inside a page they would be the page's.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from dataclasses import dataclass
from xml.etree import ElementTree

from matplotlib.figure import Figure

from msrnn_bench.figures import style
from msrnn_bench.redact import printable

_SVG = "{http://www.w3.org/2000/svg}"
_REFERENCE = re.compile(r"url\(\s*(['\"]?)#([^)'\"]+)\1\s*\)")
_ARIA = ("aria-labelledby", "aria-describedby")
_LONG = re.compile(r"-?\d+\.\d{3,}")
_SHORTENED = ("d", "points", "x", "y", "width", "height")  # geometry in points or font units: a hundredth is not seen


@dataclass(frozen=True)
class Picture:
    """`html` draws it; `title` and `told` are what it is and what it shows, for who does not see it."""

    html: str
    kind: str  # svg | png
    dots: int  # per inch, of a PNG


def svg(figure: Figure, prefix: str, title: str, told: str) -> Picture:
    """The figure as an `<svg>` of its own ids."""
    root = ElementTree.fromstring(re.sub(r"<!--.*?-->|<!DOCTYPE[^>]*>", "", _saved(figure, "svg").decode(), flags=re.DOTALL))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style", "title"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = {_plain(key): _own(_plain(key), value, prefix) for key, value in element.attrib.items()}
        element.text = element.tail = None if not (element.text or "").strip() else element.text
    box = [float(number) for number in root.attrib["viewBox"].split()]
    root.attrib = {
        "viewBox": root.attrib["viewBox"], "width": f"{box[2]:g}", "height": f"{box[3]:g}", "role": "img",
        "aria-labelledby": f"{prefix}title {prefix}desc", "focusable": "false",
        "style": "stroke-linejoin:round;stroke-linecap:butt",
    }  # fmt: skip
    for place, (tag, text) in enumerate((("title", title), ("desc", told))):
        element = ElementTree.Element(tag, {"id": f"{prefix}{tag}"})
        element.text = printable(text)
        root.insert(place, element)
    return Picture(ElementTree.tostring(root, encoding="unicode"), "svg", 0)


def png(figure: Figure, title: str, told: str, dots: int) -> Picture:
    """The figure as an `<img>` with its bytes inside."""
    image = ElementTree.Element("img")
    width, height = figure.get_size_inches()
    content = base64.b64encode(_saved(figure, "png", dots)).decode()
    image.attrib = {
        "src": f"data:image/png;base64,{content}", "alt": printable(f"{title}. {told}"),
        "width": f"{72 * width:.0f}", "height": f"{72 * height:.0f}",
    }  # fmt: skip
    return Picture(ElementTree.tostring(image, encoding="unicode", method="html"), "png", dots)


def _saved(figure: Figure, kind: str, dots: int = 150) -> bytes:
    """The file, with nothing in it that differs from process to process."""
    content = io.BytesIO()
    metadata = {"svg": {"Creator": None, "Date": None}, "png": {"Software": None}}[kind]
    with style.context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page itself has every name as text
        figure.savefig(content, format=kind, dpi=dots, metadata=metadata)
    return content.getvalue()


def _plain(key: str) -> str:
    """`xlink:href` is `href` in HTML; no attribute needs its namespace there."""
    return key.rpartition("}")[2]


def _own(key: str, value: str, prefix: str) -> str:
    """An attribute's value, with the prefix where it is an id or refers to some."""
    if key == "id":
        return prefix + value
    if key == "href" and value.startswith("#"):
        return f"#{prefix}{value[1:]}"
    if key in _ARIA:
        return " ".join(prefix + name for name in value.split())
    if key in _SHORTENED:
        return _LONG.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
    return _REFERENCE.sub(lambda found: f"url(#{prefix}{found[2]})", value)
