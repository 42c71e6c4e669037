"""Whether the words alone give the label away: then a prober may have learnt words, not harm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

if TYPE_CHECKING:
    from steering.fitting.fit import Prompts


def words_auroc(prompts: Prompts) -> float:
    """AUROC of TF-IDF and logistic regression, fitted on the train part's texts, on the calibration part's."""
    train, fresh = prompts.places("train"), prompts.places("calibration")
    vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)  # noqa: S106
    try:
        x = vectors.fit_transform([prompts.questions[place].text for place in train])
    except ValueError:  # no text holds a word
        return 0.5
    model = LogisticRegression(max_iter=1000, class_weight="balanced").fit(x, prompts.labels[train].numpy())
    scores = model.decision_function(vectors.transform([prompts.questions[place].text for place in fresh]))
    return float(roc_auc_score(prompts.labels[fresh].numpy(), scores))
