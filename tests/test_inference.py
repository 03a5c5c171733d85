"""Models by name, their classes and features: in Python and on the command line."""

import csv
import hashlib
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from conftest import TINY
from PIL import Image
from server import Behaviour, serving
from test_checkpoints import in_openmmlab_form

import mixmim_bench
from mixmim_bench import demo_image, get_model, inference_model, list_models, registry
from mixmim_bench.data.images import UnreadableImage
from mixmim_bench.data.pictures import Pictures
from mixmim_bench.errors import BenchError, MissingWeights
from mixmim_bench.registry import place_of
from mixmim_bench.specs import ModelSpec, WeightsSpec
from mixmim_bench.weights import download


def in_a_file(network):
    """Write a network as OpenMMLab publishes its own: the bytes of the file, and the start of their hash."""
    buffer = io.BytesIO()
    torch.save({"meta": {}, "state_dict": in_openmmlab_form(network.state_dict())}, buffer)
    return buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest()[:8]


@pytest.fixture
def published(monkeypatch, tiny):
    """A registry with one small MixMIM, whose two checkpoints are served here: (tuned, spec)."""
    monkeypatch.delenv(download.OFFLINE)
    tuned = tiny(num_classes=1000, img_size=224).eval()
    content, sha256 = in_a_file(tuned)
    other, other_sha256 = in_a_file(tiny(seed=1, num_classes=0, img_size=224))
    with serving(Behaviour(content)) as url, serving(Behaviour(other)) as other_url:
        weights = (
            WeightsSpec(name="small_pre", file="pre.pth", url=other_url, sha256=other_sha256),
            WeightsSpec(name="small_ft", file="ft.pth", url=url, sha256=sha256, finetuned=True),
        )
        spec = ModelSpec(
            name="small",
            arch="mixmim_base",
            kwargs={k: v for k, v in TINY.items() if k != "num_classes"},
            weights=weights,
            aliases=("small_pre", "small_ft"),
        )
        monkeypatch.setattr(registry, "MODELS", (spec,))
        yield tuned, spec


def test_published_weights_are_fetched_checked_and_predict_what_they_did(published):
    tuned, spec = published
    model = get_model("small_ft", pretrained=True)
    assert place_of(spec.weights[1]).is_file()
    inputs = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert model(inputs).shape == (1, 1000)
        torch.testing.assert_close(model(inputs), tuned(inputs))
        (features,) = model.extract_feat(inputs)
    assert features.shape == (1, 128)
    found = inference_model(model, demo_image())
    config = timm.data.resolve_data_config({}, model=timm.create_model("mixmim_base"))
    image = timm.data.create_transform(**config)(Image.open(demo_image()).convert("RGB"))
    scores = tuned(image[None]).softmax(1)[0].detach().numpy()
    np.testing.assert_allclose(found["pred_scores"], scores, atol=1e-6)
    assert found["pred_label"] == scores.argmax() and found["pred_score"] == pytest.approx(
        scores.max(), rel=1e-4
    )
    assert found["pred_class"] == model.classes[found["pred_label"]].name


@pytest.mark.usefixtures("published")
def test_a_name_alone_means_the_weights_that_fit_the_use():
    """Classes come from fine-tuned weights; probing (see resolve) takes the pretrained ones."""
    assert get_model("small", pretrained=True).weights.name == "small_ft"
    pretrained = get_model("small_pre", pretrained=True)
    assert pretrained.num_classes == 0
    assert pretrained(torch.rand(2, 3, 224, 224)).shape == (2, 128)
    with pytest.raises(BenchError, match="small_pre has no classifier"):
        inference_model(pretrained, demo_image())


@pytest.mark.usefixtures("published")
def test_another_number_of_classes_gets_a_new_classifier_with_a_warning():
    with pytest.warns(
        UserWarning, match=r"has no classifier for this network; newly initialised: head\.bias, head\.weight"
    ):
        model = get_model("small_ft", pretrained=True, num_classes=10)
    assert model(torch.rand(1, 3, 224, 224)).shape == (1, 10)
    assert model.classes[3].name == "class 3"


def test_the_models_of_the_registry_give_the_shapes_of_openmmlab():
    model = get_model("mixmim-base_3rdparty_in1k")
    inputs = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert model(inputs).shape == (1, 1000)
        assert model.extract_feat(inputs)[0].shape == (1, 1024)
    assert model.classes[65].name == "sea snake" and model.classes[65].synset == "n01751748"
    assert model.classes[134].name == model.classes[517].name == "crane"
    assert model.classes[134].synset != model.classes[517].synset
    assert "mixmim-base_3rdparty_in1k" in list_models() and "mixmim-h" in list_models()


def test_offline_says_what_to_put_where():
    with pytest.raises(MissingWeights, match=r"put https://.*e40e2c8c\.pth .* at "):
        get_model("mixmim-base_3rdparty_in1k", pretrained=True)
    with pytest.raises(BenchError, match="did you mean"):
        get_model("mixmim-base_3rdparty", pretrained=True)


def test_a_released_checkpoint_is_fetched_by_hand_and_taken_by_path(tmp_path):
    with pytest.raises(
        MissingWeights, match=r"put base_600ep_ft from https://drive.google.com/\S+ at \S+ft\.pth"
    ):
        get_model("base_600ep_ft", pretrained=True)
    network = timm.create_model("mixmim_base")
    torch.save({"model": network.state_dict()}, tmp_path / "fetched.pth")
    model = get_model("base_600ep_ft", pretrained=tmp_path / "fetched.pth")
    torch.testing.assert_close(model.network.head.weight, network.head.weight)


def test_random_weights_follow_torchs_seed():
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(get_model("test_vit").network.head.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_the_package_is_light_until_it_is_used():
    code = (
        "import sys, mixmim_bench; mixmim_bench.__version__; print('torch' in sys.modules, dir(mixmim_bench))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("False") and "inference_model" in said
    with pytest.raises(AttributeError, match="no attribute 'get_modell'"):
        _ = mixmim_bench.get_modell


# -- pictures ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return get_model("test_vit")


def test_one_image_in_every_form_gives_one_result(model):
    path = demo_image()
    image = Image.open(path)
    forms = [path, str(path), path.read_bytes(), image, np.asarray(image)]
    scores = [result["pred_scores"] for result in inference_model(model, forms)]
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=1e-6)


def test_photographs_are_turned_upright(model):
    upright = Image.open(demo_image())
    sideways = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    buffer = io.BytesIO()
    sideways.save(buffer, "png", exif=exif)
    ours, theirs = inference_model(model, [buffer.getvalue(), upright])
    np.testing.assert_allclose(ours["pred_scores"], theirs["pred_scores"], atol=1e-6)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB"]
)
def test_every_mode_of_pil_is_taken(model, mode):
    grey = Image.open(demo_image()).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode in ("HSV", "LAB", "YCbCr", "CMYK"):
        image = Image.open(demo_image()).convert("RGB")
        image = image.convert(mode) if mode != "LAB" else image.convert("YCbCr")
    else:
        image = grey.convert(mode)
    assert inference_model(model, image)["pred_scores"].shape == (1000,)


def test_a_broken_image_is_named(model, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(demo_image().read_bytes()[:5000])
    with pytest.raises(UnreadableImage, match="broken"):
        inference_model(model, tmp_path / "broken.jpg")


def test_an_array_that_is_no_image_is_told(model):
    with pytest.raises(UnreadableImage, match="image 0"):
        inference_model(model, np.zeros((2, 3, 4, 5)))
    assert Pictures([np.zeros((4, 4), dtype=np.uint8)]).load(0).mode == "RGB"


# -- the command line --------------------------------------------------------------------------------

RANDOM = ("-m", "test_vit", "--weights", "random")


@pytest.fixture
def pictures(tmp_path):
    """A folder of three photographs, one that is broken, and a text."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    shutil.copy(demo_image(), folder / "a b.JPEG")
    shutil.copy(demo_image(), folder / "below" / "Ü.jpg")
    Image.new("L", (50, 80), 7).save(folder / "grey.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_predict_shows_a_table_and_reports_what_is_broken(run, pictures):
    said = run("predict", pictures, *RANDOM, "--top", 2, code=1)
    assert "Preprocessing: resize to " in said.stderr
    rows = [line for line in said.output.splitlines() if line.startswith(str(pictures)) and "%" in line]
    assert len(rows) == 6
    assert f"cannot be read: {pictures / 'broken.png'} (UnidentifiedImageError" in said.stderr
    assert "RANDOM weights" in said.stderr


def test_predict_prints_json_and_csv_that_agree(run, pictures):
    args = ("predict", pictures / "a b.JPEG", pictures / "below", *RANDOM, "--batch-size", 1)
    torch.manual_seed(0)
    found = json.loads(run(*args, "--json").stdout)
    torch.manual_seed(0)
    rows = list(csv.DictReader(io.StringIO(run(*args, "--csv").stdout)))
    assert [entry["image"] for entry in found] == [
        str(pictures / "a b.JPEG"),
        str(pictures / "below" / "Ü.jpg"),
    ]
    flat = [{"image": entry["image"], **p} for entry in found for p in entry["predictions"]]
    assert [{k: str(v) for k, v in row.items()} for row in flat] == rows
    assert len(rows) == 10
    assert rows[0]["score"] >= rows[1]["score"]


def test_an_image_that_is_named_twice_has_two_entries(run):
    found = json.loads(run("predict", demo_image(), demo_image(), *RANDOM, "--top", 2, "--json").stdout)
    assert [[p["rank"] for p in entry["predictions"]] for entry in found] == [[1, 2], [1, 2]]


def test_a_path_of_a_list_that_does_not_exist_stops_no_other(run, pictures):
    paths = f"{pictures / 'a b.JPEG'}\n{pictures / 'nope.jpg'}\n{pictures / 'a b.JPEG'}\n".encode()
    found = run("predict", "-", *RANDOM, "--json", input=paths, code=1)
    entries = json.loads(found.stdout)
    assert [("error" in entry) for entry in entries] == [False, False, True]
    assert "nope.jpg" in found.stderr and "FileNotFoundError" in found.stderr


def test_predict_takes_standard_input(run, pictures):
    for given in (demo_image().read_bytes(), f"{demo_image()}\n\n{pictures / 'grey.png'}\n".encode()):
        found = json.loads(run("predict", "-", *RANDOM, "--json", input=given).stdout)
        assert len(found) == (1 if given[:2] == b"\xff\xd8" else 2)
    assert "neither an image nor" in run("predict", "-", *RANDOM, input=b"\xff\xfe", code=2).output
    assert "is empty" in run("predict", "-", *RANDOM, input=b"", code=2).output


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("none.jpg", *RANDOM), "no such file: none.jpg"),
        ((".", *RANDOM), "no images in ."),
        (("-m", "mixmim-c"), "did you mean mixmim-"),
        (("-m", "mixmim-b"), "put https://"),
        ((*RANDOM, "--csv", "--json"), "choose one"),
        (("-m", "test_vit", "--weights", "none.pth"), "no such file"),
    ],
)
def test_wrong_input_of_predict_is_told(run, tmp_path, monkeypatch, args, told):
    monkeypatch.chdir(tmp_path)
    assert told in run("predict", *args, code=2).output


def test_embed_writes_features_of_what_can_be_read(run, pictures, tmp_path):
    out = tmp_path / "features.npz"
    network = timm.create_model("test_vit")
    torch.save(network.state_dict(), tmp_path / "w.pth")
    args = ("-m", "test_vit", "--weights", tmp_path / "w.pth")
    run("embed", pictures, "--out", out, *args, code=1)
    with np.load(out, allow_pickle=False) as file:
        assert file["features"].shape == (3, 64) and file["features"].dtype == np.float32
        assert file["paths"].tolist() == sorted(
            str(p) for p in pictures.rglob("*") if p.suffix in (".JPEG", ".jpg") or p.name == "grey.png"
        )
        about = json.loads(str(file["about"]))
        features = file["features"]
    assert about["model"] == "test_vit" and len(about["weights_sha256"]) == 64
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=network))
    image = transform(Image.open(pictures / "a b.JPEG").convert("RGB"))[None]
    network.reset_classifier(0)
    with torch.no_grad():
        np.testing.assert_allclose(features[0], network.eval()(image)[0], atol=1e-5)
    run("embed", pictures, "--out", tmp_path / "features.csv", *args, code=2)
    run("embed", pictures, "--out", tmp_path / "none" / "features.npz", *args, code=2)


def test_random_weights_repeat_themselves_by_their_seed(run):
    found = [
        run("predict", "-m", "test_vit", "--weights", "random", "--seed", seed, "--csv").stdout
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]
