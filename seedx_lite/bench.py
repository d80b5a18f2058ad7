"""How fast this machine trains and draws, and where the time goes.

Each training runs for a few steps in a process of its own, on a handful of scenes and in a temporary folder. Floating-
point operations (FLOPs) are counted, products and convolutions only, and held against the largest product of matrices
that the machine itself manages in the same dtype. The result is a table and `bench.json`.
"""

import io
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from seedx_lite.artifacts import find
from seedx_lite.presets import Preset, load_preset

TRAININGS = ("vit", "vae", "unet", "detokenizer", "llama", "mllm", "reader", "reader_2")
FEW_SCENES = 256
GROUPS = {  # where the time of a step goes, by the beginning of an operator's name
    "convolution": ("aten::mkldnn_convolution", "aten::convolution", "aten::cudnn_convolution"),
    "matrix product": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_linear"),
    "attention": ("aten::_scaled_dot_product", "aten::_softmax", "aten::_flash_attention"),
    "normalisation": ("aten::native_group_norm", "aten::native_layer_norm", "aten::native_batch_norm"),
    "copy and cast": ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::cat", "aten::index", "aten::contiguous"),
    "optimiser": ("aten::_fused_adamw", "Optimizer.step", "aten::linalg_vector_norm", "aten::_foreach"),
}


def bench(
    preset: str,
    overrides: list[str],
    only: list[str] | None = None,
    steps: int = 12,
    out: str | Path | None = None,
    seed: int = 0,
    runs: str | Path = "runs",
) -> dict[str, Any]:
    """Measures every training of a preset and sampling with what has been trained, or the trainings of `only` alone
    (with `mllm` also how the language model draws); prints a table, writes JSON to `out` after each of them, and
    returns what is in it.

    Each training: `seconds_per_step` (median), of which `data_seconds`, `samples_per_second`, `flops_per_step`,
    `share_of_peak`, `peak_memory_gb` of its process, `profile`: shares of the time of a step by kind of operator.
    seed, runs: of the artifacts that draw. Raises ValueError for an unknown name in `only`.
    """
    wanted = TRAININGS if only is None else only
    if unknown := set(wanted) - set(TRAININGS):
        raise ValueError(f"bench: {', '.join(sorted(unknown))} unknown; expected some of {', '.join(TRAININGS)}")
    peaks = _in_process(matrix_peaks)
    result: dict[str, Any] = {"preset": preset, "overrides": overrides, "steps": steps, "peak_flops": peaks}
    result["trainings"] = {}
    for name in wanted:
        try:
            measured = _in_process(measure_training, preset, overrides, name, steps)
            rate = measured["flops_per_step"] / measured["seconds_per_step"]
            peak = peaks["bfloat16" if measured["dtype"] == "bf16" else "float32"]
            result["trainings"][name] = measured | {"share_of_peak": rate / peak}
            print(_line(name, result["trainings"][name]), flush=True)
        except Exception as error:  # one that this machine cannot hold must not hide the others
            result["trainings"][name] = {"error": f"{type(error).__name__}: {error}"}
            print(f"{name:12} {type(error).__name__}: {error}", file=sys.stderr)
        _write(result, out)
    waits = {"drawing": (measure_drawing, preset, overrides)} if "mllm" in wanted else {}
    waits |= {"sampling": (measure_sampling, preset, overrides, seed, str(runs))} if only is None else {}
    for title, task in waits.items():
        result[title] = _in_process(*task)
        for name, seconds in result[title].items():
            print(f"{name:44} {seconds:7.3f} s")
        _write(result, out)
    return result


def _write(result: dict[str, Any], out: str | Path | None) -> None:
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(result, indent=1) + "\n")


def _line(name: str, m: dict[str, Any]) -> str:
    top = ", ".join(f"{group} {share:.0%}" for group, share in list(m["profile"].items())[:4])
    return (
        f"{name:12} {m['seconds_per_step']:7.3f} s/step {m['samples_per_second']:8.1f} samples/s "
        f"{m['flops_per_step'] / 1e9:8.1f} GFLOPs {m['share_of_peak']:6.1%} of peak {m['dtype']} "
        f"{m['peak_memory_gb']:5.1f} GB  {top}"
    )


def _in_process(function: Callable, *args: Any) -> Any:
    """Calls `function(*args)` in a fresh process, so that its memory and its threads are its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # not a daemon: it may draw with others
        return pool.submit(function, *args).result()


def matrix_peaks() -> dict[str, float]:
    """`matrix_peak` in the dtypes that the device has units for: emulated, a product takes minutes."""
    from seedx_lite.artifacts import processes
    from seedx_lite.models.precision import native_bf16

    capable, _ = native_bf16(processes().device)
    return {dtype: matrix_peak(dtype) for dtype in ("float32", *["bfloat16"] * capable)}


def matrix_peak(dtype: str, size: int | None = None, rounds: int = 8) -> float:
    """FLOPs per second of a product of two square matrices, the best of some rounds, on the device that trains."""
    import torch

    from seedx_lite.artifacts import processes

    device = processes().device
    size = size or (8192 if device.type == "cuda" else 2048)  # large enough to keep it busy
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def measure_training(preset_name: str, overrides: list[str], name: str, steps: int) -> dict[str, Any]:
    """Runs one training of `TRAININGS` for some steps, then anew to count and to see where the time of a step goes."""
    import torch

    from seedx_lite.training import loop

    times: Counter[str] = Counter()

    @contextmanager
    def profiled() -> Iterator[None]:
        with torch.profiler.profile() as profiler:
            yield
        times.update(_times(profiler, torch.cuda.is_available()))

    few = [
        f"data.train_scenes={FEW_SCENES}",
        "data.second_scenes=null",
        f"data.reader_scenes={FEW_SCENES}",
        "data.validation_scenes=1",
        "name=bench",
    ]

    def run(steps: int, folder: Path) -> dict[str, Any]:
        return _train_once(load_preset(preset_name, [*overrides, *few, *_steps(name, steps)]), name, folder)

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        record = run(steps, Path(folder, "timed"))
        unit = 1024 if sys.platform == "linux" else 1  # of ru_maxrss, in bytes
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
        if torch.cuda.is_available():
            memory = torch.cuda.max_memory_allocated() / 1e9
        loop.COUNT_FLOPS = True  # only now: counting takes memory of its own
        flops = run(1, Path(folder, "counted"))["flops"]
        loop.COUNT_FLOPS, loop.AROUND_STEP = False, profiled
        run(3, Path(folder, "profiled"))
        loop.AROUND_STEP = nullcontext
    return {
        "seconds_per_step": record["step_seconds"],
        "data_seconds": record["step_data_seconds"],
        "samples_per_second": record["config"]["batch_size"] / record["step_seconds"],
        "flops_per_step": flops,
        "peak_memory_gb": memory,
        "dtype": record["dtype"],
        "device": record["hardware"]["device"],
        "profile": {group: round(share / sum(times.values()), 4) for group, share in times.most_common()},
    }


def _steps(name: str, steps: int) -> list[str]:
    """Overrides that leave `steps` steps to the training `name`, and no second phase to anything."""
    of = {"unet": "sdxl"}.get(name, name)
    return [
        f"training.{of}.steps={steps}",
        *(f"training.{one}=null" for one in ("vit_dense", "sdxl_words", "llama_answers")),
    ]


def _train_once(preset: Preset, name: str, folder: Path) -> dict[str, Any]:
    """Trains one thing, on untrained others, and returns its training.json."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    from seedx_lite.models.detokenizer import SDXLAdapter
    from seedx_lite.models.resamplers import ResamplerXLV2
    from seedx_lite.models.vit import VisionTransformerWithAttnPool
    from seedx_lite.training import detokenizer, foundations, llama, mllm, reader, text, vit

    folder.mkdir(parents=True)
    whole = {"vit": vit.vit, "llama": llama.llama, "reader": reader.reader, "reader_2": reader.reader_2}
    if name in whole:
        return json.loads((whole[name](preset, runs=folder) / "training.json").read_text())
    tower = VisionTransformerWithAttnPool(**vars(preset.vit)).eval()
    if name == "mllm":
        layout = mllm.new_layout(preset)
        batches = mllm.Batches(mllm.pretraining(preset, layout, folder), layout, tower, "untrained", folder)
        mllm.train_mllm(mllm.new_model(preset, layout, 0), batches, preset.training.mllm, 0, folder)
        return json.loads((folder / "training.json").read_text())
    scheduler = DDIMScheduler(**foundations.noise_schedule(preset))
    autoencoder = AutoencoderKL(**preset.vae.kwargs, sample_size=preset.image_size).eval()
    if name == "vae":
        foundations.train_vae(preset, 0, folder, foundations.training_scenes(preset, "broad", folder))
    elif name == "unet":
        data, encoders = foundations.training_scenes(preset, "broad", folder), text.new_text_encoders(preset)
        foundations.train_unet(preset, 0, folder, data, autoencoder, encoders, scheduler)
    else:
        parts = detokenizer.Parts(tower, autoencoder, scheduler, "untrained", "untrained")
        samples = detokenizer.Reconstructions(preset, parts, preset.n_embeddings, folder)
        unet, resampler = UNet2DConditionModel(**preset.unet_kwargs), ResamplerXLV2(**preset.resampler_kwargs)
        adapter = SDXLAdapter(unet, resampler, vit_down=preset.vit.n_queries // preset.n_embeddings)
        detokenizer.train_adapter(adapter, samples, preset.training.detokenizer, 0, folder)
    return json.loads((folder / "training.json").read_text())


def measure_sampling(preset_name: str, overrides: list[str], seed: int, runs: str) -> dict[str, float]:
    """Seconds of what a reader of the book waits for, the second of two runs, with the artifacts of the preset; none
    where one of them was not trained."""
    import numpy as np
    import torch
    from transformers import LlamaForCausalLM

    from seedx_lite.data.drawn import scenes
    from seedx_lite.evaluation.scene_reader import read_scenes
    from seedx_lite.models.scene_reader import SceneReader
    from seedx_lite.pipelines.detokenizer import DetokenizerPipeline
    from seedx_lite.pipelines.text_to_image import draw_captions, load_pipeline
    from seedx_lite.world.draw import render
    from seedx_lite.world.language import canonical_caption

    preset = load_preset(preset_name, overrides)
    stages = ("vit", "sdxl", "detokenizer-stage1", "llama", "reader")
    folders = {stage: find(stage, preset.name, seed, runs) for stage in stages}
    if missing := [stage for stage, folder in folders.items() if folder is None]:
        print(f"sampling is not measured: {', '.join(missing)} of {preset.name} not trained")
        return {}
    pipe = load_pipeline(folders["sdxl"])
    decoder = DetokenizerPipeline.from_artifacts(folders["vit"], folders["sdxl"], folders["detokenizer-stage1"])
    decoder.set_progress_bar_config(disable=True)
    model = LlamaForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32)
    reader = SceneReader.from_pretrained(folders["reader"])
    chosen = scenes("test", 16, "narrow", preset.size)
    pictures = [render(scene) for scene in chosen]
    captions, arrays = [canonical_caption(scene) for scene in chosen], [np.asarray(picture) for picture in pictures]
    tokens = torch.ones(16, 8, dtype=torch.long)
    settings = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False}
    waits: dict[str, Callable[[], Any]] = {
        "16 pictures from captions, 25 guided steps": lambda: draw_captions(pipe, captions),
        "16 pictures from captions, the same in bf16": lambda: draw_captions(pipe, captions, quick=True),
        "16 pictures from embeddings, 25 guided steps": lambda: decoder(pictures),
        "16 pictures to visual embeddings": lambda: decoder.vit(decoder.vit.preprocess(pictures)),
        "16 pictures read back into scenes": lambda: read_scenes(reader, arrays),
        "16 texts of 64 tokens": lambda: model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings),
    }
    return _timed(waits)


def measure_drawing(preset_name: str, overrides: list[str]) -> dict[str, float]:
    """Seconds in which an untrained language model draws the embeddings of one caption and of 8, for two N, the second
    of two runs: in one pass, and token by token as in the released code, by the generation of transformers."""
    from seedx_lite.models.generation import ImageTokenProcessor
    from seedx_lite.pipelines.processor import LVLMProcessor
    from seedx_lite.training.mllm import MLLMVariant, new_layout, new_model

    preset, waits = load_preset(preset_name, overrides), {}
    for n in (64, 256):
        layout = new_layout(preset, variant := MLLMVariant(n=n))
        model = new_model(preset, layout, 0, variant=variant).merge_lora().eval()
        forced = [ImageTokenProcessor(model.config.chain)]
        plain = {"do_sample": False, "output_hidden_states": True, "return_dict_in_generate": True, "pad_token_id": 0}
        for count in (1, 8):
            prompts = LVLMProcessor(layout)(["a red cat on the left, on grass by day"] * count, draw=True)
            batch = {name: prompts[name] for name in ("input_ids", "attention_mask")} | {"max_new_tokens": n + 1}
            slow = partial(model.llm.generate, **batch, **plain, logits_processor=forced)
            waits[f"{count} × {n} embeddings in one pass"] = partial(model.generate, **batch)
            waits[f"{count} × {n} embeddings token by token"] = slow
    return _timed(waits)


def _timed(waits: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of each, without gradients, the second of two runs."""
    import torch

    result = {}
    for name, wait in waits.items():
        for _ in range(2):
            started = time.perf_counter()
            with torch.no_grad():
                wait()
            result[name] = time.perf_counter() - started
    return result


def _times(profiler: Any, on_device: bool) -> Counter[str]:
    """Microseconds by `GROUPS`; the rest is `other`. on_device: what operators took on the GPU, else on the CPU."""
    from torch.autograd import DeviceType

    times: Counter[str] = Counter()
    for event in profiler.key_averages():
        if event.device_type == DeviceType.CPU:  # an operator; a GPU's kernels are counted with theirs
            group = next((g for g, names in GROUPS.items() if event.key.startswith(names)), "other")
            times[group] += event.self_device_time_total if on_device else event.self_cpu_time_total
    return times
