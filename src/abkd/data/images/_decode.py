"""Decode images of any form to 8-bit pixels [H, W, 1] or [H, W, 3], or raise the reason why they cannot be used."""

from __future__ import annotations

import hashlib
import io
import lzma
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from abkd.data.formats import BadRowError
from abkd.data.images._kinds import kind_of

if TYPE_CHECKING:
    from PIL import Image

Uint8 = NDArray[np.uint8]

# Formats that are decoded, whatever the file name. For some others, PIL would start an external program.
_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_SEQUENCES = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")  # may have several frames; the other pictures in MPO are previews
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, LookupError, TypeError, OverflowError)
_BROKEN = (*_BROKEN, lzma.LZMAError, RuntimeError, AttributeError, AssertionError, NotImplementedError)
_SIXTEEN_AS_32 = ("PNG", "PPM")  # PIL opens their 16-bit images in its 32-bit mode (PNG in older versions)
_LARGEST = 2**30  # bytes of a file; a larger one has more pixels than PIL would read
_ORIENTATION = 0x0112  # EXIF tag: the orientation of the camera
_SIDEWAYS = (5, 6, 7, 8)  # its values for which height and width are swapped


def encoded(raw: object) -> bytes | Uint8:
    """Content of an image: the bytes of its file if it has one, else its pixels. Raises BadRowError."""
    from PIL import Image

    if isinstance(raw, Mapping) and not raw.keys().isdisjoint(("bytes", "path")):
        raw = raw.get("bytes") or raw.get("path")
    if isinstance(raw, str | Path):
        return _file(Path(raw))
    if isinstance(raw, bytes | bytearray):
        return bytes(raw)
    if isinstance(raw, Image.Image):
        with _damage():
            return _of_picture(raw)
    if raw is None:
        raise BadRowError("no image")
    if isinstance(raw, Tensor):
        return of_array(raw.detach().cpu().numpy(), channels_first=True)
    try:
        return of_array(np.asarray(raw))
    except ValueError as error:
        raise BadRowError("not an image", f"expected an image, got {type(raw).__name__} ({error})") from error


def decoded(content: bytes | Uint8) -> Uint8:
    """The pixels [H, W, C] of content from :func:`encoded`. Raises BadRowError."""
    if not isinstance(content, bytes):
        return content
    with _opened(content) as picture:
        picture.load()
        return _of_picture(picture)


def has_more_frames(content: bytes | Uint8) -> bool:
    """Whether :func:`decoded` returns the first of several frames or pages. Raises BadRowError."""
    if not isinstance(content, bytes):
        return False
    with _opened(content) as picture, suppress(*_BROKEN):
        return picture.format in _SEQUENCES and bool(getattr(picture, "is_animated", False))
    return False


def is_image_file(path: Path) -> bool:
    """Whether the first bytes of a file are those of a supported image format."""
    from PIL import Image

    try:
        if not _is_regular(path):
            return False
        with path.open("rb") as content, quiet(), Image.open(content, formats=_formats()):
            return True
    except Image.DecompressionBombError:
        return True  # it is rejected, with its name, when it is read
    except _BROKEN:
        return False


def size_of(content: bytes | Uint8) -> tuple[int, int]:
    """(H, W) of the output of :func:`decoded`, from the header of a file. Raises BadRowError."""
    if not isinstance(content, bytes):
        return content.shape[:2]
    with _opened(content) as picture:
        width, height = picture.size
        return (width, height) if picture.getexif().get(_ORIENTATION, 1) in _SIDEWAYS else (height, width)


def digest(content: bytes | Uint8) -> bytes:
    """16-byte hash of the bytes of a file, or of pixels."""
    if isinstance(content, bytes):
        return hashlib.blake2b(content, digest_size=16).digest()
    pixels = np.ascontiguousarray(content)
    return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings about metadata, which do not concern the pixels. Not thread-safe."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _file(path: Path) -> bytes:
    try:
        if not _is_regular(path):  # opening a pipe or a device could block forever, or have effects
            raise BadRowError("not a regular file", "not a regular file but a folder, pipe, socket or device")
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise BadRowError("too large", f"too large (more than {_LARGEST >> 20} MiB)")
        return content
    except MemoryError as error:
        raise BadRowError("too large", "too large for this machine's memory") from error
    except FileNotFoundError as error:
        raise BadRowError("file is not there", "file does not exist") from error
    except (OSError, ValueError) as error:
        raise BadRowError("file cannot be read", f"file cannot be read ({error})") from error


def _is_regular(path: Path) -> bool:
    return stat.S_ISREG(path.stat().st_mode)


@cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    with suppress(ImportError):
        import pillow_heif  # type: ignore[import-not-found]  # optional, installed by the user

        pillow_heif.register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def _damage(data: bytes = b"") -> Iterator[None]:
    """Convert PIL's error for an unreadable file to a BadRowError. ``data``: the content of the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError as error:
        found = kind_of(data)
        detail = f"not an image file but {found}" if found else "not an image file, or its header is damaged"
        raise BadRowError("not an image file", detail) from error
    except MemoryError as error:
        raise BadRowError("too large", "too large for this machine's memory") from error
    except Image.DecompressionBombError as error:
        raise BadRowError("too large", f"too large ({error})") from error
    except _BROKEN as error:
        raise BadRowError("damaged or cut short", f"damaged or truncated ({error})") from error


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The PIL image of a file, of which only the header has been read."""
    from PIL import Image

    if not data:
        raise BadRowError("empty file")
    with _damage(data), Image.open(io.BytesIO(data), formats=_formats()) as picture:
        yield picture


def _of_picture(picture: Image.Image) -> Uint8:
    """Pixels of a PIL image of any mode. Transparent pixels are blended over white."""
    from PIL import Image, ImageOps

    if 0 in picture.size:
        raise BadRowError("no pixels", "no pixels ({} × {})".format(*picture.size))
    sixteen = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in _SIXTEEN_AS_32)
    if picture.getexif().get(_ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    if sixteen:
        return _sixteen_bit(np.asarray(picture))
    if picture.mode == "I":
        return _of_integers(np.asarray(picture))
    if picture.mode == "F":
        raise BadRowError("floating-point pixels", "floating-point pixels (mode F): save it with 8 bits per channel")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    picture = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    return of_array(np.asarray(picture))


def _of_integers(grey: np.ndarray) -> Uint8:
    """32-bit integers within 0..255 as they are, like those of an array (a dark 16-bit image looks the same)."""
    if grey.min() < 0 or grey.max() > 255:
        found = f"32-bit integers from {grey.min()} to {grey.max()}, whose black and white levels are unknown"
        raise BadRowError("32-bit pixels", f"{found}: save it with 8 or 16 bits per pixel (mode L or I;16)")
    return grey.astype(np.uint8)[..., None]


def _sixteen_bit(grey: np.ndarray) -> Uint8:
    """0..65535 scaled to 0..255, regardless of the part of the range that the image uses."""
    return np.rint(grey / 257.0).astype(np.uint8)[..., None]


def of_array(array: np.ndarray, *, channels_first: bool = False) -> Uint8:
    """Pixels [H, W, C] of an array [H, W], [H, W, C] or [C, H, W]; C is 1, 3, or 4 with transparency.

    channels_first: how to read an ambiguous shape.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise BadRowError("not one image", f"expected one image [H, W] or [H, W, C], got shape {list(array.shape)}")
    first, last = array.shape[0] in (1, 3, 4), array.shape[2] in (1, 3, 4)
    if first and (channels_first or not last):
        array = np.moveaxis(array, 0, -1)
    elif not last:
        raise BadRowError("wrong number of channels", f"expected 1, 3 or 4 channels, got shape {list(array.shape)}")
    if 0 in array.shape:
        raise BadRowError("no pixels", f"no pixels (shape {list(array.shape)})")
    pixels = eight_bit(array)
    return over_white(pixels) if pixels.shape[2] == 4 else pixels


def eight_bit(array: np.ndarray) -> Uint8:
    """The same integers 0..255 as uint8; BadRowError for other numbers, whose black and white levels are unknown."""
    if array.dtype == np.uint8:
        return array
    way_out = "use uint8 from 0 to 255"
    if array.dtype.kind == "f":
        way_out += "; for pixels in [0, 1], (255 * x).round().astype('uint8')"
    if array.dtype.kind not in "iu" or array.dtype == np.uint16 or array.min() < 0 or array.max() > 255:
        raise BadRowError("pixels are not 8-bit", f"pixels are {array.dtype}: {way_out}")
    return array.astype(np.uint8)


def over_white(rgba: Uint8) -> Uint8:
    """Blend pixels [..., 4] with transparency over white: [..., 3]."""
    opacity = rgba[..., 3:].astype(np.uint32)
    return ((rgba[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
