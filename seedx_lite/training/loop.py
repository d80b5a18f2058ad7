"""One training loop for every stage.

A stage says what a batch is (`batch_at`) and what its loss is (`loss_of`). The loop does the rest: AdamW, warm-up and
cosine, gradient clipping, an exponential moving average (EMA) of the weights, bf16 autocast, several processes,
checkpoints with exact resume, and a stop with a message on a bad loss.

All randomness is a function of (seed, step, rank). So no loader or generator state exists that a checkpoint could
forget: 2k steps give the very weights that k steps, a kill and a resume give.
"""

import json
import math
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import AutocastKwargs, send_to_device
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm.auto import tqdm

from seedx_lite.artifacts import CHECKPOINT, processes
from seedx_lite.data.drawn import world_hash
from seedx_lite.models.precision import AttentionInFloat32, native_bf16
from seedx_lite.presets import TrainConfig
from .checkpoint import Checkpoint

MEDIAN_WINDOW = 100  # losses over which the running median is taken
MEDIAN_MINIMUM = 20  # fewer losses than this are no basis for calling one a spike
COUNT_FLOPS = False  # `seedx_lite.bench` sets it: one more pass over the first batch, before training
AROUND_STEP: Callable[[], AbstractContextManager] = nullcontext  # … and this, to look into every step
PACKAGES = ("torch", "accelerate", "diffusers", "transformers", "safetensors", "numpy")


class TrainingStopped(RuntimeError):
    """The loss or its gradient is not finite, or the loss jumped; the message says where and what to try."""


@dataclass
class TrainingRecord:
    """What a run cost and how it went; `save` writes it to training.json.

    history: about a hundred entries of step, loss, lr, grad_norm and the logs of `loss_of`; all but step and lr are
    means since the entry before. seconds: summed over resumes. samples: of all processes together. step_seconds: the
    median since the last resume, of which step_data_seconds went into `batch_at`. flops: of products and convolutions
    in a step, forwards and backwards; 0 unless `COUNT_FLOPS`.
    """

    title: str
    seed: int
    config: dict[str, Any]
    hardware: dict[str, Any]
    versions: dict[str, str]
    dtype: str
    dtype_reason: str
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    samples: int = 0
    step_seconds: float = 0.0
    step_data_seconds: float = 0.0
    flops: int = 0
    data: str = field(default_factory=world_hash)  # of the code that draws and describes the scenes

    def save(self, path: str | Path) -> None:
        """Writes the record as JSON, on the main process only: the seconds of the others differ."""
        if processes().is_main_process:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")


def train(
    model: nn.Module,
    batch_at: Callable[[int, int, torch.Generator], Any],
    loss_of: Callable[[nn.Module, Any, torch.Generator], tuple[Tensor, dict[str, Any]]],
    config: TrainConfig,
    workdir: str | Path,
    *,
    seed: int = 0,
    title: str = "training",
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    visits: Mapping[int, Callable[[], None]] | None = None,
) -> TrainingRecord:
    """Trains the parameters of `model` that require gradients; then the EMA weights are in it, in eval mode.

    batch_at(step, share, generator): nested dict/tuple/list of CPU tensors; the loop moves it to the device. `share` is
        how many samples of the step are this process's, see `batch_share`.
    loss_of(model, batch, generator): scalar loss and a dict of scalars to log. `model` is the plain one, also when
        several processes share the work. `generator` is the one that batch_at had, on the CPU whatever the device
        (draw, then `.to(device)`), seeded by (seed, step, rank), as is torch's global one.
    workdir: holds the checkpoint, on a disk that all see. A finished one is loaded, others are resumed.
    on_step(step, values): called on the main process after each step, `step` counted from 1.
    visits: by step, what is called on the main process after it, with the averaged weights in the model and in eval
        mode: to look at what has been learned so far. Its seconds count as training.

    Raises TrainingStopped (see there); ValueError as `batch_share` does, and if the checkpoint in `workdir` is of
    another configuration, seed or model.
    """
    accelerator, dtype, reason = _accelerator(config.precision)
    share = batch_share(config.batch_size)
    device, main, rank = accelerator.device, accelerator.is_main_process, accelerator.process_index
    model.to(device).train()
    for module in model.modules():  # frozen parts stay in eval mode: no dropout in what does not learn
        flags = [p.requires_grad for p in module.parameters()]
        if flags and not any(flags):
            module.eval()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    params = list(named.values())
    if not params:
        raise ValueError(f"{title}: no parameter of the model requires gradients; there is nothing to train")
    groups = [  # norms and biases have no reason to be small
        {"params": [p for p in params if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=tuple(config.betas), fused=True)
    generator = torch.Generator()
    flops = _count_flops(model, loss_of, batch_at(0, share, generator), generator) if COUNT_FLOPS else 0
    if config.compile:
        max(model.children(), key=lambda part: sum(p.numel() for p in part.parameters())).compile()
    loss_module, optimizer = accelerator.prepare(_Loss(model, loss_of), adamw)
    ema = {name: p.detach().clone() for name, p in named.items()} if config.ema_decay else {}

    plain, recipe = json.loads(json.dumps([asdict(config), config.recipe]))
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    record = TrainingRecord(title, seed, plain, _hardware(accelerator), versions, dtype, reason, flops=flops)
    identity = recipe | {"dtype": dtype, "seed": seed, "processes": accelerator.num_processes, "data": record.data}
    identity |= {"compile": True} if config.compile else {}  # other arithmetic
    buffers = dict(model.named_buffers())
    checkpoint = Checkpoint(Path(workdir) / CHECKPOINT, identity, named, ema, buffers, adamw)
    state = {"step": 0, "losses": [], "sums": {}, "history": [], "seconds": 0.0}
    if checkpoint.path.exists():
        state = checkpoint.read()
    first, sums, losses = state["step"], state["sums"], deque(state["losses"], maxlen=MEDIAN_WINDOW)
    record.history, record.seconds = state["history"], state["seconds"]
    record.step_seconds, record.step_data_seconds = state.get("step_seconds", (0.0, 0.0))
    size = sum(p.numel() for p in params) / 1e6
    accelerator.print(
        f"{title}: {size:.2f} M parameters, steps {first:,} to {config.steps:,} of {config.batch_size} "
        f"on {record.hardware['device']}, processes: {accelerator.num_processes}; {reason}"
    )

    began = last_write = time.perf_counter()
    seconds_before, record_every = record.seconds, max(1, config.steps // 100)
    step_seconds: deque[tuple[float, float]] = deque(maxlen=1000)
    bar = tqdm(total=config.steps, initial=first, desc=title, unit="step", mininterval=0.5, disable=not main)
    forked = [device] if device.type == "cuda" else []
    with bar, torch.random.fork_rng(devices=forked):
        for step in range(first, config.steps):
            seeds = np.random.SeedSequence((seed, step, rank)).generate_state(2, np.uint64).tolist()
            generator.manual_seed(seeds[0])
            torch.manual_seed(seeds[1])  # dropout and the like: a resume must draw the same
            lr = learning_rate(step, config)
            for group in adamw.param_groups:
                group["lr"] = lr
            started = time.perf_counter()
            with AROUND_STEP():
                batch = send_to_device(batch_at(step, share, generator), device)
                ready = time.perf_counter()
                loss, logs = loss_module(batch, generator)
                accelerator.backward(loss)
                norm = accelerator.clip_grad_norm_(params, config.clip_norm or math.inf)
                # All processes judge the same loss
                mean_loss = accelerator.reduce(loss.detach().float(), "mean").item()
                values = {"loss": mean_loss, "grad_norm": float(norm)} | {k: float(v) for k, v in logs.items()}
                _check(step, values, lr, losses, config, checkpoint.path)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if ema:
                    get_ema_multi_avg_fn(ema_decay(step, config.ema_decay))(list(ema.values()), params, None)

            done = step + 1
            step_seconds.append((time.perf_counter() - started, ready - started))
            losses.append(mean_loss)
            for key, value in values.items():
                total, count = sums.get(key, (0.0, 0))
                sums[key] = (total + value, count + 1)
            if done % record_every == 0 or done == config.steps:
                means = {key: total / count for key, (total, count) in sums.items()}
                record.history.append({"step": done, "lr": lr} | means)
                sums.clear()
            bar.set_postfix(loss=f"{mean_loss:.4g}", refresh=False)
            bar.update()
            if on_step and main:
                on_step(done, values | {"lr": lr})
            if visits and done in visits and main:
                with _averaged(model, named, ema), torch.compiler.set_stance("force_eager"):
                    visits[done]()
            if done == config.steps or time.perf_counter() - last_write >= config.checkpoint_seconds:
                record.seconds = seconds_before + time.perf_counter() - began
                timing = [median(column) for column in zip(*step_seconds, strict=True)]
                record.step_seconds, record.step_data_seconds = timing
                state = {"step": done, "sums": sums, "losses": list(losses), "history": record.history}
                if main:
                    checkpoint.write(state | {"seconds": record.seconds, "step_seconds": timing})
                last_write = time.perf_counter()
    accelerator.wait_for_everyone()
    with torch.no_grad():
        for name, value in ema.items():
            named[name].copy_(value)
    record.samples = config.steps * config.batch_size
    model.eval()
    return record


@contextmanager
def _averaged(model: nn.Module, named: Mapping[str, Tensor], ema: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with its averaged weights, in eval mode and without gradients; afterwards as it was."""
    own, modes = {name: named[name].detach().clone() for name in ema}, {m: m.training for m in model.modules()}
    with torch.no_grad():
        for name, value in ema.items():
            named[name].copy_(value)
        model.eval()
        yield
        for name, value in own.items():
            named[name].copy_(value)
    for module, mode in modes.items():
        module.training = mode


def batch_share(batch_size: int) -> int:
    """How many samples of a step are this process's: all processes together see what one alone would. Their gradients
    are averaged, which gives those of one process where a loss is a plain mean over samples, or is balanced as that of
    the language model; the ViT, and losses that divide by what is there to be counted, do so within each share. Raises
    ValueError for a batch that cannot be shared out evenly."""
    team = processes().num_processes
    if batch_size % team:
        raise ValueError(f"batch_size={batch_size} on {team} processes: expected a multiple of {team}")
    return batch_size // team


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then constant or a half cosine down to min_lr_ratio × learning_rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    wave = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * wave)


def ema_decay(step: int, decay: float) -> float:
    """Decay at `step`: min(decay, (1 + t) / (10 + t)), so that the average soon forgets the random start."""
    return min(decay, (1 + step) / (10 + step))


class _Loss(nn.Module):
    """`loss_of` as a forward pass: autocast and DDP wrap this module, and `loss_of` sees the plain model."""

    def __init__(self, model: nn.Module, loss_of: Callable) -> None:
        super().__init__()
        self.model, self.loss_of = model, loss_of

    def forward(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        in_float32 = torch.is_autocast_enabled("cpu") and AttentionInFloat32()
        with in_float32 or nullcontext():
            loss, logs = self.loss_of(self.model, batch, generator)
        return loss, {k: v.detach() if isinstance(v, Tensor) else v for k, v in logs.items()}


def _count_flops(model: nn.Module, loss_of: Callable, batch: Any, generator: torch.Generator) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    batch = send_to_device(batch, next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused attention is not counted
        loss_of(model, batch, generator)[0].backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def _accelerator(wanted: str) -> tuple[Accelerator, str, str]:
    """An accelerator, the precision in use and why: bf16 if it is wanted and the device is quick in it."""
    capable, why = native_bf16(processes().device)
    use = capable and wanted == "bf16"
    if wanted == "fp32":
        why = "the configuration says precision=fp32"
    # Accelerate fixes mixed_precision for the life of a process, yet two runs in a notebook may differ in it:
    # so it follows the hardware, and autocast is switched for each run.
    handlers = [AutocastKwargs(enabled=use), DistributedDataParallelKwargs(find_unused_parameters=True)]
    accelerator = Accelerator(mixed_precision="bf16" if capable else "no", kwargs_handlers=handlers)
    return accelerator, "bf16" if use else "fp32", f"{'bf16 autocast' if use else 'fp32'}: {why}"


def _check(step: int, values: dict, lr: float, losses: deque, config: TrainConfig, path: Path) -> None:
    """Raises TrainingStopped before a bad gradient reaches the weights."""
    loss, norm = values["loss"], values["grad_norm"]
    if not (math.isfinite(loss) and math.isfinite(norm)):
        what = f"loss {loss:.4g} with gradient norm {norm:.4g} is not finite"
        remedy = "a lower learning_rate, more warmup_steps, or precision=fp32"
    else:
        judged = config.spike_factor and step >= config.warmup_steps and len(losses) >= MEDIAN_MINIMUM
        usual = median(losses) if judged else math.inf
        if not 0 < usual * config.spike_factor < loss:
            return
        what = f"loss {loss:.4g} is more than {config.spike_factor:g} times its running median {usual:.4g}"
        remedy = "a lower learning_rate or clip_norm, or a higher spike_factor if batches differ this much"
    recent = ", ".join(f"{x:.4g}" for x in list(losses)[-5:]) or "none"
    kept = f"The last checkpoint is {path}" if path.exists() else "No checkpoint was written yet"
    raise TrainingStopped(f"step {step}: {what} (lr {lr:.3g}, losses before it {recent}). Try {remedy}. {kept}.")


def _hardware(accelerator: Accelerator) -> dict[str, Any]:
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":", 1)[1].strip() for line in info.open() if line.startswith("model name")), cpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = accelerator.device.type
    gpu = torch.cuda.get_device_name(accelerator.device) if kind == "cuda" else None
    hardware = {"cpu": cpu, "cores": cores, "threads": torch.get_num_threads(), "gpu": gpu}
    device = gpu or (f"{cpu}, {cores} cores" if kind == "cpu" else kind)
    return hardware | {"processes": accelerator.num_processes, "device": device}
