"""Slices: stratified, the same in any order of listing, and never shared."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixmim_bench.data.slices import Slice, overlap, stratified_order


@st.composite
def parts(draw):
    """Ids and labels of a part with classes of unlike sizes."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.array([f"image_{i}" for i in range(len(labels))]), labels


@given(parts(), st.randoms())
def test_the_order_does_not_depend_on_the_listing(part, random):
    ids, labels = part
    shuffled = random.sample(range(len(ids)), len(ids))
    again = stratified_order(ids[shuffled], labels[shuffled])
    assert ids[stratified_order(ids, labels)].tolist() == ids[shuffled][again].tolist()


@given(parts(), st.integers(0, 100))
def test_every_prefix_holds_the_same_share_of_each_class(part, percent):
    ids, labels = part
    order = stratified_order(ids, labels)
    assert sorted(order) == list(range(len(ids)))
    chosen = Slice.parse(f"all[:{percent}%]").rows(order, labels)
    taken = np.bincount(labels[chosen], minlength=labels.max() + 1)
    sizes = np.bincount(labels)
    # one share of every class, to half an image
    assert ((taken - 0.5) / sizes).max() <= ((taken + 0.5) / sizes).min() + 1e-12
    assert abs(taken.sum() - len(ids) * percent / 100) <= 0.5


@given(parts())
def test_an_image_keeps_its_neighbours_when_another_class_is_renamed(part):
    ids, labels = part
    renamed = labels.max() - labels
    assert stratified_order(ids, labels).tolist() == stratified_order(ids, renamed).tolist()


@given(st.integers(1, 10_000), st.integers(0, 100))
def test_neighbouring_slices_meet_without_gap(n, percent):
    below, above = Slice.parse(f"train[:{percent}%]"), Slice.parse(f"train[{percent}%:]")
    order, labels = np.arange(n), np.zeros(n, np.int64)
    assert [*below.rows(order, labels), *above.rows(order, labels)] == order.tolist()
    assert not overlap({"train": below, "val": above}, {"train": n})


@pytest.mark.parametrize(
    ("slices", "sizes", "shared"),
    [
        (("train", "train", "test"), {}, True),
        (("all[:80%]", "all[70%:90%]", "all[90%:]"), {}, True),
        (("all[:80]", "all[80%:]", "other"), {"all": 90}, True),
        (("all[:80]", "all[80%:]", "other"), {"all": 100}, False),
        (("all[:80]", "all[80%:]", "other"), {}, False),  # not to be told before the data is there
        (("train[:80%]", "train[80%:]", "val"), {}, False),
        (("all[:1000]", "all[1000:1297]", "all[1297:]"), {"all": 1797}, False),
    ],
)
def test_shared_images_are_found(slices, sizes, shared):
    parsed = dict(zip(("train", "val", "test"), map(Slice.parse, slices), strict=True))
    assert bool(overlap(parsed, sizes)) is shared


@pytest.mark.parametrize("text", ["train[80%]", "train[:120%]", "train[-1:]", "", "train[a:b]", "a b c"])
def test_what_is_no_slice_is_refused(text):
    with pytest.raises(ValueError, match=r"slice|part"):
        Slice.parse(text)


def test_the_order_is_frozen():
    """A changed order would silently change every val split that was ever published with the suite."""
    ids = np.array([f"n01440764_{i}" for i in range(8)])
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    assert stratified_order(ids, labels).tolist() == [3, 7, 4, 6, 1, 2, 5, 0]
