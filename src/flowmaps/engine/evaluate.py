"""Quality against number of evaluations, with the floors that finite samples set."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.random import fold_in
from ..core.source import folded
from ..core.types import Coupling, Pair
from ..couplings.independent import Independent
from ..data._dataset import Dataset
from ..flow import Flow, Guidance
from ..metrics.classifier_two_sample import classifier_two_sample
from ..metrics.energy_distance import energy_distance
from ..metrics.function_evaluations import function_evaluations
from ..metrics.identity_residuals import identity_residuals
from ..metrics.label_agreement import label_agreement
from ..metrics.maximum_mean_discrepancy import maximum_mean_discrepancy
from ..metrics.sliced_wasserstein import sliced_wasserstein

# What an evaluation measures, and how it is headed in tables.
COLUMNS = {
    "steps": "steps", "evaluations": "NFE", "refinements": "refiner", "energy_distance": "energy",
    "energy_over_floor": "/ floor", "sliced_wasserstein": "sliced W2", "maximum_mean_discrepancy": "MMD²",
    "classifier_two_sample": "C2ST", "label_agreement": "labels",
}  # fmt: skip
COUNTED = 64  # samples whose evaluations are counted
PROTOCOL = (
    "{n} samples (seed {seed}) against {held} held-out data of {data}; the floor is the same between {n} training data "
    "and the held-out; energy distance over all pairs; sliced W2 of 200 directions; MMD² without bias, five Gaussian "
    "kernels; C2ST: 5-fold accuracy of an MLP 64-64; labels: agreement of an SVM on principal components; "
    "NFE: evaluations of networks per sample, of a refiner apart, the mean over {counted} others"
)


def evaluate_flow(
    flow: Flow, train: Dataset, held: Dataset, steps: Sequence[int], *, sampler: str | Mapping[str, Any] = "jump",
    guidance: Guidance = 1.0, n: int = 2000, seed: int = 0, tests: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Measure a flow at several numbers of steps.

    Args:
        flow: what is measured.
        train: data it was trained on.
        held: data it has not seen.
        steps: numbers of steps.
        sampler: how a step is taken, a name or a table.
        guidance: as in `Flow.sample`.
        n: number of samples; no more than there are training data.
        seed: of the samples.
        tests: whether to run the slow two-sample tests too; with less than ten samples or data they are left out.
        tell: called with what is being done.
    Returns:
        {"protocol": ..., "floor": {...}, "rows": [one per number of steps], "residuals": [one per range of spans]}.
    """
    n = min(n, len(train))
    few = min(n, len(held))
    if few < 2:
        raise ValueError(f"n and the data must be at least 2, to be compared; got {n} and {len(held)} held out.")
    tests = tests and few >= 10  # two for each of five folds
    pick = torch.randperm(len(train), generator=fold_in(seed, 1))[:n].tolist()
    real, real_labels = train.__getitems__(pick)
    unseen, unseen_labels = held.__getitems__(torch.randperm(len(held), generator=fold_in(seed, 2))[:n].tolist())
    tell("floors")
    floor = _distances(real, unseen, seed, tests)
    labelled = flow.classes > 0 and real_labels is not None
    labels = real_labels.tolist() if labelled and real_labels is not None else None
    guided = flow.guided(guidance)
    step, (x0, cond) = flow.built_sampler(sampler, guidance), flow.starting(COUNTED)
    rows: list[dict[str, Any]] = []
    for k in steps:
        tell(f"{k} steps")
        samples = flow.sample(n, k, seed=seed, label=labels, sampler=sampler, guidance=guidance).cpu()
        spent = function_evaluations(guided, step, k, x0, cond)
        row: dict[str, Any] = {"steps": k, "evaluations": _whole(spent.model)}
        row |= {} if spent.refiner is None else {"refinements": _whole(spent.refiner)}
        row |= _distances(samples, unseen, seed, tests)
        row["energy_over_floor"] = row["energy_distance"] / floor["energy_distance"]
        if labelled and real_labels is not None and unseen_labels is not None:
            row["label_agreement"], row["classifier_accuracy"] = label_agreement(
                samples, real_labels, real, real_labels, unseen, unseen_labels
            )
        rows.append(row)
    tell("identities")
    return {
        "protocol": PROTOCOL.format(n=n, seed=seed, counted=COUNTED, held=len(unseen), data=held.name),
        "sampler": sampler,
        "guidance": "own" if callable(guidance) else guidance,
        "floor": floor,
        "rows": rows,
        "residuals": _residuals(flow, real[:512], real_labels, seed),
    }


def quality(
    flow: Flow, train: Dataset, held: Dataset, steps: Sequence[int], sampler: str | Mapping[str, Any] = "jump",
    guidance: Guidance = 1.0,
) -> dict[str, float]:  # fmt: skip
    """The quick figure that is followed in training: energy distance over its floor, for each number of steps."""
    n = min(512, len(train), len(held))
    real, labels = train.__getitems__(range(n))
    unseen = held.__getitems__(range(n))[0]
    floor = energy_distance(real, unseen)
    asked = labels.tolist() if flow.classes > 0 and labels is not None else None
    found: dict[str, float] = {}
    for k in steps:
        samples = flow.sample(n, k, label=asked, sampler=sampler, guidance=guidance).cpu()
        found[f"energy_over_floor_{k}"] = energy_distance(samples, unseen) / floor
    return found


def to_json(result: dict[str, Any]) -> str:
    """Readable JSON."""
    return json.dumps(result, indent=1)


def _distances(a: Tensor, b: Tensor, seed: int, tests: bool) -> dict[str, float]:
    row = {"energy_distance": energy_distance(a, b), "sliced_wasserstein": sliced_wasserstein(a, b, seed=seed)}
    if tests:
        row["maximum_mean_discrepancy"] = maximum_mean_discrepancy(a, b)
        row["classifier_two_sample"] = classifier_two_sample(a, b, seed)
    return row


def _whole(number: float) -> float:
    return int(number) if number.is_integer() else number


def _residuals(flow: Flow, real: Tensor, labels: Tensor | None, seed: int) -> list[dict[str, float]]:
    like = next(flow.model.parameters())
    x1 = flow.space.encode(real.to(like.device), generator=fold_in(seed, 5))
    cond = None if labels is None or flow.classes == 0 else labels[: len(real)].to(like.device)
    # Of sequences the first states are enough: data with noise of their own.
    coupling: Coupling = Independent() if getattr(flow.coupling, "makes_sequences", False) else flow.coupling
    pair: Pair = coupling(x1, cond, generator=fold_in(seed, 3))
    pair = dataclasses.replace(pair, x0=folded(pair.x0, flow.interpolant, flow.space))
    return identity_residuals(flow.model, flow.interpolant, pair, fold_in(seed, 4))
