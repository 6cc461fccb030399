"""Connectors and pooling: transformers' numbers for the projectors of the line, and properties of the reshaping."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pumice.model.connectors import CONNECTORS, MlpConnector, init_connector, pool, pooled_side, space_to_depth
from pumice.types import PumiceError


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def projector(family: str) -> tuple[Any, Any]:
    """transformers' projector of a family, 12 channels to a hidden size of 16 (with its pooler's config)."""
    from transformers import LlamaConfig, LlavaConfig, LlavaNextVideoConfig, LlavaOnevisionConfig, SiglipVisionConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
    from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoMultiModalProjector
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionMultiModalProjector

    config_class, projector_class = {
        "llava": (LlavaConfig, LlavaMultiModalProjector),
        "next-video": (LlavaNextVideoConfig, LlavaNextVideoMultiModalProjector),
        "onevision": (LlavaOnevisionConfig, LlavaOnevisionMultiModalProjector),
    }[family]
    config = config_class(
        vision_config=SiglipVisionConfig(hidden_size=12, image_size=42, patch_size=14),
        text_config=LlamaConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1),
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    return projector_class(config).eval(), config


def connector_of(reference: Any) -> MlpConnector:
    """Our connector with the weights of transformers' projector."""
    connector = CONNECTORS["mlp"](12, 16)
    names = {"linear_1": "layers.0", "linear_2": "layers.2"}
    state = {
        key.replace(old, names[old]): v for key, v in reference.state_dict().items() for old in names if old in key
    }
    connector.load_state_dict(state)
    return connector


@pytest.mark.parametrize("family", ["llava", "onevision", "next-video"])
def test_the_connector_equals_transformers_projector(family):
    reference, _ = projector(family)
    assert torch.allclose(connector_of(reference)(noise(3, 9, 12)), reference(noise(3, 9, 12)), atol=1e-6)


def test_depth_one_is_a_linear_layer_and_deeper_ones_alternate():
    connector = MlpConnector(12, 16, depth=1)
    state = connector.state_dict()
    assert state.keys() == {"layers.0.weight", "layers.0.bias"}
    expected = noise(2, 9, 12) @ state["layers.0.weight"].T + state["layers.0.bias"]
    assert torch.allclose(connector(noise(2, 9, 12)), expected, atol=1e-6)
    assert [type(layer).__name__ for layer in MlpConnector(12, 16, depth=3).layers] == [
        *("Linear", "GELU", "Linear", "GELU", "Linear")
    ]


def test_the_projectors_of_onevision_have_their_published_sizes():
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in MlpConnector(1152, width).parameters()) for width in (896, 3584, 8192)]
        llava = sum(p.numel() for p in MlpConnector(1024, 4096).parameters())
    assert sizes == [1_836_800, 16_980_992, 76_562_432]
    assert llava == 20_979_712


def test_shipped_keys_stay():
    assert MlpConnector(12, 16, 2, 2, norm=True).state_dict().keys() == {
        *("layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias", "norm.weight")
    }


def test_space_to_depth_keeps_each_block_row_by_row():
    features = torch.arange(16.0).view(1, 16, 1)
    blocks = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert space_to_depth(features, 2)[0].tolist() == blocks
    assert space_to_depth(features, 1) is features
    for patches in (9, 8):
        with pytest.raises(PumiceError, match=f"square of patches divisible by it, found {patches}"):
            space_to_depth(torch.zeros(1, patches, 1), 2)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_outputs_start_at_the_size_of_word_embeddings(norm, depth):
    connector = MlpConnector(64, 128, shuffle=2, depth=depth, norm=norm)
    init_connector(connector, 0.05, 1)
    size = connector(noise(4, 64, 64)).std()
    assert 0.02 < size < 0.06
    again = MlpConnector(64, 128, shuffle=2, depth=depth, norm=norm)
    init_connector(again, 0.05, 1)
    assert torch.equal(connector(noise(1, 4, 64)), again(noise(1, 4, 64)))


@pytest.mark.parametrize("side", [3, 4, 27])
def test_bilinear_pooling_equals_onevisions(side):
    from transformers import LlavaOnevisionModel

    vision = SimpleNamespace(image_size=side * 14 + 6, patch_size=14)
    stub: Any = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    views = noise(2, side * side, 5)
    pooled = pool(views, "bilinear", 2)
    assert pooled.shape == (2, pooled_side(side, "bilinear", 2) ** 2, 5)
    assert torch.allclose(pooled, LlavaOnevisionModel.apply_pooling(stub, views), atol=1e-6)


@pytest.mark.parametrize(("mode", "layer"), [("average", torch.nn.AvgPool2d), ("max", torch.nn.MaxPool2d)])
@pytest.mark.parametrize(("side", "stride"), [(4, 2), (27, 2), (24, 2), (7, 3), (3, 3)])
def test_average_and_max_pooling_equal_torchs(mode, layer, side, stride):
    views = noise(2, side * side, 5)
    maps = layer(stride)(views.permute(0, 2, 1).reshape(2, 5, side, side))
    pooled = pool(views, mode, stride)
    assert pooled.shape == (2, pooled_side(side, mode, stride) ** 2, 5)
    assert torch.equal(pooled, maps.flatten(2).permute(0, 2, 1))


@pytest.mark.parametrize("mode", ["average", "max"])
def test_pooling_before_the_connector_equals_next_videos(mode):
    from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoPooler

    reference, config = projector("next-video")
    config.spatial_pool_mode, config.spatial_pool_stride = mode, 2
    features = noise(3, 16, 12)
    expected = reference(LlavaNextVideoPooler(config)(features))
    assert torch.allclose(connector_of(reference)(pool(features, mode, 2)), expected, atol=1e-6)


def test_a_golden_map():
    """3 x 3 to 2 x 2: bilinear takes corners at a quarter, average and max the one whole window."""
    views = torch.arange(9.0).view(1, 9, 1)
    assert pool(views, "bilinear", 2).flatten().tolist() == [1.0, 2.5, 5.5, 7.0]
    assert pool(views, "average", 2).flatten().tolist() == [2.0]
    assert pool(views, "max", 2).flatten().tolist() == [4.0]


def test_published_sides():
    """27 to 14 (196 tokens a frame) or 13 (169), CLIP's 24 to 12 (144)."""
    assert [pooled_side(27, mode, 2) for mode in ("bilinear", "average", "max")] == [14, 13, 13]
    assert [pooled_side(24, mode, 2) for mode in ("bilinear", "average", "max")] == [12, 12, 12]
    assert pooled_side(27, "bilinear", 4) == 7


@pytest.mark.parametrize("mode", ["bilinear", "average", "max"])
def test_pooling_keeps_constants_dtypes_and_views_apart(mode):
    views = torch.tensor([1.0, -2.0]).to(torch.bfloat16)[:, None, None].expand(2, 25, 3)
    pooled = pool(views, mode, 2)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, views[:, : pooled.shape[1]])
    assert torch.equal(pool(noise(2, 9, 4), mode, 1), noise(2, 9, 4))
    assert pool(noise(0, 9, 4), mode, 2).shape == (0, pooled_side(3, mode, 2) ** 2, 4)


def test_pooling_that_makes_no_sense_is_refused():
    with pytest.raises(PumiceError, match="unknown pooling 'mean'; known: bilinear, average, max"):
        pool(noise(1, 9, 4), "mean", 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(PumiceError, match="average pooling of 3 tokens a side: expected a stride from 1 to 3, found 4"):
        pool(noise(1, 9, 4), "average", 4)
    with pytest.raises(PumiceError, match="bilinear pooling of 3 tokens a side: expected a stride from 1, found 0"):
        pooled_side(3, "bilinear", 0)
    with pytest.raises(PumiceError, match="square of tokens, found 8"):
        pool(noise(1, 8, 4), "max", 2)
