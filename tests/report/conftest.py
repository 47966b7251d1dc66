"""The files of made-up runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Files = dict[str, Any]


def timing(median: float) -> dict[str, float]:
    return {"median": median, "low": 0.9 * median, "high": 1.1 * median, "runs": 40}


def complete(layers: int = 3) -> Files:
    """What `lightning-sparsity fit` leaves behind, by name of the file."""
    widths = {f"stage{i // 50}.{i}.norm": {"dense": 64, "slim": 1 + i % 64} for i in range(layers)}
    edges = [0.05 * i for i in range(41)]
    histograms = [
        {"epoch": e, "step": 10 * e, "of": of, "edges": edges, "counts": [e] * 40, "zeros": 4 * e}
        for of in ("BatchNorm scales", "weights")
        for e in range(1, 4)
    ]
    slim = {
        "metrics": {"test_loss": 0.0258, "test_acc": 0.989},
        "behind": 12,
        "after": {
            "parameters": 36625,
            "nonzero": 11111,
            "flops": 3083631,
            "bytes_on_disk": {"dense": 156852, "sparse": 50000},
        },
        "latency": {"1": [timing(0.8), timing(0.4)], "64": [timing(9.5), timing(6.0)]},
        "proof": 5.6e-16,
        "curve": {
            "metric": "val_acc",
            "examples": 987,
            "points": [[0.0, 0.99], [0.4, 0.98], [0.9, float("nan")]],
            "chosen": [0.39, 0.981],
            "skipped": "",
        },
    }
    summary = {
        "checkpoint": "runs/a/checkpoints/last.ckpt",
        "split": "test",
        "metrics": {
            "test_loss": {"dense": 0.0255, "sparse": 0.0258},
            "test_acc": {"dense": 0.9895, "sparse": 0.9891},
        },
        "parameters": 278842,
        "nonzero": {"dense": 278830, "sparse": 20569},
        "flops": {"dense": 7749888, "sparse": 7491637},
        "bytes_on_disk": {"dense": 1117688, "sparse": 93234},
        "layers": [],
        "history": [{"step": 10 * i, "objective": 1 / i, "sparsity": i / 9} for i in range(1, 9)],
        "histograms": histograms,
        "slim": slim,
    }
    cut = {
        "amount": "0.4",
        "path": "model",
        "network": "lightning_sparsity.models.curvenet.CurveNet",
        "proof": 5.6e-16,
        "channels": {"dense": 56, "slim": 34},
        "parameters": {"dense": 278842, "slim": 36625},
        "bytes_on_disk": {"dense": 1117560, "slim": 156700},
        "flops": {"dense": 7749888, "slim": 3083631},
        "layers": widths,
        "frozen": ["head: add meets an input (2 channels)"],
    }
    network = {"class_path": "lightning_sparsity.models.CurveNet", "init_args": {"size": 32}}
    penalty = {"class_path": "lightning_sparsity.penalties.L0Ball", "init_args": {"amount": 0.4}}
    slimming = {"penalty": penalty, "amount": 0.4, "dirpath": None}
    config = {
        "seed_everything": 7,
        "trainer": {
            "max_epochs": 18,
            "callbacks": [
                {"class_path": "lightning_sparsity.NetworkSlimming", "init_args": slimming}
            ],
        },
        "model": {"class_path": "ImageClassifier", "init_args": {"model": network}},
        "data": {"class_path": "lightning_sparsity.data.Curves", "init_args": {"train": 99}},
    }
    return {"summary.json": summary, "slim/report.json": cut, "config.yaml": config}


@pytest.fixture
def made_up() -> Callable[..., Files]:
    return complete


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Files], Path]:
    """Writes files into the folder of a run."""

    def write(files: Files) -> Path:
        for name, content in files.items():
            path = tmp_path / "run" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            dump = json.dumps if path.suffix == ".json" else yaml.safe_dump
            path.write_text(content if isinstance(content, str) else dump(content))
        return tmp_path / "run"

    return write
