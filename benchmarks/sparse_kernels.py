"""What zeros in a linear layer are worth: dense and sparse kernels, and a smaller dense layer.

    python benchmarks/sparse_kernels.py

Float32, zeros at random places. Every round times each variant once, forwards and backwards in
turn, so that caches favour none and a noisy machine slows all of them alike. Figures are medians
over the rounds of the time over that of the dense layer in the same round. The variants:

- zeros: the dense layer, its zeros stored as any other number.
- CSR linear: `F.linear` with the weight as compressed sparse rows.
- CSR product: the weight, with indices of 32 bits, times inputs that lie one example to a column.
- slim: a dense layer with as many weights as are not zero, the same share of rows and of columns.
- 2:4: two of each four weights are zero, in half precision over dense in half precision (CUDA).
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

LAYERS = {"LeNet-5 fc1": (500, 800), "MLP, VGG": (4096, 4096)}
Variants = dict[str, Callable[[], Tensor]]


def variants(shape: tuple[int, int], batch: int, zeros: float, device: str) -> Variants:
    """The ways to compute one layer."""
    rows, columns = shape
    dense = torch.randn(shape, device=device)
    weight = dense * (torch.rand(shape, device=device) >= zeros)
    sparse = weight.to_sparse_csr()
    short = torch.sparse_csr_tensor(
        sparse.crow_indices().int(), sparse.col_indices().int(), sparse.values(), size=shape
    )
    side = (1 - zeros) ** 0.5
    slim = torch.randn(round(rows * side), round(columns * side), device=device)
    images = torch.randn(batch, columns, device=device)
    fewer = images[:, : slim.shape[1]].contiguous()
    upright = images[0] if batch == 1 else images.t().contiguous()
    return {
        "dense": lambda: F.linear(images, dense),
        "zeros": lambda: F.linear(images, weight),
        "CSR linear": lambda: F.linear(images, sparse),
        "CSR product": lambda: short @ upright,
        "slim": lambda: F.linear(fewer, slim),
    }


def two_in_four(shape: tuple[int, int], batch: int) -> Variants:
    """Dense and 2:4 in half precision, on CUDA."""
    dense = torch.randn(shape, device="cuda", dtype=torch.float16)
    mask = torch.tensor([1, 0, 0, 1], device="cuda").bool().repeat(shape[0], shape[1] // 4)
    sparse = torch.sparse.to_sparse_semi_structured(dense * mask)
    images = torch.randn(batch, shape[1], device="cuda", dtype=torch.float16)
    return {"dense": lambda: F.linear(images, dense), "2:4": lambda: F.linear(images, sparse)}


@torch.no_grad()
def measured(calls: Variants, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every variant in every round; the first rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 8 or time.perf_counter() < end:
        for name in calls if rounds % 2 else reversed(calls):
            start = _now()
            calls[name]()
            times[name].append(1e3 * (_now() - start))
        rounds += 1
    return {name: each[2:] for name, each in times.items()}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def cells(times: dict[str, list[float]]) -> list[str]:
    """Milliseconds of the dense layer, and all others over it."""
    dense = times.pop("dense")
    ratios = [
        statistics.median(a / b for a, b in zip(each, dense, strict=True))
        for each in times.values()
    ]
    return [f"{statistics.median(dense):.3g}", *(f"{ratio:.2f}" for ratio in ratios)]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--zeros", nargs="+", type=float, default=[0.5, 0.8, 0.9, 0.95, 0.99])
    parser.add_argument("--seconds", type=float, default=6, help="at least, for each row")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", ".*[Ss]parse.*")  # they are in beta, and say so
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print("| layer | batch | zero | dense ms | zeros | CSR linear | CSR product | slim |")
    print("|---|---|---|---|---|---|---|---|")
    for name, shape in LAYERS.items():
        for batch in options.batches:
            for zeros in options.zeros:
                times = measured(variants(shape, batch, zeros, options.device), options.seconds)
                row = [f"{name}, {shape[0]}×{shape[1]}", str(batch), f"{zeros:.0%}", *cells(times)]
                print(f"| {' | '.join(row)} |", flush=True)
    if options.device == "cpu":
        print("2:4 is left out: it needs a CUDA device with sparse tensor cores.")
        return
    print("| layer | batch | dense ms, half | 2:4 |\n|---|---|---|---|")
    for batch in options.batches:
        times = measured(two_in_four((4096, 4096), batch), options.seconds)
        print(f"| 4096×4096 | {batch} | {' | '.join(cells(times))} |", flush=True)


if __name__ == "__main__":
    main()
