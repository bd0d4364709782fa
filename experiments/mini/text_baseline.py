"""Majority class and TF-IDF + logistic regression on minitext6 (needs scikit-learn, which the package does not).

python experiments/mini/text_baseline.py
"""

from collections import Counter

import pyarrow.parquet as pq
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from text_suite import SUITE, TASKS


def load(task: str, split: str) -> tuple[list[str], list[int]]:
    """Texts and labels of one split."""
    table = pq.read_table(SUITE / task / f"{split}.parquet")
    return table["text"].to_pylist(), table["label"].to_pylist()


def main() -> None:
    """Print one line per task: accuracy on val and test."""
    print(
        "| task | majority | words, val | words, test | characters 1-4, val | characters 1-4, test |"
    )
    print("|---|---|---|---|---|---|")
    for task in TASKS:
        texts, labels = load(task, "train")
        row = [
            f"{Counter(load(task, 'test')[1]).most_common(1)[0][1] / len(load(task, 'test')[1]):.3f}"
        ]
        for kind in ({"analyzer": "word"}, {"analyzer": "char_wb", "ngram_range": (1, 4)}):
            vectorizer = TfidfVectorizer(max_features=30000, sublinear_tf=True, **kind)
            model = LogisticRegression(C=10, max_iter=300).fit(
                vectorizer.fit_transform(texts), labels
            )
            for split in ("val", "test"):
                held, truth = load(task, split)
                row.append(f"{model.score(vectorizer.transform(held), truth):.3f}")
        print(f"| {task} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
