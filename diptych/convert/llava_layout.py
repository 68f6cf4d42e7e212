"""What the layouts of LLaVA's kind have in common: an image encoder, a projector, a language model.

LLaVA, LLaVA-NeXT and InternVL differ in the class that reads them, in the names and the shape of
the projector, and in how pictures are cut; a file in `layouts/` says so in a subclass of
`LlavaLayout`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from diptych.convert import comparison
from diptych.convert import llava_names as names
from diptych.convert.chat_parts import for_parts, read_template
from diptych.convert.comparison import ExportReport
from diptych.convert.llava_class import LlavaReference, open_class
from diptych.convert.llava_names import KEYS, WRAPPED_TOWERS, Keys, Names
from diptych.convert.probes import plain_config, preprocessing_of, read_json
from diptych.data.pixels.preprocessing import Preprocessing
from diptych.errors import CheckpointError, ConfigError, ExportMismatch
from diptych.model.architectures.vlm import Vlm, VlmConfig
from diptych.model.folder import build
from diptych.model.language_model import LanguageModelConfig
from diptych.model.tensors import adopt, save_tensors, unique_tensors, without_weights
from diptych.model.vision_encoder import VisionEncoderConfig
from diptych.model.weights import reading

_OWN = "diptych"
"""Key of `config.json` for what only Diptych reads: `answer_tokens`."""


class LlavaLayout:
    """One layout of the kind; its methods are what `layout.Layout` asks of a file.

    Attributes:
        name: of the layout.
        title: what its models are called.
        class_name: class of transformers that reads it.
        config_name: its config's class.
        model_type: in its config.json.
        image_mark: token that stands for a position of a picture.
        keys: prefixes of weight names; the first that fits is taken.
        processor_name: class of its processor.
        reference: the class, as the gate computes with it.
        known_towers: image encoders that servers know in this layout.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    class_name: ClassVar[str]
    config_name: ClassVar[str]
    model_type: ClassVar[str]
    image_mark: ClassVar[str] = "<image>"
    keys: ClassVar[Keys] = KEYS
    processor_name: ClassVar[str] = "LlavaProcessor"
    reference: ClassVar[type[LlavaReference]] = LlavaReference
    known_towers: ClassVar[tuple[str, ...]] = WRAPPED_TOWERS

    # -- what differs -------------------------------------------------------------------------

    def projector(self, model: Vlm) -> tuple[dict[str, Tensor], str]:
        """Weights of the layout's projector that is the connector, without the prefix, and its
        activation.

        Raises:
            ConfigError: the connector has another shape.
        """
        raise NotImplementedError

    def connector(
        self, tensors: Mapping[str, Tensor], config: Any, where: Path
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Config of the connector that the projector is, and its weights, with their prefix."""
        raise NotImplementedError

    def described_connector(self, config: Any) -> dict[str, Any]:
        """The same config, from the layout's config alone."""
        raise NotImplementedError

    def own_config(self, model: Vlm, image_token: int, layer: int, strategy: str) -> dict[str, Any]:
        """Keys of config.json besides those of the two networks and the projector's activation."""
        return {
            "image_token_index": image_token,
            "image_seq_length": model.tokens_per_image,
            "vision_feature_layer": layer,
            "vision_feature_select_strategy": strategy,
        }

    def processor(self, model: Vlm, num_prefix: int, strategy: str) -> dict[str, Any]:
        """Keys of processor_config.json besides the class."""
        return {
            "image_token": self.image_mark,
            "patch_size": model.vision_encoder.hf_config.patch_size,
            "num_additional_image_tokens": num_prefix,
            "vision_feature_select_strategy": strategy,
        }

    def image_processor(self, model: Vlm) -> dict[str, Any]:
        """preprocessor_config.json, besides the class of the whole processor."""
        kind = "siglip" if "siglip" in model.vision_encoder.hf_config.model_type else "clip"
        return model.preprocessing.to_hf(kind)

    def preprocessing(self, path: Path, config: Any) -> Preprocessing:
        """How a folder says that pictures become tiles and pixels."""
        del config
        return preprocessing_of(path)

    def picture_marks(self, tokenizer: Any) -> tuple[str, str] | None:
        """Tokens that the layout's processor puts around every picture."""
        del tokenizer
        return None

    def marked(self, tokenizer: Any) -> None:
        """Tell an exported tokenizer what the layout's processor asks it for."""
        del tokenizer

    # -- leaving ------------------------------------------------------------------------------

    def outputs(self, model: Vlm) -> list[Tensor]:
        """Logits of every probe."""
        return comparison.logits_of_probes(model, comparison.probes(model))

    def export(self, model: Vlm, out: Path) -> ExportReport:
        """Write `model` to the empty folder `out` and compare."""
        weights = self.write(model, out)
        try:
            reference = self.reference(self.class_name, out, model.device, settled=True)
        except CheckpointError as error:
            raise ExportMismatch(error.what, where=error.where) from error
        report = comparison.compare(model, reference, self.name)
        report.notes += reference.notes
        loaded = reference.module.state_dict()
        for name, tensor in self.renamed(weights, "published", "loaded").items():
            if not torch.equal(loaded[name].cpu(), tensor.float()):
                report.problems.append(f"the weight {name} is not what was written")
        if model.chat_encoder.adds_begin and not model.chat_encoder.begin_can_be_written:
            report.notes.append(
                f"the tokenizer itself writes {model.tokenizer.bos_token} before a conversation: "
                "servers that tokenise a rendered chat without special tokens must be told to add "
                "them"
            )
        if reference.stop_ids != model.chat_encoder.stop_ids():
            report.problems.append("generation stops at other tokens")
        if model.vision_encoder.hf_config.model_type not in self.known_towers:
            report.notes.append(
                "transformers reads this encoder; servers may know no other than "
                f"{' and '.join(self.known_towers)}"
            )
        return report

    def compare(self, model: Vlm, path: Path) -> ExportReport:
        """Hold `model` (float32) against a folder."""
        reference = self.reference(self.class_name, path, model.device, settled=False)
        report = comparison.compare(model, reference, self.name)
        report.notes += reference.notes
        return report

    def write(self, model: Vlm, out: Path) -> dict[str, Tensor]:
        """Write every file; the weights under their published names, as they were written.

        Raises:
            ConfigError: the layout cannot hold a part of the model.
        """
        self._refuse_others(model)
        layer, strategy, num_prefix = self.tower(model)
        projector, activation = self.projector(model)
        tokenizer = self._tokenizer(model)
        image_token = tokenizer.convert_tokens_to_ids(self.image_mark)

        tensors = {n: t for n, t in unique_tensors(model).items() if not n.startswith("connector.")}
        tensors |= {f"connector.{n}": t for n, t in projector.items()}
        tensors = names.grown(self.renamed(tensors, "diptych", "published"), image_token)
        dtype = getattr(torch, model.config.language_model.dtype)
        tensors = {n: t.to(dtype) for n, t in tensors.items()}
        wrap = model.vision_encoder.hf_config.model_type in WRAPPED_TOWERS
        save_tensors(
            {names.wrapped(n) if wrap else n: t for n, t in tensors.items()},
            out / "model.safetensors",
        )

        rows = tensors["language_model.model.embed_tokens.weight"].shape[0]
        own = self.own_config(model, image_token, layer, strategy)
        self._write_config(model, {**own, "projector_hidden_act": activation}, rows, dtype, out)
        _write_generation_config(model, tokenizer, out)
        tokenizer.save_pretrained(out)
        pixels = self.image_processor(model)
        named = {"processor_class": self.processor_name}
        write_json(out / "preprocessor_config.json", {**pixels, **named})
        processor = self.processor(model, num_prefix, strategy)
        write_json(out / "processor_config.json", {**named, **processor})
        (out / "README.md").write_text(self._card(model), encoding="utf-8")
        return tensors

    def renamed(
        self, tensors: Mapping[str, Tensor], source: Names, target: Names
    ) -> dict[str, Tensor]:
        """The same tensors under the names of another column of `keys`."""
        return names.renamed(self.keys, tensors, source, target)

    def _refuse_others(self, model: Vlm) -> None:
        if model.language_model.is_encoder_decoder:
            raise ConfigError(
                "the layout holds decoder-only language models, this one has an encoder of its own",
                where="model.language_model",
                fix="keep the Diptych folder, or compose with a causal language model",
            )

    @torch.no_grad()
    def tower(self, model: Vlm) -> tuple[int, str, int]:
        """(vision_feature_layer, vision_feature_select_strategy, tokens before the patches).

        Raises:
            ConfigError: the class cannot select these features.
        """
        encoder = model.vision_encoder
        height, width = encoder.preprocessing.image_size
        weight = next(encoder.parameters())
        pixels = torch.rand(1, 3, height, width, device=weight.device, dtype=weight.dtype)
        output = encoder.module(pixel_values=pixels, output_hidden_states=True)
        states = output.last_hidden_state
        patch = getattr(encoder.hf_config, "patch_size", None)
        square = isinstance(patch, int) or (patch is not None and len(set(patch)) == 1)
        if states.ndim != 3 or not square:
            raise ConfigError(
                f"the layout holds vision transformers with square patches, not a "
                f"{encoder.hf_config.model_type} encoder",
                where="model.vision_encoder",
                fix="keep the Diptych folder, or compose with CLIP, SigLIP or another ViT",
            )
        layer = encoder.config.layer
        if layer is None:
            if not torch.equal(states, output.hidden_states[-1]):
                raise ConfigError(
                    "the model reads the encoder's output after its final normalisation, the "
                    "layout can only name hidden states, the last of which lies before it",
                    where="model.vision_encoder.layer",
                    fix="train with model.vision_encoder.layer=-1 (or -2, as LLaVA does)",
                )
            layer = -1
        num_prefix = states.shape[1] - encoder.grid[0] * encoder.grid[1]
        if encoder.config.features == "full" or num_prefix == 0:
            return layer, "full", num_prefix
        if num_prefix == 1:
            return layer, "default", num_prefix
        raise ConfigError(
            f"the encoder has {num_prefix} class and register tokens, the layout can leave out one",
            where="model.vision_encoder.features",
            fix="train with model.vision_encoder.features=full",
        )

    def _tokenizer(self, model: Vlm) -> Any:
        """A copy that knows the image mark and has the template for parts."""
        from transformers import AddedToken

        tokenizer = copy.deepcopy(model.tokenizer)
        if self.image_mark not in tokenizer.added_tokens_encoder:
            mark = AddedToken(self.image_mark, special=True, normalized=False)
            tokenizer.add_tokens([mark], special_tokens=True)
        encoder = model.chat_encoder
        tokenizer.chat_template = for_parts(
            encoder.template or "",
            encoder.joint or "line",
            begin=encoder.adds_begin and encoder.begin_can_be_written,
            mark=self.image_mark,
        )
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer("a").input_ids[len(encoder.begin) :] != tokenizer.encode(
            "a", add_special_tokens=False
        ):
            # Behind a prompt comes the answer: nothing ends it.
            tokenizer.add_eos_token = False
        self.marked(tokenizer)
        return tokenizer

    def _write_config(
        self, model: Vlm, values: dict[str, Any], rows: int, dtype: torch.dtype, out: Path
    ) -> None:
        import transformers

        text_config: Any = copy.deepcopy(model.language_model.hf_config)
        text_config.vocab_size = rows
        vision_config: Any = copy.deepcopy(model.vision_encoder.hf_config)
        text_config.dtype = vision_config.dtype = dtype
        config = getattr(transformers, self.config_name)(
            vision_config=vision_config,
            text_config=text_config,
            tie_word_embeddings=text_config.tie_word_embeddings,
            **values,
        )
        config.architectures = [self.class_name]
        config.dtype = dtype
        config.save_pretrained(out)
        written = json.loads((out / "config.json").read_text(encoding="utf-8"))
        rope = written["text_config"].get("rope_parameters") or {}
        if "rope_theta" in rope:
            # Readers before transformers 5 know this key only, and take 10000 without it.
            written["text_config"]["rope_theta"] = rope["rope_theta"]
        if words := model.config.language_model.answer_tokens:
            written[_OWN] = {"answer_tokens": list(words)}
        write_json(out / "config.json", written)

    def _card(self, model: Vlm) -> str:
        tile = "" if model.arrangement.is_fixed else " tile"
        return (
            "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n---\n"
            "# A vision-language model composed with Diptych\n\n"
            f"`{self.class_name}`; exported after its logits and greedy tokens were "
            "found equal to the original's.\n"
            f"One picture{tile and chr(39) + 's'}{tile} takes {model.tokens_per_image} tokens.\n"
        )

    # -- coming in ----------------------------------------------------------------------------

    def load(self, path: Path) -> Vlm:
        """The model of a folder in this layout.

        The row of the image mark stays in the embeddings, where nothing looks it up.
        """
        _, config = self._read_config(path)
        module = open_class(self.class_name, path, "auto")
        tensors = self.renamed(module.state_dict(), "loaded", "diptych")
        connector, projector = self.connector(tensors, config, path / "config.json")
        tensors = {n: t for n, t in tensors.items() if not n.startswith("connector.")} | projector
        del module
        own = self._composed(path, connector)
        with without_weights():
            model = build(own)
        _fill(model, tensors, path)
        if config.vision_feature_select_strategy == "default" and self.tower(model)[2] != 1:
            raise CheckpointError(
                "it leaves out the first token of an encoder that has not one class token",
                where=f"{path / 'config.json'}: vision_feature_select_strategy",
            )
        return model

    def described(self, path: Path) -> VlmConfig:
        """What it is composed of, from its configs alone."""
        _, config = self._read_config(path)
        return self._composed(path, self.described_connector(config))

    def _read_config(self, path: Path) -> tuple[dict[str, Any], Any]:
        """config.json of a folder as it stands and as transformers reads it.

        Raises:
            CheckpointError: another kind of model, or one that joins several vision layers.
        """
        import transformers

        file = path / "config.json"
        values = read_json(file) if file.is_file() else {}
        if values.get("model_type") != self.model_type:
            raise CheckpointError(
                f"the folder is no {self.title} model (model_type {values.get('model_type')!r})",
                where=str(path),
                fix=f"name a folder that {self.class_name} can read",
            )
        with reading(path, self.name):
            config = getattr(transformers, self.config_name).from_pretrained(path)
        if not isinstance(config.vision_feature_layer, int):
            raise CheckpointError(
                f"it joins several vision layers ({config.vision_feature_layer}); Diptych reads "
                "one",
                where=f"{file}: vision_feature_layer",
            )
        return values, config

    def _composed(self, path: Path, connector: dict[str, Any]) -> VlmConfig:
        values, config = self._read_config(path)
        kept = values.get("dtype") or values.get("torch_dtype")
        dtype: Literal["float32", "bfloat16"] = "bfloat16" if kept == "bfloat16" else "float32"
        text_config = plain_config(config.text_config)
        text_config["tie_word_embeddings"] = bool(config.tie_word_embeddings)
        template, joint, tokenizer = read_template(path, self.image_mark)
        return VlmConfig(
            vision_encoder=VisionEncoderConfig(
                config=plain_config(config.vision_config),
                layer=self.layer_read(config),
                features="full" if config.vision_feature_select_strategy == "full" else "patch",
                dtype=dtype,
                image=self.preprocessing(path, config),
            ),
            connector=connector,
            language_model=LanguageModelConfig(
                config=text_config,
                tokenizer=str(path),
                template=template,
                picture_joint=joint,
                picture_marks=self.picture_marks(tokenizer),
                answer_tokens=tuple(values.get(_OWN, {}).get("answer_tokens", ())),
                dtype=dtype,
            ),
        )

    def layer_read(self, config: Any) -> int | None:
        """The hidden state that the encoder's config names."""
        return config.vision_feature_layer


def _write_generation_config(model: Vlm, tokenizer: Any, out: Path) -> None:
    from transformers import GenerationConfig

    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(model.chat_encoder.stop_ids()),
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(out)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Indented JSON with a final newline."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _fill(model: Vlm, tensors: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    if differ := sorted(set(own) ^ set(tensors)):
        raise CheckpointError(
            f"{len(differ)} weights have no counterpart, for example {differ[0]}", where=str(path)
        )
    adopt(model, tensors)


def shapes(sizes: Sequence[tuple[int, int]]) -> Tensor:
    """(width, height) of pictures as transformers counts them: int64 [N, 2], height first."""
    return torch.tensor([[height, width] for width, height in sizes])
