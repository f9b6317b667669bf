"""The tables and plots of the rows: of all that was trained, and of a paper's recipe beside what was published."""

from __future__ import annotations

import functools
import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import papers
from harness import (
    DROP_IN,
    HUMAN,
    NOISE_KINDS,
    Row,
    hyperparameters,
    identity,
    in_brackets,
    parse_loss,
    shell_options,
)

Curve = list[Row]  # one run, epoch by epoch


def report(rows: Iterable[Row], out: Path, published: Callable[[Row], str] | None = None) -> None:
    """Print one table for each protocol in the rows; save one plot for each noise in it, one for each kind of noise."""
    protocols: dict[str, list[Curve]] = {}
    for curve in _curves(rows):
        key = json.dumps([curve[0][name] for name in ("dataset", "model", "epochs", "recipe")], sort_keys=True)
        protocols.setdefault(key, []).append(curve)
    if not protocols:
        print(f"no rows in {out}")
    names: set[str] = set()
    for curves in protocols.values():
        first = curves[0][0]
        recipe = ", ".join(f"{key} {value}" for key, value in first["recipe"].items() if value not in (None, 0))
        print(f"\n{first['dataset']}, {first['model']}, {first['epochs']} epochs, {recipe}\n")
        finished = [curve for curve in curves if curve[-1]["epoch"] == first["epochs"]]
        if finished:
            print(_table(finished, published))
        for curve in curves:
            if curve not in finished:
                row = curve[-1]
                print(
                    f"unfinished: {loss_label(row, [c[0] for c in curves])} {row['noise']} seed {row['seed']}, "
                    f"epoch {row['epoch']}: {row['test_accuracy']:.2f}"
                )
        plots = dict.fromkeys(dict.fromkeys(curve[0]["noise"] for curve in curves), _over_epochs)
        plots |= {kind: _over_rates for kind in NOISE_KINDS if len(_rates(finished, kind)) >= 3}
        for noise, plot in plots.items():
            name = f"{first['dataset']}-{first['model']}-{first['epochs']}-{noise}".replace(":", "-")
            while f"{name}.png" in names:  # the same with another recipe
                name += "+"
            names.add(f"{name}.png")
            plot(curves, noise).savefig(out / f"{name}.png", dpi=150)
            print(f"\n{out / name}.png", end="")
        print()


def _curves(rows: Iterable[Row]) -> list[Curve]:
    """Return the rows run by run: sorted, as several processes may have written them."""
    curves: dict[str, dict[int, Row]] = {}
    for row in rows:
        curves.setdefault(identity(row), {}).setdefault(row["epoch"], row)

    def place(curve: Curve) -> tuple[Any, ...]:
        loss, settings = curve[0]["loss"], json.dumps(curve[0]["hyperparameters"])
        return noise_place(curve[0]["noise"]), loss.count("+"), loss, settings, curve[0]["seed"]

    return sorted(([curve[epoch] for epoch in sorted(curve)] for curve in curves.values()), key=place)


def noise_place(noise: str) -> tuple[int, float]:
    """Return what noises are sorted by: the kind, then the rate."""
    kind, _, rate = noise.partition(":")
    return NOISE_KINDS.index(kind), HUMAN.index(rate) if kind == "human" else float(rate or 0)


def _by_loss(curves: Sequence[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """Return the curves that differ in the seed only, under (noise, label of the loss)."""
    cells: dict[tuple[str, str], list[Curve]] = {}
    firsts = [curve[0] for curve in curves]
    for first, curve in zip(firsts, curves, strict=True):
        cells.setdefault((first["noise"], loss_label(first, firsts)), []).append(curve)
    return cells


def loss_label(row: Row, rows: Sequence[Row]) -> str:
    """Return the id, and those hyper-parameters that differ among the rows with this id; the drop-in by its class."""
    if _is_drop_in(row):
        return "APLLoss()"
    others = [other["hyperparameters"] for other in rows if other["loss"] == row["loss"] and not _is_drop_in(other)]
    mine = row["hyperparameters"]
    return row["loss"] + in_brackets({k: v for k, v in mine.items() if any(o.get(k) != v for o in others)})


def _is_drop_in(row: Row) -> bool:
    name, settings = _drop_in()
    return row["loss"] == name and row["hyperparameters"] == settings


@functools.cache
def _drop_in() -> tuple[str, dict[str, Any]]:
    name, given = parse_loss(DROP_IN)
    return name, hyperparameters(name, given)


def _table(curves: Sequence[Curve], published: Callable[[Row], str] | None) -> str:
    head = ["noise", "loss", "last epoch", "best epoch", "memorised", "seeds", *(["published"] if published else [])]
    lines = [head]
    for (noise, label), cell in _by_loss(curves).items():
        lines.append([noise, label, *_measured(cell), *([published(cell[0][0])] if published else [])])
    return markdown_table(lines)


def _measured(cell: Sequence[Curve]) -> list[str]:
    """Return the accuracy at the last epoch and at the best, the share memorised, and the number of seeds."""
    last = [curve[-1] for curve in cell]
    best = [max(row["test_accuracy"] for row in curve) for curve in cell]
    memorised = [row["memorised"] for row in last if row["memorised"] is not None]
    return [*map(mean_std, ([row["test_accuracy"] for row in last], best, memorised)), str(len(cell))]


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        f"| {' | '.join(text.ljust(width) for text, width in zip(line, widths, strict=True))} |" for line in lines
    )


def mean_std(values: Sequence[float]) -> str:
    """Return the mean, with the standard deviation of more than one value; a dash for none."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


# A paper's recipe


def published(row: Row) -> str:
    """Return the published accuracies of the setting of a run."""
    entry = _entries().get(_setting(row))
    if not entry or (row["model"], row["epochs"]) != (papers.MODEL, papers.EPOCHS):
        return "-"
    second_hand = (f"unverified: {accuracy}" for accuracy in papers.published(entry, row["noise"], verified=False))
    return "; ".join([*papers.published(entry, row["noise"]), *second_hand]) or "-"


def paper_table(name: str, rows: Iterable[Row], model: str = papers.MODEL, epochs: int = papers.EPOCHS) -> str:
    """Return the table of a recipe: what was measured, what was published, and what runs it again."""
    recipe = papers.RECIPES[name]
    cells: dict[tuple[papers.Entry, str], list[Curve]] = {}
    for curve in _curves(rows):
        entry, last = _entries().get(_setting(curve[0])), curve[-1]
        if entry and (last["dataset"], last["model"], last["epochs"], last["epoch"]) == (
            "cifar10",
            model,
            epochs,
            epochs,
        ):
            cells.setdefault((entry, last["noise"]), []).append(curve)

    head = [
        "noise",
        "loss",
        "last epoch",
        "best epoch",
        "memorised",
        "seeds",
        "published",
        "unverified",
        "run it again",
    ]
    lines = [head]
    comparable = (model, epochs) == (papers.MODEL, papers.EPOCHS)
    for noise in sorted(recipe.noises, key=noise_place):
        for entry in recipe.entries:
            cell = cells.get((entry, noise), [])
            numbers = ["; ".join(papers.published(entry, noise, verified=known)) or "-" for known in (True, False)]
            if cell or (comparable and numbers != ["-", "-"]):
                line = [noise, _entry_label(entry, recipe), *(_measured(cell) if cell else "----")]
                line += numbers if comparable else "--"
                lines.append([*line, _options(entry, noise, cell, model, epochs)])

    settings = [["loss", "hyper-parameters", "L2", "L1"]]
    for entry in recipe.entries:
        given = entry.loss.partition(":")[2].replace(",", ", ")
        settings.append([_entry_label(entry, recipe), given or "-", f"{entry.weight_decay:g}", f"{entry.l1:g}"])
    protocol = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in papers.PROTOCOL.items())
    text = markdown_table(lines)
    sources = [f"- [{source.key}] {source.title}" for source in papers.SOURCES if f"[{source.key}]" in text]
    return "\n\n".join(
        [
            f"{recipe.title}. CIFAR-10, {model}, {epochs} epochs, {protocol}. Test accuracy, %, mean ± std over seeds.",
            "A row is run, or run again, by `python benchmarks/cifar10.py` and the options at its end.",
            *([text] if len(lines) > 1 else ["No row of this grid has been measured yet."]),
            markdown_table(settings),
            *(["\n".join(sources)] if sources else []),
        ]
    )


def _entry_label(entry: papers.Entry, recipe: papers.Recipe) -> str:
    """Return the id of the loss, and by what it differs from others of this id in the recipe."""
    name, _, settings = entry.loss.partition(":")
    others = [other for other in recipe.entries if other.loss.partition(":")[0] == name]
    if len({other.loss for other in others}) > 1:
        name += f" ({settings.replace(',', ', ')})"
    if len({other.l1 for other in others}) > 1:
        name += ", L1" if entry.l1 else ", L2"
    return name


def _options(entry: papers.Entry, noise: str, cell: Sequence[Curve], model: str, epochs: int) -> str:
    """Return the options of `cifar10.py` that make a cell; what is not said is the default."""
    options: dict[str, Any] = {"model": model, "losses": entry.loss, "noise": noise}
    if (model, epochs) != (papers.MODEL, papers.EPOCHS):
        options["epochs"] = epochs
    if entry.l1:
        options |= {"weight_decay": entry.weight_decay, "l1": entry.l1}
    return f"`{shell_options(**options, seeds=sorted({curve[0]['seed'] for curve in cell}) or [0, 1, 2])}`"


def _setting(row: Row) -> str | None:
    """Return what a run shares with an entry; None if it was not trained by the protocol of the papers."""
    recipe = row["recipe"]
    if any(recipe.get(key) != value for key, value in papers.PROTOCOL.items()):
        return None
    return _key(row["loss"], row["hyperparameters"], recipe["weight_decay"], recipe.get("l1", 0.0))


def _key(loss: str, settings: Mapping[str, Any], weight_decay: float, l1: float) -> str:
    text = json.dumps([loss, settings, weight_decay, l1], sort_keys=True)
    return json.dumps(json.loads(text, parse_int=float))


@functools.cache
def _entries() -> dict[str | None, papers.Entry]:
    """Return the entries by their setting."""
    entries: dict[str | None, papers.Entry] = {}
    for entry in itertools.chain(*(recipe.entries for recipe in papers.RECIPES.values())):
        name, given = parse_loss(entry.loss)
        entries[_key(name, hyperparameters(name, given), entry.weight_decay, entry.l1)] = entry
    return entries


# Plots


def _over_epochs(curves: Sequence[Curve], noise: str) -> Any:
    """Plot the accuracy, and what is memorised, over the epochs."""
    curves = [curve for curve in curves if curve[0]["noise"] == noise]
    panels = {"test_accuracy": "test accuracy, %"}
    if any(row["memorised"] is not None for curve in curves for row in curve):
        panels["memorised"] = "wrong labels that the network predicts, %"
    figure, axes = _figure(curves[0][0], noise, len(panels))
    for field, panel in zip(panels, axes, strict=True):
        lines = {}
        for (_, label), cell in _by_loss(curves).items():
            points: dict[float, list[float]] = {}
            for curve in cell:
                for row in curve:
                    if row[field] is not None:
                        points.setdefault(row["epoch"], []).append(row[field])
            lines[label] = {epoch: values for epoch, values in points.items() if len(values) == len(cell)}
        _draw(panel, lines, "epoch", panels[field])
    return figure


def _over_rates(curves: Sequence[Curve], kind: str) -> Any:
    """Plot the accuracy at the last epoch, and what is memorised by then, over the rate of the noise."""
    panels = {"test_accuracy": "test accuracy, %", "memorised": "wrong labels that the network predicts, %"}
    finished = [curve for curve in curves if curve[-1]["epoch"] == curve[-1]["epochs"]]
    cells = _by_loss([curve for curve in finished if curve[0]["noise"] in _rates(finished, kind).values()])
    figure, axes = _figure(curves[0][0], f"{kind} noise, last epoch", len(panels))
    for field, panel in zip(panels, axes, strict=True):
        lines: dict[str, dict[float, list[float]]] = {label: {} for _, label in cells}  # one colour in all panels
        for (noise, label), cell in cells.items():
            values = [curve[-1][field] for curve in cell if curve[-1][field] is not None]
            if values:
                lines[label][noise_place(noise)[1]] = values
        _draw(panel, lines, "noise rate", panels[field], marker="o", markersize=4)
    return figure


def _rates(curves: Sequence[Curve], kind: str) -> dict[float, str]:
    """Return the noises of this kind by rate, no noise included; none for a kind without rates."""
    noises = {curve[0]["noise"] for curve in curves} if kind not in ("clean", "human") else set()
    return {noise_place(noise)[1]: noise for noise in noises if noise.partition(":")[0] in (kind, "clean")}


def _figure(first: Row, title: str, panels: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # slow to import, and needed at the very end only

    figure = Figure(figsize=(1 + 5.5 * panels, 4.2), layout="constrained")
    figure.suptitle(f"{first['dataset']}, {first['model']}, {first['epochs']} epochs, {title}, mean over seeds")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _draw(
    axes: Any, lines: Mapping[str, Mapping[float, list[float]]], x_label: str, y_label: str, **style: Any
) -> None:
    """Draw the means, with a band from the least to the greatest; the legend is in the order in which they end."""
    ends = {}
    for colour, (label, points) in enumerate(lines.items()):
        x = sorted(points)
        if not x:
            continue
        mean = [statistics.mean(points[place]) for place in x]
        look = {"linestyle": ("-", "--", ":")[colour // 10 % 3], "linewidth": 1.6} | style
        (line,) = axes.plot(x, mean, f"C{colour % 10}", **look)
        if max(map(len, points.values())) > 1:
            low, high = [min(points[place]) for place in x], [max(points[place]) for place in x]
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        ends[f"{label}  {mean[-1]:.1f}"] = (mean[-1], line)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.set_figheight(max(axes.figure.get_figheight(), 0.22 * len(ends)))  # room for a long legend
    ranked = sorted(ends, key=lambda label: -ends[label][0])
    axes.legend([ends[label][1] for label in ranked], ranked, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
