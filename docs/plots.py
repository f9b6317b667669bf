"""The plots of the page "Will it train?", drawn from the library before each build."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from noisyloss import APLLoss, create_loss


def write(folder: Path) -> None:
    """Draw the pull of one sample on its label's logit, without and with help at the start."""
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    published = {id: create_loss(id) for id in ("ce", "gce", "mae", "nce", "nce+rce")}
    helped = {
        "nce+rce": create_loss("nce+rce"),
        "nce+rce, logit_bias='auto'": create_loss("nce+rce", logit_bias="auto"),
        "APLLoss() on an untrained network, as ce": APLLoss(),  # one sample differs from nothing
        "APLLoss() at the end": APLLoss(warmup=False),
    }
    titles = ("Published losses, 10 classes", "With help at the start, 10 classes")
    for axes, title, losses in zip(figure.subplots(1, 2), titles, (published, helped), strict=True):
        p = torch.logspace(-4, -1e-4, 400, dtype=torch.float64)
        for label, loss in losses.items():
            axes.plot(p, pull(loss, p, 10), label=label)
        for classes in (10, 100, 1000):
            axes.axvline(1 / classes, color="0.7", linewidth=0.8, linestyle=":")
            axes.text(1 / classes, 1.02, f"1/{classes}", transform=axes.get_xaxis_transform(), ha="center", fontsize=8)
        axes.set(xscale="log", xlabel="$p_y$", ylabel=r"$-\partial\ell/\partial z_y$")
        axes.set_title(title, fontsize=10, pad=16)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "gradients.png", dpi=120)


def pull(loss: torch.nn.Module, p: torch.Tensor, num_classes: int) -> list[float]:
    """Return minus the slope in the label's logit where the other classes share what is left of 1."""
    slopes = []
    for p_y in p.tolist():
        logits = torch.full((1, num_classes), math.log((1 - p_y) / (num_classes - 1)), dtype=torch.float64)
        logits[0, 0] = math.log(p_y)
        logits.requires_grad_()
        loss(logits, torch.tensor([0])).backward()
        slopes.append(-logits.grad[0, 0].item())
    return slopes
