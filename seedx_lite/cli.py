"""`python -m seedx_lite …`: every stage from the command line.

A stage takes `--preset NAME` (or the path of a YAML file) and any number of `key=value` overrides. A mistake ends in
one line, `error: …`, and exit status 1; one in the command line itself in exit status 2.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from seedx_lite import doctor
from seedx_lite.presets import load_preset

SAMPLES = "data_samples"
# Command: module and function in seedx_lite/training, and what it trains.
TRAININGS = {
    "pretrain": {
        "vit": ("vit", "vit", "the visual tokenizer, with its text encoders"),
        "sdxl": ("foundations", "sdxl", "the VAE and the text-to-image U-Net"),
        "llama": ("llama", "llama", "the language model"),
        "reader": ("reader", "reader", "the scene reader, which measures all pictures"),
        "reader_2": ("reader", "reader_2", "the second scene reader, which checks the first"),
    },
    "train": {
        "detokenizer": ("detokenizer", "stage1", "the de-tokenizer, stage 1: pictures from visual embeddings"),
        "detokenizer-unpooled": ("detokenizer", "stage1_unpooled", "the same from all embeddings of the ViT"),
        "detokenizer-edits": ("detokenizer", "stage2", "the de-tokenizer, stage 2: with a condition image"),
        "mllm": ("mllm", "mllm", "the multimodal language model: reads and draws visual embeddings"),
        "sft-chat": ("sft", "sft_chat", "it further, on dialogues: reading, finding and drawing by instruction"),
        "sft-edit": ("sft", "sft_edit", "it further, on edits: a picture and an instruction to the picture after it"),
    },
}
EVALUATIONS = {  # what is measured, and the stages whose artifacts that needs, as (group, stage)
    "reader": ("how far the scene readers can be trusted", ("reader", "reader_2", "sdxl")),
    "vit": ("what the visual embeddings hold", ("vit",)),
    "sdxl": ("what pictures show of their captions", ("reader", "reader_2", "sdxl")),
    "prediction": ("what a U-Net should predict, noise or v, in two short trainings", ("vit", "sdxl", "reader")),
    "llama": ("how close the language model comes to the grammar", ("llama",)),
    "detokenizer": (
        "what survives reconstruction, beside baselines and ceilings",
        ("vit", "sdxl", "reader", "reader_2"),
    ),
    "mllm": ("what the language model reads in pictures, and what it draws", ("vit", "sdxl", "reader")),
    "chat": ("how it follows instructions in several turns", ("vit", "sdxl", "reader")),
    "edit": ("how it edits pictures by words", ("vit", "sdxl", "reader")),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it warns of torchvision, which nothing here needs
    parser = build_parser()
    # Overrides may stand before, between and after options, which argparse cannot say of positionals.
    args, rest = parser.parse_known_args(argv)
    for item in rest:
        if item.startswith("-") or "=" not in item or "overrides" not in args:
            parser.error(f"unexpected argument {item!r}{'' if 'overrides' not in args else ', want key=value'}")
    if isinstance(only := getattr(args, "only", None), list):  # `--only NAMES` takes in the overrides that follow it
        args.only, rest = [name for name in only if "=" not in name], [*rest, *(name for name in only if "=" in name)]
    args.overrides = rest
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no ✓ still shows the rest
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        goes_on = args.run in (_train, _ablate)
        print("stopped" + goes_on * "; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if args.debug:
            raise
        hint = "" if isinstance(error, (ValueError, OSError)) else "  (python -m seedx_lite --debug … says where)"
        print(f"error: {error}{hint}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """All commands, each with the function that runs it as its default of `run`."""
    parser = argparse.ArgumentParser("python -m seedx_lite", description="SEED-X on a laptop.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    top = parser.add_subparsers(metavar="COMMAND", required=True)

    command = _command(
        top, "doctor", lambda args: doctor.examine(args.runs), "check Python, packages, hardware and artifacts"
    )
    command.add_argument("--runs", default="runs", help="folder of results (runs)")

    data = _group(top, "data", "sample data in the three official formats")
    command = _command(data, "build", _data_build, "write the samples, with manifest and README")
    command.add_argument("folder", nargs="?", default=SAMPLES, help=f"where to ({SAMPLES})")
    command.add_argument("--count", type=int, default=200, help="samples in each format (200)")
    command.add_argument("--seed", type=int, default=0, help="another seed, other scenes (0)")
    command = _command(data, "check", _data_check, "report every line and file that training could not use")
    command.add_argument("path", nargs="?", default=SAMPLES, help=f"file or folder ({SAMPLES})")
    command.add_argument("--images", help="folder that the jsonl files name their pictures from (their own)")
    command.add_argument("--any-words", action="store_true", help="also words that our tokenizer does not know")

    for group, text in (("pretrain", "train a foundation"), ("train", "train a part of SEED-X")):
        commands = _group(top, group, text)
        for name, (*_, what) in TRAININGS[group].items():
            command = _stage(commands, name, _train, f"train {what}", target=(group, name))
            command.add_argument("--retrain", action="store_true", help="train even if a result is there")

    measure = _group(top, "evaluate", "measure on held-out scenes, and store the record that notebooks compare with")
    for name, (text, _) in EVALUATIONS.items():
        _stage(measure, name, _evaluate, f"measure {text}", target=name)

    grids = _group(top, "ablate", "train and measure all variants of a part, and tell what the claims come to")
    for part, what in (("detokenizer", "de-tokenizers"), ("mllm", "language models that draw")):
        text = f"run the grid of {what}, all seeds; what is done is not done again"
        command = _stage(grids, part, _ablate, text, seeded=False, target=part)
        command.add_argument("--only", nargs="+", default=(), help="some of the variants (all)")
        command.add_argument("--processes", type=int, default=1, help="cells at a time (1)")

    command = _command(top, "merge", _merge, "make of a trained language model an assistant that opens by itself")
    command.add_argument("checkpoint", help="a folder of `train mllm`, `train sft-chat` or `train sft-edit`")
    command.add_argument("out", help="a new folder, for SeedX.from_pretrained")
    command.add_argument("--adapter", help="the folder of a de-tokenizer (that of the same preset and seed)")
    command.add_argument("--keep-lora", action="store_true", help="keep LoRA apart, to be trained further")
    command.add_argument("--runs", default="runs", help="folder of results (runs)")

    command = _stage(top, "read", _read, "read a picture of the world back into a scene, and say what is there")
    command.add_argument("picture", help="a picture file")

    command = _stage(top, "bench", _bench, "measure how fast every stage trains and draws on this machine")
    command.add_argument("--only", nargs="+", help="some of vit vae unet detokenizer llama mllm reader reader_2 (all)")
    command.add_argument("--steps", type=int, default=12, help="steps of each training (12)")
    command.add_argument("--out", help="where to write the JSON (runs/<preset>/bench.json)")

    text = "run the notebooks and write runs/<preset>/report.html; key=value sets a notebook parameter"
    command = _stage(top, "reproduce", _reproduce, text)
    command.add_argument("--retrain", action="store_true", help="train every stage anew, then run the notebooks")
    command.add_argument("--notebooks", default="notebooks", help="folder of notebooks (notebooks)")
    command.add_argument("--only", default="", help="only notebooks whose name contains this")

    command = _command(
        top, "ship", _ship, "copy finished artifacts, and the records of lite, to where they are committed"
    )
    command.add_argument("stages", nargs="*", help="e.g. vit sdxl detokenizer-stage1")
    command.add_argument("--preset", default="lite", help="whose artifacts (lite)")
    command.add_argument("--runs", default="runs", help="folder of results (runs)")
    return parser


def _group(commands, name: str, text: str):
    return commands.add_parser(name, help=text).add_subparsers(metavar="COMMAND", required=True)


def _command(commands, name: str, run, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.set_defaults(run=run)
    return command


def _stage(commands, name: str, run, text: str, seeded: bool = True, **defaults) -> argparse.ArgumentParser:
    command = _command(commands, name, run, text)
    command.usage = f"{command.prog} [options] [key=value …]"
    command.set_defaults(overrides=(), **defaults)
    command.add_argument("--preset", default="lite", help="smoke, lite, gpu, seedx-17b or a .yaml file (lite)")
    if seeded:
        command.add_argument("--seed", type=int, default=0, help="seed of everything random (0)")
    command.add_argument("--runs", default="runs", help="folder of results (runs)")
    return command


def _data_build(args) -> None:
    from seedx_lite.data.samples import build

    print(f"samples: {build(args.folder, seed=args.seed, count=args.count)}")


def _data_check(args) -> int:
    from seedx_lite.data.check import check
    from seedx_lite.data.tokenizer import llm_tokenizer

    result = check(args.path, args.images, None if args.any_words else llm_tokenizer())
    print(result)
    return 0 if result.ok else 1


def _run(group: str, name: str, preset, args, retrain: bool = False) -> Path:
    module, function, _ = TRAININGS[group][name]
    stage = getattr(import_module(f"seedx_lite.training.{module}"), function)
    return stage(preset, seed=args.seed, retrain=retrain, runs=args.runs)


def _train(args) -> None:
    preset = load_preset(args.preset, args.overrides)  # before torch is imported, so that a slip shows at once
    print(f"artifact: {_run(*args.target, preset, args, args.retrain)}")


def _evaluate(args) -> None:
    preset = load_preset(args.preset, args.overrides)
    from seedx_lite.evaluation import calibration, detokenizer, features, language_model, text_to_image

    folders = {name: _run("pretrain", name, preset, args) for name in EVALUATIONS[args.target][1]}
    if args.target == "reader":
        path = calibration.evaluate(preset, folders, runs=args.runs)
    elif args.target == "vit":
        path = features.evaluate(folders["vit"], args.runs)
    elif args.target == "sdxl":
        path = text_to_image.evaluate(preset, folders, seed=args.seed, runs=args.runs)
    elif args.target == "prediction":
        from seedx_lite.training.foundations import pilot

        pilots = {kind: pilot(preset, kind, folders, args.seed, args.runs) for kind in ("epsilon", "v_prediction")}
        made = {"reader": folders["reader"], **pilots}
        path = text_to_image.compare_pilots(preset, made, args.seed, runs=args.runs)
    elif args.target == "llama":
        path = language_model.evaluate(folders["llama"], args.runs)
    elif args.target in ("mllm", "chat", "edit"):
        from seedx_lite.evaluation import instructions, mllm

        stage, adapter, evaluate = {
            "mllm": ("mllm", "detokenizer", mllm.evaluate),
            "chat": ("sft-chat", "detokenizer", instructions.evaluate_chat),
            "edit": ("sft-edit", "detokenizer-edits", instructions.evaluate_edit),
        }[args.target]
        reader = folders.pop("reader")
        folders |= {"adapter": _run("train", adapter, preset, args), "mllm": _run("train", stage, preset, args)}
        path = evaluate(preset, folders, reader, seed=args.seed, runs=args.runs)
    else:
        readers = {name: folders.pop(name) for name in ("reader", "reader_2")}
        folders["adapter"] = _run("train", "detokenizer", preset, args)
        path = detokenizer.evaluate(preset, folders, readers, seed=args.seed, runs=args.runs)
    print(f"record: {path}")


def _ablate(args) -> None:
    load_preset(args.preset, args.overrides)
    from seedx_lite.ablation import grid

    path = grid.run(args.target, args.preset, args.overrides, args.runs, args.processes, args.only)
    record = json.loads(path.read_text(encoding="utf-8"))
    print(*(verdict["told"] for verdict in record["verdicts"]), sep="\n")
    if record["missing"]:
        print(f"not there yet: {', '.join(record['missing'])}")
    print(f"record: {path}")


def _merge(args) -> None:
    from seedx_lite.pipelines.merge import merge

    print(f"assistant: {merge(args.checkpoint, args.out, args.adapter, args.keep_lora, args.runs)}")


def _read(args) -> None:
    preset = load_preset(args.preset, args.overrides)
    from seedx_lite.data.pictures import open_picture
    from seedx_lite.evaluation.scene_reader import read_picture
    from seedx_lite.models.scene_reader import SceneReader
    from seedx_lite.world.language import canonical_caption

    picture = open_picture(args.picture)
    reader = SceneReader.from_pretrained(_run("pretrain", "reader", preset, args))
    scene = read_picture(reader, picture, preset.image_size)
    for thing in scene.from_left:
        left, top, right, bottom = (round(100 * min(1, max(0, side))) for side in scene.box(thing))
        what = f"{thing.colour} {thing.kind}" + (f", {thing.pose}" if thing.pose else "")
        print(f"{what:<28} {left} to {right} % of the width, {top} to {bottom} % of the height, facing {thing.facing}")
    print(canonical_caption(scene) if scene.things else f"nothing, on {scene.ground}, sky: {scene.sky}")


def _bench(args) -> int:
    from seedx_lite import artifacts
    from seedx_lite.bench import bench

    name = load_preset(args.preset, args.overrides).name
    out = args.out or artifacts.project_path(args.runs) / name / "bench.json"
    result = bench(args.preset, args.overrides, args.only, args.steps, out, args.seed, args.runs)
    print(f"written: {out}")
    return int(any("error" in measured for measured in result["trainings"].values()))


def _reproduce(args) -> int:
    from omegaconf import OmegaConf

    from seedx_lite import artifacts, report

    preset = load_preset(args.preset)
    defaults = {"preset": "lite", "seed": 0, "runs": "runs"}
    given = {name: value for name in defaults if (value := getattr(args, name)) != defaults[name]}
    given |= OmegaConf.to_container(OmegaConf.from_dotlist(args.overrides))  # values as in YAML: true, 3, [1, 2], text
    if args.preset.endswith((".yaml", ".yml")):
        given["preset"] = str(Path(args.preset).resolve())  # notebooks run in another folder
    report.find_notebooks(args.notebooks, given, args.only)  # a slip shows before hours of training
    for group, stages in TRAININGS.items() if args.retrain else ():  # once, not in each notebook again
        for name in stages:
            _run(group, name, preset, args, retrain=True)
    folder = artifacts.project_path(args.runs) / preset.name
    return report.reproduce(args.notebooks, folder, given, only=args.only)


def _ship(args) -> None:
    from seedx_lite.ablation.grid import ship_sheets
    from seedx_lite.artifacts import SHIPPED, check_upstream, project_path, ship
    from seedx_lite.cards import ABOUT, write_card
    from seedx_lite.evaluation.records import ship_records
    from seedx_lite.models.mllm import leave_out_base
    from seedx_lite.training.sft import BASES

    preset = load_preset(args.preset).name
    if unknown := sorted(set(args.stages) - set(ABOUT)):
        raise ValueError(f"no card tells of {', '.join(unknown)}; shipped can be {', '.join(ABOUT)}")

    def finish(stage: str, folder: Path) -> None:
        if stage in BASES:  # what is left out must be what it was trained on
            base = f"../{BASES[stage]}"
            check_upstream(project_path(args.runs) / preset / f"{stage}-seed0", (folder / base).resolve())
            leave_out_base(folder, base)

    paths = ship(preset, args.stages, runs=args.runs, finish=finish)
    if preset == "lite":
        paths += [*ship_records(args.runs), *ship_sheets(args.runs)]
    for path in paths:
        print(f"shipped: {path}")
    for manifest in sorted((project_path(SHIPPED) / preset).glob("*/artifact.json")):
        print(f"card: {write_card(manifest.parent, args.runs)}")
