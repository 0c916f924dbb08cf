"""Test the decoding of unusual and damaged pictures, made here: each gets the right colors in the right places, or its status."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from raycluster.images.decode import Decoded, Rejected, decode

MAX_PIXELS = 10_000_000
RED, GREEN, BLUE, YELLOW, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 0), (255, 255, 255)


def encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


def four_corners(width: int = 60, height: int = 40) -> Image.Image:
    """A picture with red and green quarters above blue and yellow ones. It is wider than high, so any turn or flip shows."""
    image = Image.new("RGB", (width, height))
    for i, color in enumerate((RED, GREEN, BLUE, YELLOW)):
        x, y = (i % 2) * width // 2, (i // 2) * height // 2
        image.paste(color, (x, y, x + width // 2, y + height // 2))
    return image


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes with some grain, which compress like a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), 3)
    return Image.fromarray(np.clip(np.asarray(coarse) + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8))


def assert_corners(decoded: Decoded, colors: tuple[tuple[int, int, int], ...] = (RED, GREEN, BLUE, YELLOW)) -> None:
    image = decoded.image
    assert image.mode == "RGB"
    at = [(i % 2 * 2 + 1, i // 2 * 2 + 1) for i in range(4)]
    seen = [image.getpixel((x * image.width // 4, y * image.height // 4)) for x, y in at]
    assert np.abs(np.array(seen) - np.array(colors)).max() <= 12, seen


def rejection(data: bytes, **options: int) -> Rejected:
    with pytest.raises(Rejected) as caught:
        decode(data, **{"max_pixels": MAX_PIXELS, **options})
    return caught.value


def png(width: int, height: int, depth: int, color_type: int, rows: bytes) -> bytes:
    """A PNG with any header, for the kinds that Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO"])
def test_every_listed_format_keeps_colors_and_size(fmt: str) -> None:
    options = {"quality": 95} if fmt in ("JPEG", "WEBP", "MPO") else {}
    decoded = decode(encoded(four_corners(), fmt, **options), MAX_PIXELS)
    assert_corners(decoded)
    assert (decoded.width, decoded.height) == decoded.image.size == (60, 40)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(fmt: str, orientation: int) -> None:
    stored = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.rotate(180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.rotate(90, expand=True),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.rotate(-90, expand=True),
    }[orientation](four_corners())
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality = {"quality": 95} if fmt in ("JPEG", "WEBP") else {}
    decoded = decode(encoded(stored, fmt, exif=exif, **quality), MAX_PIXELS)
    assert_corners(decoded)
    assert (decoded.width, decoded.height) == decoded.image.size == (60, 40)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_picture() -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        assert_corners(decode(encoded(four_corners(), "JPEG", exif=exif, quality=95), MAX_PIXELS))


@pytest.mark.parametrize("fmt", ["JPEG", "TIFF"])
def test_cmyk_keeps_its_colors(fmt: str) -> None:
    # Pillow writes CMYK JPEGs as Adobe does: inverted, with the Adobe marker.
    data = encoded(four_corners().convert("CMYK"), fmt, **({"quality": 95} if fmt == "JPEG" else {}))
    assert fmt != "JPEG" or b"Adobe" in data[:32]
    assert_corners(decode(data, MAX_PIXELS))


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_not_clipped(fmt: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    decoded = decode(encoded(Image.fromarray(ramp), fmt), MAX_PIXELS)
    values = np.asarray(decoded.image)
    assert decoded.image.mode == "RGB"
    np.testing.assert_array_equal(values, np.repeat((ramp >> 8)[..., None], 3, axis=2))
    assert len(np.unique(values)) == 256


def test_16_bit_tiff_whose_zero_is_white_is_inverted() -> None:
    data = encoded(Image.fromarray(np.array([[0, 65535]], np.uint16)), "TIFF", tiffinfo={262: 0})
    assert np.asarray(decode(data, MAX_PIXELS).image)[0, :, 0].tolist() == [255, 0]


def test_12_bit_tiff_is_scaled_from_12_bits() -> None:
    # The tags are width, height, bits, no compression, black is zero, offset, samples, rows, bytes. The two pixels are 0x800
    # and 0xFFF.
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<I", 12) + b"\x80\x0f\xff\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert np.asarray(decode(data, MAX_PIXELS).image)[0, :, 0].tolist() == [128, 255]


def test_16_bit_color_png_is_scaled() -> None:
    row = b"\0" + np.array([[65535, 32768, 0]] * 4, ">u2").tobytes()
    assert decode(png(4, 4, 16, 2, row * 4), MAX_PIXELS).image.getpixel((2, 2)) == (255, 128, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_tiff_without_a_known_white_is_unsupported(dtype: type) -> None:
    data = encoded(Image.fromarray(np.arange(64, dtype=dtype).reshape(8, 8)), "TIFF")
    assert rejection(data).status == "unsupported"


def test_gray_and_one_bit_pictures() -> None:
    gray = Image.linear_gradient("L")
    np.testing.assert_array_equal(np.asarray(decode(encoded(gray, "PNG"), MAX_PIXELS).image)[..., 1], np.asarray(gray))
    bits = Image.new("1", (9, 5))
    bits.putpixel((8, 0), 1)
    for fmt in ("PNG", "TIFF", "BMP", "GIF"):
        decoded = np.asarray(decode(encoded(bits, fmt), MAX_PIXELS).image)
        assert decoded[0, 8].tolist() == [255, 255, 255]
        assert decoded.sum() == 3 * 255


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_one_pixel_is_a_picture(fmt: str) -> None:
    decoded = decode(encoded(Image.new("RGB", (1, 1), (200, 100, 50)), fmt), MAX_PIXELS, min_side=224)
    assert (decoded.width, decoded.height) == (1, 1)
    assert np.abs(np.array(decoded.image.getpixel((0, 0))) - (200, 100, 50)).max() <= 6


def test_transparency_shows_white() -> None:
    picture = Image.new("RGBA", (4, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (9, 99, 199, 0))  # the hidden color must not show
    picture.putpixel((2, 0), (255, 0, 0, 51))
    for fmt, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        image = decode(encoded(picture, fmt, **options), MAX_PIXELS).image
        assert [image.getpixel((x, 0)) for x in range(4)] == [RED, WHITE, (255, 204, 204), RED], fmt


def test_transparent_palette_gray_and_color_key_show_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    gray = Image.new("LA", (2, 1), (80, 255))
    gray.putpixel((0, 0), (80, 0))
    color_key = Image.new("RGB", (2, 1), RED)
    color_key.putpixel((0, 0), BLUE)
    for data, visible in (
        (encoded(palette, "PNG", transparency=0), RED),
        (encoded(palette, "PNG", transparency=b"\0\xff"), RED),
        (encoded(palette, "GIF", transparency=0), RED),
        (encoded(gray, "PNG"), (80, 80, 80)),
        (encoded(color_key, "PNG", transparency=BLUE), RED),
    ):
        image = decode(data, MAX_PIXELS).image
        assert [image.getpixel((x, 0)) for x in range(2)] == [WHITE, visible]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_opaque_pictures_equal_open_clips_own_conversion(mode: str) -> None:
    source = photo(50, 30).convert(mode)
    data = encoded(source, "TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(decode(data, MAX_PIXELS).image, Image.open(io.BytesIO(data)).convert("RGB"))


def test_animations_show_their_first_frame() -> None:
    frames = [Image.new("RGB", (20, 10), color) for color in (RED, BLUE, YELLOW)]
    for fmt in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        data = encoded(frames[0], fmt, save_all=True, append_images=frames[1:])
        decoded = decode(data, MAX_PIXELS)
        assert_corners(decoded, (RED,) * 4)
        assert (decoded.width, decoded.height) == (20, 10)


def test_lab_tiff_has_the_right_color() -> None:
    # L* 54.3, a* 80.8, b* 69.9 (D50) is sRGB's red; Pillow gives L* × 2.55, and a* and b* with an offset of 128.
    data = encoded(Image.new("LAB", (8, 8), (138, 209, 198)), "TIFF")
    assert np.abs(np.array(decode(data, MAX_PIXELS).image.getpixel((4, 4))) - RED).max() <= 6


@pytest.mark.parametrize(
    ("fmt", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {})],
)
def test_truncated_files_are_found(fmt: str, options: dict[str, bool]) -> None:
    data = encoded(photo(200, 150), fmt, **options)
    for keep in (0.05, 0.5, 0.95):
        assert rejection(data[: int(keep * len(data))]).status == "undecodable"
        assert rejection(data[: int(keep * len(data))], min_side=16).status == "undecodable"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_text_named_jpg_is_undecodable() -> None:
    for text in (b"just a note\n" * 40, b"\n\n<html>404</html>", b"\xef\xbb\xbfGIF", b"\0" * 500, b"x"):
        rejected = rejection(text)
        assert (rejected.status, rejected.reason) == ("undecodable", "not a picture, or its header is damaged")


def test_formats_not_in_the_list_are_unsupported_by_name() -> None:
    icon = encoded(Image.new("RGB", (16, 16)), "ICO")
    jpeg2000 = encoded(Image.new("RGB", (16, 16)), "JPEG2000")
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    named = {
        "ICO": icon,
        "JPEG 2000": jpeg2000,
        "HEIF": heic,
        "PDF": b"%PDF-1.7\n",
        "PostScript": b"%!PS",
        "SVG": b"<svg>",
    }
    for name, data in named.items():
        rejected = rejection(data)
        assert rejected.status == "unsupported"
        assert name in rejected.reason


def test_bombs_are_never_decoded() -> None:
    just_over = encoded(Image.new("1", (101, 100)), "PNG")
    assert rejection(just_over, max_pixels=10_000).status == "too_large"
    assert decode(just_over, max_pixels=10_100).width == 101
    # The header announces 3.6 billion pixels. The rows are missing, which shows that none was asked for.
    for limit in (10_000, 3_599_999_999):
        assert rejection(png(60_000, 60_000, 8, 2, b""), max_pixels=limit).status == "too_large"


def test_the_limit_may_be_higher_than_pillows_own() -> None:
    """Pillow alone refuses more than 178,956,970 pixels."""
    large = encoded(Image.new("L", (16_000, 12_800), 200), "JPEG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode(large, 204_800_000, min_side=32)
    assert (decoded.width, decoded.height) == (16_000, 12_800)
    assert rejection(large, max_pixels=204_799_999, min_side=32).status == "too_large"


def test_needle_that_resizing_would_blow_up_is_too_large() -> None:
    needle = encoded(Image.new("1", (30_000, 2)), "PNG")
    assert decode(needle, MAX_PIXELS).width == 30_000
    assert rejection(needle, min_side=224).status == "too_large"


def test_reduced_scale_keeps_twice_the_side_and_reports_the_true_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(four_corners(1600, 1200).rotate(90, expand=True), "JPEG", quality=95, exif=exif)
    for min_side, factor in ((None, 1), (601, 1), (300, 2), (150, 4), (32, 8)):
        decoded = decode(data, MAX_PIXELS, min_side)
        assert_corners(decoded)
        assert (decoded.width, decoded.height) == (1600, 1200)
        assert decoded.image.size == (1600 // factor, 1200 // factor)


def test_reduced_scale_is_only_used_where_it_divides_both_sides() -> None:
    for size, reduced in (((1600, 1204), (400, 301)), ((1602, 1200), (801, 600)), ((1601, 1200), (1601, 1200))):
        assert decode(encoded(photo(*size), "JPEG"), MAX_PIXELS, min_side=32).image.size == reduced


def test_reduced_scale_gives_nearly_the_same_model_input() -> None:
    data = encoded(photo(1600, 1200), "JPEG", quality=90)
    full, reduced = (
        np.asarray(decode(data, MAX_PIXELS, side).image.resize((299, 224), Image.Resampling.BICUBIC), np.float32)
        for side in (None, 224)
    )
    assert np.abs(full - reduced).mean() < 0.5
    assert np.abs(full - reduced).max() <= 8
