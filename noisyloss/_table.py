"""The table of all losses, for ``python -m noisyloss`` and for the docs."""

from __future__ import annotations

import inspect
import re

from noisyloss._base import LOSSES, RobustLoss
from noisyloss._registry import create_loss, list_losses

NUM_CLASSES = 10


def section(cls: type, name: str) -> str:
    """Return the section of the docstring with this name, on one line; empty if there is none."""
    found = re.search(rf"^{name}:[ ]*(.*(?:\n[ ]+.+)*)", inspect.cleandoc(cls.__doc__ or ""), re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def number(value: object) -> str:
    """Return four digits of a number; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:.4g}".replace("inf", "∞")


def facts(loss: RobustLoss) -> dict[str, str]:
    """Return what is proved of a loss, with NUM_CLASSES classes."""
    low, high = map(number, loss.bounds(NUM_CLASSES))
    constant, ratio = loss.symmetry_constant(NUM_CLASSES), loss.asymmetry_ratio(NUM_CLASSES)
    return {
        "Bounds": f"{'(' if low == '-∞' else '['}{low},\N{NO-BREAK SPACE}{high}{')' if high == '∞' else ']'}",
        "Symmetric, K": "no" if constant is None else f"yes, {number(constant)}",
        "Noise tolerance": number(loss.noise_tolerance(NUM_CLASSES)),
        "Asymmetry ratio": "–" if number(ratio) == "∞" else number(ratio),
    }


def rows() -> list[dict[str, str]]:
    """Return the facts of every id, as plain text; the papers of a sum are those of its members."""
    found = []
    for id in list_losses():
        loss = create_loss(id)
        papers = dict.fromkeys(section(LOSSES[part], "Reference") for part in id.split("+"))
        settings = (f"{name}={number(value)}" for name, value in loss.hyperparameters.items())
        found.append(
            {"Id": id, "Class": type(loss).__name__}
            | facts(loss)
            | {"Defaults": ", ".join(settings) or "–", "Paper": " ".join(papers) or "–"}
        )
    return found
