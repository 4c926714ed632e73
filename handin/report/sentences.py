"""What the reports say in words about numbers: each function returns one or more sentences, or a list of them."""
import math

from handin.report.plots import shortened

CURVE_GAP = 0.05   # accuracy, between training and validation, above which a network is said to overfit
CURVE_RISE = 0.02  # of the lowest validation loss, above which it is said to rise again
SAME = 0.03        # share of images within an ellipse, by which two distributions may differ and be called alike
NORMAL = (0.3935, 0.8647, 0.9889)  # within 1, 2, 3 standard deviations of a normal distribution in the plane


def listed(items):
    """Items as text: "a", "a and b", "a, b and c"."""
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


# --------------------------------------------------------------------------------------------------------------- birds

def curves(rows, best_epoch, planned, time_limited, patience):
    """What the learning curves show, from the rows of a history."""
    kept = next(row for row in rows if row["epoch"] == best_epoch)
    last, gap = rows[-1], kept["train_accuracy"] - kept["val_accuracy"]
    compared = (f"In epoch {best_epoch} the network recognises {kept['train_accuracy']:.1%} of the training photos, as "
                f"they are augmented then, and {kept['val_accuracy']:.1%} of the validation photos")
    if gap > CURVE_GAP:
        text = f"{compared}: it overfits, because what it has learned holds for its own photos more than for others."
    elif gap < -CURVE_GAP:
        text = f"{compared}, which are easier: no overfitting is visible."
    else:
        text = f"{compared}, nearly the same share: no overfitting is visible."
    rise = last["val_loss"] / max(kept["val_loss"], 1e-9) - 1
    if last["epoch"] == best_epoch:
        text += " The validation loss still falls at the end: a longer training may be better."
    elif rise > CURVE_RISE:
        text += (f" Afterwards the validation loss rises by {rise:.0%} until epoch {last['epoch']}: a longer training "
                 "would not be better, and keeping the best epoch matters.")
    else:
        text += f" From there to epoch {last['epoch']} the validation loss hardly changes: the training has converged."
    if time_limited:
        text += f" The time limit shortened the schedule from {planned} to {len(rows)} epochs."
    elif len(rows) < planned:
        text += f" Early stopping ended it: {patience} epochs brought no lower loss."
    return text


def lowest_and_highest(per_class):
    """The classes of the three lowest values of F1 and of the highest, all of those that share it."""
    by_f1 = sorted(per_class, key=lambda row: row["f1"])
    lowest = [f"{shortened(row['class'], 26)} ({row['f1']:.3f})" for row in by_f1[:3]]
    highest = [shortened(row["class"], 26) for row in by_f1 if f"{row['f1']:.3f}" == f"{by_f1[-1]['f1']:.3f}"]
    if len(highest) == len(by_f1):
        return f"All classes have an F1 of {by_f1[-1]['f1']:.3f}."
    shown = listed(highest) if len(highest) <= 3 else f"{len(highest)} classes"
    return f"Lowest F1: {listed(lowest)}. Highest: {shown} ({by_f1[-1]['f1']:.3f})."


def effects(rows, photos):
    """A sentence for each row of ablation.json, the first of which is the baseline, all scored on so many photos."""
    base, sentences = rows[0], ["–"]
    for row in rows[1:]:
        loss, error = base["accuracy"] - row["accuracy"], standard_error(base, row, photos)
        size = f"by {abs(loss):.4f} ± {error:.4f}"
        if abs(loss) < 5e-5:
            found = f"The same accuracy (± {error:.4f}): no evidence."
        elif abs(loss) <= 2 * error:
            found = f"{'Lower' if loss > 0 else 'Higher'} {size}: too little to be evidence."
        else:
            found = f"Lower {size}: it helps." if loss > 0 else f"Higher {size}: it does not help here."
        sentences.append(found)
    return sentences


def standard_error(base, row, photos):
    """Standard error of the difference in accuracy of two rows: over seeds, or where one has a single seed, of two
    shares of so many photos."""
    if None in (base["accuracy_sd"], row["accuracy_sd"]):
        return math.sqrt(sum(one["accuracy"] * (1 - one["accuracy"]) for one in (base, row)) / photos)
    return math.hypot(*(one["accuracy_sd"] / len(one["seeds"]) ** 0.5 for one in (base, row)))


def ablation_conclusion(rows, photos):
    """What follows from the table for the model that is handed in."""
    base = rows[0]
    losses = {row["variant"]: base["accuracy"] - row["accuracy"] for row in rows[1:]}
    if not losses:
        return ""
    largest = max(losses.values())
    names = [f"“{name}”" for name, loss in losses.items() if f"{loss:.4f}" == f"{largest:.4f}"]
    helped = sum(loss > 2 * standard_error(base, row, photos) for row, loss in zip(rows[1:], losses.values()))
    text = (f"The largest loss of accuracy, {largest:.4f}, is that of {listed(names)}." if largest >= 5e-5 else
            "None of them lowers the accuracy.")
    text += f" {helped} of {len(losses)} techniques help by more than two standard errors"
    if min(len(row["seeds"]) for row in rows) == 1:
        text += ", which do not include the spread of the seeds, since there is one"
    return f"{text}. The model that is handed in uses all of them: its training is longer, where they matter more."


def maps(rows):
    """A sentence for each class, {"class", "right", "wrong"} of BirdResults.grad_cam, about what its maps cover."""
    sentences = []
    for right, wrong in ((row["right"], row["wrong"]) for row in rows):
        if right is None:
            sentences.append("No photo is recognised.")
            continue
        text = ("On the centre, where the bird mostly is" if right["centre"] >= 0.35 else
                "On bird and surroundings alike" if right["centre"] >= 0.2 else "On the border: the background decides")
        if wrong is None:
            sentences.append(f"{text}. No photo is misclassified.")
            continue
        apart, wider = wrong["centre"] - right["centre"], wrong["entropy"] - right["entropy"]
        changes = [words for words, holds in (
            ("less on the centre", apart <= -0.05), ("more on the centre", apart >= 0.05),
            ("spread wider", wider >= 0.02), ("on a smaller part", wider <= -0.02)) if holds]
        sentences.append(f"{text}. When wrong: {listed(changes) if changes else 'the same'}.")
    return sentences


def maps_conclusion(rows):
    """How the maps of misclassified photos differ from those of recognised ones, over the classes that have both."""
    both = [(row["right"]["centre"], row["wrong"]["centre"]) for row in rows if row["right"] and row["wrong"]]
    if not both:
        return "No class has both recognised and misclassified photos to compare."
    right, wrong = (sum(values) / len(both) for values in zip(*both))
    classes = f"{len(both)} classes that have" if len(both) > 1 else "one class that has"
    text = (f"In the {classes} both, the central quarter holds {right:.0%} of the map of recognised photos and "
            f"{wrong:.0%} of that of misclassified ones: ")
    if wrong < right - 0.05:
        return text + "a part of the mistakes comes with a look beside the bird."
    if wrong > right + 0.05:
        return text + "the network looks at the bird and takes it for another, rather than at the background."
    return text + "the network looks at the same place when it is wrong, which does not explain the mistakes."


# -------------------------------------------------------------------------------------------------------------- digits

def learning(rows, planned, elbo):
    """What the learning curves show, from the rows of a history, the number of epochs planned and DigitResults.elbo."""
    bound = [-row["reconstruction"] - row["KL"] for row in rows]
    since = max(0, len(rows) - 1 - len(rows) // 10)
    gain = bound[-1] - bound[since]
    text = (f"From epoch 1 to {len(rows)} the ELBO of the training images goes from {bound[0]:.1f} to {bound[-1]:.1f} "
            "nats")
    if len(rows) < 10:
        text += "."
    elif gain > 0.01 * abs(bound[-1]):
        text += f", {gain:.1f} of them in the last tenth: a longer training may be better."
    else:
        text += ", hardly more in the last tenth: the training has converged."
    kl = [row["KL"] for row in rows]
    text += (f" The KL divergence {'rises' if kl[-1] > kl[0] else 'falls'} from {kl[0]:.1f} to {kl[-1]:.1f} nats, the "
             f"SSIM {'rises' if rows[-1]['SSIM'] > rows[0]['SSIM'] else 'falls'} from {rows[0]['SSIM']:.3f} to "
             f"{rows[-1]['SSIM']:.3f}.")
    if len(rows) < planned:
        text += f" The time limit shortened the schedule from {planned} to {len(rows)} epochs."
    if "training" in elbo:
        (train, train_error), (test, test_error) = elbo["training"], elbo["test"]
        apart = train - test
        text += (f" At the end it is {train:.1f} nats for the training images and {test:.1f} for the test images "
                 f"(standard error {test_error:.1f}): ")
        text += ("it overfits." if apart > 2 * math.hypot(train_error, test_error) else "no overfitting is visible.")
    return text.replace("-", "\N{MINUS SIGN}")


def separation(pairs):
    """Whether the clusters are apart, from the distances of the components in standard deviations."""
    nearest = min(pairs, key=lambda pair: pair["distance"])
    digits, distance = listed(nearest["digits"]), nearest["distance"]
    found = f"the two nearest means, those of {digits}, are {distance:.1f} standard deviations apart (Mahalanobis)"
    if distance > 6:
        return f"The clusters are separated: {found}, so that not even the ellipses at 3 standard deviations meet."
    if distance > 4:
        return (f"The clusters are separated, but their borders meet: {found}; the ellipses at 3 standard deviations "
                "overlap, those at 2 do not.")
    return f"The clusters overlap: {found}; the ellipses at 2 standard deviations meet."


def gaussians(within):
    """Whether the clusters follow the mixture's Gaussians, from the shares within 1, 2 and 3 standard deviations."""
    shares = [f"{100 * share:.1f} %" for share in within]
    normal = [f"{100 * share:.1f} %" for share in NORMAL]
    text = (f"Within 1, 2 and 3 standard deviations of their component lie {listed(shares)} of the means; of a normal "
            f"distribution it would be {listed(normal)}. ")
    apart = [share - expected for share, expected in zip(within, NORMAL)]
    if max(map(abs, apart)) <= SAME:
        return text + "The clusters follow the Gaussians."
    middle = apart[0] > SAME
    tails = apart[2] < -SAME / 3
    found = {(True, True): "more images are near the middle and more are far away", (True, False): "more images are "
             "near the middle", (False, True): "more images are far away"}.get((middle, tails), "the images are spread "
                                                                                "more evenly")
    return text + f"The clusters do not follow the Gaussians exactly: {found} than expected."


def mistakes(pairs, images):
    """Which digits the classifier confuses."""
    wrong = {tuple(pair["digits"]): sum(pair["misclassified"]) for pair in pairs}
    total, most = sum(wrong.values()), max(wrong.values())
    if not total:
        return f"No test image of {images:,} is misclassified."
    names = ["/".join(map(str, digits)) for digits, count in wrong.items() if count == most]
    text = f"{total:,} of {images:,} test images {'is' if total == 1 else 'are'} misclassified"
    if len(wrong) == 1 or len(names) == len(wrong):
        return f"{text}, in each pair of digits as many." if len(wrong) > 1 else f"{text}."
    share = f"{most} of them" if len(names) == 1 else f"{most} in each of these pairs"
    return f"{text}, most often between {listed(names)} ({share})."


def manifold(found):
    """What the grid of decoded latents shows, from DigitResults.manifold."""
    shares = listed(f"{digit} ({share:.0%})" for digit, share in found["shares"].items() if share)
    missing = [digit for digit, share in found["shares"].items() if not share]
    text = f"The cells of the grid are drawn as {shares}."
    if missing:
        text += f" It does not pass through the cluster of {listed(missing)}."
    text += (f" {found['between']:.0%} of the cells lie more than 3 standard deviations from every component: there "
             "the decoder draws the nearest digit, and the figure jumps from one to the other, since no training image "
             "has its mean there." if found["between"] >= 0.005 else " All cells lie within a cluster.")
    changes = [f"{row['slant'][0]:.0f}° to {row['slant'][1]:.0f}° and {row['ink'][0]:.1%} to {row['ink'][1]:.1%} for "
               f"the {row['digit']}" for row in found["axes"]]
    text += (" Along the long axis of each cluster, from 2 standard deviations on one side of the mean to 2 on the "
             f"other, the slant to the right and the share of ink change: {listed(changes)}.")
    return text.replace("-", "\N{MINUS SIGN}")


def reconstruction(by_digit):
    """Which digits are reconstructed best, from the mean SSIM of the validation images of each."""
    values = {digit: f"{ssim:.3f}" for digit, ssim in by_digit.items()}
    best, worst = (listed(digit for digit in values if values[digit] == chosen)
                   for chosen in (max(values.values()), min(values.values())))
    if best == worst:
        return f"All digits are reconstructed as well as each other (mean SSIM {max(values.values())})."
    return (f"Of the validation images those of {best} are reconstructed best (mean SSIM {max(values.values())}), "
            f"those of {worst} worst ({min(values.values())}).")


def all_of(part, results, ablation):
    """{name: sentences} that the template of a part shows."""
    settings = results.settings
    if part == "birds":
        rows, photos = (ablation["rows"], ablation["photos"]) if ablation else ([], 0)
        return {"curves": curves(results.history, results.best_epoch, settings["epochs"], results.time_limited,
                                 settings["patience"]),
                "classes": lowest_and_highest(results.per_class),
                "effects": effects(rows, photos) if rows else [],
                "conclusion": ablation_conclusion(rows, photos) if rows else "",
                "maps": maps(results.grad_cam), "maps_conclusion": maps_conclusion(results.grad_cam)}
    labelled = results.scores is not None
    return {"learning": learning(results.history, settings["epochs"], results.elbo),
            "reconstruction": reconstruction(results.validation_ssim), "separation": separation(results.pairs),
            "gaussians": gaussians(results.within), "manifold": manifold(results.manifold),
            "mistakes": mistakes(results.pairs, results.images) if labelled else ""}
