from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from abkd.data.formats import BadRowError
from abkd.data.images import load_images, prepare_images
from abkd.data.images._decode import decoded, encoded, of_array, quiet, size_of
from abkd.errors import ConfigError, DataError

CHANCE = np.random.default_rng(0)
PHOTO = CHANCE.integers(0, 256, (24, 30, 3), dtype=np.uint8)
RGB = Image.fromarray(PHOTO)


def stored(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def pixels(raw) -> np.ndarray:
    return decoded(encoded(raw))


def over_white(rgb, opacity):
    """Alpha compositing, in float64."""
    share = np.asarray(opacity, dtype=float)[..., None] / 255
    return np.asarray(rgb) * share + 255 * (1 - share)


class TestModes:
    def test_colour_and_grey_stay_bit_for_bit(self):
        for raw in (RGB, stored(RGB), {"bytes": stored(RGB), "path": None}, PHOTO, PHOTO.tolist()):
            assert np.array_equal(pixels(raw), PHOTO)
        grey = PHOTO[..., 0]
        for raw in (Image.fromarray(grey), stored(Image.fromarray(grey)), grey, torch.from_numpy(grey)):
            assert np.array_equal(pixels(raw), grey[..., None])

    def test_transparency_lies_over_white(self):
        opacity = CHANCE.integers(0, 256, PHOTO.shape[:2], dtype=np.uint8)
        opacity[0], opacity[1] = 0, 255
        rgba = np.dstack([PHOTO, opacity])
        for raw in (
            Image.fromarray(rgba),
            stored(Image.fromarray(rgba)),
            rgba,
            torch.from_numpy(rgba).permute(2, 0, 1),
        ):
            found = pixels(raw)
            assert np.abs(found - over_white(PHOTO, opacity)).max() < 1.01
            assert (found[0] == 255).all()
            assert np.array_equal(found[1], PHOTO[1])
        grey = np.dstack([PHOTO[..., 0], opacity])
        expected = over_white(np.repeat(PHOTO[..., :1], 3, 2), opacity)
        assert np.abs(pixels(stored(Image.fromarray(grey, "LA"))) - expected).max() < 1.01

    def test_palettes(self):
        palette = RGB.quantize(16)
        assert np.array_equal(pixels(stored(palette)), np.asarray(palette.convert("RGB")))
        see_through = stored(palette, transparency=3)
        expected = np.where(np.asarray(palette)[..., None] == 3, 255, np.asarray(palette.convert("RGB")))
        assert np.array_equal(pixels(see_through), expected)
        several = stored(palette, transparency=bytes(range(0, 256, 16)))
        assert np.abs(pixels(several) - over_white(palette.convert("RGB"), 16 * np.asarray(palette))).max() < 1.01

    def test_one_bit_and_sixteen(self):
        bits = Image.fromarray(PHOTO[..., 0]).convert("1")
        assert np.array_equal(pixels(stored(bits))[..., 0], np.asarray(bits) * 255)
        deep = CHANCE.integers(0, 65_536, (9, 8), dtype=np.uint16)
        dark = deep // 400  # a dark image stays dark
        for values in (deep, dark):
            found = pixels(stored(Image.fromarray(values)))[..., 0]
            assert np.array_equal(found, np.rint(values / 257))
            pgm = b"P5 8 9 65535 " + values.astype(">u2").tobytes()
            assert np.array_equal(pixels(pgm)[..., 0], np.rint(values / 257))

    def test_integers_of_32_bits_are_taken_as_of_an_array(self):
        values = PHOTO[..., 0].astype(np.int32)
        for raw in (Image.fromarray(values), stored(Image.fromarray(values), "TIFF"), values):
            assert np.array_equal(pixels(raw)[..., 0], values)
        for beyond in (values + 1, values - 1, values * 257):
            for raw in (Image.fromarray(beyond), stored(Image.fromarray(beyond), "TIFF")):
                with pytest.raises(BadRowError, match=r"black and white levels are unknown: save it with 8 or 16"):
                    pixels(raw)

    def test_other_colours(self):
        cmyk = RGB.convert("CMYK")
        assert np.array_equal(pixels(stored(cmyk, "TIFF")), PHOTO)
        assert np.array_equal(pixels(RGB.convert("YCbCr")), np.asarray(RGB.convert("YCbCr").convert("RGB")))

    def test_first_frame(self):
        frames = [RGB.quantize(16), RGB.rotate(180).quantize(16)]
        data = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert np.array_equal(pixels(data), np.asarray(frames[0].convert("RGB")))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_as_the_camera_was_held(self, orientation):
        turn = {
            1: lambda x: x,
            2: lambda x: x[:, ::-1],
            3: lambda x: x[::-1, ::-1],
            4: lambda x: x[::-1],
            5: lambda x: x.transpose(1, 0, 2),
            6: lambda x: np.rot90(x, -1),
            7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90,
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = stored(RGB, exif=exif.tobytes())
        assert np.array_equal(pixels(data), turn(PHOTO))
        assert size_of(data) == turn(PHOTO).shape[:2]

    @pytest.mark.parametrize(
        ("raw", "reason"),
        [
            (Image.new("F", (4, 4)), "floating-point pixels"),
            (Image.fromarray(np.full((2, 2), 70_000, dtype=np.int32)), "32-bit pixels"),
            (Image.new("RGB", (0, 4)), "no pixels"),
            (np.zeros((0, 3, 3), dtype=np.uint8), "no pixels"),
            (PHOTO / 255, "pixels are not 8-bit"),
            (PHOTO.astype(np.int32) - 1, "pixels are not 8-bit"),
            (PHOTO[..., :2], "wrong number of channels"),
            (PHOTO[None], "not one image"),
            (np.array("cat"), "not one image"),
            ([[1, 2], [3]], "not an image"),
            (None, "no image"),
            (b"", "empty file"),
            (b"GIF89a", "not an image file"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image file"),  # PIL would run ghostscript
            ("nowhere.png", "file is not there"),
            (os.curdir, "not a regular file"),
            (os.devnull, "not a regular file"),
        ],
    )
    def test_without_pixels_that_one_could_use(self, raw, reason):
        with pytest.raises(BadRowError) as caught:
            pixels(raw)
        assert caught.value.reason == reason

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"\0\0\0\x18ftypheic\0\0\0\0", "format HEIC: pip install pillow-heif"),
            (b"%PDF-1.7", "a PDF"),
            (b"<svg xmlns=", "render it first"),
            (b"PK\x03\x04", "unpack it first"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ],
    )
    def test_what_somebody_may_take_for_an_image_is_called_by_its_name(self, content, said):
        with pytest.raises(BadRowError, match=f"not an image file but .*{said}"):
            pixels(content)

    def test_a_pipe_is_not_opened(self, tmp_path):
        os.mkfifo(tmp_path / "x.png")
        (tmp_path / "y.png").symlink_to("/dev/zero")
        for name in ("x.png", "y.png"):
            with pytest.raises(BadRowError, match="not a regular file but a folder, pipe, socket or device"):
                pixels(tmp_path / name)

    def test_a_file_without_end_is_not_read_to_it(self, tmp_path):
        with (tmp_path / "x.png").open("wb") as file:
            file.truncate(2**40)
        with pytest.raises(BadRowError, match="more than 1024 MiB"):
            pixels(tmp_path / "x.png")

    def test_a_bomb(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(BadRowError, match="too large"):
            pixels(stored(RGB))

    def test_three_by_three_is_read_as_its_maker_writes_it(self):
        cube = CHANCE.integers(0, 256, (3, 5, 3), dtype=np.uint8)
        assert np.array_equal(of_array(cube), cube)
        assert np.array_equal(pixels(torch.from_numpy(cube)), cube.transpose(1, 2, 0))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
class TestDamage:
    def test_half_a_file_is_bad(self, kind):
        data = stored(RGB, kind)
        for share in (0.3, 0.6, 0.9):
            with quiet(), pytest.raises(BadRowError, match=r"damaged|not an image"):
                pixels(data[: int(share * len(data))])

    def test_whatever_happens_to_a_file_it_has_pixels_or_a_reason(self, kind):
        data = stored(RGB.resize((9, 8)), kind)
        damaged = [data[:length] for length in range(len(data))]
        for _ in range(60):
            changed = np.frombuffer(data, dtype=np.uint8).copy()
            where = CHANCE.integers(0, len(data), 3)
            changed[where] = CHANCE.integers(0, 256, 3)
            damaged.append(changed.tobytes())
        outcomes = set()
        with quiet():
            for each in damaged:
                try:
                    found = pixels(each)
                    outcomes.add("read")
                    assert found.dtype == np.uint8
                    assert found.ndim == 3
                except BadRowError as error:
                    outcomes.add(error.reason)
        assert {"empty file", "not an image file", "damaged or cut short"} <= outcomes


def album(root: Path, good: int = 12) -> Path:
    """Good images and one bad image of each kind."""
    for number in range(good):
        folder = root / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PHOTO + np.uint8(number)).save(folder / f"{number:03}.png")
    data = stored(RGB)
    (root / "cat" / "cut.png").write_bytes(data[: len(data) // 2])
    (root / "cat" / "empty.png").write_bytes(b"")
    (root / "dog" / "text.jpg").write_text("no image")
    Image.new("F", (30, 24)).save(root / "dog" / "float.tiff")
    return root


class TestPrepare:
    def test_refuses_bad_images_by_name(self, tmp_path):
        with pytest.raises(DataError) as caught:
            prepare_images(album(tmp_path / "photos"))
        message = str(caught.value)
        assert message.startswith("photos: 4 of 16 images cannot be used: photos/cat/cut.png: damaged or truncated (")
        for part in (
            "photos/cat/empty.png: empty file",
            "photos/dog/float.tiff: floating-point",
            "photos/dog/text.jpg",
        ):
            assert part in message
        assert message.endswith("Fix them, or set on_bad_row: drop to train without them")

    def test_several_frames_are_said(self, tmp_path, caplog):
        for kind in ("GIF", "TIFF", "PNG"):
            RGB.save(tmp_path / f"{kind}.{kind}", save_all=True, append_images=[RGB.rotate(180)])
            RGB.save(tmp_path / f"{kind}-still.{kind}")
        with caplog.at_level("INFO", logger="abkd"):
            prepare_images(tmp_path, name="train")
        assert f"train: 3 images have several frames ({tmp_path.name}/GIF.GIF, …); the first is used" in caplog.text

    def test_names_ten(self, tmp_path):
        root = album(tmp_path)
        for number in range(20):
            (root / "cat" / f"x{number:02}.png").write_bytes(b"")
        with pytest.raises(DataError, match=r"24 of 36 images.*x07\.png: empty file; and 14 more"):
            prepare_images(root)

    def test_leaves_them_out_with_an_account(self, tmp_path):
        images = load_images(album(tmp_path))
        dataset = prepare_images(images, on_bad_row="drop", name="photos")
        assert dataset.dropped == {
            "damaged or cut short": 1,
            "empty file": 1,
            "not an image file": 1,
            "floating-point pixels": 1,
        }
        assert len(dataset) == 12
        assert dataset.images.labels.tolist() == [0] * 6 + [1] * 6
        for index in range(12):
            number = int(Path(dataset.images.where(index)).stem)
            assert np.array_equal(dataset[index]["pixels"].permute(1, 2, 0), PHOTO + np.uint8(number))
        only = [index for index in range(len(images)) if Path(images.where(index)).stem.isdigit()]
        assert dataset.images.fingerprint == load_images(tmp_path).take(only).fingerprint

    def test_of_a_sequence(self):
        rows = [(RGB, 0), (Image.new("F", (3, 3)), 1), (PHOTO, 1), (None, 0)]
        with pytest.raises(DataError, match=r"2 of 4 images cannot be used: row 2: floating.*row 4: no image\."):
            prepare_images(rows)
        assert prepare_images(rows, on_bad_row="drop").images.labels.tolist() == [0, 1]

    def test_nothing_left(self, tmp_path):
        for number in range(2):
            (tmp_path / f"{number}.png").write_bytes(b"")
        with pytest.raises(DataError, match=r"all 2 images were dropped \(2 × empty file\)"):
            prepare_images(tmp_path, on_bad_row="drop")

    def test_a_file_that_goes_away_later_is_named(self, tmp_path):
        dataset = prepare_images(album(tmp_path / "photos"), on_bad_row="drop")
        (tmp_path / "photos" / "cat" / "003.png").unlink()
        with pytest.raises(DataError, match=r"photos/cat/003\.png: file does not exist"):
            dataset[1]

    def test_sizes_that_differ(self):
        rows = [PHOTO, PHOTO[:, :5]]
        with pytest.raises(DataError, match=r"differ in size \(row 1 is 24 × 30, row 2 24 × 5\): set image_size"):
            prepare_images(rows)
        assert prepare_images(rows, size=6)[1]["pixels"].shape == (3, 6, 6)

    @pytest.mark.parametrize("size", [0, -3, (4,), (4, 0), 2.5, True, (1, 2, 3), 10**9])
    def test_sizes_that_cannot_be_meant(self, size):
        with pytest.raises(ConfigError, match=r"image_size must be a side or \(height, width\)"):
            prepare_images([PHOTO], size=size)

    def test_other_arguments_that_cannot_be_meant(self):
        with pytest.raises(ConfigError, match="'error' or 'drop', got 'skip'"):
            prepare_images([PHOTO], on_bad_row="skip")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="at least 0, got -1"):
            prepare_images([PHOTO], seed=-1)
