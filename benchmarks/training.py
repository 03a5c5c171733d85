"""Speed and memory of a training step (forward, backward, AdamW) against OpenMMLab's MixMIM.

    python benchmarks/training.py --openmmlab-env FOLDER [--precision bfloat16] [--compile] [--checkpointing]

Both networks are MixMIM-B with 1,000 classes and drop path 0.1, on the same random images, each in a process
of its own; they take turns, `--rounds` times, and the median counts. OpenMMLab's packages are installed into
an environment of their own, as for `pytest -m reference`.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def ours(pretraining: bool, checkpointing: bool):
    """Build our network and its loss."""
    import timm

    import mixmim_bench.models  # noqa: F401 (registers the models)
    from mixmim_bench.models.pretraining import pretraining_model

    if pretraining:
        network = pretraining_model("mixmim_base")
        loss = lambda images, _: network(images).loss  # noqa: E731
    else:
        network = timm.create_model("mixmim_base", drop_path_rate=0.1)
        loss = lambda images, labels: cross_entropy(network(images), labels)  # noqa: E731
    network.set_grad_checkpointing(checkpointing)
    return network, loss


def openmmlab(pretraining: bool, checkpointing: bool):
    """Build OpenMMLab's network and its loss."""
    import torch
    from mmpretrain.models.backbones import MixMIMTransformer
    from mmpretrain.models.heads import LinearClsHead, MixMIMPretrainHead
    from mmpretrain.models.necks import MixMIMPretrainDecoder
    from mmpretrain.models.selfsup import MixMIMPretrainTransformer

    if pretraining:
        backbone = MixMIMPretrainTransformer(arch="base")
        neck = MixMIMPretrainDecoder(num_patches=49, embed_dim=backbone.num_features, encoder_stride=32)
        head = MixMIMPretrainHead(
            loss={"type": "PixelReconstructionLoss", "criterion": "L2"}, norm_pix=True, patch_size=32
        )
        network = torch.nn.ModuleList([backbone, neck])

        def loss(images, labels):
            del labels
            latent, mask = backbone(images)
            return head.loss(neck(latent, mask), images, mask)
    else:
        backbone = MixMIMTransformer(arch="base", drop_path_rate=0.1, use_checkpoint=checkpointing)
        head = LinearClsHead(num_classes=1000, in_channels=backbone.num_features)
        network = torch.nn.ModuleList([backbone, head])
        loss = lambda images, labels: cross_entropy(head(backbone(images)), labels)  # noqa: E731
    return network, loss


def cross_entropy(logits, labels):
    """Return the cross-entropy in float32."""
    import torch

    return torch.nn.functional.cross_entropy(logits.float(), labels)


def measure(which: str, options: argparse.Namespace) -> None:
    """Print the seconds of each step and the peak memory, as JSON."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    network, loss = {"ours": ours, "openmmlab": openmmlab}[which](options.pretraining, options.checkpointing)
    network.train().to(options.device)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4, fused=True)
    images = torch.randn(options.batch, 3, 224, 224, device=options.device)
    labels = torch.arange(options.batch, device=options.device)
    if options.compile and which == "ours":
        network.compile()
    cuda = options.device.startswith("cuda")
    seconds = []
    for _ in range(options.steps + 2):
        clock = time.perf_counter()
        with torch.autocast(
            options.device.split(":")[0], torch.bfloat16, enabled=options.precision == "bfloat16"
        ):
            value = loss(images, labels)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - clock)
    peak = (
        torch.cuda.max_memory_allocated()
        if cuda
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    print(json.dumps({"seconds": seconds[2:], "peak_gb": peak / 1e9}))


def measure_loop(options: argparse.Namespace) -> None:
    """Let steps of the suite's loop, input included, and plain steps take turns in one process."""
    import numpy as np
    import torch
    from timm.data import Mixup

    from mixmim_bench.data.images import Arrays, Part
    from mixmim_bench.data.transforms import ImageOnly, train_transform
    from mixmim_bench.facts import preprocessing
    from mixmim_bench.machine import open_machine
    from mixmim_bench.progress import Silent
    from mixmim_bench.registry import find_model
    from mixmim_bench.training import contract, trainer
    from mixmim_bench.training.logs import TrainingLog
    from mixmim_bench.training.objectives import Classifying, Reconstructing

    torch.manual_seed(0)
    network, loss = ours(options.pretraining, options.checkpointing)
    workers = 8 if options.device.startswith("cuda") else 0
    machine = open_machine(options.device, options.precision, options.threads, options.batch, workers)
    count = options.batch * (options.steps + 1)
    pixels = np.random.default_rng(0).integers(0, 255, (count, 224, 224, 3), dtype=np.uint8)
    part = Part(
        np.array([f"{i:06d}" for i in range(count)]), np.arange(count) % 1000, Arrays(pixels, "noise")
    )
    transform = train_transform(
        preprocessing(find_model("mixmim-b")),
        crop_scale=(0.2, 1.0),
        crop_ratio=(0.75, 4 / 3),
        hflip=0.5,
        auto_augment="" if options.pretraining else "rand-m9-mstd0.5-inc1",
        reprob=0.0 if options.pretraining else 0.25,
    )
    mixing = Classifying(1000, Mixup(0.8, 1.0, num_classes=1000), 0.1)
    training = trainer.Trainer(
        network.train(),
        part,
        ImageOnly(transform),
        Reconstructing((0.5,)) if options.pretraining else mixing,
        contract.Schedule(epochs=1, batch_size=options.batch, lr=1e-4, weight_decay=0.05),
        contract.Environment(machine=machine, seed=0, stages=Silent()),
        options.batch,
    )
    log = TrainingLog(training.accelerator, training.steps_per_epoch, options.batch)
    steps = training._steps(0, 0, [], lambda _: None, log)
    images = torch.randn(options.batch, 3, 224, 224, device=options.device)
    labels = torch.arange(options.batch, device=options.device)
    by_loop, plain = [], []
    for _ in range(options.steps + 1):
        clock = time.perf_counter()
        next(steps)
        by_loop.append(time.perf_counter() - clock)
        clock = time.perf_counter()
        with machine.autocast():
            value = loss(images, labels)
        value.backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
        value.item()
        plain.append(time.perf_counter() - clock)
    ratio = statistics.median(ours / theirs for ours, theirs in zip(by_loop[1:], plain[1:], strict=True))
    print(f"the suite's loop, input included / plain steps: {ratio:.2f} times as long")


def main() -> None:
    """Let both take turns, and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--openmmlab-env", type=Path, help="folder for OpenMMLab's environment; without: ours alone"
    )
    parser.add_argument("--child", choices=["ours", "openmmlab"], help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="ours only")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--pretraining", action="store_true")
    parser.add_argument("--loop", action="store_true", help="ours by the suite's loop against plain steps")
    options = parser.parse_args()
    if options.child:
        measure(options.child, options)
        return
    if options.loop:
        measure_loop(options)
        return
    pythons = {"ours": sys.executable}
    if options.openmmlab_env:
        sys.path.insert(0, str(ROOT / "tests" / "reference"))
        from environment import openmmlab_python

        pythons["openmmlab"] = str(openmmlab_python(options.openmmlab_env))
    results: dict[str, list[dict]] = {which: [] for which in pythons}
    for _ in range(options.rounds):
        for which, python in pythons.items():
            command = [python, "-W", "ignore", __file__, *sys.argv[1:], "--child", which]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            results[which].append(json.loads(done.stdout.splitlines()[-1]))
    speeds = {}
    for which, rounds in results.items():
        speeds[which] = options.batch / statistics.median(s for each in rounds for s in each["seconds"])
        peak = statistics.median(each["peak_gb"] for each in rounds)
        print(f"{which}: {speeds[which]:.2f} images/s, peak {peak:.1f} GB")
    if len(speeds) == 2:
        print(f"ours / OpenMMLab: {speeds['ours'] / speeds['openmmlab']:.2f}")


if __name__ == "__main__":
    main()
