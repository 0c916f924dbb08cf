"""The file formats that are read, and the names of formats that are not."""

from __future__ import annotations

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""The readers of Pillow that are used. Its JPEG reader also reads MPO."""

# First bytes of other formats; their files often have a picture's name.
_FOREIGN = {
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"\0\0\1\0": "ICO",
    b"8BPS": "Photoshop",
    b"<svg": "SVG",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"DDS ": "DDS",
    b"II\xbc": "JPEG XR",
}


def foreign_format(data: bytes) -> str | None:
    """Return the name of the format if the first bytes of `data` are those of a known picture or document outside `FORMATS`."""
    if data[4:8] == b"ftyp":  # ISO media
        return "AVIF" if data[8:12] in (b"avif", b"avis") else "HEIF or video"
    return next((name for magic, name in _FOREIGN.items() if data.startswith(magic)), None)
