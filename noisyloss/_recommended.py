"""The hyper-parameters of the papers' experiments."""

from __future__ import annotations

from typing import Any, NamedTuple

from noisyloss._registry import create_loss, list_losses

APL = "code of Ma et al., ICML 2020 (HanxunH/Active-Passive-Losses)"
ALF = "code of Zhou et al., ICML 2021 (hitcszx/ALFs)"
ANL = "code of Ye et al., NeurIPS 2023 (Virusdoll/Active-Negative-Loss)"
EPS = "code of Wang et al., NeurIPS 2024 (cswjl/eps-softmax)"
JAL = "code of Wang et al., ICCV 2025 (cswjl/joint-asymmetric-loss)"
GJS = "code of Englesson & Azizpour, NeurIPS 2021 (ErikEnglesson/GJS)"
PHUBER = "Menon et al., ICLR 2020, by its reproduction (dmizr/phuber)"
TAYLOR = "Feng et al., IJCAI 2020, as reported by others"
TRUNCATED = "third-party code of Zhang & Sabuncu, NeurIPS 2018 (AlanChou/Truncated-Loss)"
BOOTSTRAP = "code of Patrini et al., CVPR 2017 (giorgiop/loss-correction)"


class Recommendation(NamedTuple):
    """Hyper-parameters for :func:`create_loss`, and where they come from."""

    hyperparameters: dict[str, Any]
    source: str


def _apl(cifar100: dict[str, Any], webvision: dict[str, Any] | None) -> dict[str, tuple[dict[str, Any], str]]:
    found = {"cifar10": ({}, APL), "cifar100": (cifar100, APL), "mnist": ({"alpha": 1.0, "beta": 10.0}, APL)}
    return found | ({"webvision": (webvision, APL)} if webvision else {})


def _l1(delta: str) -> str:
    return f"; with {delta} times the sum of the absolute parameters in place of weight decay"


def _anl() -> dict[str, tuple[dict[str, Any], str]]:
    return {
        "cifar10": ({}, ANL + _l1("5e-5")),
        "cifar100": ({"alpha": 10.0, "beta": 1.0}, ANL + _l1("5e-7")),
        "mnist": ({"alpha": 1.0, "beta": 1.0}, ANL + _l1("1e-6")),
        "webvision": ({"alpha": 20.0, "beta": 1.0}, ANL + _l1("5e-6")),
    }


def _jal() -> dict[str, tuple[dict[str, Any], str]]:
    return {
        "cifar10": ({}, JAL + _l1("5e-5")),
        "cifar100": ({"alpha": 5.0, "beta": 1.0, "a": 20.0}, JAL + _l1("5e-6")),
        "webvision": ({"alpha": 50.0, "beta": 1.0, "a": 30.0}, JAL),
        "clothing1m": ({"alpha": 5.0, "beta": 0.1, "a": 5.0}, JAL),
    }


def _epsilon_mae() -> dict[str, tuple[dict[str, Any], str]]:
    twice = EPS + ", whose MAE is half of beta here"
    return {
        "cifar10": ({}, f"{twice}; symmetric noise"),
        "cifar10-asymmetric": ({"alpha": 0.02, "beta": 10.0, "m": 1e3}, twice),
        "cifar10-instance": ({"alpha": 0.045, "beta": 20.0, "m": 1e5}, f"{twice}; instance-dependent noise"),
        "cifar100": (
            {"alpha": 0.03, "beta": 2.0, "m": 1e4},
            f"{twice}; symmetric noise of 0.4; alpha is 0.1, 0.05, 0.00125, 0.0075 at 0, 0.2, 0.6, 0.8",
        ),
        "cifar100-asymmetric": (
            {"alpha": 0.004, "beta": 2.0, "m": 1e2},
            f"{twice}; noise of 0.4; alpha is 0.015, 0.007, 0.005 at 0.1, 0.2, 0.3",
        ),
        "webvision": ({"alpha": 0.015, "beta": 0.6, "m": 1e3}, twice),
        "clothing1m": ({"alpha": 0.012, "beta": 0.2, "m": 1e3}, twice),
    }


RECOMMENDED: dict[str, dict[str, tuple[dict[str, Any], str]]] = {
    "focal": {"cifar10": ({}, APL), "cifar100": ({}, APL)},
    "gce": {"cifar10": ({}, APL), "cifar100": ({}, APL), "mnist": ({}, APL)},
    "sce": {
        "cifar10": ({}, APL),
        "cifar100": ({"alpha": 6.0, "beta": 0.1}, APL),
        "mnist": ({"alpha": 0.01, "beta": 1.0}, APL),
        "webvision": ({"alpha": 10.0, "beta": 1.0}, APL),
    },
    "nfl": {"cifar10": ({}, f"{APL}; for symmetric noise it multiplies the loss by 10"), "cifar100": ({}, APL)},
    "ngce": {"cifar10": ({}, APL), "cifar100": ({"q": 0.7}, APL), "mnist": ({}, APL)},
    "nce+mae": _apl({"alpha": 10.0, "beta": 1.0}, {"alpha": 50.0, "beta": 1.0}),
    "nfl+mae": _apl({"alpha": 10.0, "beta": 1.0}, {"alpha": 50.0, "beta": 1.0}),
    "nce+rce": _apl({"alpha": 10.0, "beta": 0.1}, {"alpha": 50.0, "beta": 0.1})
    | {"clothing1m": ({"alpha": 10.0, "beta": 1.0}, EPS)},
    "nfl+rce": _apl({"alpha": 10.0, "beta": 0.1}, {"alpha": 50.0, "beta": 0.1}),
    "ngce+mae": _apl({"alpha": 10.0, "beta": 1.0, "q": 0.7}, None),
    "ngce+rce": {"cifar10": ({}, APL), "mnist": ({"alpha": 1.0, "beta": 10.0}, APL)},
    "agce": {
        "cifar10": ({}, ALF),
        "cifar100": ({}, ALF),
        "mnist": ({"a": 4.0, "q": 0.2}, ALF),
        "webvision": ({"a": 1e-5, "q": 0.5}, EPS),
    },
    "aul": {"cifar10": ({}, ALF), "cifar100": ({}, ALF), "mnist": ({"a": 3.0, "q": 0.1}, ALF)},
    "ael": {"cifar10": ({}, ALF), "cifar100": ({}, ALF), "mnist": ({"a": 3.5}, ALF)},
    "nce+agce": {
        "cifar10": ({}, ALF),
        "cifar100": ({"alpha": 10.0, "beta": 0.1, "a": 1.8, "q": 3.0}, ALF),
        "mnist": ({"alpha": 0.0, "beta": 1.0, "a": 4.0, "q": 0.2}, ALF),
        "webvision": ({"alpha": 50.0, "beta": 0.1, "a": 2.5, "q": 3.0}, f"{ALF}, {ANL}"),
    },
    "nce+aul": {
        "cifar10": ({}, ALF),
        "cifar100": ({"alpha": 10.0, "beta": 0.015, "a": 6.0, "q": 3.0}, ALF),
        "mnist": ({"alpha": 0.0, "beta": 1.0, "a": 3.0, "q": 0.1}, ALF),
    },
    "nce+ael": {
        "cifar10": ({}, ALF),
        "cifar100": ({"alpha": 10.0, "beta": 0.1, "a": 1.5}, ALF),
        "mnist": ({"alpha": 0.0, "beta": 1.0, "a": 3.5}, ALF),
    },
    "nnce": {"cifar10": ({}, ANL), "cifar100": ({}, ANL)},
    "nnfl": {"cifar10": ({}, ANL), "cifar100": ({}, ANL)},
    "anl-ce": _anl()
    | {"clothing1m": ({"alpha": 5.0, "beta": 0.1, "p_min": 1e-8}, f"{EPS}, a re-run without the penalty")},
    "anl-fl": _anl(),
    "amse": {"cifar10": ({}, JAL)},
    "jal-ce": _jal(),
    "jal-fl": _jal(),
    "js": {
        "cifar10": ({}, f"{GJS}; symmetric noise of 0.2 and 0.4; pi is 0.1 at 0, 0.9 at 0.6 and 0.8"),
        "cifar10-asymmetric": ({"pi": 0.3}, GJS),
        "cifar100": ({"pi": 0.3}, f"{GJS}; symmetric noise of 0.4; pi is 0.1, 0.1, 0.5, 0.3 at 0, 0.2, 0.6, 0.8"),
        "cifar100-asymmetric": ({"pi": 0.5}, GJS),
        "webvision": ({"pi": 0.1, "scaled": False}, GJS),
    },
    "phuber-ce": {
        "cifar10": ({}, PHUBER),
        "cifar100": ({"tau": 10.0}, f"{PHUBER}, which finds tau = 50 better"),
        "mnist": ({"tau": 10.0}, PHUBER),
    },
    "phuber-gce": {"cifar10": ({}, PHUBER), "cifar100": ({}, PHUBER), "mnist": ({}, PHUBER)},
    "taylor-ce": {"cifar100": ({"t": 6}, TAYLOR)},
    "tgce": {"cifar10": ({}, TRUNCATED), "cifar100": ({}, TRUNCATED)},
    "bootstrap": {"cifar10": ({}, BOOTSTRAP), "cifar100": ({}, BOOTSTRAP)},
    "epsilon-ce+mae": _epsilon_mae(),
    "epsilon-focal+mae": _epsilon_mae(),
}
"""By id and data set: what differs from the defaults of :func:`create_loss`, and the source."""


def recommended(id: str, dataset: str = "cifar10") -> Recommendation:
    """Return the hyper-parameters with which a paper ran a loss on a data set, and where they are written.

    Args:
        id: one of :func:`list_losses` that has published hyper-parameters.
        dataset: ``"cifar10"``, ``"cifar100"``, ``"mnist"``, ``"webvision"`` or ``"clothing1m"``, as far as there are
            runs. The values are those for symmetric noise, or for all noise; some losses have
            ``"cifar10-asymmetric"`` and the like too.

    Raises:
        ValueError: if nothing is known of the id, or of it on this data set; the message names what there is.

    Example:
        >>> found = recommended("nce+agce", "cifar100")
        >>> found.hyperparameters
        {'alpha': 10.0, 'beta': 0.1, 'a': 1.8, 'q': 3.0}
        >>> found.source
        'code of Zhou et al., ICML 2021 (hitcszx/ALFs)'
        >>> criterion = create_loss("nce+agce", **found.hyperparameters)
    """
    if id not in RECOMMENDED:
        known = ", ".join(sorted(RECOMMENDED))
        what = "a loss with published hyper-parameters" if id in list_losses() else "an id"
        raise ValueError(f"id: expected {what}, one of {known}; got {id!r}")
    if dataset not in RECOMMENDED[id]:
        raise ValueError(f"dataset: expected one of {', '.join(RECOMMENDED[id])} for {id!r}; got {dataset!r}")
    settings, source = RECOMMENDED[id][dataset]
    return Recommendation(create_loss(id, **settings).hyperparameters, source)
