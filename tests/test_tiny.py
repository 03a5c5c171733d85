"""mixmim-tiny: the weights in the package, what they were pretrained on, and what they are worth."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import timm
from safetensors import safe_open
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from test_training import bench_for, splits_of

from mixmim_bench import registry
from mixmim_bench.data.dataset import open_task
from mixmim_bench.errors import BenchError
from mixmim_bench.models.build import create, preprocessing
from mixmim_bench.models.checkpoints import load_weights
from mixmim_bench.pretraining import open_images
from mixmim_bench.protocols import build_protocol
from mixmim_bench.registry import find_model, place_of
from mixmim_bench.suite.selection import select_tasks
from mixmim_bench.weights.find import resolve_weights

SPEC = find_model("mixmim-tiny")
FILE = place_of(SPEC.weights[0])
PRETRAINED_ON = ("fashion_mnist", "digits", "mnist5k")


def here(name):
    """The task, None if its images are not on this machine."""
    (task,) = select_tasks([name], ())
    try:
        return open_task(task, None)
    except BenchError:
        return None


def test_the_weights_are_in_the_package():
    assert FILE.parent == registry.PACKAGED and FILE.stat().st_size <= 12_000_000
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == SPEC.weights[0].sha256
    weights = resolve_weights(SPEC, "auto")
    assert (weights.kind, weights.name) == ("file", SPEC.weights[0].name)
    with safe_open(FILE, "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}  # noqa: SIM118
        settings = json.loads(file.metadata()["settings"])
    assert settings["model"] == SPEC.arch and settings["size"] == [32, 32]
    network = create(SPEC, (32, 32))
    assert not load_weights(network, FILE, SPEC.arch)


def test_the_list_of_models_says_where_the_weights_are(run):
    line = next(line for line in run("models").output.splitlines() if line.startswith(SPEC.weights[0].name))
    assert "yes" in line and "this package" in line


def test_other_sizes_are_refused_with_the_way_out(run):
    with pytest.raises(BenchError, match=r"32 x 32 pixels.*leave out the size"):
        create(SPEC, (64, 64))
    with pytest.raises(ValueError, match="32 x 32"):
        timm.create_model("mixmim_tiny", img_size=224)
    result = run("run", "-m", "mixmim-tiny@64", "-t", "digits", "-p", "knn", code=2)
    assert "leave out the size" in result.output


def test_no_val_or_test_image_was_pretrained_on():
    """Compares the bytes of all images here; Fashion-MNIST's if the machine has it."""
    train, held_out = {}, {}
    for name in PRETRAINED_ON:
        if (data := here(name)) is not None:
            part = open_images(name, with_val=False)
            train |= {part.images.digest(row): name for row in range(len(part))}
            for role in ("val", "test"):
                part = data.splits[role].part
                held_out |= {part.images.digest(row): f"{name} {role}" for row in range(len(part))}
    assert len(train) >= 2500 and len(held_out) >= 2500
    assert not set(train) & set(held_out)


def test_it_beats_random_weights(run, tmp_path):
    """By nearest neighbours, whose only difference are the features."""
    for weights in ("auto", "random"):
        arguments = ["-t", "digits", "-p", "knn", "--weights", weights]
        run("run", "-m", "mixmim-tiny", *arguments, "--results", tmp_path)
    name = SPEC.weights[0].name
    first, second = f"mixmim-tiny/{name}", "mixmim-tiny/random init"
    result = run("compare", first, second, "--results", str(tmp_path), "--json")
    (comparison,) = json.loads(result.stdout)
    assert comparison["difference"] > 0.1 and comparison["p"] < 0.001, comparison


def test_embed_gives_features_in_which_the_same_digits_are_near(run, tmp_path):
    """By scikit-learn's nearest neighbours, which know nothing of this package."""
    part, folder = here("digits").splits["test"].part, tmp_path / "images"
    folder.mkdir()
    labels = {}
    for row in range(200):
        labels[f"{row:03}.png"] = part.labels[row]
        part.images.load(row).save(folder / f"{row:03}.png")
    run("embed", folder, "-m", "mixmim-tiny", "--out", tmp_path / "features.npz")
    with np.load(tmp_path / "features.npz") as file:
        x, y = file["features"], np.array([labels[Path(name).name] for name in file["paths"]])
    neighbours = KNeighborsClassifier(1, metric="cosine")
    assert cross_val_score(neighbours, x, y, cv=5).mean() > 0.75  # 0.87; with random weights 0.48


def test_fine_tuning_starts_from_what_the_linear_probe_knows():
    """Its first loss on augmented images is small: drop path, smoothing or close crops would raise it."""
    (task,) = select_tasks(["digits"], ())
    recipe = {**task.recipe["finetune"], "epochs": 1, "base_lr": 1e-12}
    task = dataclasses.replace(task, recipe={"finetune": recipe})
    weights = resolve_weights(SPEC, "auto")
    bench, data = bench_for(task, model=SPEC, weights=weights, preprocessing=preprocessing(SPEC))
    splits = splits_of(data, 64)
    done = build_protocol(bench.run.protocol, task.kind).fit(bench, splits["train"], splits["val"])
    assert done.arrays["train_loss"][0] < 0.5


@pytest.mark.slow
def test_fine_tuning_is_no_worse_than_the_linear_probe(run, tmp_path):
    """On the few images of an embedded task, in its few epochs."""
    run("run", "-m", "mixmim-tiny", "-t", "digits", "-p", "linear", "-p", "finetune", "--results", tmp_path)
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")]
    score = {each["identity"]["protocol"]["name"]: each["scores"]["top1"]["value"] for each in records}
    assert score["linear"] > 0.95
    assert score["finetune"] > score["linear"] - 0.02, score


def test_it_reconstructs_better_than_the_mean_of_each_cell(run, tmp_path):
    import torch
    from PIL import Image

    from mixmim_bench.data.transforms import eval_transform
    from mixmim_bench.reconstruction import load_network

    part = here("mnist5k").splits["test"].part
    transform = eval_transform(preprocessing(SPEC))
    images = torch.stack([transform(part.images.load(row)) for row in range(64)])
    network = load_network(SPEC, (32, 32), FILE)
    with torch.no_grad():
        loss = network(images, generator=torch.Generator().manual_seed(0)).loss.item()
    assert loss < 0.8  # 1 is what predicting the mean of each cell gives
    files = [tmp_path / f"{row}.png" for row in range(2)]
    for row, file in enumerate(files):
        part.images.load(row).save(file)
    out = tmp_path / "mixed.png"
    run("reconstruct", *files, "-m", "mixmim-tiny", "--out", out)
    assert np.asarray(Image.open(out)).std() > 0
