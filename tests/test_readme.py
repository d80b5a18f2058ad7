"""What the README says is true: commands, links, file tree, table of notebooks."""

import re
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest

from seedx_lite.cli import build_parser
from seedx_lite.presets import load_preset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
COMMANDS = sorted(
    {
        line.partition("  #")[0].strip()
        for block in [*re.findall(r"```bash\n(.*?)```", README, re.S), *re.findall(r"(?<!`)`([^`\n]+)`(?!`)", README)]
        for line in block.splitlines()
        if re.match(r"(make|python|pip|conda) ", line)
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command):
    """Bug: a reader types what the README says and gets `unknown option`."""
    for part in command.replace("…", "x").split("&&"):
        program, *arguments = shlex.split(part)
        if program == "make":
            targets = [argument for argument in arguments if "=" not in argument]
            for target in targets:
                assert re.search(rf"^{target}:", MAKEFILE, re.M), target
            for name, _, value in (argument.partition("=") for argument in arguments if "=" in argument):
                assert re.search(rf"^{name} +\?=", MAKEFILE, re.M), name
                if name == "ARGS":
                    parse(targets + shlex.split(value))
        elif arguments[:2] == ["-m", "seedx_lite"]:
            parse(arguments[2:])
        elif program in ("pip", "conda"):
            for name in re.findall(r"(?:-c|-f) (\S+)", part):
                assert (ROOT / name).is_file(), name


def parse(arguments: list[str]) -> None:
    """Fails on options and overrides that the command line does not know; `…` stands for any command."""
    if arguments == ["x"]:
        return
    known, rest = build_parser().parse_known_args(arguments)
    assert not [item for item in rest if item.startswith("-")]
    if rest:
        load_preset(known.preset, rest)


def test_commands_were_found():
    """Bug: a pattern that matches nothing checks nothing."""
    assert {"make reproduce", "make test", "make lab", "python -m seedx_lite doctor"} <= set(COMMANDS)
    assert len(COMMANDS) > 10


def test_links():
    """Bug: a link to a file that was renamed."""
    links = re.findall(r"\]\(([^)#\s]+)\)", README)
    relative = [link for link in links if "://" not in link]
    assert relative and not [link for link in relative if not (ROOT / link).exists()]
    assert all(link.startswith("https://") for link in links if "://" in link)


def test_file_tree():
    """Bug: a file tree of last month."""
    block = re.search(r"## File tree\n+```\n(.*?)```", README, re.S)[1]
    folders, listed = [], set()
    for line in block.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [name]
        listed.add("".join([*folders[:depth], name]).rstrip("/"))
    assert not [path for path in sorted(listed) if not (ROOT / path).exists()]
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "seedx_lite").rglob("*.py")}
    modules = {path for path in modules if not path.endswith(("/__init__.py", "/__main__.py"))}
    assert not modules - listed, "not in the README's tree"


def test_table_of_notebooks():
    """Bug: a notebook that no reader finds, or a row without question or time."""
    rows = re.findall(r"^\| \[(\w+)\]\(notebooks/(\w+)\.ipynb\) \| (.+?) \| (.+?) \|$", README, re.M)
    assert [title for title, *_ in rows] == [file for _, file, *_ in rows]
    assert [file for _, file, *_ in rows] == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    for file, _, question, seconds in rows:
        assert question.endswith("?"), file
        assert re.fullmatch(r"\d+ s", seconds.strip()), file


def test_official_files_of_the_map_are_named():
    """Bug: a row of the map without a way to our side."""
    table = re.search(r"\| official file and symbol \|.*?(?=\n\n)", README, re.S)[0]
    for row in table.splitlines()[2:]:
        assert "](seedx_lite/" in row.split("|")[2], row


@pytest.mark.parametrize("name", ["lite", "seedx-17b"])
def test_table_of_sizes(name):
    """Bug: a preset changes and the table of sizes does not."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from seedx_lite.models.mllm import ContinuousLVLM, ContinuousLVLMConfig
    from seedx_lite.models.resamplers import ResamplerXLV2
    from seedx_lite.models.vit import VisionTransformerWithAttnPool

    column = {"seedx-17b": 2, "lite": 3}[name]
    table = re.search(r"## Sizes\n+(.*?)\n\n", README, re.S)[1]
    rows = {row.split("|")[1].strip(): row.split("|")[column] for row in table.splitlines()[2:]}
    preset = load_preset(name)
    vit, resampler = preset.vit, preset.resampler
    assert f"{vit.image_size} px, patch {vit.patch_size}, width {vit.width}, {vit.layers} layers" in rows["ViT"]
    assert f"{vit.n_queries} of {vit.output_dim}, pooled to {preset.n_embeddings}" in rows["visual embeddings"]
    widths = f"{preset.text_encoder.hidden_size} + {preset.text_encoder_2.hidden_size}"
    latents = f"{resampler.num_queries} latents of {resampler.dim}, to {widths}"
    assert f"{resampler.depth} layers, {latents}" in rows["de-tokenizer resampler"]
    assert f"{preset.unet.sample_size}×{preset.unet.sample_size}×4" in rows["U-Net"]
    assert f"factor {preset.vae.factor}" in rows["VAE"]
    llm = f"width {preset.llm.hidden_size}, {preset.llm.num_hidden_layers} layers, {preset.llm.vocab_size:,} tokens"
    assert llm in rows["language model"]
    assert f"{preset.image_size} px" in rows["pictures"]
    with torch.device("meta"):
        models = {
            "ViT": VisionTransformerWithAttnPool(**asdict(vit)),
            "de-tokenizer resampler": ResamplerXLV2(**preset.resampler_kwargs),
            "U-Net": UNet2DConditionModel(**preset.unet_kwargs),
            "VAE": AutoencoderKL(**preset.vae.kwargs),
            "language model": ContinuousLVLM(ContinuousLVLMConfig(**preset.mllm_kwargs)),
        }
    for row, model in models.items():
        stated = re.search(r"([\d,.]+) M\b", rows[row])[1].replace(",", "")
        digits = len(stated.partition(".")[2])
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert stated == f"{millions:.{digits}f}", row
