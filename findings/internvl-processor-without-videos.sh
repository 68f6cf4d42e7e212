#!/bin/sh
# transformers 5.23.0 without torchvision: InternVLProcessor takes a video processor that may be None,
# yet cannot be built with None. It looks its class up in a mapping that is a placeholder without
# torchvision, and raises AttributeError, not the ImportError that names the package. Its image half
# works alone: GotOcr2ImageProcessorPil cuts and counts.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 pillow==12.3.0
"$folder/env/bin/python" - <<'PYTHON' 2>/dev/null
import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import GotOcr2ImageProcessorPil, InternVLProcessor, PreTrainedTokenizerFast

named = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
words = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")),
    unk_token="[UNK]",
    extra_special_tokens=named,
)
pixels = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448})
print("transformers", transformers.__version__, "torch", torch.__version__)
try:
    InternVLProcessor(pixels, words, video_processor=None)
except AttributeError as error:
    print("InternVLProcessor:", error)
    assert "VIDEO_PROCESSOR_MAPPING" in str(error)
else:
    raise SystemExit("it can be built now")
count = pixels.get_number_of_image_patches(800, 1300, {"crop_to_patches": True, "max_patches": 12})
print("tiles of 1300 x 800 by its image processor:", count)
assert count == 7
PYTHON
echo "as described"
