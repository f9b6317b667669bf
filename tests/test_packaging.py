"""The package as a stranger meets it: public names, dependencies, versions, docstrings, docs and README."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest
import torch

import noisyloss
from noisyloss import PointwiseLoss, RobustLoss, list_losses
from noisyloss._base import LOSSES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CLASSES = [value for name in noisyloss.__all__ if inspect.isclass(value := getattr(noisyloss, name))]
PUBLISHED = [cls for cls in CLASSES if issubclass(cls, RobustLoss) and cls not in (RobustLoss, PointwiseLoss)]
NO_PAPER = {"CELoss", "WeightedSum"}  # neither comes from a paper on label noise


@pytest.fixture
def loss_table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("loss_table")


@pytest.fixture
def toy_loss() -> Iterator[type[RobustLoss]]:
    before = dict(LOSSES)

    class ToyLoss(PointwiseLoss, id="toy"):
        r"""A toy.

        .. math:: \ell(z, y) = (1 - p_y)^2

        Reference:
            Nobody, "Nothing", 2020.
        """

        def f(self, log_p: torch.Tensor) -> torch.Tensor:
            return torch.expm1(log_p) ** 2

    yield ToyLoss
    LOSSES.clear()
    LOSSES.update(before)


# Names


@pytest.mark.parametrize("module", [noisyloss, noisyloss.noise], ids=lambda module: module.__name__)
def test_all_is_what_can_be_imported(module: ModuleType) -> None:
    visible = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and (not isinstance(value, ModuleType) or name in module.__all__)
    }
    assert visible == set(module.__all__)
    assert len(module.__all__) == len(set(module.__all__))


def test_every_registered_loss_is_public() -> None:
    registered = {cls.__name__ for cls in LOSSES.values() if cls.__module__.startswith("noisyloss.")}
    assert registered <= set(noisyloss.__all__)


def test_all_is_what_the_docs_document(loss_table: ModuleType, tmp_path: Path) -> None:
    loss_table.write(tmp_path)
    text = "\n".join(path.read_text(encoding="utf-8") for path in [DOCS / "api.rst", *tmp_path.glob("*.rst")])
    documented = set(re.findall(r"^\.\. auto\w+:: noisyloss\.([\w.]+)$", text, re.MULTILINE))
    documented |= {f"noise.{name}" for name in re.findall(r"^\.\. py:data:: (\w+)$", text, re.MULTILINE)}
    assert documented == {*noisyloss.__all__, *(f"noise.{name}" for name in noisyloss.noise.__all__)}


# What an import brings, and what is installed


def test_import_pulls_in_nothing_beyond_torch_and_numpy() -> None:
    code = (
        "import sys, numpy, torch, torch.utils.data; before = set(sys.modules); import noisyloss, noisyloss.noise; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    path = os.pathsep.join([str(Path(noisyloss.__file__).parent.parent), os.getenv("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert "noisyloss" in done.stdout.split()
    assert set(done.stdout.split()) <= {"noisyloss", "torch", "numpy"}  # both load parts of themselves late


def test_is_typed() -> None:
    assert (resources.files("noisyloss") / "py.typed").is_file()


def test_one_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", noisyloss.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == noisyloss.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [noisyloss.__version__]


# Docstrings


@pytest.mark.parametrize("cls", PUBLISHED, ids=lambda cls: cls.__name__)
def test_docstring_is_complete(cls: type[RobustLoss]) -> None:
    doc = inspect.cleandoc(cls.__dict__["__doc__"])
    missing = [
        name for name in ["Args", "Shape", "Bounds", "Reference", "Example"] if not re.search(rf"^{name}:", doc, re.M)
    ]
    assert missing == (["Reference"] if cls.__name__ in NO_PAPER else [])
    assert ".. math::" in doc
    assert "Symmetric:" in doc
    assert "    >>> " in doc


@pytest.mark.parametrize("cls", PUBLISHED, ids=lambda cls: cls.__name__)
def test_docstring_names_every_argument(cls: type[RobustLoss]) -> None:
    arguments = re.search(r"^Args:\n((?:[ ]+.*\n|\n)+)", inspect.cleandoc(cls.__doc__ or ""), re.M)
    assert arguments
    named = re.findall(r"^    (\**\w+):", arguments[1], re.M)
    assert named == [*cls.hyperparameter_names(), "**options"]


# Docs


def test_table_has_every_loss(loss_table: ModuleType) -> None:
    rows = {row["Id"].strip("`"): row for row in loss_table.rows()}
    assert list(rows) == list_losses()
    assert all(row["Formula"] for row in rows.values())
    timed = map(json.loads, (ROOT / "benchmarks/results/speed-cpu/results.jsonl").read_text().splitlines())
    of_the_row = {
        "loss": "nce+rce",
        "implementation": "noisyloss",
        "shape": "1024x1000",
        "mode": "eager",
        "measure": "both",
    }
    *_, latest = (row["ratio"] for row in timed if of_the_row.items() <= row.items())
    assert rows["nce+rce"] | {"Paper": ""} == {
        "Id": "``nce+rce``",
        "Class": ":class:`~noisyloss.APLLoss`",
        "Formula": r":math:`\alpha\, \ell_{\mathrm{nce}} + \beta\, \ell_{\mathrm{rce}}`",
        "Defaults": "``alpha=1``, ``beta=1``, ``A=-9.21``",
        "Paper": "",
        "Bounds": "[0,\N{NO-BREAK SPACE}10.21]",
        "Symmetric, K": "yes, 83.89",
        "Noise tolerance": "0.9",
        "Asymmetry ratio": "–",
        "Cost": f"{latest:.2f}",
    }
    assert rows["mae"]["Asymmetry ratio"] == "1"
    assert rows["unhinged"]["Bounds"] == "(-∞,\N{NO-BREAK SPACE}∞)"
    assert rows["amse"]["Bounds"] == "[84.1,\N{NO-BREAK SPACE}90.1]"
    assert rows["anl-fl"]["Defaults"] == (
        "``alpha=5``, ``beta=5``, ``gamma=0.5``, ``p_min=1e-07``, ``detach_modulator=False``"
    )
    assert rows["ce"]["Bounds"] == "[0,\N{NO-BREAK SPACE}∞)"
    assert rows["ce"]["Symmetric, K"] == "no"


def test_the_module_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(noisyloss.__path__[0] + "/__main__.py", run_name="__main__")
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["Id", "Class", "Bounds"]
    assert [line.split()[0] for line in lines] == list_losses()


def test_table_and_pages_take_up_a_new_loss(loss_table: ModuleType, toy_loss: type[RobustLoss], tmp_path: Path) -> None:
    loss_table.write(tmp_path)
    index = (tmp_path / "index.rst").read_text(encoding="utf-8")
    assert index.count("   * - ``toy``\n") == 2
    assert "     - :math:`(1 - p_y)^2`\n" in index
    assert '     - Nobody, "Nothing", 2020.\n' in index
    assert "\n   ToyLoss\n" in index
    page = (tmp_path / "ToyLoss.rst").read_text(encoding="utf-8")
    assert 'create_loss("toy")' in page
    assert f"autoclass:: {toy_loss.__module__}." in page


def test_pages_of_losses_that_are_gone_are_removed(loss_table: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "GoneLoss.rst").touch()
    loss_table.write(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {"index", *(cls.__name__ for cls in PUBLISHED)}


# README


@pytest.fixture
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_links_and_commands_name_files_that_exist(readme: str) -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", readme) + re.findall(r"\b(?:benchmarks|docs|tests)/\w+\.\w+", readme)
    assert "benchmarks/digits.py" in named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_readme_names_extras_that_exist(readme: str) -> None:
    extras = set(re.findall(r'"\.\[(\w+)\]"', readme))
    assert extras == {"bench", "test", "docs"}
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert extras <= set(re.findall(r"^(\w+) = \[", pyproject.partition("[project.optional-dependencies]")[2], re.M))


def test_readme_names_every_single_loss(readme: str) -> None:
    table = readme.partition("## The losses")[2]
    assert [id for id in LOSSES if LOSSES[id].__module__.startswith("noisyloss.") and f"`{id}`" not in table] == []


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in DOCS.glob("*.md"))])
def test_python_blocks_are_doctests(page: str) -> None:
    blocks = re.findall(r"^ *```python\n(.*?)^ *```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    assert [block for block in blocks if not block.lstrip().startswith(">>> ")] == []
    assert [block for block in blocks if not block.endswith("\n\n")] == []  # else doctest takes the fence for output


# Numbers


@pytest.mark.parametrize(
    "results", sorted(ROOT.glob("benchmarks/results/*/results.jsonl")), ids=lambda p: p.parent.name
)
def test_the_tables_shown_are_those_of_the_committed_rows(results, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    kind = results.parent.name.partition("-")[0]
    harness = importlib.import_module("harness")
    rows = harness.read_rows(results)
    if kind == "swap":
        print(importlib.import_module("swap").report(rows))
    else:
        importlib.import_module("speed" if kind == "speed" else "tables").report(rows, tmp_path)
    tables = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(tables) > 2
    text = (DOCS / {"swap": "will_it_train.md"}.get(kind, "benchmarks.md")).read_text(encoding="utf-8")
    assert [line for line in tables if line not in text] == []
    for row in rows:
        assert all(row[field] for field in ("command", "commit", "torch", "device"))
    if kind != "speed":  # of repeated measurements the last one counts; an epoch is trained once
        assert len({(harness.identity(row), row["epoch"]) for row in rows}) == len(rows)
    assert {path.name for path in results.parent.glob("*.png")} == {path.name for path in tmp_path.glob("*.png")}


def test_the_tables_of_the_readme_are_parts_of_those_in_the_docs(readme: str) -> None:
    pages = "\n".join((DOCS / name).read_text(encoding="utf-8") for name in ("benchmarks.md", "will_it_train.md"))
    parts = re.findall(r"<!-- results: (\w+) -->(.*?)<!-- end of \1 -->", readme, re.S)
    shown = {kind: [line for line in part.splitlines() if line.startswith("|")] for kind, part in parts}
    assert set(shown) == {"digits", "cifar10", "swap"}
    for lines in shown.values():
        assert len(lines) > 2
        assert [line for line in lines if line not in pages] == []
