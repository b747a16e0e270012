"""Whether a classifier can tell two samples apart."""

import warnings

import numpy as np
from torch import Tensor

__all__ = ["classifier_two_sample"]


def classifier_two_sample(a: Tensor, b: Tensor, seed: int = 0) -> float:
    """Cross-validated accuracy of a small network that tells a from b: 0.5 if it cannot, 1 if it always can.

    Args:
        a: sample [N, *].
        b: sample [M, *]; the larger sample is cut to the size of the smaller.
        seed: of the cut, the folds and the network.
    Returns:
        Accuracy on held-out folds; for equal laws its standard deviation is about 0.35 / sqrt(min(N, M)).
    Source: Lopez-Paz & Oquab, Revisiting classifier two-sample tests, 2016, arXiv:1610.06545, Section 3.
    Differs: cross-validation, there one split into training and test data.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    n = min(len(a), len(b))
    rng = np.random.default_rng(seed)
    parts = [z.flatten(1).double().cpu().numpy()[rng.permutation(len(z))[:n]] for z in (a, b)]
    x, y = np.concatenate(parts), np.repeat([0, 1], n)
    # One scale for all dimensions: one each would blow up those that hardly vary, such as the rims of images.
    x = (x - x.mean(0)) / max(float(x.std()), 1e-12)
    network = MLPClassifier((64, 64), alpha=0.01, max_iter=200, random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of passes is part of the measure
        return float(cross_val_score(network, x, y, cv=folds).mean())
