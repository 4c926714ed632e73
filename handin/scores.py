"""The course's scores, computed as its grader does."""
import numpy as np


def f1_scores(truth, predicted):
    """Macro F1, micro F1 and their average, the course's score, of two label arrays (N,), as a dict."""
    from sklearn.metrics import f1_score
    macro, micro = (float(f1_score(truth, predicted, average=average)) for average in ("macro", "micro"))
    return {"average_f1": (macro + micro) / 2, "macro_f1": macro, "micro_f1": micro}


def average_f1(truth, predicted):
    """(macro F1 + micro F1) / 2 of two label arrays (N,)."""
    return f1_scores(truth, predicted)["average_f1"]


def all_scores(truth, predicted):
    """{"average_f1"} and the keys of the assignment's evaluate_gmm_performance: {"accuracy", "precision_macro",
    "recall_macro", "f1_macro"}, of two label arrays (N,); a class that is never predicted has precision 0."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)
    return {"average_f1": average_f1(truth, predicted), "accuracy": float(accuracy_score(truth, predicted)),
            "precision_macro": float(precision), "recall_macro": float(recall), "f1_macro": float(f1)}


def accuracy_interval(truth, predicted):
    """95 % interval [low, high] of the accuracy of labels (N,), Wilson's."""
    from scipy.stats import binomtest
    return list(binomtest(int(np.sum(truth == predicted)), len(truth)).proportion_ci(method="wilson"))


def mean_ssim(truth, reconstructed):
    """Mean structural similarity of two image arrays (N, 28, 28) in [0, 1]."""
    from skimage.metrics import structural_similarity
    return float(np.mean([structural_similarity(x, y, data_range=1.0) for x, y in zip(truth, reconstructed)]))


def one_minus_mse(truth, reconstructed):
    """1 - mean squared error of two image arrays (N, 28, 28) in [0, 1]."""
    return 1 - float(np.mean((truth.astype(np.float64) - reconstructed) ** 2))


def read_labels(path):
    """Labels (N,) of a vae.csv or bird.csv; raises ValueError when its header is not the contract's."""
    with open(path) as file:
        header, *rows = file.read().split()
    if header != "Predicted_Label":
        raise ValueError(f"{path}: expected the header Predicted_Label, found {header}")
    return np.array(rows, dtype=np.int64)


def accuracy_after_renaming(truth, predicted):
    """Accuracy of labels (N,) when each predicted label is read as the class that suits it best, one to one (Kuhn 1955,
    Naval Research Logistics 2:83)."""
    from scipy.optimize import linear_sum_assignment
    names, index = np.unique(np.concatenate([truth, predicted]), return_inverse=True)
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(matrix, (index[:len(truth)], index[len(truth):]), 1)
    return matrix[linear_sum_assignment(-matrix)].sum() / len(truth)


def order_mistake(truth, predicted, other_truths):
    """One line that names the order behind labels (N,) that score low, or "": that of `other_truths` {words: labels
    (N,)}, what the rows of a script with a known mistake would be, or permuted labels, if they fit far better."""
    own = float(np.mean(truth == predicted))
    found = {words: float(np.mean(other == predicted)) for words, other in other_truths.items()}
    found["with the labels permuted: classes numbered in another order than the sorted one, or components matched to "
          "the wrong digits"] = accuracy_after_renaming(truth, predicted) - 1e-9  # an order of rows says more
    words, best = max(found.items(), key=lambda item: item[1])
    return f"accuracy {own:.2f}, but {best:.2f} {words}" if best >= max(0.6, own + 0.25) else ""


def weakness(truth, predicted):
    """One line on labels (N,) that are constant or do not depend on the truth (accuracy within two standard deviations
    of what independence would give), or ""."""
    if len(np.unique(truth)) > 1 and len(np.unique(predicted)) == 1:
        return f"all {len(predicted)} rows say {predicted[0]}"
    own, labels = float(np.mean(truth == predicted)), np.unique(np.concatenate([truth, predicted]))
    chance = sum(float(np.mean(truth == label) * np.mean(predicted == label)) for label in labels)
    if own <= chance + 2 * np.sqrt(chance * (1 - chance) / len(truth)):
        return (f"accuracy {own:.2f}, no better than guessing ({chance:.2f}): rows shuffled or in another order than "
                "the files', or a model that has learned nothing")
    return ""
