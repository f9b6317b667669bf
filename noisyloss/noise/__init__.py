"""Label noise: transition matrices, labels and datasets corrupted by them, and estimates of how noisy labels are."""

from noisyloss.noise.estimation import estimate_noise_rate, estimate_transition
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
    "estimate_noise_rate",
    "estimate_transition",
    "pairflip_matrix",
    "symmetric_matrix",
]
