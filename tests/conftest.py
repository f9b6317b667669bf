"""Every loss of the registry, with every setting worth testing, as the fixture ``make_loss``."""

from __future__ import annotations

import os
from functools import partial

import hypothesis
import pytest
import torch

from noisyloss import create_loss, list_losses
from noisyloss._base import LOSSES, LinkedLoss

# What the property suite does not ask of every loss: all exceptions stand here.
SHIFT_VARIANT = {"ldr", "logitclip", "sr"}
"""Losses that change if a constant is added to all logits."""
JUMPS = {id for id in list_losses() if id.startswith("epsilon")}
"""Losses that jump where the argmax changes, so also where rounding makes or breaks a tie."""
LINKED = {id for id, cls in LOSSES.items() if issubclass(cls, LinkedLoss)}
"""Losses of transformed logits, which keep more than one N×C tensor for the backward pass."""

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores: more threads would wait for each other
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what tests start

hypothesis.settings.register_profile("default", deadline=None, max_examples=20)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "make_loss" in metafunc.fixturenames:
        cases = [(id, {}) for id in list_losses()]
        cases += [(id, example) for id, cls in sorted(LOSSES.items()) if id == cls.id for example in cls.examples]
        metafunc.parametrize(
            "make_loss",
            [partial(create_loss, id, **settings) for id, settings in cases],
            ids=[id + "".join(f",{name}={value}" for name, value in settings.items()) for id, settings in cases],
        )


PATHS = ("blockwise", "plain", "compiled")
"""The ways to the log-probabilities; the last, which is never left again, is that of the lines that compilers see."""


def take(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take this way, whatever the size of the logits."""
    monkeypatch.setattr("noisyloss._log_probs._BLOCKWISE_FROM", 1 if path == "blockwise" else 1 << 60)
    if path == "compiled":
        monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)


@pytest.fixture(params=["plain", "blockwise"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One of the eager ways, or of those that a test asks for."""
    monkeypatch.setattr("noisyloss._log_probs._BLOCK", 11)  # two rows or so
    take(request.param, monkeypatch)
    return request.param


ALL_PATHS = pytest.mark.parametrize("path", PATHS, indirect=True)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
