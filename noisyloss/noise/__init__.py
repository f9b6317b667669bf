"""Label noise: transition matrices, and labels and datasets corrupted by them."""

from noisyloss.noise.labels import NoisyLabels, corrupt
from noisyloss.noise.transition import (
    CIFAR10_MAPPING,
    MNIST_MAPPING,
    asymmetric_matrix,
    cifar100_mapping,
    pairflip_matrix,
    symmetric_matrix,
)

__all__ = [
    "CIFAR10_MAPPING",
    "MNIST_MAPPING",
    "NoisyLabels",
    "asymmetric_matrix",
    "cifar100_mapping",
    "corrupt",
    "pairflip_matrix",
    "symmetric_matrix",
]
