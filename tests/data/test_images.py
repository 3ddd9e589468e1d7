from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_mlflow.data.images import BadImage, decode, read_image
from kd_mlflow.data.jpeg import plain_size
from tests.pictures import encoded, turned, with_late_exif


def reason(data: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        read_image(data, 8)
    return caught.value.reason


def for_pillow(jpeg: bytes) -> bytes:
    """The same picture with an empty EXIF segment, so that it is not a plain JPEG."""
    return jpeg[:2] + b"\xff\xe1\x00\x08Exif\x00\x00" + jpeg[2:]


def verdict(data: bytes) -> str | bytes:
    """The reason why a file is refused, or its pixels."""
    try:
        return read_image(data, 32).tobytes()
    except BadImage as bad:
        return bad.reason


def quarters() -> Image.Image:
    """Red above, blue below; left half darker."""
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:32, :32, 0], pixels[:32, 32:, 0], pixels[32:, :32, 2], pixels[32:, 32:, 2] = 100, 200, 100, 200
    return Image.fromarray(pixels)


def test_square_of_the_stored_side_is_kept_bit_for_bit(photo):
    image = photo(0, 16, 16)
    assert np.array_equal(read_image(encoded(image, "PNG"), 16), np.asarray(image).transpose(2, 0, 1))


def test_path_and_bytes_give_the_same_pixels(tmp_path: Path, photo):
    path = tmp_path / 'a\n"quoted" \'\u00fc\u732b.jpg'
    path.write_bytes(encoded(photo(1, 50, 30), "JPEG"))
    assert np.array_equal(read_image(path, 16), read_image(path.read_bytes(), 16))


def test_aspect_is_kept_and_the_centre_cut_out():
    pixels = np.zeros((30, 90, 3), dtype=np.uint8)
    pixels[:, 30:60] = 255
    assert (read_image(encoded(Image.fromarray(pixels), "PNG"), 15)[:, :, 1:-1] == 255).all()
    assert (read_image(encoded(Image.fromarray(pixels.transpose(1, 0, 2)), "PNG"), 15)[:, 1:-1] == 255).all()


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (128, 64))
    shrunk = read_image(encoded(Image.fromarray(stripes), "PNG"), 16)
    assert np.abs(shrunk.astype(int) - 127).max() <= 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int):
    upright = quarters().resize((64, 48))
    undo = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}.get(orientation, [])
    stored = upright
    for transpose in undo:
        stored = stored.transpose(Image.Transpose(transpose))
    result = decode(encoded(stored, "PNG", exif=turned(orientation)), 8)
    assert (result.width, result.height) == (64, 48)
    assert np.array_equal(result.pixels, read_image(encoded(upright, "PNG"), 8))


def test_damaged_exif_does_not_spoil_a_picture(photo):
    assert read_image(encoded(photo(2), "JPEG", exif=b"Exif\x00\x00garbage"), 8).shape == (3, 8, 8)


def test_grey_becomes_three_equal_channels(photo):
    grey = photo(3, 16, 16).convert("L")
    for kind in ("PNG", "JPEG"):
        pixels = read_image(encoded(grey, kind), 16)
        assert np.array_equal(pixels[0], pixels[1])
        assert np.array_equal(pixels[0], pixels[2])
    assert np.array_equal(read_image(encoded(grey, "PNG"), 16)[0], np.asarray(grey))


def test_palette_keeps_its_colours():
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    for kind in ("PNG", "GIF"):
        assert read_image(encoded(image, kind), 16)[:, 5, 5].tolist() == [10, 200, 30]


def test_transparent_pixels_become_white():
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[:, 8:] = (255, 0, 0, 255)
    result = read_image(encoded(Image.fromarray(pixels), "PNG"), 16)
    assert result[:, 4, 2].tolist() == [255, 255, 255]
    assert result[:, 4, 12].tolist() == [255, 0, 0]


def test_transparent_palette_entry_becomes_white():
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert read_image(encoded(image, "PNG", transparency=1), 16)[:, 5, 5].tolist() == [255, 255, 255]


def test_cmyk_is_converted():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = read_image(encoded(image, "JPEG", quality=95), 16)[:, 8, 8].tolist()
    assert red > 245
    assert max(green, blue) < 10


def test_sixteen_bits_keep_their_range():
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(read_image(encoded(Image.fromarray(ramp), kind), 16)[0].ravel(), np.arange(256))


def test_large_jpeg_equals_its_full_decoding_within_two_levels(photo):
    image = photo(4, 40, 30).resize((1600, 1200), Image.Resampling.BICUBIC)
    fast = read_image(encoded(image, "JPEG", quality=95), 64).astype(int)
    assert np.abs(fast - read_image(encoded(image, "PNG"), 64)).mean() < 2


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_plain_jpeg_has_the_pixels_that_pillow_decodes(subsampling: str, progressive: bool, photo):
    data = encoded(photo(7, 83, 61), "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    assert plain_size(data) == (83, 61)
    result = decode(data, 37)
    assert (result.width, result.height) == (83, 61)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(result.pixels, read_image(encoded(image, "PNG"), 37))
    assert np.array_equal(result.pixels, read_image(for_pillow(data), 37))


def test_only_three_colours_without_a_word_on_them_are_a_plain_jpeg(photo):
    image, exif = photo(8), turned()
    for other in (
        encoded(image, "PNG"),
        encoded(image.convert("L"), "JPEG"),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image, "JPEG", exif=exif),
        with_late_exif(encoded(image, "JPEG"), exif),
        encoded(image, "JPEG", keep_rgb=True),
        encoded(image, "JPEG")[:30],
        b"\xff\xd8",
    ):
        assert plain_size(other) is None
    assert plain_size(encoded(image, "JPEG", comment=b"a cat", icc_profile=b"x" * 70000)) == image.size


def test_exif_data_behind_the_frames_header_turns_the_image(photo):
    image, exif = photo(8, 83, 61), turned()
    late = decode(with_late_exif(encoded(image, "JPEG"), exif), 37)
    usual = decode(encoded(image, "JPEG", exif=exif), 37)
    assert (late.width, late.height) == (usual.width, usual.height) == (61, 83)
    assert np.array_equal(late.pixels, usual.pixels)


@pytest.mark.fault("a JPEG with flipped, lost or foreign bytes", "the same verdict from either decoder")
def test_damaged_jpeg_is_judged_alike_by_both_decoders(photo):
    draw = np.random.default_rng(0)
    whole = [encoded(photo(9, 60, 40), "JPEG", progressive=progressive) for progressive in (False, True)]
    verdicts = []
    for number in range(300):
        data = bytearray(whole[number % 2])
        place = int(draw.integers(2, len(data)))
        if number % 3 == 0:
            del data[place:]
        elif number % 3 == 1:
            data[place] = int(draw.integers(256))
        else:
            data[place : place + int(draw.integers(30))] = draw.bytes(5)
        verdicts.append(verdict(bytes(data)))
        assert verdict(for_pillow(bytes(data))) == verdicts[-1]
    assert 100 < sum(isinstance(one, str) for one in verdicts) < 250


@pytest.mark.parametrize("kind", ["BMP", "WEBP", "TIFF", "PPM", "GIF"])
def test_other_formats_are_read(kind: str, photo):
    assert read_image(encoded(photo(5), kind), 8).shape == (3, 8, 8)


def test_empty_file_is_named_so():
    assert reason(b"") == "the file is empty"


def test_text_is_not_an_image():
    assert "not an image" in reason(b"hello, I am a readme\n" * 20)


@pytest.mark.fault("a PostScript file among the images", "not read: no other program is started")
def test_postscript_is_not_read():
    assert "not an image" in reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")


@pytest.mark.fault("an image file that was cut off", "named with its reason, not trained on")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_truncated_file_is_bad(kind: str, photo):
    data = encoded(photo(6, 100, 100), kind)
    assert reason(data[: len(data) // 2])


@pytest.mark.fault("an image of 30,000 × 30,000 pixels", "refused before anything is allocated")
def test_thirty_thousand_pixels_square_is_refused_before_decoding():
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    assert "absurdly large" in reason(data)


@pytest.mark.fault("an image of 30,000 × 30,000 pixels", "refused before anything is allocated")
def test_plain_jpeg_that_says_it_is_huge_is_refused_before_decoding(photo):
    data = bytearray(encoded(photo(10), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 30000, 30000)
    assert "absurdly large" in reason(bytes(data))


def test_huge_png_is_averaged_to_its_mean():
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (1001, 501))
    assert np.abs(read_image(encoded(Image.fromarray(stripes), "PNG"), 16).astype(int) - 127).max() <= 20


def test_thin_strip_is_cut_before_it_is_scaled():
    pixels = read_image(encoded(Image.new("RGB", (60000, 2), "red"), "PNG"), 256)
    assert (pixels == np.array([255, 0, 0]).reshape(3, 1, 1)).all()


def test_missing_file_is_bad_with_the_systems_reason(tmp_path: Path):
    with pytest.raises(BadImage, match="No such file"):
        read_image(tmp_path / "absent.png", 8)
