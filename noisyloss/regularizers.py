"""Penalties that some losses come with in their papers: of the weights, and of the mean prediction."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from noisyloss._base import check_logits
from noisyloss._log_probs import CLASS_DIM, at_least_float32, log_probs

__all__ = ["entropy_regularizer", "l1_penalty"]


def l1_penalty(parameters: Iterable[Tensor]) -> Tensor:
    r"""Return the L1 norm :math:`\sum |\theta|` of the parameters.

    Active negative losses and joint asymmetric losses are published with it in place of weight decay, over *all*
    parameters, biases and batch norm included, times 5e-5 on CIFAR-10::

        loss = criterion(model(x), y) + 5e-5 * l1_penalty(model.parameters())

    Args:
        parameters: tensors, such as ``model.parameters()``.

    Returns:
        A scalar, in float32 at least.

    Raises:
        TypeError: if there is anything but tensors.
        ValueError: if there is none.

    Reference:
        Ye et al., "Active Negative Loss Functions for Learning with Noisy Labels", NeurIPS 2023.

    Example:
        >>> import torch
        >>> l1_penalty([torch.tensor([1.0, -2.0]), torch.tensor([[-0.5]])])
        tensor(3.5000)
    """
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"parameters: expected tensors; got {type(tensor).__name__}")
    if not tensors:
        raise ValueError("parameters: expected at least one; got none (has a generator been used up?)")
    terms = [tensor.abs().sum(dtype=at_least_float32(tensor)) for tensor in tensors]
    return sum(terms[1:], terms[0])


def entropy_regularizer(input: Tensor) -> Tensor:
    r"""Return how far the mean prediction of the batch is from uniform: :math:`\log C - H(\bar p) \ge 0`.

    It keeps a network from predicting few classes. The extension of active negative losses adds it, times 2 on CIFAR-10
    and 0.01 on CIFAR-100, under noise that is not symmetric.

    Args:
        input: logits of shape (C), (N, C) or (N, C, d1, ..., dK); the mean is over all but the classes.

    Returns:
        A scalar, in float32 at least.

    Raises:
        TypeError: if the input is no tensor of floating point numbers.
        ValueError: if it has no axis.

    Reference:
        Ye et al., "Active Negative Loss Functions for Learning with Noisy Labels", arXiv:2412.02373, 2024.

    Example:
        >>> import torch
        >>> entropy_regularizer(torch.tensor([[9.0, -9.0], [-9.0, 9.0]])).abs() < 1e-6  # sure, but of each in turn
        tensor(True)
        >>> entropy_regularizer(torch.tensor([[0.75, 0.25]]).log())  # log(2) - 0.5623
        tensor(0.1308)
    """
    check_logits(input)
    rows = input.unsqueeze(0) if input.dim() == 1 else input.movedim(CLASS_DIM, -1).flatten(0, -2)
    log_mean = log_probs(rows).logsumexp(0) - math.log(len(rows))
    return (log_mean.exp() * (log_mean + math.log(rows.shape[1]))).sum()
