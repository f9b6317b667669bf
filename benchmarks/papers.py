"""What papers trained on CIFAR-10, with what, and what came out: the recipes and the numbers, as data.

All of them share one protocol. What differs is the loss with its hyper-parameters, the weight decay (L2) and the L1
penalty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MODEL, EPOCHS = "cnn8", 120
PROTOCOL = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "batch_size": 128, "clip": 5.0}


class Entry(NamedTuple):
    """A loss as it was trained."""

    loss: str  # a spec
    weight_decay: float = 1e-4
    l1: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """A grid of runs."""

    title: str
    entries: Sequence[Entry]
    noises: Sequence[str]


SYMMETRIC = ("clean", "symmetric:0.2", "symmetric:0.4", "symmetric:0.6", "symmetric:0.8")
SEQUENTIAL = ("sequential:0.1", "sequential:0.2", "sequential:0.3", "sequential:0.4")
EXACT = ("asymmetric:0.1", "asymmetric:0.2", "asymmetric:0.3", "asymmetric:0.4")

CE, FOCAL, MAE, RCE, GCE = map(Entry, ("ce", "focal:gamma=0.5", "mae", "rce", "gce:q=0.7"))
SCE, NCE, NFL = map(Entry, ("sce:alpha=0.1,beta=1", "nce", "nfl:gamma=0.5"))
NCE_MAE, NCE_RCE = map(Entry, ("nce+mae:alpha=1,beta=1", "nce+rce:alpha=1,beta=1"))
NFL_MAE, NFL_RCE = map(Entry, ("nfl+mae:alpha=1,beta=1,gamma=0.5", "nfl+rce:alpha=1,beta=1,gamma=0.5"))
NCE_2MAE = Entry("nce+mae:alpha=1,beta=2")  # where the code's MAE is 2 - 2p, twice ours
AGCE, AUL, AEL = map(Entry, ("agce:a=0.6,q=0.6", "aul:a=5.5,q=3", "ael:a=2.5"))
NCE_AGCE, NCE_AUL = map(Entry, ("nce+agce:alpha=1,beta=4,a=6,q=1.5", "nce+aul:alpha=1,beta=4,a=6.3,q=1.5"))
NCE_AEL = Entry("nce+ael:alpha=1,beta=4,a=5")
ANL_CE = Entry("anl-ce:alpha=5,beta=5", 0.0, 5e-5)
ANL_FL = Entry("anl-fl:alpha=5,beta=5,gamma=0.5", 0.0, 5e-5)
JAL_CE = Entry("jal-ce:alpha=1,beta=1,a=30", 0.0, 5e-5)
JAL_FL = Entry("jal-fl:alpha=1,beta=1,a=30,gamma=0.5", 0.0, 5e-5)
AMSE = Entry("amse:a=30", 0.0, 5e-5)
LDR = Entry("ldr:lam=10,margin=0.1")


def _l1(entry: Entry) -> Entry:
    return Entry(entry.loss, 0.0, 5e-5)


def _epsilon(settings: str) -> list[Entry]:
    return [Entry(f"{id}:{settings}") for id in ("epsilon-ce+mae", "epsilon-focal+mae")]


_PAPERS = {
    "apl": Recipe(
        "Active passive losses: Ma et al., ICML 2020",
        [CE, FOCAL, MAE, RCE, GCE, SCE, NCE, NFL, NCE_MAE, NCE_RCE, NFL_MAE, NFL_RCE],
        [*SYMMETRIC, *SEQUENTIAL],
    ),
    "alf": Recipe(
        "Asymmetric losses: Zhou et al., ICML 2021",
        [CE, FOCAL, GCE, SCE, NCE, NCE_RCE, AGCE, AUL, AEL, NCE_AGCE, NCE_AUL, NCE_AEL],
        [*SYMMETRIC, *SEQUENTIAL],
    ),
    "anl": Recipe(
        "Active negative losses: Ye et al., NeurIPS 2023",
        [CE, FOCAL, GCE, SCE, NCE_MAE, NCE_RCE, NFL_RCE, NCE_AGCE, NCE_AUL, NCE_AEL, ANL_CE, ANL_FL],
        [*SYMMETRIC, *EXACT],
    ),
    "eps": Recipe(
        "The losses that Wang et al., NeurIPS 2024 (ε-softmax), compare theirs with",
        [CE, FOCAL, GCE, SCE, NCE_2MAE, NCE_RCE, NFL_RCE, NCE_AUL, NCE_AGCE, NCE_AEL],
        [*SYMMETRIC, *SEQUENTIAL],
    ),
    "jal": Recipe(
        "Joint asymmetric losses: Wang et al., ICCV 2025",
        [CE, NCE, NCE_RCE, AMSE, ANL_CE, ANL_FL, JAL_CE, JAL_FL],
        [*SYMMETRIC, *EXACT, "instance:0.4", "instance:0.6", "human:worst"],
    ),
}
RECIPES: Mapping[str, Recipe] = _PAPERS | {
    "paper": Recipe(
        "All of these papers",
        list(dict.fromkeys(entry for recipe in _PAPERS.values() for entry in recipe.entries)),
        list(dict.fromkeys(noise for recipe in _PAPERS.values() for noise in recipe.noises)),
    ),
    "eps-symmetric": Recipe(
        "ε-softmax: Wang et al., NeurIPS 2024, with symmetric noise (and LDR and LogitClip as there, the latter with "
        "tau = 1 below a rate of 0.5, and 1.5 above)",
        [CE, *_epsilon("alpha=0.01,beta=10,m=1e5"), LDR, Entry("logitclip:tau=1"), Entry("logitclip:tau=1.5")],
        SYMMETRIC,
    ),
    "eps-sequential": Recipe(
        "ε-softmax: Wang et al., NeurIPS 2024, with asymmetric noise (and LDR and LogitClip as there)",
        [CE, *_epsilon("alpha=0.02,beta=10,m=1e3"), LDR, Entry("logitclip:tau=2.5")],
        SEQUENTIAL,
    ),
    "l1": Recipe(
        "Is it the loss or the penalty? The L1 of ANL and JAL on losses that were published with L2",
        [CE, _l1(CE), NCE_RCE, _l1(NCE_RCE), _l1(Entry("nce+mae:alpha=1,beta=6")), ANL_CE, JAL_CE],
        ["symmetric:0.8"],
    ),
    "human": Recipe(
        "Human labels: CIFAR-10N",
        [CE, GCE, NCE_RCE, NCE_AGCE, ANL_CE, ANL_FL, JAL_CE, JAL_FL],
        ["human:aggre", "human:worst"],
    ),
}


class Source(NamedTuple):
    """Where numbers were read."""

    key: str
    title: str
    verified: bool = True


NOTEBOOK = Source(
    "APL",
    "Ma et al., ICML 2020: the output stored in the authors' plot_results.ipynb (HanxunH/Active-Passive-Losses at "
    "89fa39a), 3 runs. The paper itself could not be read, and may differ.",
)
EPSILON = Source("EPS", "Wang et al., NeurIPS 2024, table 2, 3 runs; they re-ran the losses of others.")
ANL_NOTE = Source("ANL", "Ye et al., NeurIPS 2023, by way of a reading note.", verified=False)
JAL_NOTE = Source(
    "JAL",
    "Wang et al., ICCV 2025, means only, by way of a reading note (zhaoyang97/Paper-Notes-en); they re-ran the losses "
    "of others. The penalty of AMSE alone is inferred.",
    verified=False,
)
SOURCES = (NOTEBOOK, EPSILON, ANL_NOTE, JAL_NOTE)

READ: Sequence[tuple[Source, Sequence[str], Mapping[Entry, Sequence[str]]]] = [
    (
        NOTEBOOK,
        SYMMETRIC,
        {
            CE: ("90.36 ± 0.03", "75.90 ± 0.28", "60.28 ± 0.27", "40.90 ± 0.35", "19.65 ± 0.46"),
            FOCAL: ("89.63 ± 0.25", "74.59 ± 0.49", "57.55 ± 0.39", "38.91 ± 0.62", "19.43 ± 0.27"),
            GCE: ("89.38 ± 0.23", "87.37 ± 0.21", "83.33 ± 0.39", "72.00 ± 0.37", "29.08 ± 0.80"),
            SCE: ("91.30 ± 0.22", "88.05 ± 0.26", "82.06 ± 0.24", "66.08 ± 0.25", "30.69 ± 0.63"),
            MAE: ("88.75 ± 0.26", "86.79 ± 0.18", "84.41 ± 0.10", "78.22 ± 0.31", "50.42 ± 1.29"),
            RCE: ("88.05 ± 3.65", "85.69 ± 3.15", "86.09 ± 0.18", "77.38 ± 3.69", "45.04 ± 5.29"),
            NCE: ("75.40 ± 0.44", "73.38 ± 0.46", "69.90 ± 0.48", "63.36 ± 0.68", "44.22 ± 0.24"),
            NFL_MAE: ("89.25 ± 0.19", "87.33 ± 0.14", "83.81 ± 0.06", "76.36 ± 0.31", "45.23 ± 0.52"),
            NFL_RCE: ("90.91 ± 0.02", "89.14 ± 0.13", "86.05 ± 0.12", "79.78 ± 0.13", "55.06 ± 1.08"),
            NCE_MAE: ("88.83 ± 0.34", "87.12 ± 0.21", "84.19 ± 0.43", "77.61 ± 0.05", "49.62 ± 0.72"),
            NCE_RCE: ("90.76 ± 0.22", "89.22 ± 0.27", "86.02 ± 0.09", "79.78 ± 0.50", "52.71 ± 1.90"),
        },
    ),
    (
        NOTEBOOK,
        SEQUENTIAL,
        {
            CE: ("87.38 ± 0.16", "83.62 ± 0.15", "79.38 ± 0.28", "75.00 ± 0.50"),
            FOCAL: ("86.35 ± 0.30", "82.97 ± 0.14", "79.48 ± 0.21", "74.60 ± 0.15"),
            GCE: ("88.42 ± 0.07", "86.07 ± 0.31", "80.78 ± 0.21", "74.98 ± 0.32"),
            NFL_MAE: ("88.46 ± 0.20", "86.81 ± 0.32", "83.91 ± 0.34", "77.16 ± 0.10"),
            NFL_RCE: ("90.20 ± 0.15", "88.73 ± 0.29", "85.74 ± 0.22", "79.27 ± 0.43"),
            NCE_MAE: ("88.25 ± 0.09", "86.44 ± 0.23", "83.98 ± 0.52", "78.23 ± 0.42"),
            NCE_RCE: ("89.95 ± 0.20", "88.56 ± 0.17", "85.58 ± 0.44", "79.59 ± 0.40"),
        },
    ),
    (
        EPSILON,
        SYMMETRIC,
        {
            CE: ("90.50 ± 0.35", "75.47 ± 0.27", "58.46 ± 0.21", "39.16 ± 0.50", "18.95 ± 0.38"),
            FOCAL: ("89.70 ± 0.24", "74.50 ± 0.18", "58.23 ± 0.40", "38.69 ± 0.06", "19.47 ± 0.74"),
            GCE: ("89.42 ± 0.21", "86.87 ± 0.06", "82.24 ± 0.25", "68.43 ± 0.26", "25.82 ± 1.03"),
            SCE: ("91.30 ± 0.08", "87.58 ± 0.05", "79.47 ± 0.48", "59.14 ± 0.07", "25.88 ± 0.49"),
            NCE_2MAE: ("89.02 ± 0.10", "86.79 ± 0.28", "83.60 ± 0.14", "75.93 ± 0.41", "46.96 ± 0.67"),
            NCE_RCE: ("91.03 ± 0.28", "88.41 ± 0.24", "85.13 ± 0.56", "79.20 ± 0.06", "55.28 ± 1.26"),
            NFL_RCE: ("91.08 ± 0.29", "89.00 ± 0.23", "85.90 ± 0.19", "79.79 ± 0.52", "55.47 ± 2.73"),
            NCE_AUL: ("91.06 ± 0.24", "89.11 ± 0.07", "85.79 ± 0.16", "79.57 ± 0.21", "57.59 ± 0.84"),
            NCE_AGCE: ("91.13 ± 0.11", "89.00 ± 0.29", "85.91 ± 0.15", "80.36 ± 0.36", "49.98 ± 4.81"),
            NCE_AEL: ("88.43 ± 0.25", "86.46 ± 0.28", "83.06 ± 0.23", "75.15 ± 0.32", "43.22 ± 0.46"),
        },
    ),
    (
        EPSILON,
        SEQUENTIAL,
        {
            CE: ("86.98 ± 0.31", "83.82 ± 0.04", "79.35 ± 0.66", "75.28 ± 0.58"),
            FOCAL: ("86.64 ± 0.12", "83.08 ± 0.07", "79.34 ± 0.30", "74.68 ± 0.31"),
            GCE: ("88.43 ± 0.20", "86.17 ± 0.29", "80.72 ± 0.42", "74.01 ± 0.53"),
            SCE: ("89.87 ± 0.27", "86.48 ± 0.25", "81.30 ± 0.18", "74.99 ± 0.16"),
            NCE_2MAE: ("88.03 ± 0.27", "85.53 ± 0.08", "81.10 ± 0.52", "74.98 ± 0.48"),
            NCE_RCE: ("90.25 ± 0.08", "88.11 ± 0.23", "85.35 ± 0.18", "79.43 ± 0.21"),
            NFL_RCE: ("89.99 ± 0.35", "88.33 ± 0.26", "85.27 ± 0.13", "79.05 ± 0.35"),
            NCE_AUL: ("90.18 ± 0.23", "88.30 ± 0.44", "85.28 ± 0.04", "79.14 ± 0.36"),
            NCE_AGCE: ("89.90 ± 0.09", "88.36 ± 0.11", "85.73 ± 0.12", "79.28 ± 0.37"),
            NCE_AEL: ("87.59 ± 0.38", "85.98 ± 0.14", "82.87 ± 0.16", "75.78 ± 0.12"),
        },
    ),
    (ANL_NOTE, ["symmetric:0.8"], {NCE_AGCE: ("55.62",), ANL_CE: ("61.27",)}),
    (
        JAL_NOTE,
        ["symmetric:0.4", "symmetric:0.8", "asymmetric:0.2", "asymmetric:0.4"],
        {
            CE: ("58.05", "19.74", "83.05", "73.85"),
            NCE: ("69.37", "41.20", "72.20", "65.33"),
            NCE_RCE: ("85.89", "54.99", "88.62", "77.94"),
            AMSE: ("87.54", "64.97", "83.88", "58.07"),
            ANL_CE: ("87.16", "62.28", "89.09", "77.99"),
            ANL_FL: ("86.94", "61.89", "89.29", "77.89"),
            JAL_CE: ("87.53", "65.43", "89.11", "79.54"),
            JAL_FL: ("87.43", "64.84", "89.36", "79.51"),
        },
    ),
    (JAL_NOTE, ["instance:0.4", "instance:0.6"], {ANL_CE: ("85.74", "69.83"), JAL_CE: ("86.46", "75.62")}),
    (JAL_NOTE, ["human:worst"], {ANL_FL: ("80.56",), JAL_CE: ("81.33",)}),
]
"""What was read: the accuracies (%) of the last epoch of cnn8, 120 epochs, by loss and noise."""


def published(entry: Entry, noise: str, *, verified: bool = True) -> Iterator[str]:
    """Return the published accuracies, each with the key of its source."""
    for source, noises, rows in READ:
        if source.verified == verified and noise in noises and entry in rows:
            yield f"{rows[entry][noises.index(noise)]} [{source.key}]"
