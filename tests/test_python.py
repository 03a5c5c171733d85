"""The suite from Python: networks, transforms, arrays and datasets of a session."""

import os
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torchvision import transforms

import mixmim_bench
from mixmim_bench import make_task, run_suite, wrap_model
from mixmim_bench.api import _PLAIN
from mixmim_bench.codehash import code_digest
from mixmim_bench.errors import BenchError
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.resolve import resolve
from mixmim_bench.suite.wanted import Selection

DIGITS = load_digits()
X = (DIGITS.images * 15.9).astype(np.uint8)
Y = DIGITS.target


def broken(image):
    raise ZeroDivisionError(image)


def scaled(x):
    return 2.0 * x


class Mine(nn.Module):
    """A network of a user's own: maps of 24 channels."""

    def __init__(self, pool=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 4, 4)
        self.pool = pool
        self.register_buffer("shift", torch.zeros(1), persistent=False)

    def forward(self, images):
        maps = scaled(self.conv(images) + self.shift).relu()
        return maps.mean((2, 3)) if self.pool else maps


def mine(seed=0, **kwargs):
    torch.manual_seed(seed)
    return Mine(**kwargs)


@pytest.fixture
def task():
    return make_task("mine", train=(X[:300], Y[:300]), test=(X[300:400], Y[300:400]), image_size=32)


def run(models, tasks, tmp_path, **kwargs):
    values = {
        "protocols": "knn",
        "results": tmp_path / "results",
        "report": False,
        "progress": False,
        **kwargs,
    }
    return run_suite(models, tasks, **values)


def planned(model, task, **kwargs):
    """The run id of a model, without doing the run."""
    selection = Selection(models=[model], tasks=[task], protocols=["knn"], **kwargs)
    (each,) = resolve(selection, lambda _: None).planned
    return each.run.run_id


# -- the docs ---------------------------------------------------------------------------------------


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "README.md").read_text()
    (code,) = re.findall(
        r"```python\n(from mixmim_bench import run_suite, wrap_model.*?)```", text, re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    frame = names["frame"]
    assert set(frame["task"]) == {"digits", "my-digits"}
    assert set(frame["model"]) == {"mine", "test_vit"}
    assert (tmp_path / "results" / "leaderboard.md").exists()


def test_the_public_names_are_there():
    assert {"run_suite", "wrap_model", "make_task"} <= set(mixmim_bench.__all__)
    assert mixmim_bench.run_suite is run_suite


# -- models -----------------------------------------------------------------------------------------


def test_features_of_a_network_are_its_outputs(tmp_path, task):
    """The probe sees what the network returns on the pixels of its preprocessing."""
    from mixmim_bench.features.store import FeatureStore

    frame = run({"mine": mine()}, task, tmp_path, protocols=["knn", "linear"], settings={"linear.steps": 5})
    assert set(frame["protocol"]) == {"knn", "linear"}
    assert frame["params_m"].iloc[0] == pytest.approx(24 * 49 / 1e6)
    entry = next(e for e in FeatureStore().entries() if e.about["role"] == "test")
    network = mine().eval()
    transform = transforms.Compose(
        [
            transforms.Resize(36, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(_PLAIN["mean"], _PLAIN["std"]),
        ]
    )
    images = torch.stack([transform(Image.fromarray(x).convert("RGB")) for x in X[300:400]])
    with torch.no_grad():
        expected = network(images).mean((2, 3)).numpy()
    stored = entry.open()
    assert stored.x == pytest.approx(expected[stored.rows], abs=1e-5)


def test_a_network_is_known_by_its_weights_code_and_preprocessing(task):
    first = planned(wrap_model(mine(), "mine"), task)
    assert planned(wrap_model(mine(), "mine"), task) == first
    assert planned(wrap_model(mine(), "another-name"), task) == first
    assert planned(wrap_model(mine(seed=1), "mine"), task) != first
    assert planned(wrap_model(mine(pool=True), "mine"), task) != first  # an attribute, without a tensor
    assert planned(wrap_model(mine(), "mine", crop_pct=0.8), task) != first
    changed = mine()
    changed.conv.weight.data[-1, -1, -1, -1] += 1e-4  # the last bytes of a tensor
    assert planned(wrap_model(changed, "mine"), task) != first
    buffered = mine()
    buffered.shift += 1.0  # is in no checkpoint
    assert planned(wrap_model(buffered, "mine"), task) != first


def test_a_change_of_a_function_that_it_uses_is_another_network(task, monkeypatch):
    first = planned(wrap_model(mine(), "mine"), task)
    monkeypatch.setitem(globals(), "scaled", lambda x: 3.0 * x)
    assert planned(wrap_model(mine(), "mine"), task) != first
    monkeypatch.undo()
    assert planned(wrap_model(mine(), "mine"), task) == first
    hooked = mine()
    hooked.conv.register_forward_hook(lambda *args: args[-1] * 2)
    assert planned(wrap_model(hooked, "mine"), task) != first


def test_its_identity_is_the_same_in_another_process(tmp_path):
    (tmp_path / "net.py").write_text(
        textwrap.dedent(
            """
            import os
            import torch
            from torch import nn
            from mixmim_bench import wrap_model

            SCALE = {"b", "a", "c"}

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.conv = nn.Conv2d(3, 8, 4, 4)
                    for _ in range(len(os.environ["PYTHONHASHSEED"] * 3)):
                        nn.Identity().register_forward_hook(print)
                    self.conv.register_forward_hook(lambda *args: args[-1] + 1)
                    self.names = {"x", "y", "z"}

                def forward(self, images):
                    return self.conv(images) * len(SCALE)

            torch.manual_seed(0)
            model = wrap_model(Net(), transform=lambda image: torch.zeros(3, 8, 8))
            print(model.arch, model.preprocessing["transform"])
            """
        )
    )
    said = {
        subprocess.run(
            env={**os.environ, "PYTHONHASHSEED": seed},
            args=[sys.executable, "-W", "ignore", "net.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "22")  # each hashes strings in its own way
    }
    assert len(said) == 1


def test_the_users_network_is_not_changed(tmp_path, task):
    network = timm.create_model("test_vit", num_classes=10).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run({"mine": network}, task, tmp_path, protocols=["knn", "own-head"])
    assert network.training
    assert network.num_classes == 10
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_timm_model_scores_as_its_checkpoint(tmp_path, task):
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=10)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    frame = run([network, f"test_vit={tmp_path / 'w.pth'}"], task, tmp_path, protocols=["knn", "own-head"])
    for protocol in ("knn", "own-head"):
        values = frame[(frame["protocol"] == protocol) & (frame["metric"] == "top1")]["value"]
        assert values.nunique() == 1
        assert len(values) == 2


def test_the_last_layer_may_be_a_classifier(tmp_path, task):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18(num_classes=10)
    model = wrap_model(network, "resnet", classifier="fc", image_size=32)
    frame = run(model, task, tmp_path, protocols=["knn", "own-head"])
    assert set(frame["protocol"]) == {"knn", "own-head"}
    arrays = next(
        RunStore(tmp_path / "results").arrays(record.run_id)
        for record in RunStore(tmp_path / "results").records()
        if record.protocol == "own-head"
    )
    assert len(arrays["best"]) == 100
    assert isinstance(network.fc, nn.Linear)


def test_a_network_is_fine_tuned(tmp_path, task):
    frame = run(
        {"mine": mine()}, task, tmp_path, protocols="finetune",
        settings={"finetune.epochs": 1, "finetune.warmup_epochs": 0, "finetune.drop_path": 0.1},
    )  # fmt: skip
    assert len(frame) == 1
    (record,) = RunStore(tmp_path / "results").records()
    assert "drop_path 0.1 ignored: mine does not support it" in record.notes


def test_a_transform_of_its_own(tmp_path, task):
    def transform(image):
        pixels = np.asarray(image.resize((16, 16)), dtype=np.float32) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1) - mean

    mean = 0.5
    model = wrap_model(mine(), "mine", transform=transform)
    assert model.preprocessing["size"] == [16, 16]
    plain = make_task("mine", train=(X[:300], Y[:300]), test=(X[300:400], Y[300:400]))
    frame = run(model, plain, tmp_path)
    assert len(frame) == 1
    first = planned(model, plain)
    mean = 0.4  # a value that the function closes over
    assert planned(wrap_model(mine(), "mine", transform=transform), plain) != first
    with pytest.raises(BenchError, match="cannot bring a transform; give mean, std"):
        run(model, plain, tmp_path, protocols="finetune")
    run(model, task, tmp_path)  # which sets an image size for models that have none of their own
    sizes = {tuple(r.identity["preprocessing"]["size"]) for r in RunStore(tmp_path / "results").records()}
    assert sizes == {(16, 16)}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: wrap_model(nn.Flatten(0), "x"), "returns .*, not features"),
        (
            lambda: wrap_model(nn.Linear(7, 3), "x"),
            r"does not run on images \(2, 3, 224, 224\) in float32: RuntimeError",
        ),
        (lambda: wrap_model(mine(), "x", classifier="fc"), "no submodule 'fc'"),
        (lambda: wrap_model(mine(), "x", classifier="conv"), "is a Conv2d, not nn.Linear"),
        (lambda: wrap_model(mine(), "mixmim-b"), "is that of a registered one"),
        (lambda: wrap_model(mine(), "a/b"), "may hold letters"),
        (lambda: wrap_model(mine(), "x", transform=lambda image: image), "its transform returns Image"),
        (
            lambda: wrap_model(mine(), "x", transform=broken),
            "its transform fails: ZeroDivisionError",
        ),
        (
            lambda: wrap_model(mine(), "x", transform=len, mean=(1, 1, 1)),
            "give a transform or mean, not both",
        ),
        (lambda: run_suite(models=3), "a model is a name, a path, or a torch.nn.Module, not int"),
        (lambda: run_suite(tasks=3.5), "not float"),
        (lambda: run_suite(models="test_vitt"), "did you mean test_vit"),
    ],
)
def test_what_is_wrong_with_a_model_is_named(make, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((BenchError, TypeError), match=said):
        make()


# -- tasks ------------------------------------------------------------------------------------------


class Items(torch.utils.data.Dataset):
    def __init__(self, rows, convert):
        self.rows, self.convert = rows, convert

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        row = self.rows[place]
        return self.convert(X[row]), int(Y[row])


def test_images_score_the_same_in_every_form(tmp_path):
    train, test = range(300), range(300, 400)
    rgb = np.stack([X] * 3, axis=-1)
    forms = {
        "arrays": [(X[rows], Y[rows]) for rows in (train, test)],
        "rgb": [(rgb[rows], Y[rows]) for rows in (train, test)],
        "tensors": [
            (torch.from_numpy(rgb[rows].transpose(0, 3, 1, 2)), torch.from_numpy(Y[rows]))
            for rows in (train, test)
        ],
        "images": [([Image.fromarray(X[row]) for row in rows], Y[rows].tolist()) for rows in (train, test)],
        "dataset": [Items(rows, Image.fromarray) for rows in (train, test)],
        "dataset-of-tensors": [
            Items(rows, lambda x: torch.from_numpy(x)[None].repeat(3, 1, 1)) for rows in (train, test)
        ],
    }
    tasks = {name: {"train": a, "test": b, "image_size": 32} for name, (a, b) in forms.items()}
    frame = run({"mine": mine()}, tasks, tmp_path)
    assert len(frame) == len(forms)
    assert frame["value"].nunique() == 1


def test_several_labels_and_test_images_alone(tmp_path):
    labels = np.stack([Y % 2 == 0, Y > 4, Y % 3 == 0], axis=1).astype(int)
    task = make_task(
        "odd",
        train=(X[:300], labels[:300]),
        test=(X[300:400], labels[300:400]),
        classes=["even", "large", "third"],
        image_size=32,
    )
    frame = run({"mine": mine()}, task, tmp_path, protocols="linear", settings={"linear.steps": 3})
    assert frame["metric"].tolist() == ["mean_ap"]
    alone = make_task("alone", test=(X[:50], Y[:50]))
    with pytest.raises(BenchError, match="alone has test images only"):
        run({"mine": mine()}, alone, tmp_path)


def test_runs_that_are_finished_are_not_done_again(tmp_path, task):
    first = run({"mine": mine()}, task, tmp_path)
    path = next((tmp_path / "results" / "runs").glob("*.json"))
    before = path.stat().st_mtime_ns
    again = run({"mine": mine()}, task, tmp_path)
    assert path.stat().st_mtime_ns == before
    assert again.equals(first)
    other = X.copy()
    other[350] = 0
    changed = make_task("mine", train=(X[:300], Y[:300]), test=(other[300:400], Y[300:400]), image_size=32)
    assert run({"mine": mine()}, changed, tmp_path)["run_id"].tolist() != first["run_id"].tolist()


def test_a_failed_run_is_a_warning(tmp_path, task):
    class Fails(Mine):
        def forward(self, images):
            if len(images) > 2:
                raise RuntimeError("no more than two")
            return super().forward(images)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = run({"bad": Fails(), "mine": mine()}, task, tmp_path)
    assert frame["model"].tolist() == ["mine"]
    assert any("bad · mine · knn failed: " in str(each.message) for each in caught)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"test": (X / 255.0, Y)}, "images must be uint8, .* not float64"),
        ({"test": (X[:9], Y[:8])}, "test: 9 images and 8 labels"),
        ({"test": (X[:9], Y[:9] - 1)}, "labels must be 0 to"),
        ({"test": (X[:9], Y[:9] / 2)}, "labels must be integers"),
        ({"test": (X[:9], Y[:9]), "classes": ["a", "b"]}, "labels must be 0 to 1, for 2 classes"),
        (
            {"test": (X[:9], Y[:9]), "metrics": ["top2"]},
            "no metric .top2. for classification; did you mean",
        ),
        ({"test": (X[:9], Y[:9]), "val": (X[:9], Y[:9])}, "val without train"),
        ({"test": X[:9]}, r"must be an image and its label, not ndarray"),
        ({"test": 3}, r"must be \(images, labels\) or a torch Dataset, not int"),
        ({"test": Items(range(5), transforms.ToTensor())}, "leave out the dataset's transform"),
        ({"test": (["a.png"], [1])}, "must be a PIL image"),
        ({"test": (X[:9], Y[:9]), "train": (X[:9], np.eye(10, dtype=int)[Y[:9]])}, "of different kinds"),
    ],
)
def test_what_is_wrong_with_images_is_named(arguments, said):
    with pytest.raises(BenchError, match=said):
        make_task("mine", **arguments)


# -- code -------------------------------------------------------------------------------------------


def test_order_and_values_are_part_of_the_code():
    def pools(*sizes):
        return nn.Sequential(*(nn.AvgPool2d(size) for size in sizes))

    assert code_digest(pools(2, 3)) == code_digest(pools(2, 3))
    assert code_digest(pools(2, 3)) != code_digest(pools(3, 2))
    assert code_digest(nn.Sequential(nn.ReLU(), nn.Tanh())) != code_digest(
        nn.Sequential(nn.Tanh(), nn.ReLU())
    )

    def makes(value, default):
        return lambda x, y=default: x * value + y

    assert code_digest(makes(1, 2)) == code_digest(makes(1, 2))
    assert len({code_digest(makes(*each)) for each in ((1, 2), (2, 2), (1, 3))}) == 3


def test_comments_and_docstrings_are_not_code():
    def compiled(text):
        names: dict[str, object] = {"__name__": "__main__"}
        exec(textwrap.dedent(text), names)
        return code_digest(names["f"])

    plain = compiled("def f(x):\n    return x + 1\n")
    assert compiled('def f(x):\n    """Add."""\n    # one\n    return x + 1\n') == plain
    assert compiled("def f(x):\n    return x + 2\n") != plain
    inner = "def g(x):\n    return x + {}\ndef f(x):\n    return [g(y) for y in x]\n"
    assert compiled(inner.format(1)) != compiled(inner.format(2))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (transforms.Normalize([0.5] * 3, [0.5] * 3), transforms.Normalize([0.4] * 3, [0.5] * 3)),
        (
            transforms.Normalize(torch.tensor([0.5] * 3), torch.ones(3)),
            transforms.Normalize(torch.tensor([9.0] * 3), torch.ones(3)),
        ),
        ([np.float32(1)], [np.float32(2)]),
        ([np.arange(3)], [np.arange(3) + 1]),
        ([torch.float16], [torch.float32]),
        ([range(2)], [range(3)]),
        ([Path("a")], [Path("b")]),
        (
            type("C", (), {"use": 8, "__module__": "__main__"}),
            type("C", (), {"use": 1, "__module__": "__main__"}),
        ),
    ],
)
def test_values_are_part_of_the_code(one, other):
    assert code_digest(one) == code_digest(one)
    assert code_digest(one) != code_digest(other)


def test_code_is_followed_through_modules(tmp_path, monkeypatch):
    digests = []
    for number in (1, 2):
        package = tmp_path / str(number) / "pk"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("from pk import sub\n")
        (package / "sub.py").write_text(f"def f(x):\n    return x + {number}\n")
        monkeypatch.syspath_prepend(str(package.parent))
        for name in ("pk", "pk.sub"):
            sys.modules.pop(name, None)
        names: dict[str, object] = {"__name__": "__main__"}
        exec("import pk\ndef g(x):\n    return pk.sub.f(x)\n", names)
        digests.append(code_digest(names["g"]))
    assert digests[0] != digests[1]


class Unusual(Mine):
    """A tensor that is no buffer, and a forward pass that looks at values."""

    def __init__(self):
        super().__init__()
        self.scale = torch.full((1,), 2.0)

    def forward(self, images):
        maps = super().forward(images) * self.scale
        return maps if maps.sum() > 0 else -maps


def test_networks_need_not_run_without_values(tmp_path, task):
    torch.manual_seed(0)
    frame = run({"unusual": Unusual(), "parallel": nn.DataParallel(mine())}, task, tmp_path)
    assert set(frame["model"]) == {"unusual", "parallel"}
    assert (frame["gmacs"] > 0).all()


def test_what_cannot_be_copied_is_named():
    network = mine()
    network.last = network.conv(torch.zeros(1, 3, 8, 8))
    with pytest.raises(BenchError, match="mine cannot be copied"):
        wrap_model(network, "mine")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mean": (0.5,)}, "mean: must be three numbers"),
        ({"std": (0, 0, 0)}, "std: is"),
        ({"interpolation": "cubic"}, "interpolation: no 'cubic'; did you mean bicubic"),
        ({"image_size": 0}, "image_size: must be a side"),
        ({"crop_pct": 2}, "crop_pct: must be above 0"),
    ],
)
def test_what_is_wrong_with_preprocessing_is_named(arguments, said):
    with pytest.raises(BenchError, match=said):
        wrap_model(mine(), "mine", **arguments)
    wrap_model(mine(), "mine", mean=np.array([0.5, 0.5, 0.5]))


def test_choices_are_checked_and_equal_models_keep_their_names(tmp_path, task):
    for arguments, said in (
        ({"precision": "fp16"}, "no precision 'fp16'; did you mean float16"),
        ({"resize": "foo"}, "no resize 'foo'"),
        ({"engine": "foo"}, "no engine 'foo'"),
    ):
        with pytest.raises(BenchError, match=said):
            run({"a": mine()}, task, tmp_path, **arguments)
    assert run({"a": mine()}, task, tmp_path)["model"].tolist() == ["a"]
    assert run({"b": mine()}, task, tmp_path)["model"].tolist() == ["b"]
    assert len(RunStore(tmp_path / "results").records()) == 1
