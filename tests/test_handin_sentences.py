"""The sentences of the reports: for each, numbers that make it and numbers that make the other one."""
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from handin.report import sentences


def epochs(*rows):
    return [dict(zip(("epoch", "train_accuracy", "val_accuracy", "val_loss"), row)) for row in rows]


@pytest.mark.parametrize("rows, best, planned, limited, said", [
    (epochs((1, 0.9, 0.7, 0.5)), 1, 1, False, ["it overfits", "still falls at the end"]),
    (epochs((1, 0.6, 0.7, 0.5), (2, 0.7, 0.7, 0.6)), 1, 2, False, ["which are easier", "rises by 20% until epoch 2"]),
    (epochs((1, 0.72, 0.7, 0.5), (2, 0.7, 0.7, 0.505)), 1, 9, False, ["nearly the same share", "has converged",
                                                                      "Early stopping ended it: 10 epochs"]),
    (epochs((1, 0.72, 0.7, 0.5), (2, 0.7, 0.7, 0.505)), 1, 9, True, ["shortened the schedule from 9 to 2 epochs"])])
def test_curves(rows, best, planned, limited, said):
    text = sentences.curves(rows, best, planned, limited, 10)
    assert all(words in text for words in said), text
    assert ("Early stopping" in text) == (planned > len(rows) and not limited)


@pytest.mark.parametrize("f1, said", [
    ([0.9, 0.8, 0.7], "Lowest F1: c2 (0.700), c1 (0.800) and c0 (0.900). Highest: c0 (0.900)."),
    ([0.9, 0.9, 0.7, 0.6, 0.8], "Highest: c0 and c1 (0.900)."), ([0.5, 0.5], "All classes have an F1 of 0.500."),
    ([1.0] * 4 + [0.9], "Highest: 4 classes (1.000).")])
def test_lowest_and_highest_classes(f1, said):
    assert said in sentences.lowest_and_highest([{"class": f"c{i}", "f1": value} for i, value in enumerate(f1)])


def row(variant, accuracy, sd=None):
    return {"variant": variant, "accuracy": accuracy, "accuracy_sd": sd, "seeds": [0] if sd is None else [0, 1]}


def test_what_each_technique_did():
    """With one seed, the standard error of the difference is that of two shares of the photos."""
    rows = [row("baseline", 0.8), row("no a", 0.7), row("no b", 0.9), row("no c", 0.8), row("no d", 0.79)]
    assert sentences.effects(rows, 1000) == [
        "–", "Lower by 0.1000 ± 0.0192: it helps.", "Higher by 0.1000 ± 0.0158: it does not help here.",
        "The same accuracy (± 0.0179): no evidence.", "Lower by 0.0100 ± 0.0181: too little to be evidence."]
    assert sentences.effects(rows[:2], 10)[1] == "Lower by 0.1000 ± 0.1924: too little to be evidence."
    rows = [row("baseline", 0.8, 0.03), row("no a", 0.7, 0.04), row("no b", 0.85, 0.04)]
    assert sentences.effects(rows, 10) == [
        "–", "Lower by 0.1000 ± 0.0354: it helps.", "Higher by 0.0500 ± 0.0354: too little to be evidence."]


@pytest.mark.parametrize("rows, said", [
    ([row("baseline", 0.8), row("no a", 0.7), row("no b", 0.7)],
     ["0.1000, is that of “no a” and “no b”", "2 of 2 techniques help", "the spread of the seeds"]),
    ([row("baseline", 0.8), row("no a", 0.9)], ["None of them lowers the accuracy", "0 of 1 techniques help"]),
    ([row("baseline", 0.8, 0.01), row("no a", 0.7, 0.01), row("no b", 0.799, 0.01)],
     ["is that of “no a”.", "1 of 2 techniques help by more than two standard errors. "])])
def test_what_follows_from_the_ablation(rows, said):
    text = sentences.ablation_conclusion(rows, 1000)
    assert all(words in text for words in said), text
    assert ("since there is one" in text) == (rows[0]["accuracy_sd"] is None)
    assert sentences.ablation_conclusion(rows[:1], 1000) == ""


def maps(right, wrong):
    return {"class": "0", **{name: value and dict(zip(("centre", "entropy"), value)) for name, value in
                             (("right", right), ("wrong", wrong))}}


@pytest.mark.parametrize("right, wrong, said", [
    (None, (0.4, 0.9), "No photo is recognised."),
    ((0.5, 0.9), None, "On the centre, where the bird mostly is. No photo is misclassified."),
    ((0.3, 0.9), (0.3, 0.9), "On bird and surroundings alike. When wrong: the same."),
    ((0.1, 0.9), (0.2, 0.95), "On the border: the background decides. When wrong: more on the centre and spread "
     "wider."),
    ((0.5, 0.9), (0.4, 0.85), "When wrong: less on the centre and on a smaller part.")])
def test_what_the_maps_of_a_class_cover(right, wrong, said):
    assert said in sentences.maps([maps(right, wrong)])[0]


@pytest.mark.parametrize("rows, said", [
    ([maps((0.5, 0.9), None)], "No class has both"),
    ([maps((0.5, 0.9), (0.4, 0.9)), maps((0.6, 0.9), (0.4, 0.9)), maps(None, (0.1, 0.9))],
     "In the 2 classes that have both, the central quarter holds 55% of the map of recognised photos and 40% of that "
     "of misclassified ones: a part of the mistakes"),
    ([maps((0.5, 0.9), (0.6, 0.9))], "In the one class that has both, the central quarter holds 50% of the map of "
     "recognised photos and 60% of that of misclassified ones: the network looks at the bird and takes it"),
    ([maps((0.5, 0.9), (0.52, 0.9))], "looks at the same place when it is wrong")])
def test_how_the_maps_of_mistakes_differ(rows, said):
    assert said in sentences.maps_conclusion(rows)


def terms(*rows):
    return [dict(zip(("epoch", "reconstruction", "KL", "SSIM"), (i + 1, *row))) for i, row in enumerate(rows)]


@pytest.mark.parametrize("rows, planned, elbo, said, unsaid", [
    (terms((170, 1, 0.2), (90, 3, 0.7)), 2, {"test": [-99, 1]},
     ["From epoch 1 to 2 the ELBO of the training images goes from −171.0 to −93.0 nats.", "rises from 1.0 to 3.0 nats",
      "the SSIM rises from 0.200 to 0.700"], ["time limit", "overfit", "tenth"]),
    (terms(*[(190 - i, 4 - i / 20, 0.7 - i / 200) for i in range(20)]), 50,
     {"training": [-170, 0.5], "test": [-180, 1]},
     ["2.1 of them in the last tenth", "falls from 4.0 to 3.0 nats", "falls from 0.700 to", "from 50 to 20 epochs",
      "−170.0 nats for the training images and −180.0 for the test images (standard error 1.0): it overfits"], []),
    (terms(*[(90, 3, 0.7)] * 20), 20, {"training": [-93, 0.5], "test": [-94, 1]},
     ["hardly more in the last tenth: the training has converged", "no overfitting is visible"], ["time limit"])])
def test_what_the_learning_curves_of_the_vae_show(rows, planned, elbo, said, unsaid):
    text = sentences.learning(rows, planned, elbo)
    assert all(words in text for words in said) and not any(words in text for words in unsaid), text


@pytest.mark.parametrize("distance, said", [
    (6.5, "not even the ellipses at 3"), (5.0, "those at 2 do not"), (3.0, "The clusters overlap")])
def test_whether_clusters_are_apart(distance, said):
    text = sentences.separation([{"digits": [1, 4], "distance": 9.0}, {"digits": [4, 8], "distance": distance}])
    assert said in text and f"those of 4 and 8, are {distance:.1f}" in text


@pytest.mark.parametrize("within, said", [
    ([0.39, 0.86, 0.99], "The clusters follow the Gaussians."),
    ([0.6, 0.9, 0.99], "more images are near the middle than"),
    ([0.6, 0.9, 0.95], "near the middle and more are far away"), ([0.39, 0.86, 0.95], "more images are far away than"),
    ([0.2, 0.7, 0.99], "spread more evenly than")])
def test_whether_clusters_follow_the_gaussians(within, said):
    text = sentences.gaussians(within)
    assert said in text and f"{100 * within[0]:.1f} %" in text


@pytest.mark.parametrize("wrong, said", [
    ([[0, 0], [0, 0], [0, 0]], "No test image of 1,000 is misclassified."),
    ([[3, 1], [0, 1], [1, 0]], "6 of 1,000 test images are misclassified, most often between 1/4 (4 of them)."),
    ([[3, 1], [2, 2], [1, 0]], "most often between 1/4 and 1/8 (4 in each of these pairs)."),
    ([[1, 1], [2, 0], [0, 2]], "6 of 1,000 test images are misclassified, in each pair of digits as many."),
    ([[1, 0]], "1 of 1,000 test images is misclassified.")])
def test_which_digits_are_confused(wrong, said):
    pairs = [{"digits": digits, "misclassified": counts} for digits, counts in zip(([1, 4], [1, 8], [4, 8]), wrong)]
    assert said in sentences.mistakes(pairs, 1000)


def test_what_the_manifold_shows():
    found = {"shares": {"1": 0.6, "4": 0.4, "8": 0.0}, "between": 0.12,
             "axes": [{"digit": 1, "slant": [-12.3, 35.2], "ink": [0.05, 0.111]}]}
    text = sentences.manifold(found)
    assert "drawn as 1 (60%) and 4 (40%)." in text and "does not pass through the cluster of 8" in text
    assert "12% of the cells" in text and "−12° to 35° and 5.0% to 11.1% for the 1." in text
    text = sentences.manifold({**found, "shares": {"1": 1.0}, "between": 0.0})
    assert "pass through" not in text and "All cells lie within a cluster." in text


def test_which_digits_are_reconstructed_best():
    assert "those of 1 are reconstructed best (mean SSIM 0.912), those of 4 and 8 worst (0.634)" in (
        sentences.reconstruction({"1": 0.912, "4": 0.634, "8": 0.6341}))
    assert "All digits are reconstructed as well as each other (mean SSIM 0.500)." == (
        sentences.reconstruction({"1": 0.5, "4": 0.5}))
