"""What users write, for the strict type checker; an ignored error that is none any more is an error itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from typing_extensions import assert_type

from noisyloss import (
    ANLLoss,
    APLLoss,
    BackwardCorrection,
    BiTemperedLoss,
    CELoss,
    ELRLoss,
    FocalLoss,
    ForwardCorrection,
    GCELoss,
    GJSLoss,
    LogitClip,
    NCELoss,
    Normalized,
    NormalizedNegative,
    PointwiseLoss,
    RCELoss,
    RobustLoss,
    SparseRegularization,
    Symmetrized,
    TaylorCELoss,
    WeightedSum,
    clip_logits,
    create_loss,
    entropy_regularizer,
    l1_penalty,
    list_losses,
    recommended,
)
from noisyloss.noise import (
    CIFAR10_MAPPING,
    NoisyLabels,
    asymmetric_matrix,
    cifar100_mapping,
    corrupt,
    estimate_noise_rate,
    estimate_transition,
    pairflip_matrix,
    symmetric_matrix,
)


def drop_in(network: nn.Module, input: Tensor, target: Tensor) -> Tensor:
    criterion: nn.Module = APLLoss() if network.training else nn.CrossEntropyLoss()
    loss: Tensor = criterion(network(input), target)
    assert_type(APLLoss()(input, target), Tensor)
    return loss


def options() -> list[RobustLoss]:
    return [
        CELoss(weight=torch.ones(10), ignore_index=255, reduction="sum", label_smoothing=0.1),
        FocalLoss(2.0, detach_modulator=True, reduction="none"),
        GCELoss(q=0.5),
        Normalized(GCELoss(0.5), label_smoothing=0.1),
        NormalizedNegative(GCELoss(0.5), 0.0, reduction="sum"),
        Symmetrized(GCELoss(0.5), logit_bias="auto"),
        ANLLoss(10, 1, gamma=0.5, p_min=1e-8, detach_modulator=True, reduction="none"),
        create_loss("js", **recommended("js", dataset="cifar100").hyperparameters),
        APLLoss("nce", RCELoss(A=-4), alpha=10, beta=0.1, reduction="mean"),
        WeightedSum([NCELoss(), RCELoss()], [1, 2.0], weight=None),
        create_loss("nce+rce", alpha=10.0, beta=0.1, reduction="none"),
        LogitClip(SparseRegularization("gce", lam=4), 2.0, weight=torch.ones(10)),
        ForwardCorrection(symmetric_matrix(10, 0.4), BiTemperedLoss(0.5, num_iters=10)),
        BackwardCorrection([[0.9, 0.1], [0.2, 0.8]], "mae", reduction="sum"),
    ]


def wrong_options() -> None:
    CELoss(reduction="average")  # type: ignore[arg-type]
    GCELoss(q="0.7")  # type: ignore[arg-type]
    GCELoss(size_average=True)  # type: ignore[call-arg]
    APLLoss(active=nn.CrossEntropyLoss())  # type: ignore[arg-type]
    Normalized(NCELoss())  # type: ignore[arg-type]
    TaylorCELoss(t=1.5)  # type: ignore[arg-type]
    create_loss(3)  # type: ignore[arg-type]
    symmetric_matrix("10", 0.4)  # type: ignore[arg-type]
    corrupt([0, 1], symmetric_matrix(2, 0.4))  # type: ignore[call-arg]


def results(criterion: RobustLoss, input: Tensor, target: Tensor) -> None:
    assert_type(criterion.forward(input, target), Tensor)
    assert_type(criterion.bounds(10), tuple[float, float])
    assert_type(criterion.symmetry_constant(10), float | None)
    assert_type(criterion.noise_tolerance(10), float)
    assert_type(criterion.asymmetry_ratio(10), float)
    assert_type(recommended("gce").source, str)
    assert_type(create_loss("nce"), RobustLoss)
    assert_type(list_losses(), list[str])


def more_inputs(model: nn.Module, input: Tensor, target: Tensor, index: Tensor) -> Tensor:
    gjs, elr = GJSLoss(0.3, reduction="sum"), ELRLoss(50_000, 10, lam=7, weight=torch.ones(10))
    assert_type(elr(input, target, index), Tensor)
    return gjs([input, clip_logits(input, 2.0)], target) + l1_penalty(model.parameters()) + entropy_regularizer(input)


def noise(dataset: Dataset[tuple[Tensor, int]], generator: torch.Generator) -> None:
    matrix = symmetric_matrix(10, 0.4)
    assert_type(matrix, npt.NDArray[np.float64])
    assert_type(pairflip_matrix(10, 0.4), npt.NDArray[np.float64])
    assert_type(asymmetric_matrix(10, 0.4, CIFAR10_MAPPING, sequential=True), npt.NDArray[np.float64])
    assert_type(asymmetric_matrix(100, 0.4, cifar100_mapping()), npt.NDArray[np.float64])
    assert_type(corrupt([0, 1, 2], matrix, generator=0), list[int])
    assert_type(corrupt(torch.arange(3), matrix, generator=generator, exact=False), Tensor)
    assert_type(corrupt([0, 1], [[0.5, 0.5], [0.0, 1.0]], generator=0), list[int])
    assert_type(estimate_transition(torch.rand(5, 2), [0, 1, 1, 0, 1]), npt.NDArray[np.float64])
    assert_type(estimate_noise_rate([[0.5, 0.5]], torch.tensor([0])), float)
    noisy = NoisyLabels(dataset, matrix, generator=0, targets=[0, 1, 2])
    assert_type(noisy.clean_targets, Tensor)
    assert_type(noisy.targets, Tensor)
    assert_type(noisy.noise_mask, Tensor)


class SquaredLoss(PointwiseLoss):
    """A loss of one's own."""

    def f(self, log_p: Tensor) -> Tensor:
        return torch.expm1(log_p) ** 2
