"""A run that is killed at any moment goes on, and ends as if it had not been.

`SEEDX_KILLS=20` kills more often than the usual five times.
"""

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np

from seedx_lite.artifacts import check, read_manifest
from seedx_lite.cli import main

KILLS = int(os.environ.get("SEEDX_KILLS", "5"))
COMMAND = [
    "pretrain",
    "reader",
    "--preset",
    "smoke",
    "training.reader.steps=40",
    "training.reader.checkpoint_seconds=0",
]


def test_killed_at_random_moments(tmp_path):
    """Bug: half a checkpoint, half an artifact, a lock that stays, a step that is trained twice."""
    context = multiprocessing.get_context("forkserver")  # forks share one import of torch
    context.set_forkserver_preload(["seedx_lite.training.reader", "seedx_lite.training.loop", "torch", "accelerate"])

    def start(runs: Path) -> multiprocessing.Process:
        process = context.Process(target=main, args=([*COMMAND, "--runs", str(runs)],))
        process.start()
        return process

    start(tmp_path / "warm").join()  # the first import takes longer than the training
    began = time.perf_counter()
    start(tmp_path / "straight").join()
    usual = time.perf_counter() - began
    rng, killed = np.random.default_rng(), []
    for number in range(KILLS):
        # Each kill is in a part of its own, so that early and late moments come up; progress made so far is kept.
        moment = usual * rng.uniform(0.1, 1.0) * (number + 1) / KILLS
        process = start(tmp_path / "killed")
        time.sleep(moment)
        process.kill()
        process.join()
        killed.append((round(moment, 2), process.exitcode))
    last = start(tmp_path / "killed")
    last.join()
    assert last.exitcode == 0 and any(code == -9 for _, code in killed), killed
    folders = [tmp_path / name / "smoke" / "reader-seed0" for name in ("straight", "killed")]
    for folder in folders:
        check(folder)
    ids = [read_manifest(folder)["id"] for folder in folders]
    assert ids[0] == ids[1], f"killed at {killed}"
    assert not list((tmp_path / "killed" / "smoke").glob("*.work"))
