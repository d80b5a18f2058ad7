"""Model cards: a README.md in every folder of weights that is shipped, written from what was measured."""

import json
from functools import reduce
from pathlib import Path
from typing import Any

from seedx_lite.artifacts import project_path, read_manifest
from seedx_lite.evaluation.records import load_record, training_minutes

ABOUT = {
    "vit": (
        "Visual tokenizer with text encoders",
        "Turns a picture into visual embeddings; the text encoders match captions with them.",
        'VisionTransformerWithAttnPool.from_pretrained("{folder}")  # seedx_lite.models.vit',
        "It has seen this world only. Small parts, and places once tokens are averaged, are told less surely.",
    ),
    "sdxl": (
        "Text to image, and the VAE",
        "An SDXL-type pipeline: two CLIP text encoders, U-Net, VAE. Plain diffusers opens it.",
        'pipe = StableDiffusionXLPipeline.from_pretrained("{folder}")  # plain diffusers\n'
        'pipe("a red cat on the left, on grass by day", height=64, width=64, guidance_scale=3.0).images[0]',
        "It knows the words of `world/language.py`. Plain diffusers takes other words for `<unk>` and does not say so.",
    ),
    "llama": (
        "Language model of the world's language",
        "A LLaMA with a word-level tokenizer that already has SEED-X's image tokens, locations and marks.",
        'LlamaForCausalLM.from_pretrained("{folder}")  # transformers; this package is not needed',
        "It has read about scenes and seen none. Image tokens mean nothing to it yet.",
    ),
    "reader": (
        "Scene reader",
        "Reads a picture back into a scene: the instrument by which pictures are measured.",
        'SceneReader.from_pretrained("{folder}")  # seedx_lite.models.scene_reader',
        "It knows the eight kinds of this world. Of other pictures its readings mean nothing.",
    ),
    "reader_2": (
        "Second scene reader",
        "Of another architecture than the first, to notice pictures that only one of them can read.",
        'SceneReader.from_pretrained("{folder}")  # seedx_lite.models.scene_reader',
        "As the first.",
    ),
    "detokenizer-stage1": (
        "De-tokenizer, stage 1",
        "Resampler, keys and values that make the U-Net of `sdxl` draw from visual embeddings.",
        'DetokenizerPipeline.from_artifacts(vit=…, sdxl=…, adapter="{folder}")  # seedx_lite.pipelines.detokenizer',
        "Kinds, colours and places come back; faces do not, and limbs are soft. See notebook 02.",
    ),
    "detokenizer-unpooled": (
        "De-tokenizer, stage 1, from all visual embeddings",
        "As `detokenizer-stage1`, trained as long on the 256 embeddings before they are pooled to 64.",
        'DetokenizerPipeline.from_artifacts(vit=…, sdxl=…, adapter="{folder}")  # seedx_lite.pipelines.detokenizer',
        "A language model that draws 64 embeddings cannot use it. See notebook 03.",
    ),
    "detokenizer-stage2": (
        "De-tokenizer, stage 2: with a condition image",
        "The whole U-Net, which also sees the latents of a condition image, and the resampler.",
        'pipe = DetokenizerPipeline.from_artifacts(vit=…, sdxl=…, adapter="{folder}")\n'
        "pipe(target, condition_images=source)  # seedx_lite.pipelines.detokenizer",
        "It was trained with edits that leave most of a picture where it is. See notebook 04.",
    ),
    "mllm": (
        "Multimodal language model, pre-trained",
        "Reads pictures and draws visual embeddings, which the de-tokenizer turns into pictures.",
        'SeedX.from_artifacts(mllm="{folder}", vit=…, sdxl=…, adapter=…)  # seedx_lite.pipelines.assistant',
        "It knows the forms of its training: captions, questions, detections. It takes no instructions yet.",
    ),
    "sft-chat": (
        "Multimodal language model, tuned on dialogues (SEED-X-I)",
        "Describes, answers, finds and draws by instruction, in several turns. Only what was trained is here; the rest "
        "is that of `mllm`, beside it.",
        'SeedX.from_artifacts(mllm="{folder}", vit=…, sdxl=…, adapter=…).chat(…)  # seedx_lite.pipelines.assistant',
        "It knows the wordings of `data/instructions.py`, and answers in one wording each. See notebook 07.",
    ),
    "sft-edit": (
        "Multimodal language model, tuned on edits (SEED-X-Edit)",
        "Edits a picture by an instruction, with the de-tokenizer of the second stage. Only what was trained is here; "
        "the rest is that of `mllm`, beside it.",
        'SeedX.from_artifacts(mllm="{folder}", vit=…, sdxl=…, adapter="…/detokenizer-stage2").edit(picture, "…")',
        "It knows eight kinds of edits, and drawn pictures. See notebook 08 for how often an edit is done, and a chain "
        "of them.",
    ),
}
RECORDS = {  # stage: record and its entries that a card shows, with dots between keys
    "vit": ("vit", ("retrieval", "reading", "probe")),
    "sdxl": ("text_to_image", ("test", "composition")),
    "llama": ("llama", ("full", "answers")),
    "reader": ("reader", ("reader",)),
    "reader_2": ("reader", ("reader_2",)),
    "detokenizer-stage1": ("detokenizer_stage1", ("summary", "read")),
    "detokenizer-unpooled": ("detokenizer", ("cells.main_n256.0.sets",)),
    "detokenizer-stage2": ("detokenizer", ("cells.main_condition.0.sets",)),
    "mllm": ("mllm_main", ("captions", "detection", "drawing")),
    "sft-chat": ("sft_chat", ("followed", "detection", "drawing")),
    "sft-edit": ("sft_edit", ("ours",)),
}
SHOWN = ("f1", "colour", "pose", "background", "position_error", "success", "outside_error")


def write_card(folder: Path, runs: str | Path = "runs") -> Path:
    """Writes README.md of a shipped artifact and returns its path; with the numbers of its record, if that is of these
    very weights. Raises KeyError for a stage without a text here."""
    about = read_manifest(folder)
    title, what, opens, limits = ABOUT[about["stage"]]
    shown = (
        folder.relative_to(project_path(".")).as_posix() if folder.is_relative_to(project_path(".")) else folder.name
    )
    lines = [
        f"# {title}",
        "",
        what,
        "",
        "```python",
        opens.format(folder=shown),
        "```",
        "",
        "| training | steps | samples | minutes of steps | by the clock | on |",
        "|---|---|---|---|---|---|",
    ]
    for file in sorted(folder.rglob("training.json")):
        run = json.loads(file.read_text())
        where = f"{run['hardware']['device']}, {run['dtype']}"
        minutes = f"{training_minutes(run):.1f} | {run['seconds'] / 60:.1f}"
        lines.append(f"| {run['title']} | {run['config']['steps']:,} | {run['samples']:,} | {minutes} | {where} |")
    lines += ["", f"Preset `{about['preset']}`, seed {about['seed']}, id `{about['id']}`, weights in float16.", ""]
    name, entries = RECORDS[about["stage"]]
    stored = load_record(name, about["preset"], about["seed"], runs)
    if stored and about["id"] in stored["artifacts"].values():
        lines += [f"Measured on held-out scenes (record `{name}`):", ""]
        for entry in entries:
            found = reduce(lambda told, key: told.get(key, {}), entry.split("."), stored)
            lines += _numbers(found, entry.rpartition(".")[2])
        lines.append("")
    lines += [
        f"**Limits.** {limits}",
        "",
        "Trained on drawn scenes only; no photograph, no text of others. MIT, as the rest.",
    ]
    path = folder / "README.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _numbers(entry: dict[str, Any], title: str) -> list[str]:
    """Bullets with the numbers of an entry: plain ones, and the means of those with an interval. Of the many that
    summarise scenes, only `SHOWN`."""
    plain = {key: value for key, value in entry.items() if isinstance(value, float)}
    plain |= {key: value["mean"] for key, value in entry.items() if isinstance(value, dict) and "mean" in value}
    if {"f1", "success"} & plain.keys():
        plain = {key: plain[key] for key in SHOWN if key in plain}
    bullets = [f"- {title}: " + ", ".join(f"{key} {value:.3f}" for key, value in plain.items())] if plain else []
    for key, value in entry.items():
        if isinstance(value, dict) and "mean" not in value:
            bullets += _numbers(value, f"{title}, {key}")
    return bullets
