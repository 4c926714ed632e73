"""The course's scores, computed as its grader does."""
import numpy as np

from common.errors import InputError


def f1_scores(truth, predicted):
    """{"average_f1", the course's score, "macro_f1", "micro_f1"} of two label arrays (N,)."""
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


def mean_ssim(truth, reconstructed):
    """Mean structural similarity of two image arrays (N, 28, 28) in [0, 1]."""
    from skimage.metrics import structural_similarity
    return float(np.mean([structural_similarity(x, y, data_range=1.0) for x, y in zip(truth, reconstructed)]))


def one_minus_mse(truth, reconstructed):
    """1 - mean squared error of two image arrays (N, 28, 28) in [0, 1]."""
    return 1 - float(np.mean((truth.astype(np.float64) - reconstructed) ** 2))


def read_labels(path):
    """Labels (N,) of a vae.csv or bird.csv. Raises ValueError for another header than the contract's."""
    with open(path) as file:
        header, *rows = file.read().split()
    if header != "Predicted_Label":
        raise ValueError(f"{path}: expected the header Predicted_Label, found {header}")
    return np.array(rows, dtype=np.int64)


def read_birds(folder, known):
    """Paths (N,) of the photos of class folders and their labels (N,), indices into the class names `known`. Raises
    InputError, also bird.py's."""
    import bird
    known = [bird.nfc(name) for name in known]
    classes, photos = bird.list_test_photos(folder)
    classes = [bird.nfc(name) for name in classes]
    unexpected = sorted({classes[index] for _, index in photos} - set(known)) if classes else ["photos without classes"]
    if unexpected:
        raise InputError(f"{folder}: expected photos in class folders of the training ({', '.join(known[:12])}), found "
                         f"{', '.join(unexpected[:5])}{' and more' if len(unexpected) > 5 else ''}")
    return [path for path, _ in photos], np.array([known.index(classes[index]) for _, index in photos])


def read_digits(path):
    """The vae.DigitDataset of a file, and its labels int64 (N,), None if it has none. Raises vae.InputError."""
    import vae
    digits = vae.load_digits(path)
    labelled = "labels" in getattr(np.load(path, allow_pickle=False), "files", ())
    return digits, vae.load_digits(path, labelled=True).labels if labelled else None


def diagnose_labels(truth, predicted, orders=()):
    """(status, message) for labels (N,): "fail" if they would score far better in one of the row `orders` {description:
    indices (N,)} or after a permutation of the classes (Kuhn 1955, Naval Research Logistics 2:83); "warn" if they are
    constant or independent of the truth (accuracy within two standard deviations of chance); else "pass"."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import confusion_matrix
    matrix, n = confusion_matrix(truth, predicted), len(truth)
    own, best = np.trace(matrix) / n, matrix[linear_sum_assignment(-matrix)].sum() / n
    for order, index in dict(orders).items():
        if np.mean(truth[index] == predicted) >= max(0.6, own + 0.25):
            return "fail", (f"accuracy {own:.2f}, but {np.mean(truth[index] == predicted):.2f} if the rows are in this "
                            f"order: {order}; expected that of ImageFolder, sorted as strings")
    if best >= max(0.6, own + 0.25):
        return "fail", (f"accuracy {own:.2f}, but {best:.2f} with the labels permuted: classes sorted as numbers or by "
                        "os.listdir, not as strings, or components matched to the wrong digits")
    if len(np.unique(truth)) > 1 and len(np.unique(predicted)) == 1:
        return "warn", f"all {n} predictions are {predicted[0]}"
    chance = matrix.sum(0) @ matrix.sum(1) / n ** 2
    if own <= chance + 2 * np.sqrt(chance * (1 - chance) / n):
        return "warn", (f"accuracy {own:.2f}, no better than chance ({chance:.2f}): rows in another order than the "
                        "files', or an untrained model")
    return "pass", ""
