"""From the folder of a trained language model to one that `SeedX.from_pretrained` opens, with all that it needs."""

import shutil
from pathlib import Path

from seedx_lite.artifacts import MANIFEST, REQUEST, find, project_path, read_manifest
from .assistant import SeedX

ADAPTERS = {"sft-edit": "detokenizer-stage2"}  # by stage of the language model; the others draw with stage 1


def merge(
    checkpoint: str | Path,
    out: str | Path,
    adapter: str | Path | None = None,
    keep_lora: bool = False,
    runs: str | Path = "runs",
) -> Path:
    """Writes a whole assistant into the new folder `out` and returns it.

    checkpoint: what `train mllm`, `train sft-chat` or `train sft-edit` made; vision encoder, VAE, U-Net and
    de-tokenizer are those of its preset and seed. adapter: another de-tokenizer. keep_lora: the low-rank changes stay
    apart, to be trained further; else they are merged into the weights.

    Raises FileNotFoundError or ValueError that says what is missing, unfinished, of another training, or in the way.
    """
    source, target = Path(checkpoint), Path(out)
    if (source / REQUEST).is_file() and not (source / MANIFEST).is_file():
        raise ValueError(f"{source} is a training that has not ended; the command that began it goes on with it")
    if target.exists():
        raise ValueError(f"{target} is there already; give a new folder")
    manifest = read_manifest(source)
    stages = ["vit", "sdxl"] + ([] if adapter else [ADAPTERS.get(manifest["stage"], "detokenizer-stage1")])
    folders = {stage: find(stage, manifest["preset"], manifest["seed"], runs) for stage in stages}
    if missing := [stage for stage, folder in folders.items() if folder is None]:
        where = project_path(runs) / manifest["preset"]
        raise FileNotFoundError(
            f"no {', '.join(missing)} of seed {manifest['seed']} in {where}; train it, or name --runs"
        )
    seedx = SeedX.from_artifacts(source, *([*folders.values(), Path(adapter)] if adapter else folders.values()))
    if seedx.model.config.lora is not None and not keep_lora:
        seedx.model.merge_lora()
    draft = target.with_name(f"{target.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        seedx.save_pretrained(draft)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target
