"""Names, weights and costs of models."""

import json
import shlex
import subprocess
import sys

import click
import pytest
import timm
import torch
from click.shell_completion import ShellComplete

from mixmim_bench.cli import main
from mixmim_bench.cost import measure
from mixmim_bench.counting import count_by_fvcore, count_on_meta, count_parameters
from mixmim_bench.errors import BenchError, MissingWeights
from mixmim_bench.machine import Machine
from mixmim_bench.models.build import build, create, own_classes, own_size, preprocessing, try_out
from mixmim_bench.registry import MODELS, by_name, find_model, weights_folder
from mixmim_bench.specs import RANDOM, DataSource, ModelSpec, Run, TaskSpec
from mixmim_bench.weights.find import resolve_weights

TINY = ModelSpec(
    name="tiny",
    arch="mixmim_base",
    kwargs={"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
)


def test_models_are_found_by_every_name():
    assert find_model("mixmim-b").arch == "mixmim_base"
    assert find_model("mixmim_large_384").name == "mixmim-l-384"
    only = find_model("mixmim-base_3rdparty_in1k")
    assert only.name == "mixmim-b" and [w.name for w in only.weights] == ["mixmim-base_3rdparty_in1k"]
    assert find_model("vit_base_patch16_224.mae").arch == "vit_base_patch16_224.mae"


def test_two_models_may_not_share_a_name():
    with pytest.raises(ValueError, match="duplicate model name 'a'"):
        by_name([ModelSpec(name="a", arch="x"), ModelSpec(name="b", arch="y", aliases=("a",))])


def test_the_list_says_what_there_is(run):
    rows = json.loads(run("models", "--json").output)
    assert [row["name"] for row in rows] == [spec.name for spec in MODELS]
    base = rows[0]
    assert base["params"] == 88_344_352 and base["gmacs"] == 16.352930816
    assert base["weights"][0]["present"] is False
    table = run("models").output
    assert all(spec.name in table for spec in MODELS) and "by hand" in table


@pytest.mark.parametrize("command", ["models", "tasks", "--help"])
def test_what_is_listed_needs_no_torch(command):
    """It takes seconds to import."""
    code = "import sys; from mixmim_bench.cli import main; main(sys.argv[1:], standalone_mode=False)\n"
    code += "assert not {'torch', 'timm', 'pandas', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code, command], check=True, capture_output=True)


def test_the_tasks_are_listed(run):
    rows = {row["name"]: row for row in json.loads(run("tasks", "--json").output)}
    assert rows["digits"] == {
        "name": "digits",
        "suite": "embedded",
        "kind": "classification",
        "classes": 10,
        "images": 1797,
        "metric": "top1",
        "present": True,
    }
    assert "mnist5k" in run("tasks").output


@pytest.mark.parametrize("name", ["mixmim-b", "vit_base_patch16_224.mae", "coat_lite_medium_384.in1k"])
def test_preprocessing_is_the_models_own(name):
    spec = find_model(name)
    config = timm.get_pretrained_cfg(spec.arch)
    own = preprocessing(spec)
    assert own.size == config.input_size[1:] == own_size(spec)
    assert (own.mean, own.std) == (config.mean, config.std)
    assert (own.interpolation, own.crop_pct) == (config.interpolation, config.crop_pct)
    assert own.crop_mode == (config.crop_mode or "center")


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    first = build(TINY, RANDOM, (32, 32), seed=0)
    state = torch.random.get_rng_state()
    again = build(TINY, RANDOM, (32, 32), seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = build(TINY, RANDOM, (32, 32), seed=1)
    key = "layers.2.blocks.1.mlp.fc1.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


@pytest.mark.parametrize("arch", ["test_vit", "test_convnext", "test_resnet", "test_efficientnet"])
def test_any_timm_model_gives_pooled_features_at_another_size(arch):
    network = create(find_model(arch), (32, 32)).eval()
    with torch.inference_mode():
        features = network(torch.zeros(2, 3, 32, 32))
    assert features.ndim == 2 and len(features) == 2


def test_a_size_that_a_model_cannot_take_is_told():
    with pytest.raises(BenchError, match="mixmim-b cannot be built for images of 30 x 30 pixels"):
        create(find_model("mixmim-b"), (30, 30))
    with pytest.raises(BenchError, match="inception_v3 cannot be run for images of 32 x 32 pixels"):
        try_out(find_model("inception_v3"), (32, 32))


def test_a_network_that_is_no_citizen_of_timm_is_told_before_any_work(monkeypatch):
    class Bare(torch.nn.Linear):
        def __init__(self):
            super().__init__(3, 3)

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Bare())
    with pytest.raises(BenchError, match="has no attribute 'forward_head'"):
        try_out(find_model("test_vit"), (32, 32))


def test_a_wrong_tag_brings_the_nearest():
    with pytest.raises(BenchError, match=r"no model 'vit_base_patch16_224\.maee'; did you mean .*\.mae"):
        find_model("vit_base_patch16_224.maee")


# -- weights -----------------------------------------------------------------------------------------


def test_missing_weights_say_what_to_put_where():
    with pytest.raises(MissingWeights) as caught:
        resolve_weights(find_model("mixmim-b"), "auto")
    told = str(caught.value)
    for weights in find_model("mixmim-b").weights:
        assert weights.url in told and weights.sha256 in told
    assert str(weights_folder()) in told and "--weights random" in told


def test_a_file_of_another_hash_is_not_taken_for_the_weights():
    weights = find_model("mixmim-b").weights[0]
    weights_folder().mkdir(parents=True)
    (weights_folder() / weights.file).write_bytes(b"something else")
    with pytest.raises(BenchError, match="its SHA-256 starts with"):
        resolve_weights(find_model("mixmim-b"), "auto")


# -- cost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "size"),
    [("test_vit", 160), ("vit_tiny_patch16_224", 224), ("swin_tiny_patch4_window7_224", 224)],
)
def test_the_two_counters_agree_on_transformers(arch, size):
    spec = find_model(arch)
    network = timm.create_model(arch)
    assert count_on_meta(spec, (size, size)) == count_by_fvcore(network, (size, size))
    assert count_parameters(spec) == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("arch", ["resnet18", "efficientnet_b0", "convnext_atto", "regnety_002"])
def test_the_two_counters_agree_on_convolutions(arch):
    """What multiplies to the last digit; norms alike; fvcore also counts the pooling."""
    spec = find_model(arch)
    on_meta = count_on_meta(spec, own_size(spec))
    traced = count_by_fvcore(create(spec, own_size(spec), own_classes(spec)), own_size(spec))
    assert on_meta.macs == traced.macs
    assert on_meta.total == pytest.approx(traced.total, rel=5e-4)


def test_a_count_that_left_something_out_says_so():
    class Hidden(torch.nn.Module):
        def forward(self, x):
            return torch.baddbmm(x[0], x[0], x[0])

    assert count_by_fvcore(Hidden(), (8, 8)).uncounted == ("aten::baddbmm",)


def test_a_cost_is_measured_in_a_process_of_its_own():
    cost = measure(find_model("test_vit"), (32, 32), Machine(device="cpu"))
    assert cost.params_m == pytest.approx(0.365096)
    assert cost.images_per_s > 10 and cost.peak_memory_mb > 0.1
    assert cost.threads == torch.get_num_threads() and cost.device


def test_help_is_instant_and_imports_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, mixmim_bench, mixmim_bench.specs, mixmim_bench.cli\n"
        "try: mixmim_bench.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_activations_are_those_counted_by_hand():
    """A linear layer, attention and a convolution: the numbers of their outputs."""
    from torch import nn

    from mixmim_bench.counting import count_activations

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 2, 2), nn.Linear(4, 12)

        def forward(self, x):
            q, k, v = self.linear(self.conv(x).flatten(2).transpose(1, 2))[:, None].chunk(3, -1)
            return nn.functional.scaled_dot_product_attention(q, k, v)

    assert count_activations(Small(), (8, 8)) == 16 * 4 + 16 * 12 + 16 * 4


def run_of(model, metric_versions):
    """A run with an identity to look at."""
    task = TaskSpec(
        **{"name": "t", "path": "t.toml", "version": 1, "kind": "classification", "title": "T"},
        **{"num_classes": 2, "metrics": ("top1",), "metric_versions": metric_versions, "suites": ()},
        **{"layouts": (), "counts": {}, "split": {}},
    )
    return Run(
        **{"model": model, "task": task, "weights": RANDOM, "preprocessing": preprocessing(model)},
        **{"data": DataSource(fingerprint="0"), "protocol": {}, "seed": None, "precision": "float32"},
    )


def test_versions_enter_the_identity_of_a_run_once_they_are_above_one():
    plain = run_of(ModelSpec(name="m", arch="test_vit"), {})
    assert "arch_version" not in plain.identity() and "metric_versions" not in plain.identity()["task"]
    newer = run_of(ModelSpec(name="m", arch="test_vit", version=2), {"top1": 2})
    assert newer.identity()["arch_version"] == 2
    assert newer.identity()["task"]["metric_versions"] == {"top1": 2}
    assert len({plain.run_id, newer.run_id, run_of(plain.model, {"top1": 2}).run_id}) == 3
    assert all(spec.version == 2 for spec in MODELS if spec.arch.startswith("mixmim"))


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["run", "-m", "mixmim-b-"], "mixmim-b-384"),
        (["run", "-t", "inat201"], "inat2018"),
        (["doctor", "-s", "pap"], "paper"),
        (["run", "-p", "few"], "fewshot"),
        (["run", "--preset", "dino"], "dinov2"),
    ],
)
def test_values_are_completed(typed, completed):
    found = ShellComplete(main, {}, "mixmim-bench", "_X").get_completions(typed[:-1], typed[-1])
    assert completed in [item.value for item in found]
    assert all(item.value.startswith(typed[-1]) for item in found)
    (path,) = ShellComplete(main, {}, "mixmim-bench", "_X").get_completions(["run", "-t"], "tasks/")
    assert path.type == "file"


@pytest.mark.parametrize("command", ["run", "predict", "embed", "export", "compare", "doctor"])
def test_the_help_has_examples_that_parse(run, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suite.toml").write_text("schema = 1\n")  # which one of them reads
    lines = run(command, "--help").output.partition("Examples:\n")[2].splitlines()
    commands = [line.split("| ")[-1].strip() for line in lines if line.strip()]
    assert commands
    for line in commands:
        name, *args = shlex.split(line)[1:]
        assert main.commands[name].make_context(name, args, parent=click.Context(main))
