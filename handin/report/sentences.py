"""Sentences of the reports about their numbers: each function returns one or more sentences, or a list of them."""
import math

from handin.report.plots import truncate

CURVE_GAP = 0.05   # accuracy of training minus validation above which the network overfits
CURVE_RISE = 0.02  # of the lowest validation loss, a relevant change
MAP_CHANGE = 0.05  # of a map's mass in the central quarter, a relevant change
CONVERGED = 0.01   # of the ELBO, a relevant change
NORMAL = (0.3935, 0.8647, 0.9889)    # within 1, 2, 3 standard deviations of a normal distribution in the plane
TOLERANCES = (0.03, 0.03, 0.01)      # of these


def listed(items):
    """Items as text: "a", "a and b", "a, b and c"."""
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


def signed(number, places):
    """A number as text, with a minus sign instead of a hyphen and no negative zero."""
    return f"{round(number, places) + 0.0:.{places}f}".replace("-", "\N{MINUS SIGN}")


def percent(share, places=1):
    """A share as text, such as 12.5 %."""
    return f"{100 * share:.{places}f} %"


def pluralize(n, noun):
    """Text such as "1 image" and "2 images"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


# --------------------------------------------------------------------------------------------------------------- birds

def learning_curves(rows, best_epoch, planned, time_limited, patience, n_validation):
    """Interpretation of the learning curves, from the rows of a history; `n_validation` is the number of validation
    photos, 0 if there were too few photos for a separate set."""
    kept, last = next(row for row in rows if row["epoch"] == best_epoch), rows[-1]
    gap, later = kept["train_accuracy"] - kept["val_accuracy"], last["epoch"] - best_epoch
    if n_validation:
        share = (kept["val_accuracy"] * n_validation + 2) / (n_validation + 4)  # Agresti & Coull: not 0 for no mistake
        error = math.sqrt(share * (1 - share) / (n_validation + 4))
        text = (f"At epoch {best_epoch}, accuracy is {percent(kept['train_accuracy'])} on the augmented training "
                f"photos and {percent(kept['val_accuracy'])} on the validation photos (standard error "
                f"{percent(error)}): ")
        text += ("the network overfits, although the augmented training photos are harder."
                 if gap > max(CURVE_GAP, 2 * error) else
                 "the curves show no overfitting, but the training photos are harder, which can hide some.")
    else:
        text = "There were too few photos for a separate validation set, so overfitting cannot be assessed."
    change = last["val_loss"] / max(kept["val_loss"], 1e-9) - 1
    if later and abs(change) > CURVE_RISE:
        text += (f" The validation loss {'rises' if change > 0 else 'falls'} by {percent(abs(change), 0)} in the "
                 f"{pluralize(later, 'further epoch')}.")
    elif later:
        text += (f" The validation loss changes by less than {percent(CURVE_RISE, 0)} in the "
                 f"{pluralize(later, 'further epoch')}.")
    elif len(rows) > 1:
        text += " The last epoch is the best: the validation loss has not started to rise."
    if len(rows) < planned:
        text += (f" The time limit shortened the schedule from {planned} to {pluralize(len(rows), 'epoch')}."
                 if time_limited else
                 f" Early stopping ended training after {patience} epochs without a lower validation loss.")
    return text


def lowest_and_highest(per_class):
    """The classes with the lowest and with the highest F1, including ties, of the classes with test photos."""
    by_f1 = sorted((row for row in per_class if row["photos"]), key=lambda row: row["f1"])
    text = {row["class"]: f"{row['f1']:.3f}" for row in by_f1}
    if len(set(text.values())) == 1:
        return f"All classes with test photos have an F1 of {text[by_f1[0]['class']]}."
    worst = text[by_f1[min(2, len(by_f1) - 2)]["class"]]
    lowest, highest = ([row["class"] for row in by_f1 if holds(text[row["class"]])] for holds in (
        lambda f1: f1 <= worst and f1 != text[by_f1[-1]["class"]], lambda f1: f1 == text[by_f1[-1]["class"]]))
    lowest = (listed(f"{truncate(name, 26)} ({text[name]})" for name in lowest) if len(lowest) <= 5 else
              f"{len(lowest)} classes (up to {worst})")
    best = listed(truncate(name, 26) for name in highest) if len(highest) <= 3 else f"{len(highest)} classes"
    return f"Lowest F1: {lowest}. Highest: {best} ({text[highest[0]]})."


def effects(rows, photos):
    """A sentence for each row of ablation.json, the first of which is the baseline, scored on this number of photos."""
    base, sentences = rows[0], ["–"]
    for row in rows[1:]:
        change, error = row["accuracy"] - base["accuracy"], standard_error(base, row, photos)
        if abs(change) > 2 * error:
            sentences.append(f"The accuracy {'rises' if change > 0 else 'falls'} by {abs(change):.4f} ± {error:.4f}.")
        else:
            sentences.append(f"No clear effect: {signed(change, 4)} ± {error:.4f}.")
    return sentences


def standard_error(base, row, photos):
    """Standard error of the difference in accuracy of two rows: that over seeds or, if it is larger or there is a
    single seed, that of two independent proportions of this number of photos (too large for the same photos)."""
    of_photos = math.sqrt(sum(part["accuracy"] * (1 - part["accuracy"]) for part in (base, row)) / photos)
    if None in (base["accuracy_sd"], row["accuracy_sd"]):
        return of_photos
    return max(of_photos, math.hypot(*(part["accuracy_sd"] / len(part["seeds"]) ** 0.5 for part in (base, row))))


def ablation_conclusion(rows, photos, ablation_epochs, epochs):
    """Conclusions from the table for the submitted model, which was trained for this number of epochs."""
    changes = {row["variant"]: (row["accuracy"] - rows[0]["accuracy"], standard_error(rows[0], row, photos))
               for row in rows[1:]}
    if not changes:
        return ""
    text = []
    for what, sign in (("lower", -1), ("raise", 1)):
        names = [f"“{name}”" for name, (change, error) in changes.items() if sign * change > 2 * error]
        if names:
            subject = f"The rows {listed(names)} {what}" if len(names) > 1 else f"The row {names[0]} {what}s"
            against = ", so the first row's setting looks worse" if sign > 0 else ""
            text.append(f"{subject} the accuracy by more than two standard errors{against}.")
    text = text or ["No row differs from the first in accuracy by more than two standard errors."]
    if min(len(row["seeds"]) for row in rows) == 1:
        text.append("For rows with a single seed the errors do not include the variation between seeds.")
    if ablation_epochs != epochs:
        text.append(f"The submitted model was trained for {epochs} epochs, not for {ablation_epochs}: whether the "
                    "effects are the same there was not measured.")
    return " ".join(text)


def cam_sentences(rows):
    """A sentence for each class, {"class", "right", "wrong"} of BirdResults.grad_cam, about the areas of its maps."""
    sentences = []
    for row in rows:
        right, wrong = row["right"], row["wrong"]
        if right is None:
            sentences.append("No correctly classified photo has a map." if wrong else "No photo has a map.")
            continue
        text = "Central" if right["centre"] >= 0.35 else "Uniform" if right["centre"] >= 0.2 else "Peripheral"
        if wrong:
            change, wider = wrong["centre"] - right["centre"], wrong["entropy"] - right["entropy"]
            changes = [words for words, holds in (
                ("less central", change <= -MAP_CHANGE), ("more central", change >= MAP_CHANGE),
                ("wider", wider >= 0.02), ("narrower", wider <= -0.02)) if holds]
            text += (f". {pluralize(wrong['photos'], 'misclassified photo')}: "
                     f"{listed(changes) if changes else 'the same'}")
        sentences.append(f"{text}.")
    return sentences


def maps_conclusion(rows):
    """How the maps of misclassified photos differ from those of correctly classified ones, over classes with both."""
    both = [(row["right"], row["wrong"]) for row in rows if row["right"] and row["wrong"]]
    if not both:
        return "No class has maps of both correctly classified and misclassified photos to compare."
    right, wrong = (sum(maps["centre"] for maps in side) / len(both) for side in zip(*both))
    change = wrong - right
    found = ("about the same" if abs(change) < MAP_CHANGE else
             "the maps of mistakes are more central" if change > 0 else "the maps of mistakes are less central")
    classes = f"{len(both)} classes that have" if len(both) > 1 else "one class that has"
    photos = pluralize(sum(maps["photos"] for _, maps in both), "photo")
    return (f"In the {classes} both, the central quarter holds on average {percent(right, 0)} of the map of a "
            f"correctly classified photo and {percent(wrong, 0)} of that of a misclassified one ({photos}): {found}.")


# -------------------------------------------------------------------------------------------------------------- digits

def learning(rows, planned, elbo, gap):
    """Interpretation of the learning curves, from the rows of a history, the planned number of epochs,
    DigitResults.elbo and its elbo_gap."""
    first, last, elbo_values = rows[0], rows[-1], [-row["reconstruction"] - row["KL"] for row in rows]

    def trend(name, before, after, places, unit=""):
        if len(rows) == 1 or signed(before, places) == signed(after, places):
            return f"{name} is {signed(after, places)}{unit}"
        return (f"{name} {'rises' if after > before else 'falls'} from {signed(before, places)} to "
                f"{signed(after, places)}{unit}")

    trends = [trend("the ELBO of the training images", elbo_values[0], elbo_values[-1], 1, " nats"),
              trend("the KL divergence", first["KL"], last["KL"], 1, " nats"),
              trend("the SSIM", first["SSIM"], last["SSIM"], 3)]
    text = f"In {pluralize(len(rows), 'epoch')} {listed(trends)}."
    if len(rows) >= 10:
        gain = elbo_values[-1] - elbo_values[-1 - len(rows) // 10]
        text += f" In the last tenth of the epochs the ELBO changes by {signed(gain, 1)} nats" + (
            ": it has nearly converged." if abs(gain) < CONVERGED * abs(elbo_values[-1]) else
            ": more epochs may help.")
    if len(rows) < planned:
        text += f" The time limit shortened the schedule from {planned} to {pluralize(len(rows), 'epoch')}."
    if "training" in elbo:
        text += (f" After training the ELBO is {signed(elbo['training'], 1)} nats for the training images and "
                 f"{signed(elbo['test'], 1)} for the test images.")
    if gap:
        text += f" With equal shares of the digits the gap is {signed(gap[0], 1)} ± {gap[1]:.1f} (standard error): "
        text += ("the model overfits."
                 if gap[0] > max(2 * gap[1], CONVERGED * abs(elbo["training"])) else "no overfitting is visible.")
    return text


def separation(pairs):
    """Whether the components are separated: the distances of their means, and whether their ellipses overlap."""
    nearest = min(pairs, key=lambda pair: pair["distance"])
    text = (f"The two nearest components, those of {listed(nearest['digits'])}, are {nearest['distance']:.1f} standard "
            "deviations apart (Mahalanobis distance of the means). ")
    overlapping = {radius: [listed(pair["digits"]) for pair in pairs if pair["meets"] == radius]
                   for radius in (1, 2, 3)}
    if not any(overlapping.values()):
        return text + "Not even the ellipses at 3 standard deviations overlap: the clusters are separated."
    return text + "".join(f"The ellipses at {pluralize(radius, 'standard deviation')} overlap for {', '.join(names)}. "
                          for radius, names in overlapping.items() if names) + (
        "The clusters overlap." if overlapping[1] or overlapping[2] else "The clusters overlap only at their borders.")


def gaussians(within, images):
    """Whether the clusters follow the mixture's Gaussians, from the shares of this number of images `within` 1, 2
    and 3 standard deviations."""
    shares, normal = (listed(map(percent, part)) for part in (within, NORMAL))
    text = (f"{shares} of the images are within 1, 2 and 3 standard deviations of their component; for a 2-D "
            f"Gaussian it would be {normal}. ")
    apart = [f"{'more' if share > expected else 'fewer'} images within {pluralize(radius, 'standard deviation')}"
             for radius, (share, expected, tolerance) in enumerate(zip(within, NORMAL, TOLERANCES), 1)
             if abs(share - expected) > max(tolerance, 2 * math.sqrt(expected * (1 - expected) / images))]
    if not apart:
        return text + "By these numbers, the clusters follow the Gaussians."
    return f"{text}The clusters do not follow the Gaussians exactly: {listed(apart)} than expected."


def mistakes(pairs, images, wrong):
    """Which digits the classifier confuses, with the number of misclassified images."""
    counts = {f"{a} and {b}": sum(pair["misclassified"]) for pair in pairs for a, b in [pair["digits"]]}
    if not wrong:
        return f"None of {pluralize(images, 'test image')} is misclassified."
    text = f"{wrong:,} of {images:,} test images {'is' if wrong == 1 else 'are'} misclassified"
    others, most = wrong - sum(counts.values()), max(counts.values())
    names = [name for name, count in counts.items() if count == most]
    if most and len(names) < len(counts):
        text += f", most often between {' and between '.join(names)} ({most}{' each' if len(names) > 1 else ''})"
    elif most and len(counts) > 1:
        text += f", {most} in each pair of digits"
    return text + (f"; {others:,} of them {'shows' if others == 1 else 'show'} a digit that the mixture lacks."
                   if others else ".")


def manifold(found, components):
    """Description of the grid of decoded latents, from DigitResults.manifold; `components` of the model's prior."""
    shares = {digit: n for digit, n in found["cells"].items() if n}
    total, missing = sum(shares.values()), [digit for digit, n in found["cells"].items() if not n]
    assigned = listed(f"{n} to {digit}" for digit, n in shares.items())
    text = f"Of the {total:,} cells of the grid, the mixture assigns {assigned}."
    if missing:
        text += f" The grid does not pass through the cluster of {listed(missing)}."
    if found["between"]:
        text += (f" {pluralize(found['between'], 'cell')} {'is' if found['between'] == 1 else 'are'} more than 3 "
                 "standard deviations from every component: ")
        text += ("there the decoder, which moves z towards the nearest mean of the prior, repeats the border of that "
                 "cluster, and the images jump from one digit to the next." if components > 1 else
                 "there the decoded images change from one digit to another.")
    else:
        text += " Every cell is within 3 standard deviations of a component."
    changes = [f"for the {row['digit']} the slant to the right changes from {signed(row['slant'][0], 0)}° to "
               f"{signed(row['slant'][1], 0)}° and the mean pixel from {row['ink'][0]:.3f} to {row['ink'][1]:.3f}"
               for row in found["axes"]]
    return (f"{text} Along the long axis of each cluster, from 2 standard deviations on one side of the mean to 2 on "
            f"the other, {listed(changes)}.")


def reconstruction(by_digit):
    """Which digits are reconstructed best, from the mean SSIM of the validation images of each."""
    values = {digit: round(ssim, 3) for digit, ssim in by_digit.items()}
    high, low = max(values.values()), min(values.values())
    if high == low:
        return f"All digits are reconstructed equally well (mean SSIM {high:.3f})."
    best, worst = (listed(digit for digit in values if values[digit] == chosen) for chosen in (high, low))
    return (f"Of the validation images those of {best} are reconstructed best (mean SSIM {high:.3f}), those of {worst} "
            f"worst ({low:.3f}).")


def bird_sentences(results, ablation):
    """{name: sentences} of the template from the BirdResults and ablation.json or None."""
    rows, photos, settings = (ablation or {}).get("rows", []), (ablation or {}).get("photos", 0), results.settings
    return {"curves": learning_curves(results.history, results.best_epoch, settings["epochs"], results.time_limited,
                             settings["patience"], results.validation_photos),
            "classes": lowest_and_highest(results.per_class), "effects": effects(rows, photos) if rows else [],
            "conclusion": ablation_conclusion(rows, photos, ablation["epochs"], results.epochs) if rows else "",
            "maps": cam_sentences(results.grad_cam), "maps_conclusion": maps_conclusion(results.grad_cam)}


def digit_sentences(results):
    """{name: sentences} of the template from the DigitResults."""
    wrong = results.scores and round((1 - results.scores["accuracy"]) * results.images)
    return {"learning": learning(results.history, results.settings["epochs"], results.elbo, results.elbo_gap),
            "reconstruction": reconstruction(results.validation_ssim), "separation": separation(results.pairs),
            "gaussians": gaussians(results.within, results.scatter_images),
            "manifold": manifold(results.manifold, results.settings["components"]),
            "mistakes": mistakes(results.pairs, results.images, wrong) if results.scores else ""}
