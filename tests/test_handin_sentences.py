"""The sentences of the reports: for each, numbers that make it and numbers that make the other one."""
import numpy as np
import pytest

from handin.report import figures_digits, sentences

HARD = [(0.9, 0.7, 0.5)]  # training accuracy, validation accuracy, validation loss of each epoch


@pytest.mark.parametrize("rows, best, planned, limited, photos, said", [
    (HARD, 1, 1, False, 600, "At epoch 1, accuracy is 90.0 % on the augmented training photos "
     "and 70.0 % on the validation photos (standard error 1.9 %): the network overfits, although the augmented "
     "training photos are harder."),
    (HARD, 1, 1, False, 10, "the curves show no overfitting"),
    (HARD, 1, 1, False, 0, "too few photos for a separate validation set"),
    ([(0.6, 0.7, 0.5), (0.7, 0.7, 0.6)], 1, 2, False, 99, "rises by 20 % in the 1 further epoch."),
    ([(0.6, 0.7, 0.5), (0.7, 0.7, 0.4), (0.7, 0.7, 0.3)], 1, 3, False, 99, "falls by 40 % in the 2 further"),
    ([(0.6, 0.7, 0.5), (0.7, 0.7, 0.4)], 2, 2, True, 99, "The last epoch is the best: the validation loss has not "
     "started to rise."),
    ([(0.7, 0.7, 0.5), (0.7, 0.7, 0.505)], 1, 9, False, 99, "changes by less than 2 % in the 1 further epoch. Early "
     "stopping ended training after 10 epochs without a lower validation loss."),
    ([(0.7, 0.7, 0.5), (0.7, 0.7, 0.505)], 1, 9, True, 99, "shortened the schedule from 9 to 2 epochs.")])
def test_curves(rows, best, planned, limited, photos, said):
    keys = "train_accuracy", "val_accuracy", "val_loss"
    history = [dict(zip(keys, row), epoch=i + 1) for i, row in enumerate(rows)]
    text = sentences.learning_curves(history, best, planned, limited, 10, photos)
    assert said in text
    assert [words in text for words in ("Early stopping", "shortened", "not started to rise")] == [
        planned == 9 and not limited, planned == 9 and limited, best == 2]


@pytest.mark.parametrize("f1, said", [
    ([0.9, 0.8, 0.7], "Lowest F1: c2 (0.700) and c1 (0.800). Highest: c0 (0.900)."),
    ([0.9, 0.9, 0.7, 0.6, 0.8], "Lowest F1: c3 (0.600), c2 (0.700) and c4 (0.800). Highest: c0 and c1 (0.900)."),
    ([0.5, 0.5], "All classes with test photos have an F1 of 0.500."),
    ([0.5], "All classes with test photos have an F1 of 0.500."),
    ([1.0] * 4 + [0.9], "Lowest F1: c4 (0.900). Highest: 4 classes (1.000)."),
    ([1.0] + [0.9] * 6, "Lowest F1: 6 classes (up to 0.900). Highest: c0 (1.000).")])
def test_lowest_and_highest_classes(f1, said):
    """Classes without test photos have no F1."""
    rows = [{"class": f"c{i}", "f1": value, "photos": 9} for i, value in enumerate(f1)]
    assert sentences.lowest_and_highest([*rows, {"class": "empty", "f1": 0.0, "photos": 0}]) == said


def row(variant, accuracy, sd=None):
    return {"variant": variant, "accuracy": accuracy, "accuracy_sd": sd, "seeds": [0] if sd is None else [0, 1]}


def test_what_each_change_did():
    """With one seed, or seeds that agree, the standard error is that of two shares of the photos."""
    rows = [row("baseline", 0.8), row("no a", 0.7), row("no b", 0.9), row("no c", 0.8), row("no d", 0.79)]
    assert sentences.effects(rows, 1000) == [
        "–", "The accuracy falls by 0.1000 ± 0.0192.", "The accuracy rises by 0.1000 ± 0.0158.",
        "No clear effect: 0.0000 ± 0.0179.", "No clear effect: \N{MINUS SIGN}0.0100 ± 0.0181."]
    assert sentences.effects(rows[:2], 10)[1] == "No clear effect: \N{MINUS SIGN}0.1000 ± 0.1924."
    rows = [row("baseline", 0.8, 0.03), row("no a", 0.7, 0.04), row("no b", 0.85, 0.04), row("no c", 0.75)]
    assert sentences.effects(rows, 10 ** 6) == [
        "–", "The accuracy falls by 0.1000 ± 0.0354.", "No clear effect: 0.0500 ± 0.0354.",
        "The accuracy falls by 0.0500 ± 0.0006."]
    assert sentences.effects([row("baseline", 0.8, 0.0), row("no a", 0.79, 0.0)], 1000)[1].startswith("No clear effect")


@pytest.mark.parametrize("rows, said, seeds", [
    ([row("baseline", 0.8), row("no a", 0.7), row("no b", 0.7)], "“no a” and “no b” lower the accuracy by more", True),
    ([row("baseline", 0.8), row("no a", 0.9)], "“no a” raises the accuracy by more than two standard errors, so "
     "the first row's setting looks worse.", True),
    ([row("baseline", 0.8, 0.01), row("no a", 0.7, 0.01), row("no b", 0.799)], "“no a” lowers the accuracy", True),
    ([row("baseline", 0.8, 0.01), row("no a", 0.799, 0.01)], "No row differs from the first in accuracy", False)])
def test_what_follows_from_the_ablation(rows, said, seeds):
    text = sentences.ablation_conclusion(rows, 1000, 60, 60)
    assert said in text and ("a single seed" in text) == seeds and "trained for" not in text
    assert "trained for 200 epochs, not for 60" in sentences.ablation_conclusion(rows, 1000, 60, 200)
    assert sentences.ablation_conclusion(rows[:1], 1000, 60, 60) == ""


def maps(right, wrong):
    return {"class": "0", **{name: value and dict(zip(("centre", "entropy", "photos"), (*value, 2))) for name, value in
                             (("right", right), ("wrong", wrong))}}


@pytest.mark.parametrize("right, wrong, said", [
    (None, (0.4, 0.9), "No correctly classified photo has a map."), (None, None, "No photo has a map."),
    ((0.5, 0.9), None, "Central."),
    ((0.3, 0.9), (0.3, 0.9), "Uniform. 2 misclassified photos: the same."),
    ((0.1, 0.9), (0.2, 0.95), "Peripheral. 2 misclassified photos: more central and wider."),
    ((0.5, 0.9), (0.4, 0.85), "Central. 2 misclassified photos: less central and narrower.")])
def test_what_the_maps_of_a_class_cover(right, wrong, said):
    assert sentences.cam_sentences([maps(right, wrong)]) == [said]


@pytest.mark.parametrize("rows, said", [
    ([maps((0.5, 0.9), None)], "No class has maps of both"),
    ([maps((0.5, 0.9), (0.4, 0.9)), maps((0.6, 0.9), (0.4, 0.9)), maps(None, (0.1, 0.9))],
     "In the 2 classes that have both, the central quarter holds on average 55 % of the map of a correctly classified "
     "photo and 40 % of that of a misclassified one (4 photos): the maps of mistakes are less central."),
    ([maps((0.5, 0.9), (0.6, 0.9))], "In the one class that has both, the central quarter holds on average 50 % of the "
     "map of a correctly classified photo and 60 % of that of a misclassified one (2 photos): the maps of mistakes "
     "are more"),
    ([maps((0.5, 0.9), (0.52, 0.9))], ": about the same.")])
def test_how_the_maps_of_mistakes_differ(rows, said):
    assert said in sentences.maps_conclusion(rows)


@pytest.mark.parametrize("rows, planned, elbo, gap, said, unsaid", [
    ([(170, 1, 0.2), (90, 3, 0.7)], 2, {"test": -99}, None,
     ["In 2 epochs the ELBO of the training images rises from −171.0 to −93.0 nats, the KL divergence rises from 1.0 "
      "to 3.0 nats and the SSIM rises from 0.200 to 0.700."], ["time limit", "overfit", "tenth"]),
    ([(90, 3, 0.7)], 1, {"training": -93, "test": -99}, None,
     ["In 1 epoch the ELBO of the training images is −93.0 nats, the KL divergence is 3.0 nats and the SSIM is 0.700."],
     ["overfit"]),
    ([(190 - i, 4 - i / 20, 0.7 - i / 200) for i in range(20)], 50,
     {"training": -170, "test": -180}, [9.0, 1.1],
     ["the ELBO changes by 2.1 nats: more epochs may help", "falls from 4.0 to 3.0 nats", "falls from 0.700 to",
      "from 50 to 20 epochs", "the ELBO is −170.0 nats for the training images and −180.0 for the test images. With "
      "equal shares of the digits the gap is 9.0 ± 1.1 (standard error): the model overfits"], []),
    ([(90, 3, 0.7)] * 20, 20, {"training": -93, "test": -93.5}, [0.5, 0.01],
     ["the KL divergence is 3.0 nats", "the ELBO changes by 0.0 nats: it has nearly converged",
      "no overfitting is visible"], ["time limit", "falls"]),
    ([(90 + i, 3, 0.7) for i in range(20)], 20, {"test": -93}, None,
     ["falls from −93.0 to −112.0 nats", "changes by −2.0 nats: more"], [])])
def test_what_the_learning_curves_of_the_vae_show(rows, planned, elbo, gap, said, unsaid):
    history = [dict(zip(("reconstruction", "KL", "SSIM"), row), epoch=i + 1) for i, row in enumerate(rows)]
    text = sentences.learning(history, planned, elbo, gap)
    assert all(words in text for words in said) and not any(words in text for words in unsaid), text


@pytest.mark.parametrize("meets, said", [
    ((None, None), "Not even the ellipses at 3 standard deviations overlap: the clusters are separated."),
    ((3, None), "The ellipses at 3 standard deviations overlap for 1 and 4. The clusters overlap only at their "
     "borders."),
    ((3, 1), "The ellipses at 1 standard deviation overlap for 4 and 8. The ellipses at 3 standard deviations overlap "
     "for 1 and 4. The clusters overlap.")])
def test_whether_clusters_are_apart(meets, said):
    text = sentences.separation([{"digits": [1, 4], "distance": 9.0, "meets": meets[0]},
                                 {"digits": [4, 8], "distance": 6.5, "meets": meets[1]}])
    assert text == ("The two nearest components, those of 4 and 8, are 6.5 standard deviations apart (Mahalanobis "
                    f"distance of the means). {said}")


@pytest.mark.parametrize("distance, scale, meets", [
    (6.1, 1, None), (5.9, 1, 3), (3.9, 1, 2), (1.9, 1, 1), (12.1, 3, None), (11.9, 3, 3), (0.1, 3, 1)])
def test_ellipses_meet_where_they_do(distance, scale, meets):
    """Circles of radius r and r * scale around two means; one within the other counts."""
    mixture = figures_digits.vae.GaussianMixture.from_parameters(
        [0.5, 0.5], [[0, 0], [0, distance]], [np.eye(2), scale ** 2 * np.eye(2)])
    (pair,) = figures_digits.component_pairs(mixture, np.array([1, 4]))
    assert pair["meets"] == meets


@pytest.mark.parametrize("within, said", [
    ([0.39, 0.86, 0.99], "By these numbers, the clusters follow the Gaussians."),
    ([0.6, 0.9, 0.99], "exactly: more images within 1 standard deviation and more images within 2 standard deviations "
     "than expected"), ([0.39, 0.86, 0.97], "exactly: fewer images within 3 standard deviations than"),
    ([0.40, 0.95, 0.999], "exactly: more images within 2 standard deviations and more images within 3 standard"),
    ([0.2, 0.86, 0.99], "exactly: fewer images within 1 standard deviation than")])
def test_whether_clusters_follow_the_gaussians(within, said):
    text = sentences.gaussians(within, 10_000)
    assert "By these numbers, the clusters follow" in sentences.gaussians([0.4, 14 / 15, 1.0], 15)
    assert said in text and f"{100 * within[0]:.1f} %" in text


@pytest.mark.parametrize("wrong, total, said", [
    ([[0, 0], [0, 0], [0, 0]], 0, "None of 1,000 test images is misclassified."),
    ([[3, 1], [0, 1], [1, 0]], 6, "6 of 1,000 test images are misclassified, most often between 1 and 4 (4)."),
    ([[3, 1], [2, 2], [1, 0]], 9, "are misclassified, most often between 1 and 4 and between 1 and 8 (4 each)."),
    ([[1, 1], [2, 0], [0, 2]], 6, "6 of 1,000 test images are misclassified, 2 in each pair of digits."),
    ([[1, 1], [0, 0], [0, 0]], 5, "most often between 1 and 4 (2); 3 of them show a digit that the mixture lacks."),
    ([[0, 0], [0, 0], [0, 0]], 1, "1 of 1,000 test images is misclassified; 1 of them shows a digit that"),
    ([[1, 0]], 1, "1 of 1,000 test images is misclassified.")])
def test_which_digits_are_confused(wrong, total, said):
    pairs = [{"digits": digits, "misclassified": counts} for digits, counts in zip(([1, 4], [1, 8], [4, 8]), wrong)]
    assert said in sentences.mistakes(pairs, 1000, total)


def test_what_the_manifold_shows():
    found = {"cells": {"1": 240, "4": 160, "8": 0}, "between": 48,
             "axes": [{"digit": 1, "slant": [-12.3, -0.2], "ink": [0.05, 0.111]}]}
    text = sentences.manifold(found, 3)
    for words in ("Of the 400 cells of the grid, the mixture assigns 240 to 1 and 160 to 4.",
                  "does not pass through the cluster of 8", "48 cells are more than 3",
                  "moves z towards the nearest mean",
                  "for the 1 the slant to the right changes from −12° to 0° and the mean pixel from 0.050 to 0.111."):
        assert words in text
    text = sentences.manifold({**found, "cells": {"1": 399, "4": 1}, "between": 1}, 1)
    assert "399 to 1 and 1 to 4" in text and "1 cell is more" in text
    assert "images change from one digit to another" in text
    text = sentences.manifold({**found, "cells": {"1": 400}, "between": 0}, 3)
    assert "pass through" not in text and "Every cell is within 3 standard deviations" in text


@pytest.mark.parametrize("similarities, said", [
    ({"1": 0.912, "4": 0.634, "8": 0.6341}, "those of 1 are reconstructed best (mean SSIM 0.912), those of 4 and 8 "
     "worst (0.634)"),
    ({"1": -0.2, "4": -0.1}, "those of 4 are reconstructed best (mean SSIM -0.100), those of 1 worst (-0.200)"),
    ({"1": 0.5, "4": 0.5}, "All digits are reconstructed equally well (mean SSIM 0.500).")])
def test_which_digits_are_reconstructed_best(similarities, said):
    assert said in sentences.reconstruction(similarities)
