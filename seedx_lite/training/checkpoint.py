"""A training run on disk: one file, replaced in one move, from which a run goes on bit by bit."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass
class Checkpoint:
    """Weights, EMA, buffers and optimizer in one safetensors file, everything else as JSON in its header."""

    path: Path
    identity: dict[str, Any]  # recipe, dtype, seed and processes: what must be equal for a resume
    named: dict[str, Tensor]  # the trained parameters
    ema: dict[str, Tensor]  # empty: no average is kept
    buffers: dict[str, Tensor]
    adamw: torch.optim.AdamW

    def tensors(self) -> dict[str, Tensor]:
        """All tensors but the optimizer's, under the names of the file."""
        parts = {"weights": self.named, "ema": self.ema, "buffers": self.buffers}
        return {f"{part}/{name}": t.detach() for part, named in parts.items() for name, t in named.items()}

    def write(self, state: dict[str, Any]) -> None:
        """Replaces the file in one move: whoever reads it finds the old one or the new one."""
        tensors = self.tensors()
        for name, p in self.named.items():
            tensors |= {f"adamw/{key}/{name}": t for key, t in self.adamw.state.get(p, {}).items()}
        header = {"state": json.dumps(state | {"identity": self.identity})}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        save_file({name: t.contiguous() for name, t in tensors.items()}, part, metadata=header)
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        part.replace(self.path)

    def read(self) -> dict[str, Any]:
        """Fills all tensors in place and returns the state; nothing is touched if the file does not fit.

        Raises ValueError for a damaged file or one of another configuration or model, naming what differs.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except SafetensorError as e:
            raise ValueError(f"{self.path} is damaged ({e}); delete it to begin anew") from e
        old, new = state["identity"], self.identity
        changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        if changed:
            told = "; ".join(f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in changed)
            raise ValueError(f"{self.path} has another configuration ({told}); restore it, or delete the file")
        targets = self.tensors()
        moments = {name: saved.pop(name) for name in list(saved) if name.startswith("adamw/")}
        shapes = [{(name, tuple(t.shape)) for name, t in named.items()} for named in (saved, targets)]
        if odd := sorted(shapes[0] ^ shapes[1]):
            told = ", ".join(f"{name} {list(shape)}" for name, shape in odd[:4])
            raise ValueError(f"{self.path} is of another model: {told} …; restore that one, or delete the file")
        for name, t in saved.items():
            targets[name].copy_(t)
        for name, t in moments.items():
            _, key, parameter = name.split("/", 2)
            p = self.named[parameter]
            self.adamw.state[p][key] = t.to(p.device)
        return state
