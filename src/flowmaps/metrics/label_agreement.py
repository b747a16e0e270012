"""Whether samples show the class that was asked for."""

from torch import Tensor

__all__ = ["label_agreement"]


def label_agreement(
    samples: Tensor, labels: Tensor, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
) -> tuple[float, float]:
    """Share of samples to which a classifier, trained on the real data, gives the class that was asked for.

    The classifier is a support vector machine on at most 64 principal components and 10,000 training data.

    Args:
        samples: generated [N, *].
        labels: asked for [N].
        train: real data the classifier learns [M, *].
        train_labels: their classes [M].
        test: real data it has not seen [K, *].
        test_labels: their classes [K].
    Returns:
        Agreement, and the classifier's own accuracy on the unseen data: the agreement means little if that is low.
    Source: Ravuri & Vinyals, Classification accuracy score for conditional generative models, 2019, arXiv:1905.10887,
        there with a classifier trained on samples and tested on data.
    Differs: trained on data and tested on samples, so that one classifier serves all samplers.
    """
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    def flat(x: Tensor) -> Tensor:
        return x.flatten(1).float().cpu()

    part, part_labels = flat(train)[:10_000], train_labels[:10_000]
    components = min(64, part.shape[1], len(part))
    machine = make_pipeline(PCA(components, random_state=0), SVC(C=10)).fit(part.numpy(), part_labels.numpy())
    asked = machine.predict(flat(samples).numpy()) == labels.cpu().numpy()
    return float(asked.mean()), float(machine.score(flat(test).numpy(), test_labels.numpy()))
