"""Nearest neighbours: 5,000 images against a bank of 50,000, 512 features, 200 neighbours."""

from pathlib import Path

import torch
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.comparison import OURS, SECONDS, Comparison
from benchmarks.workload import time_once
from model_code.evaluation.features import LabelledFeatures
from model_code.evaluation.knn import NEIGHBOURS, knn_predict

SKLEARN = "scikit-learn, brute force, cosine"


def compare_knn(device: torch.device, _: Path) -> Comparison:
    """Predict every class from the features as they are, normalising included."""
    generator = torch.Generator().manual_seed(0)
    bank_MD = torch.randn((50_000, 512), generator=generator)
    asked_ND = torch.randn((5_000, 512), generator=generator)
    labels_M = torch.arange(50_000) % 10
    bank = LabelledFeatures(bank_MD.to(device), labels_M.to(device), tuple("abcdefghij"))
    asked = asked_ND.to(device)
    classifier = KNeighborsClassifier(NEIGHBOURS, algorithm="brute", metric="cosine", weights="uniform")
    classifier.fit(bank_MD.numpy(), labels_M.numpy())
    found = {
        OURS: lambda: time_once(lambda: knn_predict(bank, asked).cpu(), device),
        SKLEARN: lambda: time_once(lambda: classifier.predict(asked_ND.numpy()), device),
    }
    return Comparison(SECONDS, found, {SKLEARN: "on the CPU; each neighbour has one vote, ours weigh by similarity"})
