"""How far a linear classifier gets on `Curves`: on pixels and on Fourier coefficients.

Run: python benchmarks/curves_linear.py [--epochs 12]
Each logistic regression is fitted once per strength of its ridge; validation picks the strength,
and the test split is looked at once. A small `CurveNet` is trained for comparison.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparsity.data.curves import Curves
from lightning_sparsity.data.vocabulary import Split
from lightning_sparsity.models.curvenet import CurveNet

Features = Callable[[Tensor], Tensor]
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def pixels(images: Tensor) -> Tensor:
    """The pictures as they are."""
    return images.flatten(1)


def spectrum(images: Tensor) -> Tensor:
    """Logarithm of the size of the Fourier coefficients: it does not see where the text stands."""
    size: Tensor = torch.fft.rfft2(images[:, 0]).abs()
    return (size + 1e-2).log().flatten(1)


def split_of(data: Curves, split: Split, features: Features) -> tuple[Tensor, Tensor]:
    """Features and labels of one split."""
    images, labels = data.pictures(split)
    return features(images.float() / 255), labels


def fit_logistic(x: Tensor, y: Tensor, ridge: float) -> nn.Linear:
    """Logistic regression by L-BFGS, from zero, with `ridge / 2 * |w|^2` added to the mean loss."""
    model = nn.Linear(x.shape[1], 2)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) + ridge / 2 * model.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def linear(data: Curves, features: Features) -> tuple[float, list[float]]:
    """Best ridge, and the accuracies on training, validation and test that go with it."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    parts = [split_of(data, split, features) for split in splits]
    mean, std = parts[0][0].mean(0), parts[0][0].std()
    train, val, test = (((x - mean) / std, y) for x, y in parts)
    models = {ridge: fit_logistic(*train, ridge) for ridge in RIDGES}
    best = max(RIDGES, key=lambda ridge: accuracy(models[ridge], *val))
    return best, [accuracy(models[best], *part) for part in (train, val, test)]


def network(data: Curves, epochs: int) -> float:
    """Test accuracy of a dense `CurveNet`."""
    torch.manual_seed(0)
    model, loader = CurveNet().to(memory_format=torch.channels_last), data.train_dataloader()
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=epochs * len(loader), pct_start=0.25
    )
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    batches = list(data.test_dataloader())
    hits = sum(accuracy(model.eval(), x, y) * len(y) for x, y in batches)
    return hits / sum(len(y) for _, y in batches)


def main() -> None:
    """Print one line per classifier."""
    parser = argparse.ArgumentParser(description="Linear classifiers on Curves")
    parser.add_argument("--epochs", type=int, default=12, help="for CurveNet; 0 leaves it out")
    epochs: int = parser.parse_args().epochs
    data = Curves()
    for features in (pixels, spectrum):
        ridge, (train, val, test) = linear(data, features)
        print(
            f"logistic regression on {features.__name__:8} ridge {ridge:g}: "
            f"train {train:.2%}, validation {val:.2%}, test {test:.2%}"
        )
    if epochs:
        print(f"CurveNet, dense, {epochs} epochs: test {network(data, epochs):.2%}")


if __name__ == "__main__":
    main()
