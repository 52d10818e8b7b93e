"""The page: one file with the drawing, all objects of the model as JSON, its style and its script. Nothing is fetched.

Pure: the assets beside this module are put together. What comes from the model is escaped: in the drawing by show/svg.py, in the
JSON by `embedded`. The script makes no markup of texts; the content security policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib import resources
from typing import Any

from cni_py.host.model import Host
from cni_py.host.printable import plain
from cni_py.show.layout import drawing
from cni_py.show.objects import page_data
from cni_py.show.scene import scene
from cni_py.show.svg import element

# Of JSON in an element <script>: what HTML would read as markup, and line ends of JavaScript that are none of JSON
UNSAFE = {ord(one): f"\\u{ord(one):04x}" for one in "<>&\u2028\u2029"}


def asset(name: str) -> str:
    """A file beside this module."""
    return resources.files("cni_py.show").joinpath(name).read_text("utf-8")


def embedded(value: Any) -> str:
    """JSON that may stand in an element <script>."""
    return json.dumps(value, separators=(",", ":")).translate(UNSAFE)


def state(host: Host) -> dict[str, Any]:
    """What the page shows; a live one gets it anew with each change (show/serving.py)."""
    return page_data(host) | {"drawing": element(drawing(scene(host)))}


def page(host: Host, *, live: int = 0) -> str:
    """The page of a host: `cni-py show --html`. `live`: the number of this state at the server that tells of later ones."""
    shown = state(host)
    parts = {
        "policy": page_policy(live=bool(live)),
        "title": escape(f"{plain(host.hostname)}: container networks"),
        "style": style(),
        "drawing": shown.pop("drawing"),
        "data": embedded(shown | {"live": live}),
        "script": asset("page.js"),
    }
    pieces = [
        piece for part in asset("page.html").split("{{") for piece in part.split("}}")
    ]  # text, name, text, name, ...
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def style() -> str:
    """That of the page with its drawing."""
    return asset("page.css") + asset("drawing.css")


def page_policy(*, live: bool) -> str:
    """The content security policy: this style, this script, and nothing from anywhere but a live page's own server."""
    rules = [
        "default-src 'none'",
        f"style-src '{digest(style())}'",
        f"script-src '{digest(asset('page.js'))}'",
        "img-src data:",  # the empty icon
        *(["connect-src 'self'"] if live else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(rules)


def digest(text: str) -> str:
    """As the policy names an inline element."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
