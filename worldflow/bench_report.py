"""What benchmarks of speed share: the world that is measured; rows as a table, and as JSON beside the machine's rates.

Rates are beside that of a large matrix product on the same machine, in the same number of threads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from worldflow.atomic import write_bytes
from worldflow.checkpoint import load
from worldflow.muon import has_bfloat16
from worldflow.recipes import Preset, TrainConfig, world_config
from worldflow.timing import machine, matmul_rate, matmul_side
from worldflow.world import WorldModel

__all__ = ["as_table", "measured_world", "report"]


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table with a column for each key."""
    names = list(rows[0])
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(rows: Sequence[dict[str, Any]], *, out: str | None, device: torch.device | str, title: str) -> None:
    """Print rows with the machine and its rates, and write them as JSON."""
    dtypes = [torch.float32, *([torch.bfloat16] if has_bfloat16(torch.device(device)) else [])]
    rates = {str(dtype).removeprefix("torch."): matmul_rate(device, dtype=dtype) / 1e9 for dtype in dtypes}
    about = machine(device)
    print(as_table(rows))
    said = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    print(f"\n{about['device']}, {about['threads']} threads, torch {about['torch']}")
    side = matmul_side(device)
    print(f"products of {side} x {side}, GFLOP/s: {said}")
    if out is not None:
        plain = {"bench": title, "machine": about, "matmul_gflops": rates, "rows": list(rows)}
        write_bytes(out, json.dumps(plain, indent=1).encode())


def measured_world(run: str, preset: Preset | None) -> WorldModel:
    """A run's world, or one of random weights of another size with its data."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    world = load(run, device=device)
    if preset is None:
        return world
    contexts = world.contexts
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        other = WorldModel(world_config(TrainConfig(preset=preset), world.config.data, world.config.reward))
    with torch.no_grad():
        for module in other.modules():  # outputs begin as zeros: the first guess would be the answer
            if isinstance(module, nn.Linear) and not module.weight.any():
                module.weight.normal_(std=0.02)
    other.contexts = contexts
    print(f"random weights of preset {preset}: sweeps are not those of a trained world")
    return other.eval().to(device)
