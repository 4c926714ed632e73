"""The page latent.html: its content without a browser, its behaviour in headless Chromium where there is one."""
import base64
import dataclasses
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from handin.report import figures_digits, latent_page

CLOSE = 0.02  # in pixel value: the page's decoder and torch's


@pytest.fixture(scope="module")
def parts(data):
    """Model, mixture, labels, and the points, validation images and test images of the page. The model is trained for
    longer than that of `trained`, whose images are much alike."""
    vae = latent_page.vae
    train, val = (vae.load_digits(path, labelled=True) for path in (data.train, data.val))
    model = vae.train_vae(train, 3, dataclasses.replace(vae.Config(), epochs=20))
    points, labelled = (latent_page.Points(digits[:][0].numpy(), vae.encode_means(model, digits), digits.labels)
                        for digits in (train, val))
    mixture, labels = vae.fit_classifier(points.means, labelled.means, val.labels)
    digits = vae.DigitDataset(vae.load_digits(data.test).images[:20])
    x = digits[:][0]
    test = latent_page.TestImages(
        x.numpy(), data.test_labels[:20], vae.encode_means(model, digits), vae.refine(model, x.flatten(1)).numpy(),
        *figures_digits.reconstructions(model, digits)[1])
    return SimpleNamespace(model=model, mixture=mixture, labels=labels, points=points, val=labelled, test=test)


def made(parts, **changes):
    """Bytes of the page of the parts, some of them changed."""
    return latent_page.page_bytes(**{**vars(parts), "grid_limit": 1.64, **changes})


def read(content):
    """The JSON of a page."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', content.decode(), re.S)
    return json.loads(text)


content = pytest.fixture(scope="module")(lambda parts: made(parts))
stored = pytest.fixture(scope="module")(lambda content: read(content))


def decode(model, z):
    """Image (784,) that torch decodes from z (2,)."""
    with torch.no_grad():
        return model.decode(torch.tensor(np.array([z]), dtype=torch.float32))[0].numpy()


def test_the_page_is_self_contained_and_the_same_for_the_same_input(parts, content):
    text = content.decode()
    assert text.startswith("<!doctype html>") and latent_page.PLACEHOLDER not in text
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    assert set(re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", text)) == {"data:,"}
    assert "default-src 'none'" in text and text.count("<script") == text.count("</script>") == 2
    assert made(parts) == content


def test_the_stored_weights_decode_to_what_torch_decodes(parts, stored):
    decoder = stored["decoder"]
    def halves(text, *shape):
        return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32).reshape(shape)
    drawn = z = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    means, radius, last = np.array(decoder["priorMeans"]), decoder["radius"], decoder["layers"][-1]
    offset = z[:, None] - means
    distance, nearest = np.linalg.norm(offset, axis=2).min(1), np.linalg.norm(offset, axis=2).argmin(1)
    z = means[nearest] + np.minimum(1, radius / distance)[:, None] * (z - means[nearest])
    phase = z @ halves(decoder["frequencies"], 2, -1)
    values = np.concatenate([np.sin(phase), np.cos(phase), z], axis=1)
    for layer in decoder["layers"]:
        values = values @ halves(layer["weights"], layer["outputs"], layer["inputs"]).T + halves(layer["biases"], -1)
        values = values if layer is last else np.maximum(values, 0)
    with torch.no_grad():
        expected = parts.model.decode(torch.from_numpy(drawn)).numpy()
    assert np.abs(1 / (1 + np.exp(-values)) - expected).max() < CLOSE and expected.max() - expected.min() > 0.3


def test_the_images_are_in_one_picture_in_the_order_of_the_page(parts, stored):
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(stored["sprite"].split(",")[1]))))
    images = np.concatenate([parts.points.images, parts.val.images, parts.test.images])
    for index in (0, 1, 51, len(parts.points.images), len(images) - 1):
        row, column = divmod(index, stored["columns"])
        tile = picture[28 * row:28 * row + 28, 28 * column:28 * column + 28]
        assert (tile == np.round(255 * images[index])).all(), index


def test_many_images_are_thinned_out_and_the_page_stays_small(parts):
    """Noise is the hardest to compress."""
    n, rng = 2 * latent_page.MAX_POINTS + 1, np.random.default_rng(0)
    points = latent_page.Points(rng.random((n, 28, 28), dtype=np.float32), rng.normal(size=(n, 2)), np.arange(n) % 3)
    content = made(parts, points=points)
    data = read(content)
    assert len(data["points"]["means"]) == latent_page.MAX_POINTS and data["allPoints"] == n
    assert data["points"]["means"][-1] == pytest.approx(points.means[-1], abs=1e-5)
    assert len(content) < 6e6


def test_what_the_page_shows_lies_within_its_view(stored):
    left, right, bottom, top = stored["view"]
    assert right - left == pytest.approx(top - bottom, abs=1e-4)
    z = np.vstack([*(stored[key]["means"] for key in ("points", "val", "test", "mixture")), stored["test"]["refined"],
                   [[1.64, 1.64], [-1.64, -1.64]]])
    assert (z > [left, bottom]).all() and (z < [right, top]).all()


@pytest.fixture
def visit(browser, content, tmp_path):
    """visit(width=..., content=..., more of the browser's context): the open page. Afterwards: no error was logged and
    nothing but the file itself was asked for."""
    contexts, troubles, requests = [], [], []
    def visited(width=1000, content=content, **options):
        path = tmp_path / "latent.html"
        path.write_bytes(content)
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("#strip button[aria-pressed=true]")
        rest(page)
        return page
    yield visited
    for context in contexts:
        context.close()
    assert troubles == [] and all(url.startswith(("file:", "data:")) for url in requests), (troubles, requests)
    assert sum(url.startswith("file:") for url in requests) == len(contexts)


def rest(page):
    """Waits until the page has drawn what it was last told."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def shown(page):
    """What the page shows at the point, once drawn: z (2,), the decoded image (784,), the probability of each label."""
    rest(page)
    z = [float(value) for value in page.get_attribute("#plane", "data-z").split(",")]
    stated = page.eval_on_selector_all("#probabilities li", "rows => rows.map(row => [row.dataset.label, "
                                       "row.dataset.probability, row.querySelector('.number').textContent])")
    labels, probabilities, written = (np.array(column, float) for column in zip(*stated))
    return SimpleNamespace(z=z, image=pixels(page, "#decoded"), labels=labels.astype(int).tolist(),
                           probabilities=probabilities, written=written)


def pixels(page, selector):
    values = page.eval_on_selector(selector, "canvas => Array.from(canvas.getContext('2d')"
                                   ".getImageData(0, 0, 28, 28).data)")
    return np.array(values[::4]) / 255


def drawing(page, selector):
    rest(page)
    return page.eval_on_selector(selector, "canvas => canvas.toDataURL()")


def is_right(found, parts):
    """Asserts that image and probabilities are the model's and the mixture's at z."""
    assert np.abs(found.image - decode(parts.model, found.z)).max() < CLOSE
    expected = np.exp(parts.mixture.predict_log_proba(np.array([found.z])))[0]
    assert found.labels == parts.labels.tolist() and found.probabilities.sum() == pytest.approx(1)
    assert found.probabilities == pytest.approx(expected, abs=1e-6)
    assert found.written == pytest.approx(expected, abs=6e-4)


def test_the_mouse_moves_the_point_and_the_nearest_images_are_shown(visit, parts, stored):
    page, places = visit(), []
    box, view = page.locator("#plane").bounding_box(), stored["view"]
    for across, down in ((0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7), (0.5, 0.2), (0.5, 0.8), (0.45, 0.6)):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
        places.append(shown(page))
        is_right(places[-1], parts)
    a, b, c, *_, last = places
    assert b.z[0] > a.z[0] and b.z[1] == pytest.approx(a.z[1]) and c.z[1] < b.z[1] and c.z[0] == pytest.approx(b.z[0])
    assert b.z[0] - a.z[0] == pytest.approx(0.4 * (view[1] - view[0]) * box["width"] / (box["width"] - 60), rel=0.02)
    assert np.abs(a.image - c.image).max() > 0.1
    assert len({place.probabilities.argmax() for place in places}) > 1
    page.mouse.move(2, 2)
    assert shown(page).z == last.z
    distances = np.linalg.norm(parts.points.means - last.z, axis=1)
    texts = page.eval_on_selector_all("#nearest span", "spans => spans.map(span => span.textContent.split('\\n'))")
    assert [float(text[1]) for text in texts] == pytest.approx(np.sort(distances)[:5], abs=0.006)
    assert texts[0][0] == f"digit {parts.points.classes[distances.argmin()]}"
    nearest = parts.points.images[distances.argmin()].ravel()
    assert pixels(page, "#nearest canvas") == pytest.approx(nearest, abs=1 / 255)


def test_the_keyboard_moves_the_point_and_a_screen_reader_hears_it(visit, parts, stored):
    page = visit()
    def press(*keys):
        for key in keys:
            page.keyboard.press(key)
        return shown(page)
    start = press("Tab").z
    assert page.evaluate("document.activeElement.id") == "plane"
    assert page.eval_on_selector("#plane", "plane => getComputedStyle(plane).outlineStyle") == "solid"
    small = press("ArrowRight", "ArrowUp")
    step = small.z[0] - start[0]
    assert step > 0 and small.z[1] - start[1] == pytest.approx(step)
    large = press("Shift+ArrowLeft", "Shift+ArrowDown")
    assert small.z[0] - large.z[0] == pytest.approx(10 * step) and small.z[1] - large.z[1] == pytest.approx(10 * step)
    is_right(large, parts)
    page.wait_for_timeout(600)  # it speaks once the point rests
    status = page.inner_text("#status").replace("\N{MINUS SIGN}", "-")
    assert f"({large.z[0]:.2f}, {large.z[1]:.2f})" in status
    assert all(f"digit {label} {p:.3f}" in status for label, p in zip(large.labels, large.probabilities))
    assert page.get_attribute("#status", "aria-live") == "polite"
    assert press(*["Shift+ArrowRight"] * 60).z[0] == stored["view"][1]


def test_a_finger_drags_the_point_and_does_not_scroll(visit, parts):
    page = visit(width=400, has_touch=True, is_mobile=True)
    box, touch = page.locator("#plane").bounding_box(), page.context.new_cdp_session(page)
    def send(kind, *place):
        points = [{"x": box["x"] + place[0] * box["width"], "y": box["y"] + place[1] * box["height"]}] if place else []
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        return shown(page)
    before, tapped = shown(page), send("touchStart", 0.5, 0.8)
    for down in (0.7, 0.6, 0.5, 0.4):
        send("touchMove", 0.6, down)
    dragged = send("touchEnd")
    assert before.z != tapped.z and dragged.z[0] > tapped.z[0] and dragged.z[1] > tapped.z[1] + 0.5
    is_right(tapped, parts)
    is_right(dragged, parts)
    assert page.evaluate("window.scrollY") == 0


def test_a_test_image_shows_its_two_latents_and_reconstructions(visit, parts):
    page, test = visit(), parts.test
    buttons = page.locator("#strip button")
    assert buttons.count() == 20
    for index, press in ((3, lambda button: button.click()), (11, lambda button: button.press("Enter"))):
        marks, button = drawing(page, "#marks"), buttons.nth(index)
        press(button)
        assert drawing(page, "#marks") != marks and button.get_attribute("aria-pressed") == "true"
        assert page.locator("#strip button[aria-pressed=true]").count() == 1
        assert pixels(page, "#original") == pytest.approx(test.images[index].ravel(), abs=1 / 255)
        for name, z, ssim in (("#from-mean", test.means, test.ssim_from_mean), ("#refined", test.refined, test.ssim)):
            found = [float(value) for value in page.get_attribute(name, "data-z").split(",")]
            assert found == pytest.approx(z[index], abs=1e-4)
            assert np.abs(pixels(page, name) - decode(parts.model, z[index])).max() < CLOSE
            assert f"SSIM {ssim[index]:.3f}" in page.inner_text(f"{name} + figcaption")
        assert f"digit {test.classes[index]}" in page.inner_text("#original + figcaption")
        predicted = parts.labels[parts.mixture.predict(test.means[[index]])][0]
        assert button.get_attribute("aria-label") == (
            f"Test image {index + 1}: digit {test.classes[index]}, predicted {predicted}")
        assert shown(page).z == pytest.approx(test.means[index], abs=1e-4)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 800, 1400])
def test_the_page_fits_every_width_and_both_schemes(visit, width, scheme):
    page = visit(width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    plane, decoded = (page.locator(name).bounding_box() for name in ("#plane", "#decoded"))
    assert plane["width"] == pytest.approx(plane["height"], abs=1) and plane["width"] > 340
    assert decoded["y"] + decoded["height"] < 900  # in sight beside the plane
    ground, ink = (page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)")
                   for name in ("backgroundColor", "color"))
    assert (np.mean(ground) < 50 and np.mean(ink) > 200) if scheme == "dark" else (
        np.mean(ground) > 200 and np.mean(ink) < 50)


def test_the_labelled_images_are_shown_as_pictures_on_demand(visit):
    page = visit()
    crosses = drawing(page, "#map")
    for checked in (True, False):
        page.set_checked("#show-images input", checked)
        assert (drawing(page, "#map") != crosses) == checked


def test_the_page_says_what_stands_in_for_what_is_missing(visit, parts):
    page = visit(content=made(parts, from_training=False, predicted=True, test=parts.test._replace(classes=None)))
    for selector, words in (("#intro", "means of the 120 test images, since no training images were given"),
                            ("#near-title", "Nearest test images"), ("#near-note", "Predicted digit"),
                            ("#legend", "predicted 7")):
        assert words in page.inner_text(selector)
    assert page.inner_text("#original + figcaption") == "original"
    trained = visit()
    assert "120 training images." in trained.inner_text("#intro") and "digit 7" in trained.inner_text("#legend")


def test_a_move_takes_less_than_a_frame(visit):
    times = visit().evaluate("""Array.from({length: 100}, (_, i) => {
        const began = performance.now();
        point = [i / 100, 0.5];
        update();
        return performance.now() - began; })""")
    assert min(times) < 10  # ms; the least, since the machine may be busy
