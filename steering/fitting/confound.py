"""How well the words alone predict the label. Where they do, a prober may have learnt words and not harm."""

from __future__ import annotations

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from steering.fitting.dataset import Dataset


def words_auroc(dataset: Dataset) -> float:
    """AUROC on the calibration part of TF-IDF and logistic regression, fitted on the texts of the train part."""
    train, fresh = dataset.places("train"), dataset.places("calibration")
    vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)  # noqa: S106
    try:
        x = vectors.fit_transform(dataset.texts(train))
    except ValueError:  # no text holds a word
        return 0.5
    model = LogisticRegression(max_iter=1000, class_weight="balanced").fit(x, dataset.labels[train].numpy())
    scores = model.decision_function(vectors.transform(dataset.texts(fresh)))
    return float(roc_auc_score(dataset.labels[fresh].numpy(), scores))
