"""The multimodal language model (paper §3.3): LLaMA between two resamplers, to read and draw visual embeddings.

Axes: B samples, L positions, D channels of the language model, M pictures (or sub-images) of the whole batch, T tokens
of a picture from the vision encoder, K their channels, R positions of a picture that is read, N of one that is drawn,
Q visual embeddings that are predicted for it, V vocabulary.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .generation import Generated, generate
from .resamplers import DeepResampler, FlowResampler, Resampler
from .vit import pool_embeddings
from .weights import CONFIG, WEIGHTS, check_keys, load_tensors

IGNORED = -100  # the label of a position that is not trained
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA_NORMS = ("input_layernorm", "post_attention_layernorm", "norm")
FROZEN = {"base_layer", "original_module"}  # in the names of what LoRA and its copies of norms stand for


class ContinuousLVLMConfig(PreTrainedConfig):
    """Sizes and settings of `ContinuousLVLM`.

    Args:
        llm: a `LlamaConfig` or its entries.
        input_resampler, output_resampler: arguments of `Resampler`: T tokens of K channels → R = grid_size² of D, and
            N hidden states of D → Q = grid_size² of K. The targets are pooled to Q. With `depth` or `width` among
            them the output resampler is a `DeepResampler`, and with `flow=True` a `FlowResampler`.
        target_mean, target_std: of the pooled targets, K each: they are standardised by these in the loss, and what is
            predicted is scaled back in generation.
        lm_loss_scale, rec_loss_scale, mse: weights of the two losses; squared error, or else cosine.
        add_patch_pos: tell the model where a sub-image lies.
        boi_token_id, image_token_ids, eoi_token_id: `<img>`, the N tokens that are drawn, `</img>`; for generation.
        unused_token_ids: image tokens beyond N, which are never said.
        lora: settings of `add_lora`, once that was called.
        official: generation as in the released code, see `generation.py`.
        base, base_hash: of a folder after `leave_out_base`, where the weights are that were not trained, and which.
    """

    model_type = "seedx_lvlm"
    sub_configs_defaults = {"llm": LlamaConfig}  # noqa: RUF012  (a declaration that the base class reads)

    llm: dict | PreTrainedConfig | None = None
    input_resampler: dict = field(default_factory=dict)
    output_resampler: dict = field(default_factory=dict)
    lm_loss_scale: float = 1.0
    rec_loss_scale: float = 6.0
    mse: bool = True
    add_patch_pos: bool = True
    boi_token_id: int | None = None
    image_token_ids: list[int] = field(default_factory=list)
    eoi_token_id: int | None = None
    unused_token_ids: list[int] = field(default_factory=list)
    lora: dict | None = None
    official: bool = False
    target_mean: list[float] | None = None
    target_std: list[float] | None = None
    base: str | None = None
    base_hash: str | None = None

    @property
    def chain(self) -> list[int]:
        """`<img>`, the N image tokens, `</img>`. Raises ValueError where they are not set."""
        chain = [self.boi_token_id, *self.image_token_ids, self.eoi_token_id]
        if None in chain or len(chain) < 3:
            raise ValueError(f"boi_token_id, image_token_ids, eoi_token_id are {chain}: set them in the configuration")
        return chain


@dataclass
class LVLMOutput(ModelOutput):
    """Losses of a batch: `loss` is the weighted sum. The hidden states are those after the last norm."""

    loss: Tensor | None = None
    lm_loss: Tensor | None = None
    rec_loss: Tensor | None = None
    last_hidden_state: Tensor | None = None  # [B, L, D]
    image_embeds: Tensor | None = None  # [pictures that are drawn, Q, K], predicted; not by flow matching


class ContinuousLVLM(PreTrainedModel):
    """Reads pictures in place of image tokens, and predicts the pooled visual embeddings of those it draws.

    Official `src/models/mllm/seed_x.py`, same parameter names. A picture that is read takes R positions, whose inputs
    come from `input_resampler`; one that is drawn takes N, whose inputs are the embeddings of the image tokens (learned
    queries) and whose hidden states become Q visual embeddings in `output_resampler`.
    """

    config: ContinuousLVLMConfig
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = True

    def __init__(self, config: ContinuousLVLMConfig) -> None:
        super().__init__(config)
        self.llm = LlamaForCausalLM(config.llm)
        self.input_resampler = Resampler(**config.input_resampler)
        out = dict(config.output_resampler)
        self.flow = out.pop("flow", False)
        kind = FlowResampler if self.flow else DeepResampler if {"depth", "width"} & out.keys() else Resampler
        self.output_resampler = kind(**out)
        if config.add_patch_pos:
            width = config.llm.hidden_size
            self.patch_pos_embed = nn.Parameter(torch.randn(4, width) / width**0.5)
        self.post_init()
        if config.lora is not None:  # after the initialisation, which would make B of LoRA random
            self._wrap_llm(**config.lora)

    # Forward pass

    def embed(
        self,
        input_ids: Tensor,
        image_embeds: Tensor | None = None,
        embeds_cmp_mask: Tensor | None = None,
        ids_cmp_mask: Tensor | None = None,
        patch_positions: Tensor | None = None,
    ) -> Tensor:
        """What the language model reads, [B, L, D]: embeddings of the ids, with pictures where `ids_cmp_mask` says.

        Args as of `forward`; without `embeds_cmp_mask` all pictures are read. Raises ValueError unless there are R
        positions for each picture. Without pictures the resampler runs on none, so that every parameter has a gradient.
        """
        words = self.llm.get_input_embeddings()(input_ids)
        if image_embeds is None:
            image_embeds = words.new_zeros(0, 1, self.config.input_resampler["kv_dim"])
            embeds_cmp_mask, patch_positions = None, None
        if embeds_cmp_mask is None:
            embeds_cmp_mask = torch.ones(len(image_embeds), dtype=torch.bool, device=words.device)
        if ids_cmp_mask is None:
            ids_cmp_mask = torch.zeros_like(input_ids, dtype=torch.bool)
        pictures = self.input_resampler(image_embeds[embeds_cmp_mask].to(words))  # [M read, R, D]
        count, places = pictures.shape[:2]
        if (found := int(ids_cmp_mask.sum())) != count * places:
            wanted = f"{count} pictures are read and take {places} each"
            raise ValueError(f"ids_cmp_mask marks {found} positions, but {wanted}: use the layout of the same N")
        if self.config.add_patch_pos:
            told = patch_positions is not None
            x_y = patch_positions[embeds_cmp_mask].to(words) if told else words.new_zeros(count, 2)
            shares = torch.cat([x_y, 1 - x_y], dim=1) / 2 * told  # [M read, 4]
            pictures = pictures + (shares @ self.patch_pos_embed)[:, None]
        return words.masked_scatter(ids_cmp_mask[..., None], pictures.to(words))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        image_embeds: Tensor | None = None,
        embeds_gen_mask: Tensor | None = None,
        embeds_cmp_mask: Tensor | None = None,
        ids_gen_mask: Tensor | None = None,
        ids_cmp_mask: Tensor | None = None,
        patch_positions: Tensor | None = None,
    ) -> LVLMOutput:
        """Losses of a batch, which may mix reading, drawing and text alone.

        Args:
            input_ids, attention_mask, labels: [B, L], padded on the right; the label of a token stands at its own
                place, -100 where it is not trained.
            image_embeds: [M, T, K], unpooled, of all pictures in the order of their tokens.
            embeds_cmp_mask, embeds_gen_mask: bool [M], the pictures that are read and those that are drawn.
            ids_cmp_mask, ids_gen_mask: bool [B, L], the positions of the same.
            patch_positions: [M, 2], centres (x, y) in 0..1; without them no position is told.

        Raises ValueError where positions and pictures do not match, and where no label is trained (official: NaN).
        """
        embeds = self.embed(input_ids, image_embeds, embeds_cmp_mask, ids_cmp_mask, patch_positions)
        decoder = self.llm.get_decoder()
        hidden = decoder(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False).last_hidden_state
        told = labels[:, 1:] != IGNORED
        if not self.config.official and not told.any():
            raise ValueError("no label of this batch is trained, all are -100: leave out such samples")
        logits = self.llm.get_output_embeddings()(hidden[:, :-1][told])  # [trained, V]
        lm_loss = F.cross_entropy(logits.float(), labels[:, 1:][told])

        queries, width = self.config.output_resampler["grid_size"] ** 2, self.config.output_resampler["embed_dim"]
        if image_embeds is None or embeds_gen_mask is None:
            target, drawn = hidden.new_zeros(0, queries, width), hidden[:0, :1]
        else:
            target = pool_embeddings(image_embeds[embeds_gen_mask], queries).detach()  # [M drawn, Q, K]
            drawn = _per_picture(hidden[ids_gen_mask], len(target))  # [M drawn, N, D]
        if self.config.target_mean is not None:
            mean, std = self._target_scale(target)
            target = (target - mean) / std
        predicted = None if self.flow else self.output_resampler(drawn)
        if self.flow:
            errors = self.output_resampler.errors(drawn.float(), target.float())
        elif self.config.mse:
            errors = (predicted.float() - target.float()).square()
        else:
            errors = 1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1)
        rec_loss = errors.sum() / max(errors.numel(), 1)  # the mean, and 0 with gradients of 0 for no picture
        loss = self.config.lm_loss_scale * lm_loss + self.config.rec_loss_scale * rec_loss
        return LVLMOutput(loss, lm_loss, rec_loss, hidden, predicted)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 120,
        force_image: bool = False,
        generator: torch.Generator | None = None,
        stream: Callable[[int, list[int]], None] | None = None,
        **shown: Tensor | None,
    ) -> list[Generated]:
        """The most likely answer to each prompt; see `generation.generate`, which tells of the errors.

        Args:
            input_ids, attention_mask: [B, L], padded on the left. A prompt that ends with `<img>` is drawn at once.
            max_new_tokens: per prompt, the tokens of pictures included.
            force_image: a prompt that is answered without a picture gets one after the text.
            generator: of the noise that flow matching begins with; regression has none.
            stream: called with the number of a prompt and its new ids, whenever there are some.
            shown: what the prompts show, as in `embed`: image_embeds, embeds_cmp_mask, ids_cmp_mask, patch_positions.
        """
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = self.embed(input_ids, **shown), attention_mask, input_ids[:, -1].tolist()
        options = {"max_new_tokens": max_new_tokens, "force_image": force_image, "stream": stream}
        options |= {"official": self.config.official, "never": self.config.unused_token_ids}
        draw = partial(self._draw, generator=generator)
        return generate(self.llm, draw, *prompts, self.config.chain, **options)

    def _draw(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Hidden states [·, N, D] → visual embeddings [·, Q, K], on the scale of the vision encoder."""
        resampler = self.output_resampler
        predicted = resampler.draw(hidden, generator) if self.flow else resampler(hidden)
        if self.config.target_mean is None:
            return predicted
        mean, std = self._target_scale(predicted)
        return predicted * std + mean

    def _target_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.config.target_mean), like.new_tensor(self.config.target_std)

    # LoRA

    def add_lora(self, r: int = 32, lora_alpha: int = 32, lora_dropout: float = 0.05) -> Self:
        """Train the language model by low-rank changes of its projections, official settings (`configs/clm_models/
        llm_seed_x_lora.yaml`): norms are trained as copies, token embeddings and head as they are. Changes this model
        in place and returns it. Raises ValueError where LoRA is there already."""
        if self.config.lora is not None:
            raise ValueError("LoRA is there already; merge_lora() first")
        self.config.lora = {"r": r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout}
        self._wrap_llm(**self.config.lora)
        return self

    def _wrap_llm(self, **settings: float) -> None:
        from peft import LoraConfig, get_peft_model

        names = {"target_modules": list(LORA_TARGETS), "modules_to_save": list(LORA_NORMS)}
        self.llm = get_peft_model(self.llm, LoraConfig(**names, **settings, task_type="CAUSAL_LM"))
        self.llm.train(self.training)  # its new dropout, too
        self._freeze()

    def _freeze(self) -> None:
        """With LoRA, leave out of training the matrices that it changes, and the norms that have copies."""
        for name, parameter in self.llm.named_parameters():
            parameter.requires_grad_(not _is_frozen(name))

    def merge_lora(self) -> Self:
        """Add the low-rank changes to the weights and leave a plain `LlamaForCausalLM`, all of it trained. Changes this
        model in place and returns it. Raises ValueError where there is no LoRA."""
        if self.config.lora is None:
            raise ValueError("there is no LoRA to merge; call add_lora() and train it")
        self.llm, self.config.lora = self.llm.merge_and_unload().requires_grad_(True), None
        return self

    # Files

    @classmethod
    def from_llm(cls, folder: str | Path, **settings) -> Self:
        """A new model around the language model in `folder`, which plain transformers wrote; `settings` are entries of
        `ContinuousLVLMConfig`. Float32, ready to be trained."""
        llm = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = cls(ContinuousLVLMConfig(llm=llm.config, **settings))
        model.llm.load_state_dict(llm.state_dict())
        return model

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args, **kwargs) -> Self:
        """Read a folder of `save_pretrained`, with transformers' arguments: eval mode. Raises FileNotFoundError, and
        ValueError that lists the keys where weights are missing, too many or of another shape."""
        if not (file := Path(folder, CONFIG)).is_file():
            raise FileNotFoundError(f"{file} is missing; give a folder of {cls.__name__}.save_pretrained")
        if json.loads(file.read_text()).get("base"):
            return cls._upon_base(Path(folder), **kwargs)
        settings = {"ignore_mismatched_sizes": True, "output_loading_info": True}  # they are reported below
        model, found = super().from_pretrained(folder, *args, **kwargs, **settings)
        reshaped = {f"{key} {list(there)} instead of {list(here)}" for key, there, here in found["mismatched_keys"]}
        check_keys(folder, cls.__name__, found["missing_keys"], found["unexpected_keys"], reshaped)
        model._freeze()  # which reading has forgotten
        return model

    @classmethod
    def _upon_base(cls, folder: Path, **kwargs) -> Self:
        """Read a folder of `leave_out_base`, upon its base; kwargs: dtype, attn_implementation."""
        config = cls.config_class.from_pretrained(folder)
        base, lora = folder / config.base, config.lora
        if not (base / CONFIG).is_file():
            raise FileNotFoundError(f"{base} is missing; {folder} holds only what was trained upon it: keep both")
        if _hash(base) != config.base_hash:
            raise ValueError(f"{base} has other weights than those that {folder} was trained upon; ship both anew")
        if json.loads((base / CONFIG).read_text())["model_type"] == cls.config_class.model_type:
            model = cls.from_pretrained(base, dtype=torch.float32)
            model = model if model.config.lora is None else model.merge_lora()
        else:
            config.lora = None
            model = cls(config)
            model.llm.load_state_dict(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict())
        model.add_lora(**lora)
        trained = {name for name in model.state_dict() if not _is_frozen(name)}
        load_tensors(model, load_file(folder / WEIGHTS), folder, required=trained)
        config.base, config.base_hash, config.lora, model.config = None, None, lora, config
        if attention := kwargs.get("attn_implementation"):
            model.set_attn_implementation(attention)
        return model.to(kwargs.get("dtype", torch.float32)).eval()


def leave_out_base(folder: Path, base: str) -> None:
    """Leaves in a folder of `ContinuousLVLM.save_pretrained` only what was trained. The other weights, which LoRA and
    the copies of norms stand for, are read from `base`, a folder relative to this one: a `LlamaForCausalLM`, or another
    `ContinuousLVLM`, whose LoRA is merged first. Raises ValueError for a model without LoRA."""
    config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    if not config.get("lora"):
        raise ValueError(f"{folder} is of a model without LoRA: all of it was trained")
    save_file({k: v for k, v in tensors.items() if not _is_frozen(k)}, folder / WEIGHTS, metadata={"format": "pt"})
    config |= {"base": base, "base_hash": _hash(folder / base)}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _hash(folder: Path) -> str:
    """Of the weights in a folder."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:16]


def _is_frozen(name: str) -> bool:
    return bool(FROZEN & set(name.split(".")))


def _per_picture(hidden: Tensor, pictures: int) -> Tensor:
    """Hidden states of all image tokens [·, D] → [pictures, N, D]. Raises ValueError where they do not divide."""
    if len(hidden) % max(pictures, 1) or (len(hidden) > 0) != (pictures > 0):
        raise ValueError(f"ids_gen_mask marks {len(hidden)} positions, for {pictures} pictures that are drawn")
    return hidden.unflatten(0, (pictures, -1)) if pictures else hidden[:, None]
