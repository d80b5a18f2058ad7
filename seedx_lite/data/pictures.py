"""Opening pictures from anywhere: upright, in RGB, bounded in size, and never from outside their folder."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000  # a 61-megapixel camera; 192 MB once decoded
MAX_BYTES = 128 * 2**20
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # no format that starts another program, as EPS does


def softened(pictures: np.ndarray, factor: int) -> np.ndarray:
    """uint8 pictures [K, H, W, 3] with the detail of ones `factor` times smaller: averaged down and scaled up again."""
    small = (pictures.shape[2] // factor, pictures.shape[1] // factor)
    drawn = (Image.fromarray(picture).resize(small, Image.Resampling.BOX) for picture in pictures)
    return np.stack([np.asarray(one.resize(pictures.shape[2:0:-1], Image.Resampling.BICUBIC)) for one in drawn])


def picture_path(name: str, root: str | Path) -> Path:
    """The file `name` in the folder `root`, links resolved; leading slashes are dropped, as officially. Raises
    ValueError if the path, or a link on its way, leaves the folder, and FileNotFoundError for no file."""
    root = Path(root).resolve()
    try:
        path = (root / name.lstrip("/")).resolve()
        inside, there = path.is_relative_to(root), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null character, links in a circle
        raise ValueError(f"{name!r:.80} is no usable path ({error!s:.80}); rename the file") from error
    if not inside:
        raise ValueError(f"{name!r} leaves its folder {root}; put the picture inside and name it from there")
    if not there:
        raise FileNotFoundError(f"no picture {name!r} in {root}; check the name and the folder of the images")
    return path


def relative(path: str | Path, root: str | Path) -> str:
    """How a data file names a picture: relative to `root`, with slashes. Raises ValueError outside of it."""
    try:
        return Path(path).resolve().relative_to(Path(root).resolve()).as_posix()
    except ValueError as error:
        raise ValueError(f"{path} is not in the folder of the images, {root}; copy it there first") from error


def open_picture(
    source: str | Path | bytes, root: str | Path | None = None, max_pixels: int = MAX_PIXELS, name: str = "picture"
) -> Image.Image:
    """A picture as upright RGB: EXIF rotation applied, transparency laid on white, CMYK, palette and grey converted, 16
    bits reduced to 8, the first frame of an animation.

    source: a path, kept inside `root` where one is given, or a file's bytes, which errors call `name`. Raises
    FileNotFoundError for no file, and ValueError for one that is no picture, cut off, or, before it is decoded, huge.
    """
    if not isinstance(source, bytes):
        name = str(source)
        path = Path(source) if root is None else picture_path(name, root)
        if not path.is_file():
            raise FileNotFoundError(f"{name}: no such picture; check the name")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{name}: a huge file, at most {MAX_BYTES >> 20} MB expected; scale it down")
        source = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is tighter
            image = Image.open(io.BytesIO(source), formats=FORMATS)
        if image.width * image.height <= max_pixels:
            return upright_rgb(image)
        size = f"{image.width}x{image.height} px"
    except Image.DecompressionBombError as error:
        size = str(error)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{name}: no picture; a whole file of {', '.join(FORMATS)} expected") from error
    except Exception as error:  # a broken file makes Pillow's decoders raise whatever they stumble over
        raise ValueError(f"{name}: broken or cut off ({error}); copy or save the picture again") from error
    raise ValueError(f"{name}: a huge picture ({size}), at most {max_pixels:,} pixels expected; scale it down")


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture as it is meant to be seen: turned as its EXIF says, 16 bits scaled to 8, what is transparent on white.
    Raises ValueError for pixels of 32 bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, where 8 or 16 bits are expected")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_sheet(pictures: Sequence[np.ndarray], columns: int = 20) -> Image.Image:
    """Pictures of one size side by side in rows, without gaps; what is left of the last row is white."""
    rows = [list(pictures[start : start + columns]) for start in range(0, len(pictures), columns)]
    rows[-1] += [np.full_like(pictures[0], 255)] * (columns - len(rows[-1])) if len(rows) > 1 else []
    return Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows]))


def from_sheet(sheet: Image.Image, size: int) -> list[np.ndarray]:
    """The pictures [size, size, 3] of a sheet, row by row, with the white ones that fill it up."""
    array = np.asarray(sheet.convert("RGB"))
    rows, columns = array.shape[0] // size, array.shape[1] // size
    return list(array.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3))
