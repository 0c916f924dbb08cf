"""Decode pictures to RGB, or say why that fails. A bad file gets a status; it never ends a run.

Only this module decides what a picture looks like:

- the first frame of an animation, the first page of a TIFF and the first picture of an MPO are used;
- EXIF orientation is applied;
- real transparency is laid on white, as viewers show it. Where every pixel is opaque, the alpha channel is dropped,
  which equals open_clip's own `convert("RGB")`. With real transparency that call would show colors that nobody was meant to see;
- 16-bit gray is scaled to 8 bits (Pillow's conversion clips it to white);
- CMYK and YCbCr are converted by Pillow's plain formulas, as in open_clip; CIE Lab is converted by LittleCMS;
- floating-point and 32-bit integer TIFFs are `unsupported`: no field says which value is white.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin, UnidentifiedImageError

from raycluster.images.fetch import Fetched
from raycluster.images.formats import FORMATS, foreign_format
from raycluster.tables.schemas import Status

# Pillow refuses pictures of more than 178,956,970 pixels, whatever `max_pixels` says. Its limit holds for the whole process,
# so it cannot be raised for one picture while other threads decode. `check_pixels` checks every header instead.
Image.MAX_IMAGE_PIXELS = None


class Rejected(Exception):
    """The picture cannot be used: `status` and `reason` say why."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = _short(reason)


@dataclass(frozen=True)
class Decoded:
    """A picture as it is meant to be seen."""

    image: Image.Image
    """Mode RGB; smaller than `width` × `height` if a JPEG was decoded at a reduced scale."""
    width: int
    """Pixels of the stored picture, after its orientation is applied."""
    height: int


@dataclass(frozen=True)
class DecodedBatch:
    """Decoded pictures as columns, one entry a picture."""

    status: list[Status]
    error: list[str | None]
    width: list[int | None]
    height: list[int | None]
    pixels: list[bytes | None]
    """The uint8 array that `to_pixels` gave, in C order; None unless the status is `ok`."""


def decode(data: bytes, max_pixels: int, min_side: int | None = None, enlarges: bool = True) -> Decoded:
    """Decode one picture.

    Parameters
    ----------
    data
        The whole file.
    max_pixels
        A picture is rejected as `too_large`, before a pixel is decoded, if it has more pixels according to its header or
        would have more once its short side is resized to `min_side`.
    min_side
        Side in pixels of the square that the picture will be resized to. A JPEG is then decoded at the smallest of
        libjpeg's scales that divides both sides and leaves them at least twice as long as `min_side`. None: decode at full size.
    enlarges
        Whether that resizing also enlarges smaller pictures. If not, a narrow picture never gets more pixels than it has.

    Raises
    ------
    Rejected
        With status `empty`, `too_large`, `unsupported` or `undecodable` (not a picture, damaged, truncated).
    """
    if not data:
        raise Rejected("empty", "zero bytes")
    try:
        return _decode(Image.open(io.BytesIO(data), formats=FORMATS), max_pixels, min_side, enlarges)
    except UnidentifiedImageError:
        raise _unidentified(data) from None
    except Rejected:
        raise
    # On a damaged file, Pillow's readers raise many kinds of errors: OSError, SyntaxError, ValueError,
    # struct.error, zlib.error, KeyError, MemoryError (an absurd length field) and more.
    except Exception as error:  # noqa: BLE001
        if "truncated" in str(error).lower():
            raise Rejected("undecodable", "the file is truncated") from None
        raise Rejected("undecodable", f"{type(error).__name__}: {error}") from None


def check_pixels(image: Image.Image, max_pixels: int) -> None:
    """Raise :class:`Rejected` (`too_large`) if a picture's header announces more than `max_pixels`. No pixel is decoded."""
    width, height = image.size
    if width * height > max_pixels:
        raise Rejected("too_large", f"{width} × {height} pixels, more than max_pixels = {max_pixels}")


def decode_batch(
    fetched: Sequence[Fetched],
    to_pixels: Callable[[Image.Image], np.ndarray],
    max_pixels: int,
    min_side: int | None = None,
    enlarges: bool = True,
) -> DecodedBatch:
    """Decode and preprocess the pictures that were fetched. Those that could not be fetched keep their status and error.

    `to_pixels` turns an RGB picture into a uint8 array of one shape. A picture on which it fails gets status `failed`.
    """
    batch = DecodedBatch([], [], [], [], [])
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, but such metadata does no harm.
        warnings.filterwarnings("ignore", module="PIL")
        for item in fetched:
            row = _decode_row(item, to_pixels, max_pixels, min_side, enlarges)
            batch.status.append(row[0])
            batch.error.append(row[1])
            batch.width.append(row[2])
            batch.height.append(row[3])
            batch.pixels.append(row[4])
    return batch


_Row = tuple[Status, str | None, int | None, int | None, bytes | None]


def _decode_row(
    item: Fetched,
    to_pixels: Callable[[Image.Image], np.ndarray],
    max_pixels: int,
    min_side: int | None,
    enlarges: bool,
) -> _Row:
    if item.data is None:
        return item.status, item.error, None, None, None
    try:
        decoded = decode(item.data, max_pixels, min_side, enlarges)
    except Rejected as rejected:
        return rejected.status, rejected.reason, None, None, None
    size = decoded.width, decoded.height
    try:
        pixels = to_pixels(decoded.image)
    except Exception as error:  # noqa: BLE001  – a picture of odd shape must not end the run; the failure gate counts it
        return "failed", _short(f"preprocessing: {type(error).__name__}: {error}"), *size, None
    if pixels.dtype != np.uint8:
        raise TypeError(f"to_pixels must give uint8, not {pixels.dtype}")
    return "ok", None, *size, pixels.tobytes()


def _decode(image: Image.Image, max_pixels: int, min_side: int | None, enlarges: bool) -> Decoded:
    width, height = image.size
    check_pixels(image, max_pixels)
    if min_side:
        if enlarges and max(width, height) * min_side**2 > max_pixels * min(width, height):
            raise Rejected("too_large", f"{width} × {height} pixels: too narrow to be resized to {min_side} pixels")
        _reduce_scale(image, min_side)
    image.load()
    orientation = _orientation(image)
    rgb = _to_rgb(image)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    if orientation in _ON_ITS_SIDE:
        width, height = height, width
    return Decoded(rgb, width, height)


def _reduce_scale(image: Image.Image, min_side: int) -> None:
    """Let libjpeg decode at 1/8, 1/4 or 1/2 of the size, which is several times as fast. Other formats ignore this.

    A scale is used only if it divides both sides. Otherwise a partial block at the edge would be stretched to a whole pixel,
    which shifts the picture. Measured on photographs resized to 32 pixels, the mean difference to decoding at full size is
    0.4 of 255 levels, and 1.4 with such partial blocks.
    """
    width, height = image.size
    for scale in (8, 4, 2):
        if width % scale == height % scale == 0 and min(width, height) >= 2 * min_side * scale:
            image.draft(None, (width // scale, height // scale))
            return


# How to undo each value of EXIF's orientation tag. Pillow itself turns a TIFF when it loads it; after that the TIFF has no such tag.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)


def _orientation(image: Image.Image) -> object:
    """Return EXIF's orientation tag. ImageOps.exif_transpose would rewrite the EXIF block, and many of these are damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, OSError, KeyError, TypeError, struct.error):  # damaged EXIF around a good picture
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    # Up to Pillow 10, a 16-bit PNG has mode "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _from_16_bit(image).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed integer"
        raise Rejected(
            "unsupported", f"{image.format} with {kind} samples: no field of the file says which value is white"
        )
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        return cast(Image.Image, converted)  # it is None only with inPlace
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema()[0] == 255:
        return rgba.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Return the high 8 bits, as Pillow itself does for 16-bit color."""
    values, bits = np.asarray(image), 16
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]  # 12 bits have this mode too
        if image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # zero is white
            values = (1 << bits) - 1 - values
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def _unidentified(data: bytes) -> Rejected:
    name = foreign_format(data)
    if name:
        return Rejected("unsupported", f"format {name}; supported: {', '.join(FORMATS)}")
    return Rejected("undecodable", "not a picture, or its header is damaged")


def _short(reason: str) -> str:
    """Return at most 200 characters, without memory addresses, so that the text is the same in every process."""
    reason = re.sub(r"0x[0-9a-fA-F]{4,}", "0x…", " ".join(reason.split()))
    return reason.encode("utf-8", "replace").decode()[:200]
