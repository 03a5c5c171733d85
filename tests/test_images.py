"""Images as users have them: every mode that PIL opens, and files that are none."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from mixmim_bench.data.files import Files
from mixmim_bench.data.images import Arrays, Part, UnreadableImage, decoded_to, join
from mixmim_bench.data.loading import ImageDataset, batches, in_groups
from mixmim_bench.data.transforms import ImageOnly, eval_transform, train_transform
from mixmim_bench.errors import UnreadableImages
from mixmim_bench.features.engines.torch import TorchReader
from mixmim_bench.features.extract import extract
from mixmim_bench.machine import Machine
from mixmim_bench.seeding import seed_everything
from mixmim_bench.specs import Preprocessing

GREY = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
PLAIN = Preprocessing(
    size=(8, 8),
    crop_pct=1.0,
    crop_mode="center",
    interpolation="bicubic",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)


def as_rgb(path):
    return np.asarray(Files(path.parent, np.array([path.name])).load(0))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(GREY).convert("RGB").convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    assert as_rgb(path).shape == (8, 8, 3)
    if mode not in ("1", "P"):
        assert np.abs(as_rgb(path)[..., 1].astype(int) - GREY).max() <= 2


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(as_rgb(tmp_path / "deep.png")[..., 0], GREY)


@pytest.mark.parametrize("scale", [1, 255])
def test_floating_point_images_are_seen_whatever_their_scale(tmp_path, scale):
    Image.fromarray((GREY / 255 * scale).astype(np.float32)).save(tmp_path / "float.tif")
    assert np.array_equal(as_rgb(tmp_path / "float.tif")[..., 0], GREY)


@pytest.mark.parametrize("values", [(0.0, 1000.0), (-1.0, 1.0), (0.0, np.nan)])
def test_floating_point_images_of_unknown_range_cannot_be_read(tmp_path, values):
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UnreadableImage, match="have no defined range"):
        as_rgb(tmp_path / "float.tif")


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(as_rgb(tmp_path / "moving.gif")[..., 0], GREY)


@pytest.fixture
def some_broken(tmp_path):
    """Eight files, of which three are no images."""
    for i in range(8):
        Image.fromarray(np.roll(GREY, i)).resize((64, 64)).save(tmp_path / f"{i}.jpg")
    (tmp_path / "1.jpg").write_bytes(b"")
    (tmp_path / "4.jpg").write_text("this is a text")
    whole = (tmp_path / "6.jpg").read_bytes()
    (tmp_path / "6.jpg").write_bytes(whole[: len(whole) // 2])
    names = np.array([f"{i}.jpg" for i in range(8)])
    return Part(names, np.arange(8), Files(tmp_path, names))


@pytest.mark.parametrize("row", [1, 4, 6])
def test_a_file_that_is_no_image_is_an_error(some_broken, row):
    with pytest.raises(UnreadableImage):
        some_broken.images.load(row)


class Flat(torch.nn.Module):
    """The pixels as features."""

    def forward_features(self, x):
        return x

    def forward_head(self, x, **_):
        return x.flatten(1)


MACHINE = Machine(device="cpu", batch_size=3)
FLAT = TorchReader(Flat(), MACHINE)


def test_unreadable_images_are_counted_and_named(some_broken):
    with pytest.raises(UnreadableImages, match=r"3 of 8 images cannot be read: .*1\.jpg .*4\.jpg .*6\.jpg"):
        extract(FLAT, some_broken, eval_transform(PLAIN), MACHINE)


def test_unreadable_images_are_left_out_where_the_task_allows_it(some_broken):
    features = extract(FLAT, some_broken, eval_transform(PLAIN), MACHINE, skip_unreadable=True)
    assert features.unreadable == 3
    assert features.y.tolist() == [0, 2, 3, 5, 7]
    assert features.ids.tolist() == [f"{i}.jpg" for i in (0, 2, 3, 5, 7)]
    good = some_broken.take(np.array([0, 2, 3, 5, 7]))
    assert np.array_equal(features.x, extract(FLAT, good, eval_transform(PLAIN), MACHINE).x)


@pytest.mark.parametrize("workers", [0, 2])
def test_order_and_values_do_not_depend_on_workers_or_batches(workers):
    pixels = np.random.default_rng(0).integers(0, 256, (23, 8, 8), dtype=np.uint8)
    part = Part(np.arange(23).astype(str), np.arange(23), Arrays(pixels, "random"))
    machine = Machine(device="cpu", batch_size=5, workers=workers)
    features = extract(TorchReader(Flat(), machine), part, eval_transform(PLAIN), machine)
    expected = np.repeat(pixels.reshape(23, 1, 64) / 255, 3, axis=1).reshape(23, -1)
    np.testing.assert_allclose(features.x, expected, atol=1e-6)


def test_joined_parts_are_read_behind_one_another():
    first = Part(np.array(["a"]), np.array([0]), Arrays(GREY[None], "first"))
    second = Part(np.array(["b", "c"]), np.array([1, 2]), Arrays(np.stack([255 - GREY, GREY.T]), "second"))
    both = join([first, second.take(np.array([1]))])
    assert both.ids.tolist() == ["a", "c"]
    assert both.images.name(1) == "second[1]"
    assert np.array_equal(np.asarray(both.images.load(1))[..., 0], GREY.T)
    assert both.images.stamp(0) == first.images.stamp(0)


PAPER = {"crop_scale": (0.08, 1.0), "crop_ratio": (0.75, 4 / 3), "hflip": 0.5, "reprob": 0.25}


def test_seeding_is_that_of_torch(monkeypatch):
    """With and without a GPU in use, which changes how torch is seeded."""
    drawn = []
    for in_use in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_initialized", lambda used=in_use: used)
            patch.setattr(torch.cuda, "_lazy_call", lambda *_, **__: None)  # of a GPU that is not there
            seed_everything(3, 1, 4)
        drawn.append((torch.rand(3).tolist(), np.random.rand(), random.random()))  # noqa: NPY002
    assert drawn[0] == drawn[1]


def test_augmentation_depends_on_seed_epoch_and_row_alone():
    part = Arrays(np.random.default_rng(0).integers(0, 256, (6, 16, 16), dtype=np.uint8), "random")
    transform = train_transform(PLAIN, auto_augment="rand-m9-mstd0.5-inc1", **PAPER)

    def drawn(seed, epoch, workers, group):
        dataset = ImageDataset(part, ImageOnly(transform), seed=seed)
        dataset.epoch = epoch
        return torch.cat([b.images for b in batches(dataset, in_groups(range(6), group), workers)])

    assert torch.equal(drawn(0, 0, 0, 2), drawn(0, 0, 2, 3))
    assert not torch.equal(drawn(0, 0, 0, 2), drawn(0, 1, 0, 2))
    assert not torch.equal(drawn(0, 0, 0, 2), drawn(1, 0, 0, 2))


@pytest.mark.parametrize("epochs", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_the_recipes_augmentation_never_fails(epochs):
    """With pillow 13 it does, once in some 700 images."""
    images = Arrays(np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8), "random")
    transform = train_transform(PLAIN, auto_augment="rand-m9-mstd0.5-inc1", **PAPER)
    dataset = ImageDataset(images, ImageOnly(transform), seed=0)
    for epoch in range(epochs):
        dataset.epoch = epoch
        for row in range(50):
            assert dataset[row].image.shape == (3, 8, 8)


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), OSError(5, "I/O error"), MemoryError()]
)
def test_a_fault_of_the_machine_is_no_fault_of_the_image(monkeypatch, tmp_path, error):
    """Else an image that another start can read would be left out for good."""

    def fail(*_):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(type(error)):
        Files(tmp_path, np.array(["a.png"])).load(0)


PHOTO = dataclasses.replace(PLAIN, size=(64, 64), crop_pct=0.875, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


SIDE = st.integers(40, 700)


@given(SIDE, SIDE, st.sampled_from(["bicubic", "bilinear"]), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_evaluation_transform_is_torchvisions(width, height, interpolation, seed):
    """Bit for bit; the fast one differs by at most two levels of 255: one for each rounding."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((width, height))
    mode = getattr(transforms.InterpolationMode, interpolation.upper())
    steps = [
        transforms.Resize(73, interpolation=mode),
        transforms.CenterCrop(64),
        transforms.ToTensor(),
        transforms.Normalize(PHOTO.mean, PHOTO.std),
    ]
    expected = transforms.Compose(steps)(image)
    preprocessing = dataclasses.replace(PHOTO, interpolation=interpolation)
    assert torch.equal(eval_transform(preprocessing)(image), expected)
    fast = eval_transform(dataclasses.replace(preprocessing, resize="fast"))(image)
    levels = (fast - expected) * torch.tensor(PHOTO.std).view(3, 1, 1) * 255
    assert levels.abs().max() < 2.01


def smooth(width, height, seed):
    """Pixels with the spectrum of photographs, about."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])[..., None]
    values = np.fft.ifft2(
        np.fft.fft2(noise, axes=(0, 1)) / np.maximum(f, 1 / max(width, height)), axes=(0, 1)
    )
    values = values.real
    return ((values - values.mean()) / values.std() * 50 + 128).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("width", "height", "scale"), [(500, 375, 1), (640, 480, 2), (640, 940, 2), (1700, 1300, 4)]
)
def test_large_jpegs_are_decoded_at_a_reduced_scale_on_request(tmp_path, width, height, scale):
    target = PHOTO if scale < 4 else dataclasses.replace(PHOTO, size=(224, 224))
    target = dataclasses.replace(target, size=(192, 192) if scale < 4 else (224, 224))
    Image.fromarray(smooth(width, height, 0)).save(tmp_path / "a.jpg", quality=90)
    files = Files(tmp_path, np.array(["a.jpg"]))
    with decoded_to(219):
        assert files.load(0).size == (width // scale, height // scale)
    assert files.load(0).size == (width, height)
    exact, reduced = (
        ImageDataset(files, ImageOnly(eval_transform(dataclasses.replace(target, resize=resize))))[0].image
        for resize in ("", "reduced")
    )
    levels = (reduced - exact).abs() * torch.tensor(PHOTO.std).view(3, 1, 1) * 255
    assert levels.quantile(0.99) < 20
    assert (levels.max() > 2.01) == (scale > 1)


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_a_truncated_jpeg_is_found_at_a_reduced_scale_too(tmp_path, share):
    Image.fromarray(smooth(640, 480, 0)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: int(share * len(content))])
    for least in (0, 219):
        with decoded_to(least), pytest.raises(UnreadableImage, match="truncated"):
            Files(tmp_path, np.array(["a.jpg"])).load(0)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_are_read_at_a_reduced_scale_as_by_pillow(tmp_path, mode):
    image = Image.fromarray(smooth(640, 480, 0)).convert(mode)
    image.save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as opened:
        opened.draft(None, (219, 219))
        expected = opened.convert("RGB")
    with decoded_to(219):
        assert np.array_equal(Files(tmp_path, np.array(["a.jpg"])).load(0), expected)
