"""The network: sizes and counts against the published ones, behaviour against a plain second version.

Run this file alone with: pytest tests/test_mixmim.py
"""

import copy
import io
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models._features_fx import GraphExtractNet
from timm.optim import create_optimizer_v2
from timm.utils import AttentionExtract, ModelEmaV3
from torch import nn

from mixmim_bench.counting import count_by_fvcore, count_on_meta, count_parameters
from mixmim_bench.models import mixmim
from mixmim_bench.models.mixmim import MixMIM
from mixmim_bench.registry import MODELS, find_model

# parameters with the 1000-way head and the frozen position embedding; fvcore's count, head included
PUBLISHED = {
    "mixmim-b": (88_344_352, 16_352_930_816),
    "mixmim-b-384": (89_577_440, 52_570_710_016),
    "mixmim-l": (197_396_668, 35_858_735_616),
    "mixmim-l-384": (199_246_300, 112_150_450_176),
    "mixmim-h": (659_262_658, 117_667_154_176),
    "mixmim-tiny": (4_952_775, 158_926_848),  # ours
}
SIZES = [32, 64, 96, 160, 192, 256, 320, 384, 512, (64, 96), (160, 32), (36, 100)]


def plain_forward(model: MixMIM, x: torch.Tensor) -> torch.Tensor:
    """The encoder written out token by token and window by window, without any of its tricks."""
    patch, norm = model.patch_embed.proj, model.patch_embed.norm
    x = norm(patch(x).permute(0, 2, 3, 1))
    x = x + model.absolute_pos_embed.view(1, x.shape[1], x.shape[2], -1)
    for stage in model.layers:
        h, w = stage.window_size
        for block in stage.blocks:
            normed, out = block.norm1(x), torch.zeros_like(x)
            for top in range(0, x.shape[1], h):
                for left in range(0, x.shape[2], w):
                    window = normed[:, top : top + h, left : left + w]
                    out[:, top : top + h, left : left + w] = plain_attention(block.attn, window)
            x = x + out
            x = x + block.mlp(block.norm2(x))
        if not isinstance(stage.downsample, nn.Identity):
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            four = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
            x = stage.downsample.reduction(stage.downsample.norm(torch.cat(four, -1)))
    return model.head(model.norm(x).mean((1, 2)))


def plain_attention(attn: nn.Module, window: torch.Tensor) -> torch.Tensor:
    """Attention of the real tokens of one window (B, h, w, C); h and w may be less than the window's."""
    B, h, w, C = window.shape
    q, k, v = attn.qkv(window.reshape(B, h * w, C)).chunk(3, dim=-1)
    height, width = attn.window_size
    bias = torch.empty(attn.num_heads, h * w, h * w)
    for i in range(h * w):
        for j in range(h * w):
            dy, dx = i // w - j // w + height - 1, i % w - j % w + width - 1
            bias[:, i, j] = attn.relative_position_bias_table[dy * (2 * width - 1) + dx]
    heads = []
    for head, (qh, kh, vh) in enumerate(
        zip(*(t.split(attn.head_dim, dim=-1) for t in (q, k, v)), strict=True)
    ):
        weights = (qh @ kh.transpose(1, 2) * attn.head_dim**-0.5 + bias[head]).softmax(-1)
        heads.append(weights @ vh)
    return attn.proj(torch.cat(heads, -1)).view(B, h, w, C)


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name):
    spec = find_model(name)
    side = timm.get_pretrained_cfg(spec.arch).input_size[-1]
    params, flops = PUBLISHED[name]
    assert (spec.params, spec.macs, spec.image_size) == (params, flops, (side, side))
    assert count_parameters(spec) == params
    assert count_on_meta(spec, (side, side)).total == flops


LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED if name != "mixmim-b"]


@pytest.mark.parametrize("name", ["mixmim-b", *LARGE])
def test_fvcore_counts_the_same(name):
    spec = find_model(name)
    side = timm.get_pretrained_cfg(spec.arch).input_size[-1]
    assert count_by_fvcore(timm.create_model(spec.arch), (side, side)) == count_on_meta(spec, (side, side))


def test_every_registered_mixmim_has_published_counts():
    assert set(PUBLISHED) == {spec.name for spec in MODELS if spec.arch.startswith("mixmim")}


def test_the_count_is_the_same_for_plain_attention():
    timm.layers.set_fused_attn(False)
    try:
        network = timm.create_model("mixmim_base", num_classes=0)
        traced = count_by_fvcore(network, (224, 224))
    finally:
        timm.layers.set_fused_attn(True)
    assert traced.total == 16_351_906_816  # the published count without the head


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("size", [64, (32, 96), (40, 72)])
def test_it_computes_what_the_plain_version_does(tiny, size, fused):
    timm.layers.set_fused_attn(fused)
    try:
        model = tiny(img_size=size, window_size=(7, 3, 4, 2)).eval()
    finally:
        timm.layers.set_fused_attn(True)
    assert model.layers[0].blocks[0].attn.fused_attn is fused
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(model(images), plain_forward(model, images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_by_constructor_and_by_set_input_size_are_one_network(tiny, size):
    built, changed = tiny(img_size=size).eval(), tiny(img_size=224).eval()
    changed.set_input_size(size)
    assert [s.window_size for s in built.layers] == [s.window_size for s in changed.layers]
    assert built.absolute_pos_embed.shape == changed.absolute_pos_embed.shape
    built.load_state_dict(changed.state_dict())
    images = torch.randn(1, 3, *built.patch_embed.img_size)
    torch.testing.assert_close(built(images), changed(images))
    assert changed(images).isfinite().all()


def test_windows_scale_with_the_grid():
    model = timm.create_model("mixmim_base", device="meta", img_size=384)
    assert [s.window_size[0] for s in model.layers] == [24, 24, 24, 12]
    released = timm.create_model("mixmim_base_384", device="meta")
    assert [s.window_size[0] for s in released.layers] == [16, 16, 24, 12]
    half = timm.create_model("mixmim_base_384", device="meta", img_size=192)
    assert [s.window_size[0] for s in half.layers] == [8, 8, 12, 6]


def test_explicit_windows_stay_and_later_sizes_scale_from_them(tiny):
    model = tiny(img_size=64)
    model.set_input_size(128, window_size=(8, 8, 4, 4))
    assert [s.window_size[0] for s in model.layers] == [8, 8, 4, 4]
    model.set_input_size(256)
    assert [s.window_size[0] for s in model.layers] == [16, 16, 8, 8]


def test_bias_tables_are_interpolated(tiny):
    model = tiny(img_size=64)
    attn = model.layers[0].blocks[0].attn
    offsets = torch.arange(-3.0, 4.0)  # of a window of 4 tokens
    ramp = offsets.view(7, 1).expand(7, 7).reshape(-1, 1)
    with torch.no_grad():
        attn.relative_position_bias_table.copy_(ramp)
    model.set_input_size(128)
    table = attn.relative_position_bias_table.detach().view(15, 15)
    assert (table.diff(dim=0) >= -1e-5).all()  # still a ramp down the rows
    torch.testing.assert_close(table, -table.flip(0))
    inside = (torch.arange(15.0) - 7)[3:12] * 7 / 15  # offsets as shares of the window
    torch.testing.assert_close(table[3:12, 0], inside, atol=0.06, rtol=0)  # bicubic: near a ramp
    torch.testing.assert_close(table[[0, -1], 0], torch.tensor([-3.0, 3.0]), atol=0.2, rtol=0)


@pytest.mark.parametrize("size", [30, 0, (64, 50)])
def test_a_size_that_cannot_work_is_a_clear_error(tiny, size):
    with pytest.raises(ValueError, match="multiple of the patch size 4"):
        tiny(img_size=size)
    model = tiny(img_size=64)
    with pytest.raises(ValueError, match="multiple of the patch size 4"):
        model.set_input_size(size)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)  # unharmed


def bicubic(table, old, new):
    """Interpolate positions (1, H * W, C) row by row and column by column, by the kernel with a = -0.75."""

    def weights(old, new):
        out = torch.zeros(new, old)
        for i in range(new):
            at = (i + 0.5) * old / new - 0.5
            for j in range(math.floor(at) - 1, math.floor(at) + 3):
                x = abs(at - j)
                near = 1.25 * x**3 - 2.25 * x**2 + 1
                far = -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3
                out[i, min(max(j, 0), old - 1)] += near if x <= 1 else far
        return out

    rows, columns = weights(old[0], new[0]), weights(old[1], new[1])
    grid = table.view(*old, -1)
    return torch.einsum("ah,bw,hwc->abc", rows, columns, grid).reshape(1, new[0] * new[1], -1)


def learnt_positions(model):
    """Replace the positions by others that no formula gives."""
    torch.manual_seed(3)
    model.absolute_pos_embed.normal_()
    return model


def test_images_of_any_size_when_sizes_are_dynamic(tiny):
    model = learnt_positions(tiny(img_size=64, dynamic_img_size=True, window_size=(4, 4, 4, 2)).eval())
    for size in ((64, 64), (96, 40), (32, 128)):
        fixed = tiny(img_size=size, window_size=(4, 4, 4, 2), always_partition=True).eval()
        own = model.state_dict()
        grid = fixed.patch_embed.grid_size
        own["absolute_pos_embed"] = bicubic(model.absolute_pos_embed, (16, 16), grid)
        tables = [k for k, v in fixed.state_dict().items() if v.shape != own[k].shape]
        assert not tables
        fixed.load_state_dict(own)
        images = torch.randn(1, 3, *size)
        torch.testing.assert_close(model(images), fixed(images), atol=1e-4, rtol=1e-4)


def test_padding_never_reaches_a_token(tiny, monkeypatch):
    """Whatever padding tokens hold, the others are the same; so are those of other images in the batch."""
    stage = tiny(img_size=64, dynamic_img_size=True, window_size=(4, 4, 4, 2)).eval().layers[0]
    torch.manual_seed(0)
    tokens = torch.randn(2, 10, 7, 16)  # in windows of 4, padded to 12 x 8

    def padded_with_noise(x, multiple):
        rows, columns = -x.shape[1] % multiple[0], -x.shape[2] % multiple[1]
        noise = 100 * torch.randn(len(x), x.shape[1] + rows, x.shape[2] + columns, x.shape[3])
        noise[:, : x.shape[1], : x.shape[2]] = x
        return noise

    with torch.no_grad():
        expected = stage(tokens)
        torch.testing.assert_close(stage(tokens[:1]), expected[:1], atol=1e-5, rtol=1e-5)
        monkeypatch.setattr(mixmim, "pad_grid", padded_with_noise)
        torch.testing.assert_close(stage(tokens), expected, atol=1e-5, rtol=1e-5)
        monkeypatch.setattr(mixmim, "attention_mask", lambda *_: None)
        assert (stage(tokens) - expected).abs().max() > 0.1  # the mask is what keeps it out


def test_another_size_interpolates_the_positions_whatever_they_are(tiny):
    model = learnt_positions(tiny(img_size=64))
    before = model.absolute_pos_embed.clone()
    model.set_input_size((96, 32))
    torch.testing.assert_close(
        model.absolute_pos_embed, bicubic(before, (16, 16), (24, 8)), atol=1e-5, rtol=1e-5
    )


def test_positions_are_those_of_mae(tiny):
    model = tiny(img_size=(32, 64))
    grid, width = (8, 16), 16
    omega = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    for row, column in ((0, 0), (3, 11), (7, 15)):
        parts = [f(at * omega) for at in (column, row) for f in (torch.sin, torch.cos)]
        found = model.absolute_pos_embed[0, row * grid[1] + column]
        torch.testing.assert_close(found.double(), torch.cat(parts), atol=1e-6, rtol=0)
    assert "absolute_pos_embed" in model.state_dict()
    assert "absolute_pos_embed" not in dict(model.named_parameters())  # it is never learnt


# -- the bias that is kept while gradients are off ---------------------------------------------------


@pytest.fixture
def warm(tiny):
    """A model that has kept its biases, and an input."""
    model = tiny().eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        model(images)
    assert all(b.attn._kept_bias is not None for s in model.layers for b in s.blocks)
    return model, images


def fresh(model, images):
    """The output of a copy that has kept nothing."""
    with torch.no_grad():
        return copy.deepcopy(model)(images)


def test_kept_bias_gives_the_same_output(warm):
    model, images = warm
    with torch.inference_mode():
        assert torch.equal(model(images), fresh(model, images))


def test_training_after_inference(warm):
    model, images = warm
    model.train()
    assert model.layers[0].blocks[0].attn._kept_bias is None
    model(images).sum().backward()
    assert model.layers[0].blocks[0].attn.relative_position_bias_table.grad is not None


def test_backward_in_eval_mode_after_inference(warm):
    model, images = warm
    model(images).sum().backward()
    assert model.layers[0].blocks[0].attn.relative_position_bias_table.grad.abs().sum() > 0


def test_kept_bias_is_in_no_copy_and_no_state(warm):
    model, images = warm
    assert not any("kept" in key for key in model.state_dict())
    ema = ModelEmaV3(model, decay=0.5)
    assert all(b.attn._kept_bias is None for s in ema.module.layers for b in s.blocks)
    with torch.no_grad():
        ema.module(images)
        for parameter in model.parameters():
            parameter.mul_(1.5)
    ema.update(model)
    with torch.no_grad():
        assert torch.equal(ema.module(images), fresh(ema.module, images))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert loaded.layers[0].blocks[0].attn._kept_bias is None


def change_in_place(model):
    with torch.no_grad():
        model.layers[0].blocks[0].attn.relative_position_bias_table.add_(1.0).mul_(3.0)


def change_in_inference_mode(model):
    with torch.inference_mode():
        model.layers[0].blocks[0].attn.relative_position_bias_table.mul_(3.0)


def change_data(model):
    model.layers[0].blocks[0].attn.relative_position_bias_table.data.mul_(3.0)


def change_parameter(model):
    attn = model.layers[0].blocks[0].attn
    attn.relative_position_bias_table = nn.Parameter(3 * attn.relative_position_bias_table.detach())


def change_by_optimizer(model):
    torch.optim.SGD(model.parameters(), lr=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def change_by_loading(model):
    model.load_state_dict({k: 2 * v for k, v in model.state_dict().items()})


def change_dtype(model):
    model.half().float()  # rounds the table


def change_size(model):
    model.set_input_size(128)
    model.set_input_size(64)


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_in_inference_mode,
        change_data,
        change_parameter,
        change_by_optimizer,
        change_by_loading,
        change_dtype,
        change_size,
    ],
)
def test_any_change_of_the_table_is_seen(warm, change):
    model, images = warm
    change(model)
    with torch.no_grad():
        assert torch.equal(model(images), fresh(model, images))


def test_counting_after_inference(warm):
    model, _ = warm
    warm_count = count_by_fvcore(model, (64, 64))
    assert warm_count == count_by_fvcore(copy.deepcopy(model), (64, 64))


# -- timm's surface ----------------------------------------------------------------------------------


def test_timm_lists_and_builds_the_models():
    for arch in timm.list_models("mixmim*"):
        assert isinstance(timm.create_model(arch, device="meta"), MixMIM)
    assert {name for name in PUBLISHED} == {
        spec.name for spec in MODELS if spec.arch in timm.list_models("mixmim*")
    }


def test_features_only_gives_four_strides():
    model = timm.create_model(
        "mixmim_base", embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), features_only=True
    )
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert model.feature_info.channels() == [16, 32, 64, 128]
    shapes = [tuple(f.shape) for f in model(torch.zeros(1, 3, 224, 224))]
    assert shapes == [(1, 16, 56, 56), (1, 32, 28, 28), (1, 64, 14, 14), (1, 128, 7, 7)]
    some = timm.create_model("mixmim_base", features_only=True, out_indices=(0, 2), device="meta")
    assert some.feature_info.reduction() == [4, 16]


def test_intermediates_agree_with_the_stages(tiny):
    model = tiny().eval()
    images = torch.randn(1, 3, 64, 64)
    final, taken = model.forward_intermediates(images, indices=[1, 3], norm=True)
    assert torch.equal(final, model.forward_features(images))
    assert torch.equal(taken[1].permute(0, 2, 3, 1), final)
    only = model.forward_intermediates(images, 1, stop_early=True, intermediates_only=True)
    assert only[0].shape == (1, 128, 2, 2)
    early = model.forward_intermediates(images, [0], stop_early=True, output_fmt="NHWC")
    assert early[1][0].shape == (1, 16, 16, 16)


def test_heads(tiny):
    model = tiny().eval()
    images = torch.randn(2, 3, 64, 64)
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.equal(pooled, model.forward_features(images).mean((1, 2)))
    assert torch.equal(model.get_classifier()(pooled), model(images))
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    model.reset_classifier(0)
    assert torch.equal(model(images), pooled)
    model.reset_classifier(0, "")
    assert model(images).shape == (2, 2, 2, 128)


def test_layer_decay_groups(tiny):
    model = tiny()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    scale = {names[id(p)]: g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    decay = {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert scale["head.weight"] == 1.0
    assert scale["layers.3.blocks.0.mlp.fc1.weight"] == scale["norm.weight"] == 0.5
    assert scale["layers.2.downsample.reduction.weight"] == 0.5  # with the block after it
    assert scale["layers.0.blocks.0.attn.qkv.weight"] == 0.5**5
    assert scale["patch_embed.proj.weight"] == 0.5**6
    assert decay["layers.0.blocks.0.attn.relative_position_bias_table"] == 0.05  # as in the release
    assert "absolute_pos_embed" not in scale  # frozen


def test_gradient_checkpointing_changes_nothing(tiny):
    gradients = []
    for checkpointing in (False, True):
        model = tiny().train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(1)
        model(torch.randn(2, 3, 64, 64)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_drop_path_drops_whole_images(tiny):
    model = tiny(img_size=128, window_size=(8, 8, 8, 4), drop_path_rate=0.9).train()
    stage = model.layers[1]  # four windows an image
    x = torch.randn(6, 16, 16, 32)
    changed = (stage(x) != x).flatten(1).float().mean(1)
    assert set(changed.round(decimals=2).tolist()) <= {0.0, 1.0}


def test_bfloat16_autocast(tiny):
    model = tiny().eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(images)
    assert rounded.dtype == torch.bfloat16
    assert F.cosine_similarity(rounded.float(), exact).min() > 0.99


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_model_agrees(tiny, backend):
    """With 'eager' the graph is captured only."""
    model = tiny().eval()
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), atol=1e-4, rtol=1e-4)


def test_state_dict_round_trip(tiny):
    first, second = tiny(seed=1).eval(), tiny(seed=2).eval()
    second.load_state_dict(first.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(first(images), second(images))


def test_source_map_keeps_images_apart(tiny):
    """Tokens of one source must not depend on tokens of another, in any stage."""
    model = tiny().eval()
    cells = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    sources = [cells.repeat_interleave(8 >> i, 0).repeat_interleave(8 >> i, 1)[None] for i in range(4)]
    tokens = torch.randn(1, 16, 16, 16)
    other = torch.where(sources[0][..., None] == 1, torch.randn_like(tokens), tokens)
    with torch.no_grad():
        before, after = model.encode(tokens, sources), model.encode(other, sources)
    same = (before - after).abs().amax(-1)[0] < 1e-5
    assert torch.equal(same, cells == 0)


# -- torch.fx ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"window_size": (7, 3, 4, 2)}, {"dynamic_img_size": True}, {"strict_img_size": False}],
    ids=["whole windows", "padded windows", "dynamic", "not strict"],
)
def test_torch_fx_traces_forward_and_backward(tiny, kwargs):
    model = tiny(**kwargs).eval()
    traced = GraphExtractNet(model, ["head"])
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(traced(images), model(images), atol=1e-5, rtol=1e-5)
    traced(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_attention_maps_are_extracted_by_timm(tiny):
    model = tiny().eval()
    maps = AttentionExtract(model, method="fx")(torch.randn(1, 3, 64, 64))
    assert len(maps) == 5  # one per block
    for attention in maps.values():
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
