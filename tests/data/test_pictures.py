import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from seedx_lite.data.pictures import from_sheet, open_picture, picture_path, relative, softened, to_sheet


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 48, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_softened_pictures():
    """Bugs: width and height swapped; a blur that shifts; fine detail that stays."""
    wide = np.asarray(noise())[None]
    soft = softened(wide, 2)
    assert soft.shape == wide.shape and soft.dtype == np.uint8
    assert soft.std() < 0.75 * wide.std() and abs(soft.mean() - wide.mean()) < 1
    edge = np.zeros((1, 32, 48, 3), np.uint8)
    edge[:, :, 24:] = 200
    rows = softened(edge, 2)[0, :, :, 0].astype(int)
    assert (rows == rows[0]).all() and rows[0, 22] < 60 < 140 < rows[0, 25] and rows[0, 12] == 0 and rows[0, 36] == 200


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises any size in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "1", "I;16"])
def test_every_mode_becomes_rgb(mode):
    """A model that gets one or four channels fails far from here."""
    image = Image.new(mode, (4, 3)) if mode == "I;16" else Image.new("RGB", (4, 3)).convert(mode)
    opened = open_picture(encoded(image))
    assert (opened.mode, opened.size) == ("RGB", (4, 3))


def test_transparency_is_white_and_not_what_lies_beneath():
    """`convert("RGB")` would show the colour hidden under transparent pixels, mostly black."""
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([200, 0, 0, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    for data in (encoded(image), encoded(palette, "GIF", transparency=1)):
        opened = open_picture(data)
        assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(200, 0, 0), (255, 255, 255)]


def test_cmyk_and_16_bits_keep_their_brightness():
    """16 bits clipped instead of scaled are all white."""
    grey = Image.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16))
    assert open_picture(encoded(grey)).getpixel((0, 0)) == (128, 128, 128)
    red = open_picture(encoded(Image.new("RGB", (8, 8), (230, 20, 20)).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(np.asarray(red, int) - (230, 20, 20)).max() < 8


def test_exif_rotation_is_applied():
    """Photographs of phones lie on their side otherwise, and so do their boxes."""
    image = Image.new("RGB", (4, 2), "blue")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    opened = open_picture(encoded(image, "PNG", exif=exif))
    assert opened.size == (2, 4) and opened.getpixel((1, 0)) == (255, 0, 0)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated(tmp_path, kind, share):
    """Half a picture must not be trained on as one with a grey lower half."""
    data = encoded(noise(), kind)
    path = tmp_path / "half.jpg"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"half\.jpg: (broken or cut off|no picture)"):
        open_picture(path)


def test_no_picture(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_text("not a picture")
    with pytest.raises(ValueError, match=r"a\.jpg: no picture; a whole file of JPEG, .* expected"):
        open_picture(path)
    with pytest.raises(FileNotFoundError, match=r"b\.jpg: no such picture"):
        open_picture(tmp_path / "b.jpg")
    with pytest.raises(ValueError, match=r"KEY: no picture"):
        open_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", name="KEY")


@pytest.mark.parametrize("size", [(9_000, 9_000), (12_000, 12_000), (30_000, 30_000), (2_000_000_000, 2_000_000_000)])
def test_huge_pictures_are_refused_before_they_are_decoded(size):
    """A few bytes that promise gigabytes: above our bound, above Pillow's warning, above Pillow's error."""
    with pytest.raises(ValueError, match=r"bomb\.png: a huge picture .*at most 64,000,000 pixels.*scale it down"):
        open_picture(png_of_size(*size), name="bomb.png")


def test_own_bound():
    assert open_picture(encoded(noise(8, 8)), max_pixels=64).size == (8, 8)
    with pytest.raises(ValueError, match=r"8x8 px.*at most 63 pixels"):
        open_picture(encoded(noise(8, 8)), max_pixels=63)


def test_paths_stay_in_their_folder(tmp_path):
    """A data file from elsewhere must not be able to read any file of this machine."""
    root, outside = tmp_path / "root", tmp_path / "outside.png"
    (root / "sub").mkdir(parents=True)
    for path in (outside, root / "in.png", root / "sub" / "deep.png"):
        path.write_bytes(encoded(noise()))
    (root / "link.png").symlink_to(outside)
    (root / "door").symlink_to(tmp_path)
    (root / "circle").symlink_to(root / "circle")
    (root / "good-link.png").symlink_to(root / "in.png")
    for name in ("in.png", "/in.png", "sub/../in.png", "good-link.png"):
        assert picture_path(name, root) == (root / "in.png").resolve()
    for name in ("../outside.png", "sub/../../outside.png", "link.png", "door/outside.png"):
        with pytest.raises(ValueError, match="leaves its folder"):
            open_picture(name, root)
    for name in ("missing.png", "sub", str(outside), "null\0.png", "x" * 5000, "circle"):
        with pytest.raises((ValueError, FileNotFoundError), match=r"no picture|no usable path"):
            picture_path(name, root)


def test_relative(tmp_path):
    assert relative(tmp_path / "a" / "b.png", tmp_path) == "a/b.png"
    with pytest.raises(ValueError, match=r"c\.png is not in the folder of the images"):
        relative(tmp_path.parent / "c.png", tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are a POSIX thing")
def test_a_pipe_does_not_hang(tmp_path):
    """Opening a pipe waits for a writer, for ever."""
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(FileNotFoundError):
        open_picture(tmp_path / "pipe.jpg")


def test_sheets_give_back_their_pictures():
    """Bugs: rows and columns swapped; a last row that is cut off."""
    pictures = list(np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8))
    sheet = to_sheet(pictures, columns=3)
    assert sheet.size == (24, 24)
    back = from_sheet(sheet, 8)
    assert np.array_equal(back[:7], pictures) and (np.array(back[7:]) == 255).all() and len(back) == 9
    assert to_sheet(pictures[:2], columns=3).size == (16, 8)
