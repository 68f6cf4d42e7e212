"""Decoding hostile and odd pictures."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile

from diptych.data.image import decode, measure
from diptych.data.preprocessing import Preprocessing
from diptych.errors import ConfigError, ImageTooLarge, NotAnImage, TruncatedImage
from tests.e2e.faulty_inputs import encoded, noise, png, png_claiming


def pixels(data: bytes) -> np.ndarray:
    picture = decode(data)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def test_sixteen_bits_are_scaled_not_clipped():
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    values = pixels(encoded(Image.fromarray(deep), "PNG"))
    assert (values[..., 0] == np.arange(256).reshape(16, 16)).all()
    floats = Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16))
    assert abs(pixels(encoded(floats, "TIFF"))[..., 0] - np.arange(256).reshape(16, 16)).max() <= 1


def test_transparency_is_laid_over_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (pixels(encoded(clear, "PNG")) == 255).all()
    half = Image.new("LA", (4, 4), (0, 128))
    assert abs(pixels(encoded(half, "PNG")) - 127).max() <= 1
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0] + [0] * 765)
    assert (pixels(encoded(palette, "PNG", transparency=0)) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    picture = noise(30, 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, "PNG", exif=exif)
    from PIL import ImageOps

    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (pixels(data) == np.asarray(expected)).all()
    assert measure(data) == expected.size


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(data)[0, 0] == (255, 0, 0)).all()


def test_cmyk_colours():
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
    assert (pixels(data)[0, 0] == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(50_000, 50_000), (12_000, 12_000), (9460, 9460)])
def test_bombs_are_refused_by_their_header(size):
    with pytest.raises(ImageTooLarge):
        decode(png_claiming(*size), where="x")
    with pytest.raises(ImageTooLarge):
        measure(png_claiming(*size))


def test_limit_is_settable_and_pillow_is_left_alone():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    with pytest.raises(ImageTooLarge, match="384"):
        decode(png(24, 16), max_pixels=383)
    assert decode(png(24, 16), max_pixels=384).size == (24, 16)
    assert before == (
        Image.MAX_IMAGE_PIXELS,
        ImageFile.LOAD_TRUNCATED_IMAGES,
        list(warnings.filters),
    )


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_every_cut_is_named(format):
    data = encoded(noise(20, 20), format)
    for end in range(1, len(data), max(1, len(data) // 60)):
        try:
            decode(data[:end])
        except (TruncatedImage, NotAnImage, ImageTooLarge):
            continue
        # What still loads must be whole: formats end with bytes that no pixel needs.
        assert (pixels(data[:end]) == pixels(data)).all()


def test_random_damage_is_named():
    rng = np.random.default_rng(0)
    named = 0
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        data = bytearray(encoded(noise(20, 20), format))
        for _ in range(60):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 6):
                damaged[place] = rng.integers(256)
            try:  # damage inside the pixels of a BMP is still a picture
                decode(bytes(damaged))
            except (TruncatedImage, NotAnImage, ImageTooLarge):
                named += 1
    assert named > 60


def test_preprocessing_sizes():
    assert Preprocessing(size=(64, 96)).image_size == (64, 96)
    clip = Preprocessing(resize="shortest_edge", size=(70, 70), crop=(64, 64))
    assert clip.image_size == (64, 64) and clip.apply(noise(100, 33)).shape == (3, 64, 64)
    with pytest.raises(ConfigError):
        _ = Preprocessing(resize="none").image_size
    with pytest.raises(ImageTooLarge):
        Preprocessing(resize="shortest_edge").apply(Image.new("RGB", (1, 4000)))


def test_processors_that_do_more_are_refused():
    with pytest.raises(ConfigError):
        Preprocessing.from_hf({"image_processor_type": "Odd", "do_tile": True})
    with pytest.raises(ConfigError, match="longest_edge"):
        Preprocessing.from_hf(
            {"image_processor_type": "CLIPImageProcessor", "size": {"longest_edge": 9}}
        )
