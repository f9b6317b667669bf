"""Losses by id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noisyloss._base import DEFAULTS, LOSSES, loss_class, single_loss
from noisyloss.losses.combined import APLLoss

if TYPE_CHECKING:
    from noisyloss._base import RobustLoss

COMBINATIONS: dict[str, dict[str, float]] = {
    # Ma et al., ICML 2020: alpha = beta = 1 on CIFAR-10.
    "mae+rce": {},
    "nce+mae": {},
    "nce+rce": {},
    "nfl+mae": {},
    "nfl+rce": {},
    "ngce+mae": {},
    "ngce+rce": {},
    # Zhou et al., ICML 2021.
    "nce+agce": {"alpha": 1.0, "beta": 4.0, "a": 6.0, "q": 1.5},
    "nce+aul": {"alpha": 1.0, "beta": 4.0, "a": 6.3, "q": 1.5},
    "nce+ael": {"alpha": 1.0, "beta": 4.0, "a": 5.0},
    # Wang et al., NeurIPS 2024: their MAE is twice ours, so beta = 2 · 5.
    "epsilon-ce+mae": {"alpha": 0.01, "beta": 10.0, "m": 1e5},
    "epsilon-focal+mae": {"alpha": 0.01, "beta": 10.0, "m": 1e5},
}
"""The published sums of two losses, and their hyper-parameters on CIFAR-10 that are not those below."""

PUBLISHED: dict[str, Any] = {"alpha": 1.0, "beta": 1.0, "warmup": False}
"""What a sum has if nothing else is said; the defaults of :class:`APLLoss` are our own."""


def list_losses() -> list[str]:
    """Return the ids of all losses, sorted; the published combinations included.

    Example:
        >>> [id for id in list_losses() if id.startswith("nfl")]
        ['nfl', 'nfl+mae', 'nfl+rce']
    """
    return sorted([*LOSSES, *COMBINATIONS])


def create_loss(id: str, **hyperparameters: Any) -> RobustLoss:
    """Return the loss with this id: the published one, with its published hyper-parameters on CIFAR-10 as defaults.

    Args:
        id: one of :func:`list_losses`, or ``"a+b"`` for the sum alpha·a + beta·b of any two single losses.
        **hyperparameters: in place of the defaults, and the options that every loss takes. In a sum each
            hyper-parameter goes to the members that have it; alpha and beta always belong to the sum.

    Raises:
        ValueError: if there is no such id, or a value is out of range.
        TypeError: if no member has such a hyper-parameter.

    Example:
        >>> create_loss("nfl+rce", beta=0.1, gamma=2.0).hyperparameters
        {'alpha': 1.0, 'beta': 0.1, 'gamma': 2.0, 'detach_modulator': False, 'A': -9.210340371976182}
    """
    if not isinstance(id, str):
        raise TypeError(f"id: expected a string; got {id!r}")
    if "+" not in id:
        _refuse_unknown(id, hyperparameters, loss_class(id).hyperparameter_names())
        return single_loss(id, **hyperparameters)
    parts = id.split("+")
    members = [loss_class(part) for part in parts]
    if len(members) != 2:
        raise ValueError(f"id: expected a sum of two losses; got {id!r} (see WeightedSum for more)")
    settings = PUBLISHED | COMBINATIONS.get(id, {}) | hyperparameters
    of_sum = {name: settings.pop(name) for name in ("alpha", "beta", *DEFAULTS) if name in settings}
    names = [[name for name in member.hyperparameter_names() if name not in ("alpha", "beta")] for member in members]
    _refuse_unknown(id, settings, ["alpha", "beta", *names[0], *names[1]])
    active, passive = (
        single_loss(part, **{name: settings[name] for name in own if name in settings})
        for part, own in zip(parts, names, strict=True)
    )
    return APLLoss(active, passive, **of_sum)


def _refuse_unknown(id: str, given: dict[str, Any], known: list[str]) -> None:
    unknown = [name for name in given if name not in known and name not in DEFAULTS]
    if unknown:
        raise TypeError(
            f"{unknown[0]}: no hyper-parameter of {id!r}; it has {', '.join(dict.fromkeys(known)) or 'none'}, "
            f"and the options {', '.join(DEFAULTS)}"
        )
