"""A class of LLaVA's kind and its processor, as transformers itself reads a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.convert.comparison import Seen
from diptych.errors import CheckpointError, ModelError
from diptych.model.folder import refuse_pickles


def open_class(name: str, path: Path, dtype: torch.dtype | str) -> Any:
    """The model of a folder; nothing may be missing, left over or of another shape.

    Args:
        name: of the class in transformers.

    Raises:
        UnsafeFile: the weights are a pickle.
        CheckpointError: transformers cannot read it, or fills in weights at random.
    """
    import transformers

    if not any(path.glob("*.safetensors")):
        refuse_pickles(path)
    try:
        both: Any = getattr(transformers, name).from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        module, found = both
    except Exception as error:  # transformers and safetensors raise many kinds
        raise CheckpointError(
            f"transformers cannot read the folder: {error}", where=str(path)
        ) from error
    wrong = [
        f"{kind.replace('_', ' ')}: {sorted(str(k) for k in found[kind])[0]}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        if found[kind]
    ]
    if wrong:
        raise CheckpointError(
            f"the weights do not fit the config ({'; '.join(wrong)})", where=str(path)
        )
    return module.eval()


class LlavaReference:
    """A folder in a layout of the kind, computed by transformers in float32.

    Args:
        name: of the class in transformers.
        path: the folder.
        device: where to compute.
        settled: the chat template must give Diptych's token ids (an export); otherwise a
            difference is only noted (a folder from elsewhere).

    Attributes:
        notes: what a user of the folder should know.
    """

    def __init__(self, name: str, path: Path, device: torch.device, *, settled: bool):
        from transformers import GenerationConfig

        self.class_name = f"transformers.{name}"
        self.notes: list[str] = []
        self.chat_settled = settled
        self.module = open_class(name, path, torch.float32).to(device)
        try:
            self.open_processor(path)
        except Exception as error:  # transformers raises many kinds
            raise CheckpointError(
                f"transformers cannot read the processor: {error}", where=str(path)
            ) from error
        self.image_token = self.image_token_of(self.module.config)
        own = self.module.generation_config
        ends = own.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        self.stop_ids = frozenset(int(i) for i in ends)
        # Greedy means greedy: no penalty or limit of the folder's own settings applies.
        self.module.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
        )

    def open_processor(self, path: Path) -> None:
        """What makes pixels and ids of pictures and words."""
        from transformers import AutoProcessor

        self.processor: Any = AutoProcessor.from_pretrained(path)

    def image_token_of(self, config: Any) -> int:
        """Id that stands for an image position."""
        return int(config.image_token_index)

    def pixels(self, pictures: Sequence[Any]) -> Tensor:
        """See `Reference`."""
        values = self.processor.image_processor(list(pictures), return_tensors="pt")
        return values["pixel_values"].float()

    def chat_ids(self, messages: list[dict[str, Any]]) -> list[int] | None:
        """See `Reference`.

        Raises:
            ModelError: the template or the processor refuses the conversation.
        """
        if self.processor.chat_template is None or self.processor.patch_size is None:
            return None
        try:
            inputs = self.processor.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=True
            )
        except Exception as error:  # Jinja and template authors raise what they like
            raise ModelError(f"the processor refuses a conversation: {error}") from error
        return [int(i) for i in inputs["input_ids"][0]]

    def inputs(self, seen: Seen | None) -> dict[str, Any]:
        """What the class takes for pictures."""
        return {} if seen is None else {"pixel_values": seen.pixels.to(self.module.device)}

    @torch.no_grad()
    def logits(self, ids: Tensor, mask: Tensor, seen: Seen | None) -> Tensor:
        """See `Reference`."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return self.module(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            **self.inputs(seen),
        ).logits

    @torch.no_grad()
    def greedy(self, ids: Tensor, mask: Tensor, seen: Seen | None, count: int) -> list:
        """See `Reference`."""
        output = self.module.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=count, **self.inputs(seen)
        )
        return output[:, ids.shape[1] :].tolist()
