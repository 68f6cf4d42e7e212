#!/bin/sh
# transformers 5.23.0 (with torch 2.13.0): positions that stop at the padding make a mask.
#
# A batch whose rows are padded on the right needs no attention mask in training: no real token looks
# at what comes after it, and without a mask SDPA takes its causal fast path. That holds while
# `position_ids` are left out, or count on through the padding. Given positions that are 0 on the
# padding (as packed and padded batches share one layout, and as many collators write them), the same
# call takes the padding for further samples of a packed row: every layer gets an explicit mask of
# [rows, 1, tokens, tokens], and the host waits for the device once a call to find that out. Logits of
# the real tokens are the same; only time and memory differ.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet transformers==5.23.0
"$folder/env/bin/python" - <<'PY'
import torch
import transformers
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

seen = []


def watching(module, query, key, value, attention_mask, **rest):
    seen.append(None if attention_mask is None else tuple(attention_mask.shape))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)


AttentionInterface.register("watching", watching)
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

AttentionMaskInterface.register("watching", sdpa_mask)
config = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    vocab_size=50, attn_implementation="watching",
)
torch.manual_seed(0)
model = LlamaForCausalLM(config).eval()
ids = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0]])
stopping = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 0, 0]])
counting = torch.arange(6).expand(2, 6)
logits = {}
with torch.no_grad():
    for name, positions in (("none", None), ("counting on", counting), ("0 on padding", stopping)):
        seen.clear()
        logits[name] = model(ids, position_ids=positions, use_cache=False).logits
        print(f"position_ids {name}: mask {seen[0]}")
        expected = (2, 1, 6, 6) if name == "0 on padding" else None
        assert seen[0] == expected, (name, seen)
real = torch.tensor([[1] * 6, [1] * 3 + [0] * 3]).bool()
apart = (logits["none"] - logits["0 on padding"])[real].abs().max()
print(f"largest difference of a real token's logits: {apart:.1e}")
assert apart < 1e-5
print("transformers", transformers.__version__, "torch", torch.__version__)
PY
