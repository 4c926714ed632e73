"""The page latent.html: its content without a browser, its behaviour in headless Chromium where there is one."""
import base64
import dataclasses
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
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
    test = latent_page.Reconstructed(
        x.numpy(), data.test_labels[:20], vae.encode_means(model, digits), vae.refine(model, x.flatten(1)).numpy(),
        *figures_digits.reconstructions(model, digits)[1])
    return SimpleNamespace(model=model, mixture=mixture, labels=labels, points=points, val=labelled, test=test)


def made(parts, **changes):
    """Bytes of the page of the parts, some of them changed."""
    arguments = {**vars(parts), "reach": 1.64, **changes}
    return latent_page.page_bytes(**arguments)


@pytest.fixture(scope="module")
def content(parts):
    return made(parts)


def read(content):
    """The JSON of a page."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', content.decode(), re.S)
    return json.loads(text)


def decode(model, z):
    """Image (784,) that torch decodes from z (2,)."""
    with torch.no_grad():
        return model.decode(torch.tensor(np.array([z]), dtype=torch.float32))[0].numpy()


# --------------------------------------------------------------------------------------------------- without a browser

def test_the_page_is_self_contained_and_has_no_mark_left(content):
    text = content.decode()
    assert text.startswith("<!doctype html>") and latent_page.MARK not in text
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    assert set(re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", text)) == {"data:,"}
    assert "default-src 'none'" in text and text.count("<script") == text.count("</script>") == 2


def test_the_same_input_gives_the_same_bytes(parts, content):
    assert made(parts) == content


def test_the_stored_weights_decode_to_what_torch_decodes(parts, content):
    decoder = read(content)["decoder"]

    def halves(text, *shape):
        return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32).reshape(shape)

    drawn = z = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    means, radius = np.array(decoder["priorMeans"]), decoder["radius"]
    offset = z[:, None] - means
    distance, nearest = np.linalg.norm(offset, axis=2).min(1), np.linalg.norm(offset, axis=2).argmin(1)
    z = means[nearest] + np.minimum(1, radius / distance)[:, None] * (z - means[nearest])
    phase = z @ halves(decoder["frequencies"], 2, -1)
    values = np.concatenate([np.sin(phase), np.cos(phase), z], axis=1)
    for i, layer in enumerate(decoder["layers"]):
        values = values @ halves(layer["weights"], layer["outputs"], layer["inputs"]).T + halves(layer["biases"], -1)
        if i < len(decoder["layers"]) - 1:
            values = np.maximum(values, 0)
    with torch.no_grad():
        expected = parts.model.decode(torch.from_numpy(drawn)).numpy()
    assert np.abs(1 / (1 + np.exp(-values)) - expected).max() < CLOSE and expected.max() - expected.min() > 0.3


def test_the_images_are_in_one_picture_in_the_order_of_the_page(parts, content):
    data = read(content)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["sprite"].split(",")[1]))))
    images = np.concatenate([parts.points.images, parts.val.images, parts.test.images])
    for index in (0, 1, 51, len(parts.points.images), len(images) - 1):
        row, column = divmod(index, data["columns"])
        tile = picture[28 * row:28 * row + 28, 28 * column:28 * column + 28]
        assert (tile == np.round(255 * images[index])).all(), index


def test_many_images_are_thinned_out_and_the_page_stays_small(parts):
    """Noise is the hardest to compress."""
    n = 2 * latent_page.MOST + 1
    rng = np.random.default_rng(0)
    points = latent_page.Points(rng.random((n, 28, 28), dtype=np.float32), rng.normal(size=(n, 2)), np.arange(n) % 3)
    content = made(parts, points=points)
    data = read(content)
    assert len(data["points"]["means"]) == latent_page.MOST and data["allPoints"] == n
    assert data["points"]["means"][-1] == pytest.approx(points.means[-1], abs=1e-5)
    assert len(content) < 6e6


def test_what_the_page_shows_lies_within_its_view(parts, content):
    data = read(content)
    left, right, bottom, top = data["view"]
    assert right - left == pytest.approx(top - bottom, abs=1e-4)
    z = np.vstack([*(data[key]["means"] for key in ("points", "val", "test", "mixture")), data["test"]["refined"],
                   [[1.64, 1.64], [-1.64, -1.64]]])
    assert (z > [left, bottom]).all() and (z < [right, top]).all()


# ------------------------------------------------------------------------------------------------------- in a browser

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
    """What the page shows at the point: z (2,), the decoded image (784,), the probability of each label."""
    z = [float(value) for value in page.get_attribute("#plane", "data-z").split(",")]
    stated = page.eval_on_selector_all("#probabilities li", "rows => rows.map(row => [row.dataset.label, "
                                       "row.dataset.probability, row.querySelector('.number').textContent])")
    return SimpleNamespace(z=z, image=pixels(page, "decoded"), labels=[int(label) for label, _, _ in stated],
                           probabilities=np.array([float(p) for _, p, _ in stated]),
                           written=[float(text) for _, _, text in stated])


def pixels(page, name):
    values = page.eval_on_selector(f"#{name}", "canvas => Array.from(canvas.getContext('2d')"
                                   ".getImageData(0, 0, 28, 28).data)")
    return np.array(values[::4]) / 255


def is_right(found, parts):
    """Asserts that image and probabilities are the model's and the mixture's at z."""
    assert np.abs(found.image - decode(parts.model, found.z)).max() < CLOSE
    expected = np.exp(parts.mixture.predict_log_proba(np.array([found.z])))[0]
    assert found.labels == parts.labels.tolist() and found.probabilities.sum() == pytest.approx(1)
    assert found.probabilities == pytest.approx(expected, abs=1e-6)
    assert found.written == pytest.approx(expected, abs=6e-4)


def test_the_mouse_moves_the_point(visit, parts):
    page = visit()
    box, left, places = page.locator("#plane").bounding_box(), read(made(parts))["view"], []
    for across, down in ((0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7), (0.5, 0.2), (0.5, 0.8), (0.52, 0.5)):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
        rest(page)
        places.append(shown(page))
        is_right(places[-1], parts)
    a, b, c, *_ = places
    assert b.z[0] > a.z[0] and b.z[1] == pytest.approx(a.z[1]) and c.z[1] < b.z[1] and c.z[0] == pytest.approx(b.z[0])
    assert b.z[0] - a.z[0] == pytest.approx(0.4 * (left[1] - left[0]) * box["width"] / (box["width"] - 60), rel=0.02)
    assert np.abs(a.image - c.image).max() > 0.1
    assert len({place.probabilities.argmax() for place in places}) > 1
    page.mouse.move(2, 2)
    rest(page)
    assert shown(page).z == places[-1].z


def test_the_nearest_images_are_the_nearest(visit, parts):
    page = visit()
    box = page.locator("#plane").bounding_box()
    page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.6 * box["height"])
    rest(page)
    distances = np.linalg.norm(parts.points.means - shown(page).z, axis=1)
    texts = page.eval_on_selector_all("#nearest span", "spans => spans.map(span => span.textContent.split('\\n'))")
    assert [float(text[1]) for text in texts] == pytest.approx(np.sort(distances)[:5], abs=0.006)
    nearest = distances.argmin()
    assert texts[0][0] == f"digit {parts.points.classes[nearest]}"
    page.eval_on_selector("#nearest canvas", "canvas => canvas.id = 'first'")
    assert pixels(page, "first") == pytest.approx(parts.points.images[nearest].ravel(), abs=1 / 255)


def test_the_keyboard_moves_the_point_and_a_screen_reader_hears_it(visit, parts):
    page = visit()
    start = shown(page).z
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "plane"
    assert page.eval_on_selector("#plane", "plane => getComputedStyle(plane).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    rest(page)
    small = shown(page)
    step = small.z[0] - start[0]
    assert step > 0 and small.z[1] - start[1] == pytest.approx(step)
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Shift+ArrowDown")
    rest(page)
    large = shown(page)
    assert small.z[0] - large.z[0] == pytest.approx(10 * step) and small.z[1] - large.z[1] == pytest.approx(10 * step)
    is_right(large, parts)
    page.wait_for_timeout(600)  # it speaks once the point rests
    status = page.inner_text("#status").replace("\N{MINUS SIGN}", "-")
    assert f"({large.z[0]:.2f}, {large.z[1]:.2f})" in status
    assert all(f"digit {label} {p:.3f}" in status for label, p in zip(large.labels, large.probabilities))
    assert page.get_attribute("#status", "aria-live") == "polite"
    for _ in range(60):
        page.keyboard.press("Shift+ArrowRight")
    rest(page)
    assert shown(page).z[0] == read(page.content().encode())["view"][1]


def test_a_finger_drags_the_point_and_does_not_scroll(visit, parts):
    page = visit(width=400, has_touch=True, is_mobile=True)
    box, touch = page.locator("#plane").bounding_box(), page.context.new_cdp_session(page)
    before = shown(page)

    def send(kind, *place):
        points = [{"x": box["x"] + place[0] * box["width"], "y": box["y"] + place[1] * box["height"]}] if place else []
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        rest(page)

    send("touchStart", 0.5, 0.8)
    tapped = shown(page)
    for down in (0.7, 0.6, 0.5, 0.4):
        send("touchMove", 0.6, down)
    send("touchEnd")
    dragged = shown(page)
    assert before.z != tapped.z and dragged.z[0] > tapped.z[0] and dragged.z[1] > tapped.z[1] + 0.5
    is_right(tapped, parts)
    is_right(dragged, parts)
    assert page.evaluate("window.scrollY") == 0


def test_a_test_image_shows_its_two_latents_and_reconstructions(visit, parts):
    page, means, refined = visit(), parts.test.means, parts.test.refined
    buttons = page.locator("#strip button")
    assert buttons.count() == 20
    for index, press in ((3, lambda button: button.click()), (11, lambda button: button.press("Enter"))):
        marks = page.eval_on_selector("#marks", "canvas => canvas.toDataURL()")
        press(buttons.nth(index))
        rest(page)
        assert buttons.nth(index).get_attribute("aria-pressed") == "true"
        assert page.locator("#strip button[aria-pressed=true]").count() == 1
        assert page.eval_on_selector("#marks", "canvas => canvas.toDataURL()") != marks
        assert pixels(page, "original") == pytest.approx(parts.test.images[index].ravel(), abs=1 / 255)
        for name, z, similarity in (("from-mean", means, parts.test.ssim_from_mean),
                                    ("refined", refined, parts.test.ssim)):
            found = [float(value) for value in page.get_attribute(f"#{name}", "data-z").split(",")]
            assert found == pytest.approx(z[index], abs=1e-4)
            assert np.abs(pixels(page, name) - decode(parts.model, z[index])).max() < CLOSE
            assert f"SSIM {similarity[index]:.3f}" in page.inner_text(f"#{name} + figcaption")
        assert f"digit {parts.test.classes[index]}" in page.inner_text("#original + figcaption")
        predicted = parts.labels[parts.mixture.predict(parts.test.means[[index]])][0]
        assert buttons.nth(index).get_attribute("aria-label") == (
            f"Test image {index + 1}: digit {parts.test.classes[index]}, predicted {predicted}")
        assert shown(page).z == pytest.approx(means[index], abs=1e-4)


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
    crosses = page.eval_on_selector("#map", "canvas => canvas.toDataURL()")
    page.check("#show-images input")
    rest(page)
    assert page.eval_on_selector("#map", "canvas => canvas.toDataURL()") != crosses
    page.uncheck("#show-images input")
    rest(page)
    assert page.eval_on_selector("#map", "canvas => canvas.toDataURL()") == crosses


def test_the_page_says_what_stands_in_for_what_is_missing(visit, parts):
    page = visit(content=made(parts, trained_on=False, predicted=True, test=parts.test._replace(classes=None)))
    assert "means of the 120 test images, since no training images were given" in page.inner_text("#intro")
    assert page.inner_text("#near-title") == "Nearest test images"
    assert "Predicted digit" in page.inner_text("#near-note")
    assert "predicted 7" in page.inner_text("#legend") and page.inner_text("#original + figcaption") == "original"
    trained = visit()
    assert "120 training images." in trained.inner_text("#intro") and "digit 7" in trained.inner_text("#legend")


def test_a_move_takes_less_than_a_frame(visit):
    page = visit()
    times = page.evaluate("""Array.from({length: 100}, (_, i) => {
        const began = performance.now();
        point = [i / 100, 0.5];
        update();
        return performance.now() - began; })""")
    assert min(times) < 10  # ms; the least, since the machine may be busy
