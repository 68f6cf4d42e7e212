"""Preprocessing computes what the image processors of transformers compute."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from PIL import Image

from diptych.data.pixels.preprocessing import Preprocessing

PROCESSORS = {
    "clip": ("clip", "CLIPImageProcessor"),
    "siglip": ("siglip", "SiglipImageProcessor"),
    "vit": ("vit", "ViTImageProcessor"),
    "bit": ("bit", "BitImageProcessor"),
    "llava": ("llava", "LlavaImageProcessor"),
}
SETTINGS = {
    "clip": [{}, {"size": {"shortest_edge": 37}, "crop_size": {"height": 33, "width": 50}}],
    "siglip": [{}, {"size": {"height": 41, "width": 65}}],
    "vit": [{}, {"resample": 1, "do_normalize": False}, {"do_rescale": True, "do_resize": True}],
    "bit": [{}, {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}],
    "llava": [{"do_pad": True}, {"do_pad": False}, {"do_pad": True, "crop_size": 50, "size": 51}],
}
SIZES = [(1, 1), (3, 500), (640, 480), (301, 77), (97, 98), (224, 224), (31, 200)]


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def reference_class(kind: str):
    module, name = PROCESSORS[kind]
    pil = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    return getattr(pil, f"{name}Pil")


@pytest.mark.parametrize("kind", PROCESSORS)
def test_equals_the_hugging_face_processor(kind):
    for settings in SETTINGS[kind]:
        processor = reference_class(kind)(**settings)
        ours = Preprocessing.from_hf(processor.to_dict())
        for size in SIZES:
            image = picture(*size)
            expected = processor(image, return_tensors="np")["pixel_values"][0]
            actual = ours.apply(image)
            assert actual.dtype == np.float32 and actual.shape == expected.shape
            assert np.abs(actual - expected).max() <= 1e-3, (kind, settings, size)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_written_config_is_read_by_hugging_face(kind):
    reference = reference_class(kind)()
    ours = Preprocessing.from_hf(reference.to_dict())
    written = ours.to_hf(kind)
    assert Preprocessing.from_hf(written) == ours
    theirs = reference_class(kind).from_dict(written)
    image = picture(123, 77)
    expected = theirs(image, return_tensors="np")["pixel_values"][0]
    assert np.abs(ours.apply(image) - expected).max() <= 1e-3


def test_extreme_proportions_cost_no_memory_and_agree():
    """Only the part that the crop keeps is computed; it is the same to a few of 255 levels."""
    image = picture(2, 700)
    ours = Preprocessing.from_hf({"image_processor_type": "CLIPImageProcessor"})
    resized = image.resize((224, 224 * 350), Image.Resampling.BICUBIC)
    top = (224 * 350 - 224) // 2
    expected = np.asarray(resized.crop((0, top, 224, top + 224))) / 255
    expected = (expected - np.array(ours.mean)) / np.array(ours.std)
    assert np.abs(ours.apply(image) - expected.transpose(2, 0, 1)).max() < 0.08
    assert ours.apply(picture(1, 20_000)).shape == (3, 224, 224)


def test_old_configs_with_plain_numbers():
    old = {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "crop_size": 336,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 336,
    }
    ours = Preprocessing.from_hf(old)
    assert (ours.resize, ours.size, ours.crop) == ("shortest_edge", (336, 336), (336, 336))
    vit = Preprocessing.from_hf({"feature_extractor_type": "ViTFeatureExtractor", "size": 384})
    assert (vit.resize, vit.size, vit.crop, vit.resample) == ("exact", (384, 384), None, "bilinear")
