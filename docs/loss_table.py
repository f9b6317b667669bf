"""The losses as the registry knows them, written as pages for Sphinx: a table of all ids and a page for each class."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import noisyloss
from noisyloss._base import LOSSES
from noisyloss._table import NUM_CLASSES
from noisyloss._table import rows as plain_rows

SPEED = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "speed-cpu" / "results.jsonl"
SHAPE = "1024x1000"

INDEX = """\
Losses
======

Every row is computed from the registry when this page is built.
:math:`p = \\operatorname{{softmax}}(z)`, *C* is the number of classes, *y* the label.
``create_loss(id)`` returns the loss of a row, with its defaults.

.. list-table:: What they are
   :header-rows: 1
   :widths: auto

{formulas}

The certificates below are those of the defaults with C = {num_classes} classes.
The bounds hold for every sample; *K* is the constant to which the loss sums over the classes, where there is one; the
noise tolerance is the rate of symmetric label noise below which the minimiser of the clean risk provably stays; from
the asymmetry ratio of the clean label's weight to any other's on, it provably is the sure and right prediction.
The cost is the time of forward and backward, relative to torch's cross entropy, on a CPU at {shape} logits, as far as
it has been :doc:`measured </benchmarks>`.
:ref:`Conventions <certificates>` says what that promises.

.. list-table:: What is proved of them
   :header-rows: 1
   :widths: auto

{certificates}

.. toctree::
   :hidden:

{pages}
"""

PAGE = """\
{name}
{rule}

{ids}
.. autoclass:: {path}

It has the methods of :class:`~noisyloss.RobustLoss`.
"""


def loss_classes() -> list[type[noisyloss.RobustLoss]]:
    """Return every class that gets a page: the public ones, and whatever else is registered."""
    public = [value for name in noisyloss.__all__ if inspect.isclass(value := getattr(noisyloss, name))]
    bases = (noisyloss.RobustLoss, noisyloss.PointwiseLoss)  # these are in the API reference
    found = {cls for cls in (*public, *LOSSES.values()) if issubclass(cls, noisyloss.RobustLoss) and cls not in bases}
    return sorted(found, key=lambda cls: cls.__name__)


def formula(cls: type) -> str:
    """Return the first ``.. math::`` of the docstring, without "loss =", on one line; empty if there is none."""
    found = re.search(r"^\.\. math::[ \n]*(.+(?:\n[ ]+.+)*)", _doc(cls), re.MULTILINE)
    return " ".join(found[1].split()).removeprefix(r"\ell(z, y) = ") if found else ""


def rows() -> list[dict[str, str]]:
    """Return the facts of every id, as reStructuredText."""
    found, cost = [], costs()
    for row in plain_rows():
        id = row["Id"]
        cls = type(noisyloss.create_loss(id))
        members = id.split("+")
        math = formula(cls)
        if len(members) == 2:
            first, second = (rf"\ell_{{\mathrm{{{part}}}}}" for part in members)
            math = rf"\alpha\, {first} + \beta\, {second}"
        found.append(
            row
            | {
                "Id": f"``{id}``",
                "Class": f":class:`~{_path(cls)}`",
                "Formula": f":math:`{math}`" if math else "",
                "Defaults": re.sub(r"[^ ,]+=[^ ,]+", r"``\g<0>``", row["Defaults"]),
                "Cost": cost.get(id, "–"),
            }
        )
    return found


def costs() -> dict[str, str]:
    """Return the measured time of every id, relative to torch's cross entropy."""
    measured = map(json.loads, SPEED.read_text(encoding="utf-8").splitlines())
    here = {"implementation": "noisyloss", "measure": "both", "mode": "eager", "shape": SHAPE}
    return {row["loss"]: f"{row['ratio']:.2f}" for row in measured if row["ratio"] and here.items() <= row.items()}


def index() -> str:
    """Return the page with the tables."""
    return INDEX.format(
        formulas=_list_table("Id", "Class", "Formula", "Defaults"),
        certificates=_list_table("Id", "Bounds", "Symmetric, K", "Noise tolerance", "Asymmetry ratio", "Cost", "Paper"),
        pages="\n".join(f"   {cls.__name__}" for cls in loss_classes()),
        num_classes=NUM_CLASSES,
        shape=SHAPE.replace("x", "×"),
    )


def page(cls: type[noisyloss.RobustLoss]) -> str:
    """Return the page of a class."""
    name = cls.__name__
    ids = [id for id in noisyloss.list_losses() if type(noisyloss.create_loss(id)) is cls]
    created = ", ".join(f'``create_loss("{id}")``' for id in ids)
    return PAGE.format(name=name, rule="=" * len(name), path=_path(cls), ids=f"Made by {created}.\n" if ids else "")


def write(folder: Path) -> None:
    """Write all pages into ``folder``; touch no file that is right already, so that Sphinx reads only what changed."""
    pages = {"index": index()} | {cls.__name__: page(cls) for cls in loss_classes()}
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _doc(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "")


def _path(cls: type) -> str:
    public = getattr(noisyloss, cls.__name__, None) is cls
    return f"noisyloss.{cls.__name__}" if public else f"{cls.__module__}.{cls.__qualname__}"


def _list_table(*columns: str) -> str:
    lines = []
    for row in [dict(zip(columns, columns, strict=True)), *rows()]:
        cells = [row[column] for column in columns]
        lines += [f"   {'*' if i == 0 else ' '} - {cell}".rstrip() for i, cell in enumerate(cells)]
    return "\n".join(lines)
