"""Label noise: by transition matrices, by the input, by people, and estimates of how noisy labels are."""

from noisyloss.noise.estimation import estimate_noise_rate, estimate_transition
from noisyloss.noise.human import load_cifar10n
from noisyloss.noise.instance import corrupt_by_instance
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
    "corrupt_by_instance",
    "estimate_noise_rate",
    "estimate_transition",
    "load_cifar10n",
    "pairflip_matrix",
    "symmetric_matrix",
]
