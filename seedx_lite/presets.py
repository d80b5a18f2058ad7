"""Every size and budget, in four presets: smoke < lite < gpu < seedx-17b.

A preset is one YAML file, read with OmegaConf into frozen dataclasses. Any entry can be changed from outside as
`key=value`, with dots for depth: `load_preset("lite", ["vit.layers=6", "training.vit.steps=100"])`. A file of your own
may say `base: lite` and then only what differs.
"""

import difflib
import math
import typing
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

PRESETS = ("smoke", "lite", "gpu", "seedx-17b")
PRESET_FOLDER = Path(__file__).with_name("presets")


@dataclass(frozen=True)
class ViTConfig:
    """Arguments of `VisionTransformerWithAttnPool`: a picture becomes `n_queries` tokens of `output_dim`."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float
    n_queries: int
    output_dim: int
    pool_heads: int  # heads of the attention pooling: output_dim // 128 in the official code

    def __post_init__(self):
        for key, part in (("image_size", "patch_size"), ("width", "heads"), ("output_dim", "pool_heads")):
            n, d = getattr(self, key), getattr(self, part)
            _require(d > 0 and n > 0 and n % d == 0, f"vit.{key}={n} is not a multiple of vit.{part}={d}")
        square = math.isqrt(max(self.n_queries, 0)) ** 2
        _require(square == self.n_queries, f"vit.n_queries={self.n_queries}: expected a square, like 256")


@dataclass(frozen=True)
class TextConfig:
    """Sizes of one CLIP text encoder, under the names of `CLIPTextConfig`."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    projection_dim: int
    max_position_embeddings: int


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of `AutoencoderKL`; a picture shrinks by two between neighbouring blocks."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int

    @property
    def factor(self) -> int:
        """Picture size over latent size."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def kwargs(self) -> dict[str, Any]:
        """Arguments of `AutoencoderKL`."""
        n = len(self.block_out_channels)
        types = {"down_block_types": ("DownEncoderBlock2D",) * n, "up_block_types": ("UpDecoderBlock2D",) * n}
        return asdict(self) | types


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the SDXL-type `UNet2DConditionModel`; `Preset.unet_kwargs` adds what other parts decide."""

    sample_size: int  # latent pixels along one side
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    transformer_layers_per_block: tuple[int, ...]
    attention_head_dim: tuple[int, ...]  # the NUMBER of heads per block: SDXL's config.json misnames it too
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    addition_time_embed_dim: int
    norm_num_groups: int
    use_linear_projection: bool = True

    def __post_init__(self):
        n = len(self.block_out_channels)
        for key in ("transformer_layers_per_block", "attention_head_dim", "down_block_types", "up_block_types"):
            _require(len(getattr(self, key)) == n, f"unet.{key}: expected {n} entries, one per block")


@dataclass(frozen=True)
class ResamplerXLConfig:
    """Sizes of `ResamplerXLV2`; `Preset.resampler_kwargs` adds its input and output widths."""

    dim: int
    depth: int
    dim_head: int
    heads: int
    num_queries: int
    ff_mult: int


@dataclass(frozen=True)
class ReaderConfig:
    """Sizes of a `SceneReader`."""

    backbone: str  # "convolution" or "transformer"
    width: int
    layers: int


@dataclass(frozen=True)
class LLMConfig:
    """Sizes of `LlamaForCausalLM`, under the names of `LlamaConfig`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5


@dataclass(frozen=True)
class MLLMConfig:
    """What `ContinuousLVLM` has beside its language model; LoRA as the official code has it."""

    heads: int  # of both resamplers
    input_tokens: int = 64  # positions that a picture takes which is read, a square number
    lora_r: int = 32
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    files: dict[str, float] = field(default_factory=dict)  # files or folders of own samples: share of pre-training,
    chat_files: dict[str, float] = field(default_factory=dict)  # … of the tuning on dialogues,
    edit_files: dict[str, float] = field(default_factory=dict)  # … and of that on edits

    def __post_init__(self):
        square = math.isqrt(max(self.input_tokens, 0)) ** 2
        _require(square == self.input_tokens > 0, f"mllm.input_tokens={self.input_tokens}: expected a square, like 64")
        for name in ("files", "chat_files", "edit_files"):
            shares = getattr(self, name)
            _require(sum(shares.values()) < 0.9, f"mllm.{name}={shares}: expected shares that sum to less than 0.9")

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the weights of any training, but for the files."""
        return {key: value for key, value in vars(self).items() if not key.endswith("files")}


@dataclass(frozen=True)
class DataConfig:
    """Number of scenes in each split."""

    train_scenes: int
    validation_scenes: int
    test_scenes: int
    reader_scenes: int = 24_000  # training scenes of the scene readers
    second_scenes: int | None = None  # training scenes of second phases, if more than of the first

    def __post_init__(self):
        for key, count in vars(self).items():
            _require(count is None or count > 0, f"data.{key}={count}: expected 1 or more")
        _require(self.second >= self.train_scenes, f"data.second_scenes={self.second}: expected train_scenes or more")

    @property
    def second(self) -> int:
        """Number of training scenes of a second phase."""
        return self.second_scenes or self.train_scenes


@dataclass(frozen=True)
class TrainConfig:
    """One training run: how long, how fast, how careful."""

    steps: int
    batch_size: int  # of all processes together
    learning_rate: float
    warmup_steps: int = 0
    schedule: str = "cosine"  # or "constant"
    min_lr_ratio: float = 0.05  # where the cosine ends, as a share of learning_rate
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    ema_decay: float = 0.0  # 0 switches the moving average off
    precision: str = "bf16"  # autocast; or "fp32"
    checkpoint_seconds: float = 120.0
    spike_factor: float = 10.0  # stop when the loss exceeds its running median this many times
    compile: bool = False  # torch.compile: quicker steps, after some minutes before the first

    def __post_init__(self):
        for key in ("steps", "batch_size"):
            _require(getattr(self, key) > 0, f"{key}={getattr(self, key)}: expected 1 or more")
        for key, known in (("schedule", ("cosine", "constant")), ("precision", ("bf16", "fp32"))):
            value = getattr(self, key)
            _require(value in known, f"{key}={value}: expected {' or '.join(known)}")
        _require(0 <= self.ema_decay < 1, f"ema_decay={self.ema_decay}: expected 0 (off) up to, not including, 1")
        _require(self.learning_rate > 0, f"learning_rate={self.learning_rate}: expected more than 0")
        for key in ("warmup_steps", "min_lr_ratio", "weight_decay", "clip_norm", "checkpoint_seconds", "spike_factor"):
            _require(getattr(self, key) >= 0, f"{key}={getattr(self, key)}: expected 0 or more")

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the weights; how often to save, when to give up and how to compute do not."""
        return {k: v for k, v in asdict(self).items() if k not in ("checkpoint_seconds", "spike_factor", "compile")}


@dataclass(frozen=True)
class TextToImageConfig:
    """What the text-to-image U-Net is taught, and by which words; see `training.foundations`."""

    prediction_type: str = "v_prediction"  # or "epsilon"
    captions: dict[str, float] = field(  # shares of the kinds of captions
        default_factory=lambda: {"full": 0.4, "partial": 0.1, "one_thing": 0.1, "grounded": 0.4}
    )
    places: float = 0.1  # weight of the places that are read from the queries of the cross-attention
    # Of the second phase (`training.sdxl_words`):
    words: float = 0.1  # weight of looking at the words on what is there
    people: float = 2.0  # how often scenes with people are drawn, against others

    def __post_init__(self):
        told = f"prediction_type={self.prediction_type}: expected v_prediction or epsilon"
        _require(self.prediction_type in ("v_prediction", "epsilon"), told)


@dataclass(frozen=True)
class TrainingConfigs:
    """The training run of each stage."""

    vit: TrainConfig
    vae: TrainConfig
    sdxl: TrainConfig
    detokenizer: TrainConfig
    reader: TrainConfig
    reader_2: TrainConfig
    llama: TrainConfig | None = None
    llama_answers: TrainConfig | None = None  # goes on where `llama` ended, with a lesson on answering
    mllm: TrainConfig | None = None
    sft_chat: TrainConfig | None = None
    sft_edit: TrainConfig | None = None
    vit_dense: TrainConfig | None = None  # goes on where `vit` ended, with frozen text encoders
    sdxl_words: TrainConfig | None = None  # goes on where `sdxl` ended, with a lesson on words
    detokenizer_edits: TrainConfig | None = None  # stage 2: goes on where `detokenizer` ended, with condition images
    cell: TrainConfig | None = None  # one de-tokenizer of an ablation, stage 1
    cell_edits: TrainConfig | None = None  # the same of stage 2, which goes on from the main model
    cell_mllm: TrainConfig | None = None  # one language model of an ablation
    cell_tuned: TrainConfig | None = None  # one tuning of the main de-tokenizer


@dataclass(frozen=True)
class Preset:
    """Everything that has a size; made by `load_preset`."""

    name: str
    image_size: int  # side of the pictures that are drawn, px
    vit: ViTConfig
    text_encoder: TextConfig
    text_encoder_2: TextConfig
    vae: VAEConfig
    unet: UNetConfig
    resampler: ResamplerXLConfig
    data: DataConfig
    training: TrainingConfigs
    reader: ReaderConfig
    reader_2: ReaderConfig
    text_to_image: TextToImageConfig = field(default_factory=TextToImageConfig)
    n_embeddings: int = 64  # N, the visual embeddings that are left after pooling
    llm: LLMConfig | None = None
    mllm: MLLMConfig | None = None
    ablation_seeds: int = 5  # of each variant in an ablation, at most

    def __post_init__(self):
        n, tokens = self.n_embeddings, self.vit.n_queries
        _require(n > 0 and tokens % n == 0, f"n_embeddings={n}: expected a divisor of vit.n_queries={tokens}")
        latent = self.image_size / self.vae.factor
        _require(latent == self.unet.sample_size, f"unet.sample_size: expected {latent:g}, the size of a latent")
        pooled, width = self.text_encoder_2.projection_dim, self.text_encoder_2.hidden_size
        _require(pooled == width, f"text_encoder_2.projection_dim={pooled}: expected its hidden_size, {width}")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures, px."""
        return (self.image_size, self.image_size)

    @property
    def unet_kwargs(self) -> dict[str, Any]:
        """Arguments of `UNet2DConditionModel`."""
        first, second, latent = self.text_encoder, self.text_encoder_2, self.vae.latent_channels
        return asdict(self.unet) | {
            "in_channels": latent,
            "out_channels": latent,
            "cross_attention_dim": first.hidden_size + second.hidden_size,
            "addition_embed_type": "text_time",
            "projection_class_embeddings_input_dim": second.projection_dim + 6 * self.unet.addition_time_embed_dim,
        }

    @property
    def resampler_kwargs(self) -> dict[str, int]:
        """Arguments of `ResamplerXLV2`."""
        return asdict(self.resampler) | {
            "embedding_dim": self.vit.output_dim,
            "output1_dim": self.text_encoder.hidden_size,
            "output2_dim": self.text_encoder_2.hidden_size,
        }

    @property
    def mllm_kwargs(self) -> dict[str, Any]:
        """Arguments of `ContinuousLVLMConfig`, but for the ids of the tokenizer. Raises ValueError for a preset without
        `llm` or `mllm`, and for a number of embeddings that is no square, as the output resampler's queries are."""
        for key, value in (("llm", self.llm), ("mllm", self.mllm)):
            _require(value is not None, f"preset {self.name} has no `{key}`; give its entries")
        grid, n = math.isqrt(self.n_embeddings), self.n_embeddings
        _require(grid**2 == n, f"n_embeddings={n}: the language model draws a square number, like 64 or 256")
        inner, outer, heads = self.llm.hidden_size, self.vit.output_dim, {"num_heads": self.mllm.heads}
        into = {"grid_size": math.isqrt(self.mllm.input_tokens), "embed_dim": inner, "kv_dim": outer}
        out = {"grid_size": grid, "embed_dim": outer, "kv_dim": inner}
        return {"llm": asdict(self.llm), "input_resampler": into | heads, "output_resampler": out | heads}

    @property
    def lora_kwargs(self) -> dict[str, Any]:
        """Arguments of `ContinuousLVLM.add_lora`."""
        return {"r": self.mllm.lora_r, "lora_alpha": self.mllm.lora_alpha, "lora_dropout": self.mllm.lora_dropout}


def load_preset(name_or_path: str | Path = "lite", overrides: Iterable[str] = ()) -> Preset:
    """Read a preset by name, or a YAML file by path, and apply `key=value` overrides. Raises FileNotFoundError for no
    such preset or file, and ValueError that names the key: unknown, of a wrong type, or a size that does not fit."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    parts = [(f"preset {name_or_path}", part) for part in _read(name_or_path)]
    for item in overrides:
        _require("=" in item.lstrip("="), f"override {item!r}: expected key=value, like training.vit.steps=9")
        parts.append((f"override {item!r}", OmegaConf.from_dotlist([item])))
    merged, where = OmegaConf.structured(Preset), ""
    try:
        for where, part in parts:
            _check_keys(OmegaConf.to_container(part), where)
            merged = OmegaConf.merge(merged, part)
        return OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ValueError(f"{where}: {error.full_key} has no value, and there is no `base:`") from None
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ValueError(f"{where}: {key}{str(error).splitlines()[0]}") from None


def _read(name_or_path: str | Path, seen: tuple[str, ...] = ()) -> list[Any]:
    """The YAML file of a preset, preceded by those it builds on (`base:`)."""
    from omegaconf import DictConfig, OmegaConf

    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if str(path) not in PRESETS:
            raise FileNotFoundError(f"no preset {path}{_hint(str(path), PRESETS)}, or the path of a .yaml file")
        path = PRESET_FOLDER / f"{path}.yaml"
    try:
        part = OmegaConf.load(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"no preset file {path}: expected a .yaml file or one of {PRESETS}") from None
    except Exception as error:  # the YAML reader has many classes of its own
        raise ValueError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    _require(isinstance(part, DictConfig), f"{path}: expected lines of `key: value`")
    part.setdefault("name", path.stem)
    base = part.pop("base", None)
    if base and Path(base).suffix in (".yaml", ".yml"):
        base = path.parent / base  # as the file says it, wherever it is read from
    _require(str(path.resolve()) not in seen, f"{path} is its own base, by way of {', '.join(seen)}; name another")
    return [*(_read(base, (*seen, str(path.resolve()))) if base else []), part]


def _check_keys(part: dict[str, Any], where: str, kind: type = Preset, prefix: str = "") -> None:
    """Raise on a key that `kind` lacks, with more help than OmegaConf gives."""
    types = typing.get_type_hints(kind)
    for key, value in part.items():
        _require(key in types, f"{where}: no key {prefix}{key}{_hint(str(key), list(types), prefix)}")
        inner = next((t for t in (types[key], *typing.get_args(types[key])) if is_dataclass(t)), None)
        if inner and isinstance(value, dict):
            _check_keys(value, where, inner, f"{prefix}{key}.")
        elif inner:
            names = ", ".join(f"{prefix}{key}.{entry.name}" for entry in fields(inner))
            _require(value is None, f"{where}: {prefix}{key} is a group: set {names}")


def _hint(word: str, known: Sequence[str], prefix: str = "") -> str:
    """End of an error message: what may have been meant, and all that is valid."""
    close = [prefix + name for name in difflib.get_close_matches(word, known, n=2)]
    valid = f" Valid{' under ' + prefix[:-1] if prefix else ''}: {', '.join(known)}"
    return (f", did you mean {' or '.join(close)}?" if close else ";") + valid


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
