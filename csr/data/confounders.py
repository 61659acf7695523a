"""What else predicts the class: whether what is known of a study beside its findings tells what a model should see.

A model that can tell a picture's site, scanner or file learns the class from them where they go with it, and every
number measured on studies of the same kind looks the better for it. So a small classifier is trained on that alone:
naive Bayes on a column's values (numbers: in `BINS` bins of equal frequency), on each column and on all of them
together. It is judged on studies of patients that it has not seen (`FOLDS` folds of patients), by the AUROC

    A = mean over pairs of [s_i > s_j],    Var(A) = Σ_c ( Σ_{i in c} (V_i − A)/m + Σ_{j in c} (V_j − A)/n )² · C/(C − 1)

over m studies i with a label and n studies j without it, in C clusters c, here patients, with placement values V, the
share of the other kind that a study's score is on the right side of (Obuchowski 1997, "Nonparametric analysis of
clustered ROC curve data"). A label is spoken of if the lower end of the interval at 95 % lies above `LIMIT`.

Asked of split ``train``, since that is what a model learns from, for each class and each concept; of ``part`` among the
test studies, since no others have parts. Which concepts of a study are labelled at all is asked of classes only: it
says nothing of a picture, but who was labelled is seldom drawn at random, and the pictures of both kinds can differ.

Not covered: marks in the picture, which no table knows, and columns that tell the class by an interaction only. What is
found need not be wrong: a disease can make a picture brighter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.naive_bayes import CategoricalNB

from csr.data.prepared import PreparedSet
from csr.data.records import SPACING

LIMIT = 0.6  # AUROC that the interval's lower end must reach
FOLDS = 5
BINS = 10
RARE = 5  # studies that a value needs to count as one of its own
LEAST = 10  # studies with a label, and without it, below which nothing is said of it
TOGETHER = "all of them together"
LABELLED = "which concepts are labelled"
PART = "part of the test set"
GREY, RED, BLUE = "mean grey value", "share of red", "share of blue"
_Z = 1.96
_SEEN = "unless the findings make it so, a model can learn that instead of them"
_CONSEQUENCES = {
    LABELLED: "who was labelled is no chance, and the pictures of the others may differ in more than their findings",
    PART: "the parts hold other shares of the classes, so results on them do not compare",
    **dict.fromkeys((GREY, RED, BLUE), _SEEN),
}


@dataclass(frozen=True)
class Predictor:
    """How well something predicts labels of one kind, in studies of patients that it has not seen.

    Args:
        name: of what predicts, in words.
        kind: of what is predicted: ``class`` or ``concept``.
        label: the class or concept whose interval lies highest.
        auroc, low, high: of that label, with the ends of the interval at 95 %.
        others: how many other labels of that kind it predicts above the limit.
    """

    name: str
    kind: str
    label: str
    auroc: float
    low: float
    high: float
    others: int

    @property
    def tells(self) -> bool:
        return self.low > LIMIT


def confounders(data: PreparedSet) -> list[Predictor]:
    """How well each column of metadata predicts classes and concepts, the best first; classes before concepts.

    Returns:
        Nothing of a column that does not vary, or of labels that too few studies have or lack.
    """
    collection = data.collection
    table, patients = metadata(data), collection.patients()
    test, train = collection.rows("test"), collection.rows("train")
    classes, concepts = collection.class_indicators(), collection.concept_labels()
    labelled = _labelled(concepts)
    found = [
        *_predictors(
            "class", collection.classes, classes[train], table.assign(**labelled).iloc[train], patients[train]
        ),
        *_predictors("class", collection.classes, classes[test], _parts(collection.studies).iloc[test], patients[test]),
        *_predictors("concept", collection.concepts, concepts[train], table.iloc[train], patients[train]),
    ]
    return sorted(found, key=lambda each: (each.kind, each.name != TOGETHER, -each.low))


def confounder_warnings(found: Sequence[Predictor]) -> Iterator[str]:
    """A sentence for each column that predicts labels above the limit, or for all of them if none does alone."""
    alone = {each.kind for each in found if each.tells and each.name != TOGETHER}
    for each in found:
        if each.tells and (each.name != TOGETHER or each.kind not in alone):
            more = f", and {each.others} more" if each.others else ""
            then = _CONSEQUENCES.get(each.name, "a model can learn that instead of the findings")
            yield f"{each.name} predicts {each.kind} {each.label!r}{more} ({_measured(each)}): {then}"


def confounder_summary(found: Sequence[Predictor]) -> str:
    """One sentence on the class, for people who have no table before them."""
    own = [each for each in found if each.kind == "class"] or found
    if not own:
        return "what else predicts the class: nothing is known of the studies but their pictures"
    best = max(own, key=lambda each: (each.tells, each.name != TOGETHER, each.low))
    if best.tells:
        said = f"{best.name}, most of all {best.label!r} ({_measured(best)}), above the limit of {LIMIT}"
    else:
        said = f"nothing above the limit of {LIMIT}; nearest comes {best.name} for {best.label!r} ({_measured(best)})"
    return f"what else predicts the {best.kind}: {said}"


def metadata(data: PreparedSet) -> pd.DataFrame:
    """What is known of the studies beside their findings, a named column each, those that are known of any."""
    studies, means = data.collection.studies, _channel_means(data)
    columns: dict[str, pd.Series] = {}
    if "site" in studies:
        columns["site"] = studies["site"].replace("", None)
    if "patient_id" in studies:
        patients = pd.Series(data.collection.patients(), studies.index)
        columns["number of the patient's studies"] = patients.map(patients.value_counts())
    if "image_width" in studies:
        width, height = studies["image_width"], studies["image_height"]
        columns |= {"image size": width * height, "image shape": width / height}
    for name, words in (("image_format", "file format"), ("image_bits", "bit depth"), (SPACING[0], "pixel size, mm")):
        if name in studies:
            columns[words] = studies[name]
    columns[GREY] = pd.Series(means.mean(1), studies.index)
    if means.shape[1] == 3 and (np.ptp(means, axis=1) > 0.5).any():
        shares = means / means.sum(1, keepdims=True).clip(1e-9)
        columns |= {RED: pd.Series(shares[:, 0], studies.index), BLUE: pd.Series(shares[:, 2], studies.index)}
    return pd.DataFrame(columns, index=studies.index)


def _channel_means(data: PreparedSet) -> np.ndarray:
    """N×C mean grey values of the prepared pictures."""
    rows = range(len(data.collection.studies))
    return np.array([np.asarray(data.images[row]).mean((1, 2)) for row in rows]).reshape(-1, data.channels)


def clustered_auroc(scores: np.ndarray, labels: np.ndarray, clusters: np.ndarray) -> tuple[float, float, float]:
    """AUROC of n scores for n labels of 1 and 0, and the ends of its interval at 95 %; see the module's docstring.

    Args:
        clusters: n names, equal for studies that are not independent.
    """
    present, absent = labels == 1, labels == 0
    m, n = present.sum(), absent.sum()
    ranks = rankdata(scores)
    placed = np.empty(len(scores))
    placed[present] = (ranks[present] - rankdata(scores[present])) / n
    placed[absent] = 1 - (ranks[absent] - rankdata(scores[absent])) / m
    auroc = placed[present].mean()
    influence = (placed - auroc) / np.where(present, m, n)
    sums = np.bincount(np.unique(clusters, return_inverse=True)[1], influence)
    error = np.sqrt(np.square(sums).sum() * len(sums) / max(len(sums) - 1, 1))
    return float(auroc), float(max(auroc - _Z * error, 0)), float(min(auroc + _Z * error, 1))


def _measured(each: Predictor) -> str:
    return f"AUROC {each.auroc:.2f}, {each.low:.2f} to {each.high:.2f}"


def _labelled(concepts: np.ndarray) -> dict[str, list[str]]:
    """Which concepts of a study are labelled, as a pattern."""
    return {LABELLED: ["".join("01"[known] for known in row) for row in (~np.isnan(concepts)).astype(int)]}


def _parts(studies: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({PART: studies["part"]})


def _predictors(
    kind: str, names: tuple[str, ...], labels: np.ndarray, table: pd.DataFrame, patients: np.ndarray
) -> Iterator[Predictor]:
    """One for each column that varies, and one for all of them if they are several; labels n×J of 1, 0 or NaN."""
    spoken = ((labels == 1).sum(0) >= LEAST) & ((labels == 0).sum(0) >= LEAST)
    names, labels = tuple(np.array(names, object)[spoken]), labels[:, spoken]
    codes = {name: _codes(column) for name, column in table.items()}
    codes = {name: column for name, column in codes.items() if column.max(initial=0) > 0}
    if not names or not codes:
        return
    folds = _folds(patients)
    for name, column in codes.items():
        yield _best(str(name), kind, names, labels, _unseen(column[:, None], labels, folds), patients)
    if len(codes) > 1:
        every = np.stack(list(codes.values()), 1)
        yield _best(TOGETHER, kind, names, labels, _unseen(every, labels, folds), patients)


def _best(
    name: str, kind: str, names: tuple[str, ...], labels: np.ndarray, scores: np.ndarray, patients: np.ndarray
) -> Predictor:
    measured = []
    for own, score in zip(labels.T, scores.T, strict=True):
        known = ~np.isnan(own)
        measured.append(clustered_auroc(score[known], own[known], patients[known]))
    best = int(np.argmax([low for _, low, _ in measured]))
    others = sum(low > LIMIT for _, low, _ in measured) - (measured[best][1] > LIMIT)
    return Predictor(name, kind, names[best], *measured[best], others)


def _codes(column: pd.Series) -> np.ndarray:
    """n numbers of values, those of few studies as one: the last, which unknown ones share if they are few, too."""
    values = column
    if pd.api.types.is_float_dtype(column) or (pd.api.types.is_numeric_dtype(column) and column.nunique() > BINS):
        known = column[column.notna()]
        edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS)) if len(known) else np.zeros(0)
        values = pd.Series(np.searchsorted(edges, column, side="right"), column.index).where(column.notna(), -1)
    codes = pd.factorize(values, use_na_sentinel=False)[0]
    rare = np.bincount(codes)[codes] < RARE
    return np.unique(np.where(rare, codes.max() + 1, codes), return_inverse=True)[1]


def _folds(patients: np.ndarray) -> np.ndarray:
    """n numbers of folds, all studies of a patient in one."""
    _, own = np.unique(patients, return_inverse=True)
    dealt = np.random.default_rng(0).permutation(own.max() + 1) % FOLDS
    return dealt[own]


def _unseen(codes: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """n×J log-likelihood ratios of n×C codes, each by a classifier that was trained without its fold."""
    scores, sizes = np.zeros(labels.shape), codes.max(0) + 1
    for fold in range(FOLDS):
        out = folds == fold
        for j, own in enumerate(labels.T):
            seen = ~out & ~np.isnan(own)
            if out.any() and len(np.unique(own[seen])) == 2:
                fitted = CategoricalNB(fit_prior=False, min_categories=sizes).fit(codes[seen], own[seen])
                likelihood = fitted.predict_log_proba(codes[out])
                scores[out, j] = likelihood[:, 1] - likelihood[:, 0]
    return scores
