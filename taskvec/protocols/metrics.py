"""How well predictions fit labels, by the functions that the GLUE benchmark uses: scikit-learn's and SciPy's.

All are higher for the better, 1 at best. Those that are undefined where one side is constant are 0 there, for a model
that says the same of every example knows nothing of the task; so are those of predictions that are not finite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from taskvec.data.tasks import Metric


def score(metric: Metric, labels: np.ndarray, predicted: np.ndarray) -> float:
    """Return a metric of predictions against labels, both [N].

    ``f1`` is that of class 1 against the rest, ``f1_macro`` the mean over classes; ``accuracy_f1`` and
    ``pearson_spearman`` are means of two.

    Raises:
        ValueError: for an unknown metric.
    """
    parts = {"accuracy_f1": ("accuracy", "f1"), "pearson_spearman": ("pearson", "spearman")}.get(
        metric
    )
    if parts:
        return sum(score(part, labels, predicted) for part in parts) / len(parts)
    if metric in ("pearson", "spearman"):
        return _correlation(metric, labels, predicted)
    if metric == "accuracy":
        return float((labels == predicted).mean())
    from sklearn.metrics import f1_score, matthews_corrcoef

    if metric == "matthews":
        return float(matthews_corrcoef(labels, predicted))
    if metric == "f1":
        return float(f1_score(labels == 1, predicted == 1, zero_division=0))
    if metric == "f1_macro":
        return float(f1_score(labels, predicted, average="macro", zero_division=0))
    raise ValueError(f"unknown metric {metric!r}")


def _correlation(metric: str, labels: np.ndarray, predicted: np.ndarray) -> float:
    import numpy as np
    from scipy import stats

    constant = len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predicted) == 0
    if constant or not np.isfinite(predicted).all():
        return 0.0
    correlate = stats.pearsonr if metric == "pearson" else stats.spearmanr
    found = float(correlate(labels, predicted).statistic)
    return found if np.isfinite(found) else 0.0  # nearly constant: the spread is lost in rounding
