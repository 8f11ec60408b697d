"""The page in a real browser: predictions as of `etf-predict`, no network, mouse and keyboard, wide and narrow."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nearest_etf.common.photo import CROP_MODES, INTERPOLATIONS, PhotoTransform, evaluation_view
from nearest_etf.export import OnnxClassifier
from nearest_etf.export.page import write_page

pytestmark = pytest.mark.usefixtures("runtime_is_here")
ORIENTATION = 0x0112
# onnxruntime 1.18 and the one that predicts round float16 at other places
NAMES_INSIDE = """[...document.querySelectorAll("#picture .name")].every((name) => {
    const [inner, outer] = [name, name.ownerSVGElement].map((x) => x.getBoundingClientRect());
    return inner.left >= outer.left - 1 && inner.right <= outer.right + 1; })"""
BOUNDS = {"fp32": 1e-5, "float": 1e-5, "int8": 1e-5, "fp16": 5e-3}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photos of many sizes and kinds: smooth colours with some noise; every third one is a JPEG rotated by EXIF."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = []
    for i in range(24):
        height, width = (int(side) for side in rng.integers(9, 700, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((width, height))
        noisy = np.asarray(coarse) + rng.normal(0, 12, (height, width, 3))
        photo = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        path = folder / f"{i}.{'jpg' if i % 3 == 0 else 'png'}"
        if i % 3 == 0:
            exif = Image.Exif()
            exif[ORIENTATION] = i // 3 + 1
            photo.save(path, quality=90, exif=exif)
        elif i % 6 == 1:
            photo.convert("L").save(path)
        else:
            if i % 6 == 2:
                photo.putalpha(Image.fromarray(rng.integers(0, 256, (height, width), np.uint8)))
            photo.save(path)
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def classifier(colour_model: Path) -> OnnxClassifier:
    """The model of the page in colour."""
    return OnnxClassifier(colour_model, threads=1)


@pytest.fixture(scope="module")
def page(colour_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page in colour."""
    path = tmp_path_factory.mktemp("page") / "colour.html"
    write_page(colour_model, path)
    return path


def largest_difference(answers: list[Any], prediction: Any) -> tuple[float, float]:
    """Of probabilities and of cosines; the labels are the same."""
    assert [answer["label"] for answer in answers] == prediction.labels.tolist()
    found = [np.array([answer[name] for answer in answers]) for name in ("probabilities", "cosines")]
    pairs = zip(found, (prediction.probabilities, prediction.class_cosines), strict=True)
    probabilities, cosines = (float(np.abs(a - b).max()) for a, b in pairs)
    return probabilities, cosines


@pytest.mark.parametrize("name", BOUNDS)
def test_images_of_the_model_s_own_size(
    name: str, files: dict[str, Path], held_out: tuple[np.ndarray, np.ndarray], browser: Any, tmp_path: Path
) -> None:
    """Probabilities and cosines are those of `OnnxClassifier`, for 40 images."""
    classifier, images = OnnxClassifier(files[name], threads=1), held_out[0][:40]
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[..., 0]).save(path)
    pixels = images if classifier.layout == "NHWC" else images.transpose(0, 3, 1, 2)
    if name == "float":
        pixels = ((pixels / 255 - 0.3) / 0.37).astype(np.float32)
    write_page(files[name], tmp_path / "demo.html")
    browser.open(tmp_path / "demo.html")
    answers = browser.ask("etf.classify", paths)
    assert max(largest_difference(answers, classifier.predict(pixels))) <= BOUNDS[name]
    Image.new("L", (9, 8)).save(paths[0])
    Image.new("RGB", (8, 8), "red").save(paths[1])
    assert browser.ask("etf.classify", paths[:2]) == [  # refused as by `etf-predict`: no transform is recorded
        "This image has 9×8 pixels, but the model takes 8×8.",
        "This is a colour image, but the model takes greyscale.",
    ]


def test_photos_of_any_size(classifier: OnnxClassifier, page: Path, photos: list[Path], browser: Any) -> None:
    """Equal pixels for PNG without transparency, which Pillow and browsers decode alike; within 0.02 for the others."""
    browser.open(page)
    pixels = [classifier.read_photo(path) for path in photos]
    views = [np.array(view).reshape(12, 10, 3).transpose(2, 0, 1) for view in browser.ask("etf.view", photos)]
    for path, view, expected in zip(photos, views, pixels, strict=True):
        opaque = path.suffix == ".png" and Image.open(path).mode != "RGBA"
        assert np.abs(view - expected.astype(int)).max() <= (1 if opaque else 6), path.name
    answers = browser.ask("etf.classify", photos)
    prediction = classifier.predict(np.stack(pixels))
    assert max(largest_difference(answers, prediction)) <= 0.02
    assert prediction.ood_scores is not None
    np.testing.assert_allclose([answer["oodScore"] for answer in answers], prediction.ood_scores, atol=0.02)


def test_every_way_of_scaling(page: Path, photos: list[Path], browser: Any) -> None:
    browser.open(page)
    chosen = [path for path in photos if path.suffix == ".png"][:4]
    for interpolation, crop_mode, (channels, crop) in product(INTERPOLATIONS, CROP_MODES, ((3, 0.875), (1, 1.0))):
        transform = PhotoTransform(40, 23, channels, crop, crop_mode, interpolation)
        function = f"(async (file) => evaluationView(await openPhoto(file, {channels}), {transform.to_dict()}))"
        for path, view in zip(chosen, browser.ask(function, chosen), strict=True):
            expected = evaluation_view(path, transform).astype(int)
            assert np.abs(np.array(view).reshape(transform.shape) - expected).max() <= 1, (transform, path.name)


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_a_chosen_photo_is_classified(
    classifier: OnnxClassifier, page: Path, photos: list[Path], browser: Any, tmp_path: Path, width: int, dark: bool
) -> None:
    """Names are shown as text, nothing is wider than the window, and there are no network requests."""
    browser.open(page, width, dark=dark)
    shown = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert shown == ("rgb(18, 23, 28)" if dark else "rgb(245, 247, 250)")
    browser.choose(photos[0])
    browser.wait("!document.getElementById('answer').hidden")
    prediction = classifier.predict(classifier.read_photo(photos[0])[None])
    assert browser.evaluate("document.getElementById('winner').textContent") == prediction.names[0]
    names = browser.evaluate("[...document.querySelectorAll('tbody th')].map((cell) => cell.textContent)")
    assert names == [classifier.class_names[k] for k in prediction.top(6)[0]]
    assert browser.evaluate("document.querySelectorAll('#picture .cosine').length") == 6
    assert prediction.accepted is not None
    assert browser.evaluate("document.getElementById('foreign').hidden") == prediction.accepted[0]
    assert "<script>alert(1)" in browser.evaluate("document.getElementById('picture').getAttribute('aria-label')")
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.evaluate(
        "document.querySelector('table').offsetWidth <= document.querySelector('.views').clientWidth"
    )
    assert browser.evaluate(NAMES_INSIDE)
    assert browser.requests() == browser.complaints() == []
    assert (
        browser.evaluate("""new Promise((resolve) => {
        addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
        const asked = new XMLHttpRequest();
        asked.open("GET", "https://example.org/");
        asked.send(); })""")
        == "connect-src"
    )
    browser.screenshot(tmp_path / "page.png")
    assert Image.open(tmp_path / "page.png").width == width


def test_a_file_that_is_not_an_image_is_named_in_the_error(page: Path, browser: Any, tmp_path: Path) -> None:
    browser.open(page)
    (tmp_path / "notes.txt").write_text("no image")
    browser.choose(tmp_path / "notes.txt")
    browser.wait("document.getElementById('status').classList.contains('error')")
    said = browser.evaluate("document.getElementById('status').textContent")
    assert said == "This browser cannot read notes.txt as an image: choose a JPEG, PNG or WebP file."
    assert browser.evaluate("document.getElementById('answer').hidden")


def test_drawing_by_mouse_and_by_keyboard(files: dict[str, Path], browser: Any, tmp_path: Path) -> None:
    """Each pixel of the input is the mean over its part of the drawing; undo and clear remove strokes."""
    write_page(files["fp32"], tmp_path / "demo.html")
    browser.open(tmp_path / "demo.html")
    seen = "[...document.getElementById('view').getContext('2d').getImageData(0, 0, 8, 8).data]"
    sheet = "document.getElementById('sheet')"
    left, top, width, height = browser.evaluate(f"Object.values({sheet}.getBoundingClientRect().toJSON()).slice(0, 4)")
    places = [(left + x * width, top + y * height) for x, y in ((0.5, 0.2), (0.5, 0.5), (0.5, 0.8))]
    browser.drag(*places)
    browser.wait("!document.getElementById('answer').hidden")
    stroke = np.array(browser.evaluate(seen)).reshape(8, 8, 4)[..., 0]  # light on dark, like the digits
    assert (stroke[2:6, 3:5] > 60).all()
    assert stroke[:, [0, 1, 6, 7]].max() == 0
    assert stroke[0].max() == 0
    label = browser.evaluate("document.getElementById('winner').textContent")
    drawn = OnnxClassifier(files["fp32"], threads=1).predict(stroke.astype(np.uint8).reshape(1, 8, 8, 1))
    assert label == drawn.names[0]
    browser.evaluate("document.getElementById('undo').click()")
    assert browser.evaluate("document.getElementById('answer').hidden && drawing.empty")

    browser.evaluate(f"{sheet}.focus()")
    browser.press(" ", *["ArrowDown"] * 8, " ")
    browser.wait("!document.getElementById('answer').hidden")
    stroke = np.array(browser.evaluate(seen)).reshape(8, 8, 4)[..., 0]
    assert (stroke[4:6, 3:5] > 60).all()
    assert stroke[:3].max() == 0
    browser.press("Delete")
    assert browser.evaluate("document.getElementById('answer').hidden && drawing.empty")


@pytest.mark.parametrize(
    ("name", "shown"),  # without the common beginning of long names
    [("class {}", "class {}"), ("a class with number {}", "…{}"), ("{} is a class", "{} is a class")],
)
def test_the_picture_shows_the_ten_nearest_of_many_classes(page: Path, browser: Any, name: str, shown: str) -> None:
    browser.open(page)
    cosines = np.random.default_rng(0).uniform(-1, 1, 100)
    browser.evaluate(f"""(about.class_names = {[name.format(k) for k in range(100)]},
        document.getElementById('answer').hidden = false,
        showVertices({{ label: 7, cosines: {cosines.tolist()} }}))""")
    drawn = browser.evaluate("[...document.querySelectorAll('#picture .name')].map((name) => name.textContent)")
    assert drawn == [shown.format(k) for k in np.argsort(-cosines)[:10]]
    assert browser.evaluate(NAMES_INSIDE)


def test_the_answer_is_that_of_the_latest_photo(page: Path, photos: list[Path], browser: Any, tmp_path: Path) -> None:
    """The first photo takes longer than the second one."""
    browser.open(page)
    browser.evaluate("""(window.first = viewOf, window.viewOf = async (file) => {
        if (file.name.startsWith("slow")) await new Promise((resolve) => setTimeout(resolve, 500));
        const pixels = await window.first(file);
        if (file.name.startsWith("slow")) window.late = true;
        return pixels; }, 0)""")
    (tmp_path / "slow.png").write_bytes(photos[1].read_bytes())
    (tmp_path / "slow.txt").write_text("no image")
    for first in ("slow.png", "slow.txt"):
        browser.choose(tmp_path / first)
        browser.choose(photos[2])
        browser.wait("!document.getElementById('answer').hidden")
        said = browser.evaluate("document.getElementById('certainty').textContent")
        browser.evaluate("new Promise((resolve) => setTimeout(resolve, 800))")
        assert browser.evaluate("document.getElementById('certainty').textContent") == said
        assert not browser.evaluate("document.getElementById('answer').hidden")
    assert browser.evaluate("window.late")
