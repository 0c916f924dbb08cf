"""The web page at `/`: one file that reaches only this endpoint. Its content security policy lets no other script run."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

_FOLDER = files("raycluster.serving")


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_STYLE, _SCRIPT = _read("page.css"), _read("page.js")

HTML = _read("page.html").replace("/*style*/", _STYLE).replace("/*script*/", _SCRIPT)
POLICY = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
