"""Decoding hostile and odd pictures."""

from __future__ import annotations

import io
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from diptych.data.pixels import image as module
from diptych.data.pixels.image import decode, given, measure
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.data.sample import Image as Reference
from diptych.errors import ConfigError, ImageTooLarge, MissingImage, NotAnImage, TruncatedImage
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


TURNED = {  # pixels [H, W, C] as stored -> upright, by the EXIF standard (tag 274)
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p[::-1].transpose(1, 0, 2),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: p[:, ::-1].transpose(1, 0, 2),
}
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
 xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""
KINDS = {
    "PNG": {},
    "JPEG": {},
    "MPO": {"save_all": True, "append_images": [Image.new("RGB", (30, 20))]},
    "WEBP": {"lossless": True},
    "AVIF": {},
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "TIFF jpeg": {"compression": "jpeg"},
    "TIFF pages": {"save_all": True, "append_images": [Image.new("RGB", (30, 20))]},
}


def oriented(kind: str, orientation: int | None, picture=None, **more) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    if orientation is not None:
        exif[0x0112] = orientation
    settings = {**KINDS[kind], **more}
    return encoded(picture or noise(30, 20), kind.split()[0], exif=exif, **settings)


def late_exif(data: bytes) -> bytes:
    """A PNG whose EXIF stands behind the pixels, which the standard allows."""
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    rest = data[:start] + data[end:]
    place = rest.index(b"IEND") - 4
    return rest[:place] + data[start:end] + rest[place:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_turned_once_from_whatever_format(kind, orientation):
    data = oriented(kind, orientation)
    upright = TURNED[orientation](pixels(oriented(kind, None)))
    assert (pixels(data) == upright).all()
    assert measure(data) == decode(data).size == upright.shape[1::-1]
    if kind == "PNG":
        assert (pixels(late_exif(data)) == upright).all()
        assert measure(late_exif(data)) == upright.shape[1::-1]
    # From memory, whether Pillow has loaded it yet or not, the same as from the file.
    for lazy in (True, False):
        opened = Image.open(io.BytesIO(data))
        if not lazy:
            opened.load()
        assert (pixels(given(opened).data) == upright).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "TIFF lzw", "AVIF"])
def test_orientation_in_xmp_is_ignored_as_by_browsers(kind):
    more = {"xmp": XMP}
    if kind == "PNG":
        from PIL.PngImagePlugin import PngInfo

        more = {"pnginfo": PngInfo()}
        more["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    if kind.startswith("TIFF"):
        from PIL.TiffImagePlugin import ImageFileDirectory_v2

        more = {"tiffinfo": ImageFileDirectory_v2()}
        more["tiffinfo"][700] = XMP
    data = encoded(noise(30, 20), kind.split()[0], **{**KINDS[kind], **more})
    opened = Image.open(io.BytesIO(data))
    if kind != "PNG":  # Pillow reads it there only once the pixels are loaded
        assert opened.getexif().get(0x0112) == 6, "Pillow alone would turn it"
    plain = pixels(encoded(noise(30, 20), kind.split()[0], **KINDS[kind]))
    assert (pixels(data) == plain).all() and measure(data) == (30, 20)
    opened = Image.open(io.BytesIO(data))
    kept = dict(opened.info)
    assert (pixels(given(opened).data) == plain).all()
    assert opened.info.keys() >= kept.keys(), "the user's picture keeps its own"
    beside = oriented(kind, 3, **more) if not kind.startswith("TIFF") else oriented(kind, 3)
    assert (pixels(beside) == TURNED[3](plain)).all(), "EXIF counts, whatever XMP says"


def deep(dtype, values=65535):
    return Image.fromarray((np.arange(600).reshape(20, 30) * (values // 599)).astype(dtype))


def odd_pictures():
    clear = Image.new("RGBA", (30, 20), (255, 0, 0, 90))
    palette = noise(30, 20).quantize(16)
    frames = [noise(30, 20), Image.new("RGB", (30, 20), "blue")]
    more = {"save_all": True, "append_images": frames[1:]}
    return {
        "16-bit PNG": encoded(deep(np.uint16), "PNG"),
        "16-bit PNG, one value clear": encoded(deep(np.uint16), "PNG", transparency=109),
        "16-bit TIFF, big-endian": encoded(Image.frombytes("I;16B", (30, 20), deep(">u2").tobytes()), "TIFF"),
        "float TIFF": encoded(Image.fromarray(np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)), "TIFF"),
        "16-bit PGM": b"P5 30 20 65535\n" + np.asarray(deep(np.uint16)).astype(">u2").tobytes(),
        "RGBA PNG": encoded(clear, "PNG"),
        "RGBA WebP": encoded(clear, "WEBP"),
        "RGBA TIFF": encoded(clear, "TIFF"),
        "RGBA AVIF": encoded(clear, "AVIF"),
        "LA PNG": encoded(Image.new("LA", (30, 20), (0, 90)), "PNG"),
        "RGB PNG, one colour clear": encoded(Image.new("RGB", (30, 20), "red"), "PNG", transparency=(255, 0, 0)),
        "palette PNG, clear": encoded(palette, "PNG", transparency=3),
        "palette PNG, half clear": encoded(palette, "PNG", transparency=bytes(range(0, 160, 10))),
        "1-bit PNG": encoded(noise(30, 20).convert("1"), "PNG"),
        "1-bit TIFF": encoded(noise(30, 20).convert("1"), "TIFF", compression="group4"),
        "LAB TIFF": encoded(noise(30, 20).convert("LAB"), "TIFF"),
        "CMYK JPEG": encoded(noise(30, 20).convert("CMYK"), "JPEG"),
        "grey JPEG": encoded(noise(30, 20).convert("L"), "JPEG"),
        "GIF, several frames": encoded(frames[0], "GIF", **more),
        "PNG, several frames": encoded(frames[0], "PNG", **more),
        "WebP, several frames": encoded(frames[0], "WEBP", **more),
        "AVIF, several frames": encoded(frames[0], "AVIF", **more),
    }  # fmt: skip


@pytest.mark.parametrize("name", odd_pictures())
def test_a_picture_in_memory_is_read_as_its_file(name, tmp_path):
    data = odd_pictures()[name]
    expected = pixels(data)
    assert measure(data) == (30, 20)
    assert expected.std() > 0 or "RGBA" in name or "LA" in name or "colour" in name
    (tmp_path / "picture").write_bytes(data)
    for shown in (
        Image.open(io.BytesIO(data)),
        Image.open(tmp_path / "picture"),
        Image.open(io.BytesIO(data)).copy(),
        data,
        bytearray(data),
        tmp_path / "picture",
        str(tmp_path / "picture"),
        Reference("x", data),
    ):
        assert (pixels(given(shown).data) == expected).all(), type(shown)


def test_lab_has_no_alpha():
    """Its second channel is called A, too."""
    values = pixels(encoded(noise(30, 20).convert("LAB"), "TIFF"))
    assert abs(values - np.asarray(noise(30, 20)).astype(int)).mean() < 8


def test_sixteen_bits_made_in_memory_are_scaled_and_not_clipped():
    shown = deep(np.uint16)
    assert (pixels(given(shown.convert("F")).data) == pixels(given(shown).data)).all()
    for picture in (shown, deep(np.int32), Image.fromarray(np.asarray(shown)), shown.convert("I")):
        values = pixels(given(picture).data)[..., 0]
        assert values.min() == 0 and 250 < values.max() <= 255 and len(np.unique(values)) > 250


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "LAB", "HSV", "YCbCr"]
)
def test_every_mode_that_a_picture_may_have_in_memory(mode):
    middle = {"La": "LA", "PA": "P"}.get(mode)
    grey = mode in ("1", "L", "LA", "La")
    source = Image.linear_gradient("L").convert("L" if grey else "RGB").resize((30, 20))
    shown = source.convert(middle).convert(mode) if middle else source.convert(mode)
    values = pixels(given(shown).data)
    assert shown.mode == mode and values.shape == (20, 30, 3)
    assert abs(values.mean() - np.asarray(source).mean()) < 4


def test_what_is_no_picture_is_named(tmp_path):
    with pytest.raises(MissingImage, match="no such picture"):
        given(tmp_path / "absent.png")
    with pytest.raises(MissingImage, match="no such picture"):
        given(tmp_path)
    with pytest.raises(MissingImage) as caught:
        given(Path("https://example.org/a.png"))
    assert "address as text" in caught.value.fix
    with pytest.raises(MissingImage, match="without its bytes"):
        given(Reference("http://127.0.0.1:9/a.png"))  # a row's name is never fetched
    with pytest.raises(ConfigError, match="not ndarray"):
        given(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ImageTooLarge):
        given(Image.open(io.BytesIO(png_claiming(9460, 9460))))
    with pytest.raises(TruncatedImage):
        given(Image.open(io.BytesIO(encoded(noise(30, 20), "JPEG")[:-200])))
    with pytest.raises(NotAnImage, match="HEIC"):
        decode(b"\0\0\0\x18ftypheic" + bytes(40))


def test_an_address_that_the_user_gives_is_fetched_up_to_a_limit(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    data = oriented("JPEG", 6)
    (tmp_path / "photo.jpg").write_bytes(data)
    (tmp_path / "page.png").write_bytes(b"<html>not found</html>")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        place = f"http://127.0.0.1:{server.server_port}"
        found = given(f"{place}/photo.jpg?size=large")
        assert found.data == data and found.path.startswith(place)
        with pytest.raises(MissingImage, match="no such file"):
            given(f"{place}/absent.jpg")
        page = given(f"{place}/page.png")
        with pytest.raises(NotAnImage, match=r"html.*"):
            decode(page.data, where=page.path)
        monkeypatch.setattr(module, "MAX_FETCHED_BYTES", 100)
        with pytest.raises(ImageTooLarge, match="more than the 100 bytes"):
            given(f"{place}/photo.jpg")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(MissingImage):
        given(f"{place}/photo.jpg")


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


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF"])
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
