"""Labels that people gave: CIFAR-10N, read from the file that its authors publish."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from os import PathLike
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

__all__ = ["load_cifar10n"]

_KEYS: Final = {
    "clean": "clean_label",
    "aggre": "aggre_label",
    "worst": "worse_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
}


def load_cifar10n(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Return the human labels of CIFAR-10's training images, in CIFAR-10's order.

    ``path`` is the file ``CIFAR-10_human.pt`` of the repository UCSC-REAL/cifar-10-100n on GitHub; its licence,
    CC BY-NC 4.0, does not let us ship it. It is a pickle, which can run any code when it is opened with
    ``torch.load`` or ``pickle.load``. Here it is *not*: of all that a pickle can name, only the four names that make
    up an array of integers are taken, and stand for code of this module; any other is refused.

    Compare ``"clean"`` with the labels of your copy of CIFAR-10: it tells whether the order is the same.

    Args:
        path: the file.

    Returns:
        The labels by name, each an int64 tensor with one label per training image. ``"clean"`` holds CIFAR-10's own
        labels; ``"random1"``, ``"random2"`` and ``"random3"`` those of three annotators for each image (17.2 %, 18.1 %
        and 17.6 % wrong); ``"aggre"`` their majority (9.0 %); ``"worst"`` a wrong one of the three wherever there is
        one (40.2 %).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.

    References:
        Wei et al., *Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations*, ICLR 2022.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                held = _Labels(file).load()
        labels = {key: held[name] for key, name in _KEYS.items()}
        if len({array.shape for array in labels.values()}) != 1 or any(_is_bad(array) for array in labels.values()):
            raise ValueError("the labels are not six rows of integers from 0 to 9")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: no such file; CIFAR-10_human.pt is in https://github.com/UCSC-REAL/cifar-10-100n"
        ) from error
    except OSError:
        raise
    except Exception as error:  # whatever a file that is no such pickle makes the reader raise
        raise ValueError(f"{path}: not the file CIFAR-10_human.pt of CIFAR-10N ({error})") from error
    return {key: torch.from_numpy(array) for key, array in labels.items()}


def _is_bad(array: Any) -> bool:
    return array.ndim != 1 or bool(((array < 0) | (array > 9)).any())


class _Array:
    """Stands for a NumPy array while its pickle is read."""

    def __new__(cls, *_: object) -> Any:
        return super().__new__(cls)

    def __setstate__(self, state: tuple[int, tuple[int, ...], Any, bool, bytes]) -> None:
        _, shape, _, _, data = state
        self.values = np.frombuffer(data, "<i8").reshape(shape).astype(np.int64)


class _Int64:
    """Stands for NumPy's dtype, of which the file holds one only."""

    def __init__(self, name: str, *_: object) -> None:
        if name != "i8":
            raise ValueError(f"dtype {name}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] != "<":
            raise ValueError(f"byte order {state[1]}")


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding}")
    return text.encode("latin1")


class _Labels(pickle.Unpickler):
    """Reads a dict of int64 arrays and nothing else."""

    ALLOWED: Final[dict[tuple[str, str], Callable[..., Any]]] = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Int64,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed") from None

    def load(self) -> dict[str, Any]:
        held = super().load()
        return {key: array.values for key, array in held.items()}
