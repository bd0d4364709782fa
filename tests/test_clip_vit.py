"""The canonical CLIP image tower against open_clip: forward, key maps, derivatives, configuration, zero-shot head."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import warnings

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip import factory
from open_clip.model import _build_vision_tower
from safetensors.torch import save_file
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

from taskvec.models.clip import config as clip_config
from taskvec.models.clip.config import (
    VisionConfig,
    check_shapes,
    expected_shapes,
    linear_layers,
    open_clip_config,
    open_clip_names,
    trained_with_quick_gelu,
    vision_config,
)
from taskvec.models.clip.tags import tag_repository
from taskvec.models.clip.vit import VisionTransformer, from_open_clip, to_open_clip
from taskvec.models.clip.zero_shot import classify, load_open_clip, zero_shot_head

SMALL = {"image_size": 16, "patch_size": 4, "width": 32, "layers": 2, "head_width": 8}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}

# name -> (vision settings beside SMALL, quick_gelu)
VARIANTS = {
    "plain": ({}, False),
    "quick_gelu": ({}, True),
    "tanh_gelu": ({"act_kwargs": {"approximate": "tanh"}}, False),
    "layer_scale": ({"ls_init_value": 0.1}, False),
    "no_ln_pre": ({"no_ln_pre": True}, False),
    "avg": ({"pool_type": "avg"}, False),
    "avg_norm_after": ({"pool_type": "avg", "final_ln_after_pool": True}, False),
    "tok_norm_after": ({"final_ln_after_pool": True}, True),
    "clipa": ({"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}, False),
    "sin_cos_2d": ({"pos_embed_type": "sin_cos_2d"}, False),
    "not_square": ({"image_size": [12, 20]}, False),
    "not_square_patches": ({"image_size": [12, 20], "patch_size": [4, 5]}, True),
    "cut_off_pixels": ({"image_size": 18}, False),
    "uneven_heads": ({"width": 36, "head_width": 16}, False),
    "mlp_ratio": ({"mlp_ratio": 2.7}, False),
    "norm_eps": ({"norm_kwargs": {"eps": 1e-3}}, False),
    "custom_block": ({"block_type": "custom", "patch_dropout": 0.5, "output_tokens": False}, False),
}


def perturb(module: torch.nn.Module, seed: int = 0, scale: float = 0.05) -> None:
    """Move every parameter off its initial value, so that biases and norms count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def towers(model_cfg: dict) -> tuple[torch.nn.Module, VisionTransformer]:
    """open_clip's tower with random weights, and ours with the same."""
    theirs = _build_vision_tower(
        model_cfg["embed_dim"], model_cfg["vision_cfg"], model_cfg.get("quick_gelu", False)
    )
    perturb(theirs)
    return theirs.eval(), canonical(theirs, vision_config(model_cfg))


def canonical(theirs: torch.nn.Module, config: VisionConfig) -> VisionTransformer:
    with torch.device("meta"):
        ours = VisionTransformer(config)
    ours.load_state_dict(from_open_clip(theirs.state_dict()), assign=True)
    return ours.eval()


def small(variant: str = "plain", **changes) -> dict:
    vision, quick_gelu = VARIANTS[variant]
    return {"embed_dim": 12, "vision_cfg": {**SMALL, **vision, **changes}, "quick_gelu": quick_gelu}


def random_images(config: VisionConfig, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, *config.image_size, generator=torch.Generator().manual_seed(1))


def assert_same_features(
    theirs: torch.nn.Module, ours: VisionTransformer, images: torch.Tensor
) -> None:
    with torch.no_grad():
        expected, got = theirs(images), ours(images)
    assert got.shape == (len(images), ours.config.embed_dim)
    assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.fixture(scope="module")
def double_tower() -> tuple[VisionTransformer, torch.Tensor, dict, dict]:
    """A float64 tower, its images, its parameters, and a direction in parameter space."""
    _, tower = towers(small("layer_scale"))
    tower.double()
    generator = torch.Generator().manual_seed(2)
    parameters = {name: tensor.detach() for name, tensor in tower.named_parameters()}
    direction = {
        name: 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        for name, tensor in parameters.items()
    }
    return tower, random_images(tower.config).double(), parameters, direction


class TestForward:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_small_tower_equals_open_clip(self, variant):
        theirs, ours = towers(small(variant))
        assert_same_features(theirs, ours, random_images(ours.config))

    @pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-plus-240"])
    def test_published_size_equals_open_clip(self, name):
        theirs, ours = towers(open_clip_config(name))
        assert_same_features(theirs, ours, random_images(ours.config, count=2))

    def test_activation_matters(self):
        """The comparison above would notice a wrong activation."""
        theirs, _ = towers(small("plain"))
        wrong = canonical(theirs, vision_config(small("plain"), quick_gelu=True))
        with pytest.raises(AssertionError):
            assert_same_features(theirs, wrong, random_images(wrong.config))

    def test_fresh_tower_has_open_clips_sin_cos_positions(self):
        config = vision_config(small("sin_cos_2d", image_size=20))
        theirs = _build_vision_tower(12, small("sin_cos_2d", image_size=20)["vision_cfg"])
        ours = VisionTransformer(config)
        torch.testing.assert_close(
            ours.positional_embedding.data, theirs.positional_embedding.data, rtol=0, atol=1e-6
        )
        assert not ours.positional_embedding.requires_grad

    def test_hooks_fire_on_every_linear_layer(self):
        _, tower = towers(small())
        fired = []
        listed = linear_layers(tower.config)
        for layer in listed:
            module = tower.get_submodule(layer.name)
            assert type(module) is torch.nn.Linear
            module.register_forward_hook(lambda *_, name=layer.name: fired.append(name))
        tower(random_images(tower.config))
        assert fired == [layer.name for layer in listed]
        assert {
            name for name, module in tower.named_modules() if isinstance(module, torch.nn.Linear)
        } == set(fired)
        assert [layer.block for layer in listed] == [0] * 6 + [1] * 6 + [None]
        assert listed[3].role == "attn.out"
        assert listed[-1].role == "projection"


class TestKeyMaps:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_round_trip_is_exact_and_keeps_open_clips_order(self, variant):
        model_cfg = small(variant)
        theirs, ours = towers(model_cfg)
        prefixed = {f"visual.{name}": tensor for name, tensor in theirs.state_dict().items()}
        canonical = from_open_clip(prefixed)
        assert set(canonical) == set(ours.state_dict())
        restored = to_open_clip(canonical)
        assert list(restored) == list(prefixed)
        assert all(torch.equal(restored[name], prefixed[name]) for name in prefixed)
        assert {name: tuple(tensor.shape) for name, tensor in prefixed.items()} == expected_shapes(
            ours.config
        )
        again = from_open_clip(restored)
        assert all(torch.equal(again[name], canonical[name]) for name in canonical)

    def test_text_side_is_ignored_and_bare_towers_are_read(self):
        theirs, _ = towers(small())
        bare = theirs.state_dict()
        full = {"positional_embedding": torch.zeros(3), "logit_scale": torch.zeros(())}
        full |= {f"visual.{name}": tensor for name, tensor in bare.items()}
        assert list(from_open_clip(full)) == list(from_open_clip(bare))

    def test_partial_states(self):
        state = from_open_clip(
            {"visual.transformer.resblocks.3.attn.in_proj_bias": torch.arange(6.0)}
        )
        assert state["blocks.3.attn.k.bias"].tolist() == [2.0, 3.0]
        assert list(to_open_clip(state)) == ["visual.transformer.resblocks.3.attn.in_proj_bias"]
        del state["blocks.3.attn.k.bias"]
        with pytest.raises(ValueError, match=r"blocks\.3\.attn\.k\.bias is missing"):
            to_open_clip(state)
        assert from_open_clip({}) == {} == to_open_clip({})

    @pytest.mark.parametrize(
        ("convert", "name"),
        [
            (from_open_clip, "visual.attn_pool.query"),
            (from_open_clip, "conv2.weight"),
            (to_open_clip, "head.weight"),
        ],
    )
    def test_unknown_key_is_named(self, convert, name):
        with pytest.raises(ValueError, match=name.removeprefix("visual.")):
            convert({name: torch.zeros(1)})

    def test_maps_do_not_touch_or_alias_packed_tensors(self):
        theirs, _ = towers(small())
        before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
        canonical = from_open_clip(theirs.state_dict())
        canonical["blocks.0.attn.q.weight"].zero_()
        canonical["projection.weight"].zero_()
        assert all(
            torch.equal(tensor, before[name]) for name, tensor in theirs.state_dict().items()
        )
        assert all(tensor.is_contiguous() for tensor in canonical.values())

    @pytest.mark.parametrize(
        ("name", "parameters", "tensors"),
        [
            ("ViT-B-32", 87_849_216, 152),
            ("ViT-B-16", 86_192_640, 152),
            ("ViT-L-14", 303_966_208, 296),
        ],
    )
    def test_published_sizes(self, name, parameters, tensors):
        config = vision_config(open_clip_config(name))
        with torch.device("meta"):
            tower = VisionTransformer(config)
        assert sum(parameter.numel() for parameter in tower.parameters()) == parameters
        packed = to_open_clip(tower.state_dict())
        assert len(packed) == tensors
        # in_proj: 2 tensors there, 6 here
        assert len(tower.state_dict()) == tensors + 4 * config.layers
        assert {key: tuple(tensor.shape) for key, tensor in packed.items()} == expected_shapes(
            config
        )


class TestDerivatives:
    def test_jvp_equals_central_differences(self, double_tower):
        tower, images, parameters, direction = double_tower

        def features(params):
            return functional_call(tower, params, (images,))

        value, tangent = jvp(features, (parameters,), (direction,))
        torch.testing.assert_close(value, tower(images), rtol=1e-12, atol=1e-12)
        step = 1e-5
        plus = features({name: parameters[name] + step * direction[name] for name in parameters})
        minus = features({name: parameters[name] - step * direction[name] for name in parameters})
        torch.testing.assert_close(tangent, (plus - minus) / (2 * step), rtol=1e-6, atol=1e-8)

    def test_nested_transforms_agree(self, double_tower):
        """Forward mode inside, outside and beside vmap and reverse mode: the places where a tangent can hide."""
        tower, images, parameters, direction = double_tower

        def along(t, image):
            moved = {name: parameters[name] + t * direction[name] for name in parameters}
            return functional_call(tower, moved, (image[None],))[0]

        zero, one = images.new_zeros(()), images.new_ones(())

        def tangent(image):
            return jvp(lambda t: along(t, image), (zero,), (one,))[1]

        expected = torch.stack([tangent(image) for image in images])
        torch.testing.assert_close(vmap(tangent)(images), expected)
        outside = jvp(lambda t: vmap(lambda image: along(t, image))(images), (zero,), (one,))[1]
        torch.testing.assert_close(outside, expected)
        torch.testing.assert_close(jacfwd(along)(zero, images[0]), expected[0])
        torch.testing.assert_close(jacrev(along)(zero, images[0]), expected[0])

        def energy(t):
            return along(t, images[0]).square().sum()

        second = jvp(grad(energy), (zero,), (one,))[1]
        torch.testing.assert_close(grad(lambda t: jvp(energy, (t,), (one,))[1])(zero), second)
        torch.testing.assert_close(jacfwd(jacfwd(energy))(zero), second)
        torch.testing.assert_close(jacrev(jacrev(energy))(zero), second)
        slope = grad(energy)
        torch.testing.assert_close(
            second, (slope(zero + 1e-5) - slope(zero - 1e-5)) / 2e-5, rtol=1e-5, atol=1e-8
        )

    def test_dual_level_without_functorch(self, double_tower):
        tower, images, _, _ = double_tower
        noise = torch.ones_like(images)
        with torch.no_grad(), forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(tower(forward_ad.make_dual(images, noise))).tangent
        torch.testing.assert_close(tangent, jvp(tower, (images,), (noise,))[1])

    def test_fused_and_written_attention_have_the_same_gradient(self, double_tower):
        tower, images, parameters, _ = double_tower
        written = grad(lambda params: functional_call(tower, params, (images,)).square().sum())(
            parameters
        )
        fused = torch.autograd.grad(tower(images).square().sum(), list(tower.parameters()))
        for expected, got in zip(written.values(), fused, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


class TestConfig:
    def test_every_installed_architecture_is_covered_or_refused_in_one_line(self):
        refused = {}
        for name in open_clip_names():
            model_cfg = open_clip_config(name)
            try:
                vision_config(model_cfg)
            except ValueError as error:
                refused[name] = str(error)
        assert all("\n" not in message for message in refused.values())
        assert "timm" in refused["ViT-B-16-SigLIP"]
        assert "ResNet" in refused["RN50-quickgelu"]
        assert "attentional pooling" in refused["coca_ViT-L-14"]
        families = ("timm tower", "ResNet", "attentional pooling")
        assert all(any(family in message for family in families) for message in refused.values())
        assert {
            "ViT-B-32",
            "ViT-B-16",
            "ViT-L-14",
            "ViT-bigG-14",
            "ViT-H-14-CLIPA",
            "coca_base",
        }.isdisjoint(refused)

    def test_covered_architectures_have_open_clips_names_and_shapes(self):
        distinct = {}
        for name in open_clip_names():
            model_cfg = open_clip_config(name)
            try:
                shallow = dataclasses.replace(vision_config(model_cfg), layers=2)
            except ValueError:
                continue
            distinct[shallow] = model_cfg
        assert len(distinct) > 15
        for config, model_cfg in distinct.items():
            with torch.device("meta"):
                settings = {**model_cfg["vision_cfg"], "layers": 2}
                theirs = _build_vision_tower(
                    model_cfg["embed_dim"], settings, config.activation == "quick_gelu"
                )
            shapes = {
                f"visual.{name}": tuple(tensor.shape)
                for name, tensor in theirs.state_dict().items()
            }
            assert list(shapes.items()) == list(expected_shapes(config).items())

    def test_quick_gelu_comes_from_the_description_or_the_caller(self):
        description = open_clip_config("ViT-B-32-quickgelu")
        assert vision_config(description).activation == "quick_gelu"
        assert vision_config(description, quick_gelu=False).activation == "gelu"
        assert vision_config(open_clip_config("ViT-B-32"), quick_gelu=True) == vision_config(
            description
        )

    def test_activation_of_every_tag_is_open_clips(self):
        for name in open_clip_names():
            description = open_clip_config(name)
            for tag in open_clip.list_pretrained_tags_by_model(name):
                wants = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
                differs = wants and not description.get("quick_gelu", False)
                if "timm_model_name" not in description["vision_cfg"] and not name.startswith("RN"):
                    assert trained_with_quick_gelu(name, tag) == differs, (name, tag)
        assert trained_with_quick_gelu("ViT-B/32", "OpenAI")

    def test_repository_of_every_tag_is_open_clips(self):
        for name, tag in open_clip.list_pretrained():
            place = open_clip.get_pretrained_cfg(name, tag)["hf_hub"]
            assert tag_repository(name, tag) == ("/".join(place.split("/")[:2]) or None), (
                name,
                tag,
            )
        assert tag_repository("ViT-B/32", "no-such-tag") is None

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"timm_model_name": "vit_base"}, "timm tower"),
            ({"layers": [3, 4, 6, 3]}, "ResNet"),
            ({"attentional_pool": True}, "attentional pooling"),
            ({"qk_norm": True}, "query and key normalisation"),
            ({"scale_fc": True}, "normalisation inside the MLP"),
            ({"pool_type": "none"}, "one vector per image"),
            ({"pos_embed_type": "rotary"}, "rotary"),
            ({"pos_embed_type": "sin_cos_2d", "image_size": [12, 20]}, "square grid"),
            ({"act_kwargs": {"inplace": True}}, "act_kwargs"),
            ({"norm_kwargs": {"bias": False}}, "norm_kwargs"),
            ({"head_width": 12, "width": 40}, "40 does not divide into 3 heads"),
            ({"head_width": 64}, "0 heads"),
            ({"image_size": [16, 16, 3]}, "image_size"),
            ({"patch_size": 32}, "do not fit"),
            ({"widht": 32}, "widht"),
            ({"width": "32"}, "width='32'"),
            ({"head_width": 0}, "head_width=0"),
            ({"layers": 0}, "positive integer"),
        ],
    )
    def test_refusals_name_the_reason(self, settings, words):
        with pytest.raises(ValueError, match=words) as error:
            vision_config(small(**settings))
        assert "\n" not in str(error.value)

    def test_incomplete_descriptions(self):
        with pytest.raises(ValueError, match="'vision_cfg'"):
            vision_config({"embed_dim": 8})
        with pytest.raises(ValueError, match="act_kwargs"):
            vision_config(small(act_kwargs={"approximate": "tanh"}), quick_gelu=True)

    def test_names(self, tmp_path):
        assert (
            open_clip_config("ViT-B/32")
            == open_clip_config("ViT-B-32")
            == open_clip.get_model_config("ViT-B-32")
        )
        with pytest.raises(ValueError, match="did you mean .*ViT-B-32-quickgelu"):
            open_clip_config("vit-b-32-quickgel")
        with pytest.raises(ValueError, match="no architecture '../secret'"):
            open_clip_config("../secret")
        with pytest.raises(ValueError, match="has no open_clip_config.json"):
            open_clip_config(f"local-dir:{tmp_path}")
        for content, words in (
            ("{}", "has no 'model_cfg'"),
            ("[1]", "has no 'model_cfg'"),
            ("{", "is not JSON"),
        ):
            (tmp_path / "open_clip_config.json").write_text(content)
            with pytest.raises(ValueError, match=words):
                open_clip_config(str(tmp_path))

    def test_check_shapes_names_the_first_difference(self):
        config = vision_config(small())
        shapes = {"logit_scale": (), **expected_shapes(config)}
        check_shapes(shapes, config)
        with pytest.raises(ValueError, match=r"visual\.proj has shape \(32, 7\)"):
            check_shapes({**shapes, "visual.proj": (32, 7)}, config)
        with pytest.raises(ValueError, match=r"holds visual\.attn_pool"):
            check_shapes({**shapes, "visual.attn_pool.query": (1,)}, config)
        del shapes["visual.ln_post.bias"]
        with pytest.raises(ValueError, match=r"lacks visual\.ln_post\.bias"):
            check_shapes(shapes, config)

    def test_configuration_needs_neither_torch_nor_open_clip(self):
        code = """
import sys
from taskvec.models.clip.config import expected_shapes, linear_layers, open_clip_config, vision_config
config = vision_config(open_clip_config("ViT-B-32"), quick_gelu=True)
assert len(linear_layers(config)) == 73 and len(expected_shapes(config)) == 152
assert not {"torch", "open_clip", "numpy"} & set(sys.modules)
"""
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in open_clip's `local-dir:` format, with a preprocessing and an activation of its own."""
    path = tmp_path_factory.mktemp("clip") / "mini"
    path.mkdir()
    model_cfg = {**small("quick_gelu"), "text_cfg": TEXT}
    clip = open_clip.CLIP(**model_cfg)
    perturb(clip, seed=3)
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(37.0))
    save_file(clip.state_dict(), path / "open_clip_model.safetensors")
    preprocess_cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bilinear"}
    (path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})
    )
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return load_open_clip(str(folder))


CLASSES = ["cat", "annual crop land", "{curly}", "7", "a dog"]
TEMPLATES = ["a photo of a {}.", "{}", "the {} in the wild"]


class TestLoading:
    def test_folder_round_trip(self, folder, loaded):
        clip, tokenizer, preprocess_cfg = loaded
        assert not clip.training
        assert {parameter.dtype for parameter in clip.parameters()} == {torch.float32}
        assert tokenizer(["a cat"]).shape == (1, TEXT["context_length"])
        assert tuple(preprocess_cfg["mean"]) == (0.1, 0.2, 0.3)
        assert tuple(preprocess_cfg["size"]) == (16, 16)
        tower = canonical(clip.visual, vision_config(open_clip_config(f"local-dir:{folder}")))
        assert tower.config.activation == "quick_gelu"
        assert_same_features(clip.visual, tower, random_images(tower.config))

        copied = folder.parent / "copy"
        copied.mkdir()
        state = {**clip.state_dict(), **to_open_clip(tower.state_dict())}
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()},
            copied / "open_clip_model.safetensors",
        )
        (copied / "open_clip_config.json").write_text(
            (folder / "open_clip_config.json").read_text()
        )
        again, _, _ = load_open_clip(f"local-dir:{copied}")
        assert list(again.state_dict()) == list(clip.state_dict())
        assert all(
            torch.equal(tensor, clip.state_dict()[name])
            for name, tensor in again.state_dict().items()
        )

    @pytest.fixture
    def named(self, folder, monkeypatch, tmp_path):
        """The folder's model as the architecture ViT-B-32, without QuickGELU, and a package that describes only it."""
        description = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
        description["quick_gelu"] = False
        monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-32", description)
        (tmp_path / "ViT-B-32.json").write_text(json.dumps(description))
        monkeypatch.setattr(clip_config, "_config_folder", lambda: tmp_path)
        return "ViT-B/32"

    @pytest.mark.parametrize("suffix", ["safetensors", "pt"])
    def test_named_architecture_with_checkpoint(self, tmp_path, folder, loaded, named, suffix):
        """A tag beside the file says how it was trained, and so does ``quick_gelu``; nothing is downloaded."""
        source = loaded[0]
        path = tmp_path / f"weights.{suffix}"
        if suffix == "pt":
            torch.save({"state_dict": source.state_dict(), "epoch": 3}, path)
        else:
            save_file(source.state_dict(), path)
        images, texts = torch.randn(2, 3, 16, 16), loaded[1](CLASSES)

        def same(clip):
            return [
                torch.equal(clip.encode_image(images), source.encode_image(images)),
                torch.equal(clip.encode_text(texts), source.encode_text(texts)),
            ]

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            clip, _, preprocess_cfg = load_open_clip(named, "openai", path)
        assert tuple(preprocess_cfg["mean"]) == open_clip.OPENAI_DATASET_MEAN
        assert same(clip) == [True, True]
        assert same(load_open_clip(named, checkpoint=path, quick_gelu=True)[0]) == [True, True]
        assert same(load_open_clip(named, "openai", path, quick_gelu=True)[0]) == [True, True]
        assert same(load_open_clip(named, checkpoint=path)[0]) == [False, False]
        assert same(load_open_clip(str(folder), quick_gelu=False)[0]) == [False, False]
        with pytest.raises(
            ValueError, match="'openai' of ViT-B-32 were trained with quick_gelu=True"
        ):
            load_open_clip(named, "openai", path, quick_gelu=False)

    @pytest.mark.parametrize("suffix", ["safetensors", "pt"])
    def test_another_image_size_is_not_interpolated(self, tmp_path, loaded, named, suffix):
        state = loaded[0].state_dict()
        state["visual.positional_embedding"] = state["visual.positional_embedding"][:10].clone()
        path = tmp_path / f"weights.{suffix}"
        (torch.save if suffix == "pt" else save_file)(state, path)
        with pytest.raises(ValueError, match=r"visual\.positional_embedding has shape \(10, 32\)"):
            load_open_clip(named, checkpoint=path)

    def test_files_with_code_or_damage_are_refused(self, tmp_path):
        for index, content in enumerate([{"model": torch.nn.Linear(1, 1)}, print]):
            torch.save(content, tmp_path / f"{index}.pt")
            with pytest.raises(ValueError, match="holds more than tensors"):
                load_open_clip("ViT-S-32", checkpoint=tmp_path / f"{index}.pt")
        for name in ("bad.pt", "bad.safetensors"):
            (tmp_path / name).write_bytes(b"not a checkpoint")
            with pytest.raises(ValueError, match="is damaged"):
                load_open_clip("ViT-S-32", checkpoint=tmp_path / name)

    def test_errors(self, folder, tmp_path):
        with pytest.raises(ValueError, match="ViT-B-32 needs weights"):
            load_open_clip("ViT-B-32")
        with pytest.raises(ValueError, match="holds its own weights"):
            load_open_clip(str(folder), pretrained="openai")
        with pytest.raises(ValueError, match="its tags: .*laion2b_s34b_b79k"):
            load_open_clip("ViT-B-32", pretrained="laion")
        with pytest.raises(ValueError, match=r"missing\.pt does not exist"):
            load_open_clip("ViT-B-32", checkpoint=tmp_path / "missing.pt")
        with pytest.raises(ValueError, match="ResNet"):
            load_open_clip("RN50", pretrained="openai")
        with pytest.raises(ValueError, match="has shape"):
            load_open_clip("ViT-B-32", checkpoint=folder / "open_clip_model.safetensors")
        (tmp_path / "open_clip_config.json").write_text(
            (folder / "open_clip_config.json").read_text()
        )
        with pytest.raises(ValueError, match=r"open_clip_model\.safetensors does not exist"):
            load_open_clip(str(tmp_path))


class TestZeroShot:
    @pytest.mark.parametrize("batch_size", [1, 7, 256])
    def test_equals_open_clips_classifier(self, loaded, batch_size):
        clip, tokenizer, _ = loaded
        head = zero_shot_head(clip, tokenizer, CLASSES, TEMPLATES, batch_size)
        expected = open_clip.build_zero_shot_classifier(clip, tokenizer, CLASSES, TEMPLATES)
        assert head.dtype == torch.float32
        assert not head.requires_grad
        torch.testing.assert_close(
            head, clip.logit_scale.exp().detach() * expected.T, rtol=1e-5, atol=1e-5
        )

    def test_rows_have_the_norm_of_the_logit_scale(self, loaded):
        clip, tokenizer, _ = loaded
        norms = zero_shot_head(clip, tokenizer, CLASSES, TEMPLATES).norm(dim=1)
        torch.testing.assert_close(norms, torch.full((len(CLASSES),), 37.0))

    def test_one_template_gives_the_scaled_unit_embedding(self, loaded):
        clip, tokenizer, _ = loaded
        head = zero_shot_head(clip, tokenizer, CLASSES, ["a photo of a {}."])
        with torch.no_grad():
            text = clip.encode_text(tokenizer([f"a photo of a {name}." for name in CLASSES]))
        torch.testing.assert_close(head, 37.0 * F.normalize(text, dim=-1))

    def test_logits_ignore_the_length_of_features(self):
        features, head = torch.randn(4, 6), torch.randn(3, 6)
        logits = classify(features, head)
        torch.testing.assert_close(classify(features * torch.rand(4, 1).add(0.1), head), logits)
        torch.testing.assert_close(
            logits, F.cosine_similarity(features[:, None], head, dim=-1) * head.norm(dim=1)
        )
        assert classify(features.bfloat16(), head).dtype == torch.float32

    def test_errors(self, loaded):
        clip, tokenizer, _ = loaded
        with pytest.raises(ValueError, match="at least one class name"):
            zero_shot_head(clip, tokenizer, [], TEMPLATES)
        with pytest.raises(ValueError, match="'a photo'"):
            zero_shot_head(clip, tokenizer, CLASSES, ["a photo"])
