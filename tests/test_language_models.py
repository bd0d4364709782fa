"""Every language-model family against transformers: forward, layers, key maps, derivatives, padding."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.func import functional_call, grad, jvp
from transformers import AutoConfig

from taskvec.errors import UserError
from taskvec.models.causal import Causal
from taskvec.models.encoder import Encoder
from taskvec.models.lm_layouts import LAYOUTS
from taskvec.models.text_to_text import TextToText
from taskvec.training.dual import differentiate

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
LLAMA = GROUPED | {"head_dim": 8}
WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
}
T5 |= {"num_heads": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
T5 |= {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
DEBERTA = SIZES | {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"}
DEBERTA |= {"pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 40}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}

# name -> (kind, model_type, published class, sizes)
FAMILIES = {
    "roberta": (
        Encoder,
        "roberta",
        "RobertaForMaskedLM",
        SIZES | {"pad_token_id": 1, "type_vocab_size": 1},
    ),
    "bert": (Encoder, "bert", "BertForMaskedLM", SIZES | {"type_vocab_size": 2}),
    "deberta_v2": (Encoder, "deberta-v2", "DebertaV2ForMaskedLM", DEBERTA),
    "deberta_v3": (
        Encoder,
        "deberta-v2",
        "DebertaV2ForMaskedLM",
        DEBERTA | {"share_att_key": True},
    ),
    "deberta_v2_conv": (
        Encoder,
        "deberta-v2",
        "DebertaV2ForMaskedLM",
        DEBERTA | {"conv_kernel_size": 3},
    ),
    "deberta_v2_plain": (
        Encoder,
        "deberta-v2",
        "DebertaV2ForMaskedLM",
        DEBERTA | {"norm_rel_ebd": "none", "position_biased_input": True},
    ),
    "t5": (TextToText, "t5", "T5ForConditionalGeneration", T5),
    "t5_v1_1": (
        TextToText,
        "t5",
        "T5ForConditionalGeneration",
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "gpt2": (Causal, "gpt2", "GPT2LMHeadModel", GPT2),
    "llama": (Causal, "llama", "LlamaForCausalLM", LLAMA | {"tie_word_embeddings": False}),
    "llama_tied": (Causal, "llama", "LlamaForCausalLM", GROUPED | {"tie_word_embeddings": True}),
    "qwen2": (Causal, "qwen2", "Qwen2ForCausalLM", GROUPED | {"tie_word_embeddings": True}),
    "qwen3": (Causal, "qwen3", "Qwen3ForCausalLM", LLAMA | {"tie_word_embeddings": True}),
    "mistral": (Causal, "mistral", "MistralForCausalLM", LLAMA | {"sliding_window": 4}),
    "gemma": (Causal, "gemma", "GemmaForCausalLM", LLAMA),
    "gemma2": (
        Causal,
        "gemma2",
        "Gemma2ForCausalLM",
        LLAMA | WINDOW | {"query_pre_attn_scalar": 8},
    ),
    "gemma3": (
        Causal,
        "gemma3_text",
        "Gemma3ForCausalLM",
        LLAMA | WINDOW | {"query_pre_attn_scalar": 8},
    ),
}
CAUSAL = [name for name, (kind, *_) in FAMILIES.items() if kind is Causal]
HEAD = torch.tensor([5, 17, 40])


@dataclass
class Family:
    """One family's tiny model: the folder, transformers' own, and ours."""

    folder: Path
    theirs: torch.nn.Module
    backbone: Encoder
    model: object


def built(name: str, root: Path) -> Family:
    kind, model_type, published, sizes = FAMILIES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **sizes)
    config._attn_implementation = "eager"
    package = LAYOUTS[model_type].package
    package = import_module(f"transformers.models.{package}.modeling_{package}")
    theirs = getattr(package, published)(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(root / name)
    backbone = kind(model=str(root / name), tokenizer="pkg://mini_lm_tokenizer", max_length=32)
    return Family(root / name, theirs, backbone, backbone.load("cpu"))


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    root, known = tmp_path_factory.mktemp("families"), {}

    def family(name: str) -> Family:
        if name not in known:
            known[name] = built(name, root)
        return known[name]

    return family


@pytest.fixture(params=FAMILIES)
def family(request, families) -> Family:
    return families(request.param)


def token_rows(
    lengths=(9, 4, 12, 1), width: int = 14, seed: int = 2, right: bool = True
) -> torch.Tensor:
    """Random ids padded with -1."""
    ids = torch.randint(
        3, VOCABULARY, (len(lengths), width), generator=torch.Generator().manual_seed(seed)
    )
    for row, length in zip(ids, lengths, strict=True):
        row[slice(length, None) if right else slice(0, width - length)] = -1
    return ids.int()


def expected_features(family: Family, inputs: torch.Tensor) -> torch.Tensor:
    mask = inputs >= 0
    pad = family.theirs.config.pad_token_id or 0
    ids = inputs.long().masked_fill(~mask, pad)
    with torch.no_grad():
        if isinstance(family.backbone, Encoder):
            body = getattr(family.theirs, family.theirs.base_model_prefix)
            return body(input_ids=ids, attention_mask=mask.long()).last_hidden_state[:, 0]
        if isinstance(family.backbone, TextToText):
            start = torch.zeros(len(ids), 1, dtype=torch.long)
            return family.theirs(
                input_ids=ids, attention_mask=mask.long(), decoder_input_ids=start
            ).logits[:, 0, HEAD]
        return family.theirs(input_ids=ids, attention_mask=mask.long()).logits[
            range(len(ids)), mask.sum(1) - 1
        ][:, HEAD]


def outputs(family: Family, inputs: torch.Tensor, parameters=None) -> torch.Tensor:
    """What transformers computes as well: an encoder's features, the others' label scores."""
    parameters = family.model.parameters if parameters is None else parameters
    features = family.model.features(parameters, inputs, HEAD)
    return (
        features
        if isinstance(family.backbone, Encoder)
        else family.model.logits(features, HEAD, parameters)
    )


class TestForward:
    def test_equals_transformers(self, family):
        inputs = token_rows()
        expected, got = expected_features(family, inputs), outputs(family, inputs)
        assert got.shape == expected.shape
        assert (got - expected).norm() <= 1e-5 * expected.norm()
        family.backbone.check()

    def test_padding_changes_nothing(self, family):
        inputs = token_rows()
        expected = outputs(family, inputs)
        tolerance = {"rtol": 1e-4, "atol": 1e-5}
        alone = torch.cat([outputs(family, row[None]) for row in inputs])
        torch.testing.assert_close(alone, expected, **tolerance)
        wider = torch.nn.functional.pad(inputs, (0, 5), value=-1)
        torch.testing.assert_close(outputs(family, wider), expected, **tolerance)
        left = torch.stack([row.roll(int((row < 0).sum())) for row in inputs])
        assert (left[:, -1] >= 0).all()
        torch.testing.assert_close(outputs(family, left), expected, **tolerance)
        assert family.model.tokens(wider).tolist() == (inputs[:, :12] >= 0).tolist()

    def test_the_declared_layers_are_those_that_run(self, family):
        declared = family.backbone.linear_layers()
        fired, handles = [], []
        for name, module in family.model.module.named_modules():
            if getattr(module, "weight", None) is not None and module.weight.ndim == 2:
                record = lambda m, *_, name=name: fired.append((name, type(m)))  # noqa: E731
                handles.append(module.register_forward_hook(record))
        outputs(family, token_rows())
        for handle in handles:
            handle.remove()
        linear = list(dict.fromkeys(name for name, kind in fired if kind is torch.nn.Linear))
        assert {kind for _, kind in fired if "Embedding" not in kind.__name__} == {torch.nn.Linear}
        assert linear == [layer.name for layer in declared]
        shapes = family.backbone.layout.shapes(family.backbone.architecture)
        for layer in declared:
            assert shapes[layer] == tuple(
                family.model.module.get_submodule(layer.name).weight.shape
            )
        roles = {layer.role for layer in declared}
        assert {"attn.q", "attn.k", "attn.v", "attn.out", "mlp.proj"} <= roles
        assert [layer.block for layer in declared] == sorted(layer.block for layer in declared)

    def test_heads_are_rows_of_q(self, family):
        heads = family.backbone.attention_heads()
        shapes = {
            layer.role: shape
            for layer, shape in family.backbone.layout.shapes(family.backbone.architecture).items()
        }
        assert shapes["attn.q"][0] == heads.query * heads.width
        assert shapes["attn.k"][0] == heads.key_value * heads.width


class TestParameters:
    def test_editable_is_what_acts_and_tied_tensors_appear_once(self, family):
        parameters = {
            name: tensor.clone().requires_grad_()
            for name, tensor in family.model.parameters.items()
        }
        outputs(family, token_rows(), parameters).square().sum().backward()
        idle = {name for name, tensor in parameters.items() if tensor.grad is None}
        assert not idle
        assert len({tensor.data_ptr() for tensor in family.model.parameters.values()}) == len(
            parameters
        )
        assert family.backbone.weight_bytes() == 4 * sum(
            tensor.numel() for tensor in parameters.values()
        )
        assert ("lm_head.weight" in parameters) == (family.folder.name in ("llama", "mistral"))

    def test_names_are_those_of_transformers_and_maps_are_exact(self, family):
        state = family.theirs.state_dict()
        canonical = family.backbone.from_transformers(state)
        back = family.backbone.to_transformers(canonical)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)
        assert all(
            torch.equal(tensor, canonical[name]) for name, tensor in family.model.parameters.items()
        )
        again = family.backbone.from_transformers(back)
        assert all(torch.equal(again[name], canonical[name]) for name in canonical)

    def test_gpt2_packs_whole_layers_only(self, families):
        backbone = families("gpt2").backbone
        names = [f"transformer.h.0.attn.c_attn.{part}.weight" for part in "kqv"]
        parts = {name: torch.randn(24, 24) for name in names}
        assert [tensor.shape for tensor in backbone.to_transformers(parts).values()] == [(24, 72)]
        for name in names:
            with pytest.raises(ValueError, match=f"{name} is missing"):
                backbone.to_transformers(
                    {other: tensor for other, tensor in parts.items() if other != name}
                )


@pytest.fixture
def double(family):
    """Features in float64 as a function of the parameters, the parameters, and two directions."""
    inputs, module = token_rows((5, 3), 6), family.model.module
    generator = torch.Generator().manual_seed(3)
    parameters = {name: tensor.double() for name, tensor in family.model.parameters.items()}
    directions = [
        {
            n: 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
            for n, p in parameters.items()
        }
        for _ in range(2)
    ]
    buffers = {
        name: b.double() if b.is_floating_point() else b for name, b in module.named_buffers()
    }

    def features(values):
        if isinstance(family.backbone, TextToText):
            return functional_call(
                module, {**buffers, **values}, (*family.model.prepare(inputs), HEAD)
            )
        return functional_call(module, {**buffers, **values}, family.model.prepare(inputs))

    return features, parameters, *directions


class TestDerivatives:
    def test_first_and_second_derivatives_equal_differences(self, double):
        """A product with the Jacobian, and the gradient of a loss on it, as tangent fine-tuning takes it."""
        features, parameters, direction, other = double

        def moved(step, along):
            return {name: parameters[name] + step * along[name] for name in parameters}

        def tangent(values):
            return jvp(features, (values,), (direction,))[1]

        with torch.no_grad():
            value, slope = jvp(features, (parameters,), (direction,))
            assert value.dtype == torch.float64
            torch.testing.assert_close(value, features(parameters), rtol=1e-10, atol=1e-10)
            difference = (
                features(moved(1e-5, direction)) - features(moved(-1e-5, direction))
            ) / 2e-5
        torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-7)

        def loss(values):
            return tangent(values).square().sum()

        gradient = grad(loss)(parameters)
        along = sum((gradient[name] * other[name]).sum() for name in gradient)
        with torch.no_grad():
            expected = (loss(moved(2e-5, other)) - loss(moved(-2e-5, other))) / 4e-5
        torch.testing.assert_close(along, expected, rtol=1e-5, atol=1e-6)

    def test_several_directions_at_once_equal_each_alone(self, double):
        """Also where one direction leaves half of the parameters alone."""
        features, parameters, first, second = double
        second = {
            name: tau if i % 2 else torch.zeros_like(tau)
            for i, (name, tau) in enumerate(second.items())
        }
        with torch.no_grad():
            expected = [jvp(features, (parameters,), (direction,)) for direction in (first, second)]
            both = {name: torch.stack([first[name], second[name]]) for name in parameters}
            value, tangents = differentiate(features, parameters, both)
        torch.testing.assert_close(value, expected[0][0], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(
            tangents, torch.stack([slope for _, slope in expected]), rtol=1e-11, atol=1e-11
        )

    def test_fused_and_written_paths_have_the_same_gradient(self, family, double):
        features, parameters, *_ = double
        written = grad(lambda values: features(values).square().sum())(parameters)
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in parameters.items()}
        features(leaves).square().sum().backward()
        for name, tensor in leaves.items():
            if tensor.grad is not None:
                torch.testing.assert_close(written[name], tensor.grad, rtol=1e-8, atol=1e-9)


def log_probs(model, parameters, inputs):
    return model.token_log_probs(model.token_states(parameters, inputs), inputs, parameters)


class TestCausal:
    @pytest.mark.parametrize("name", CAUSAL)
    def test_log_probs_equal_transformers_loss(self, families, name):
        family = families(name)
        inputs = token_rows()
        mask = inputs >= 0
        ids = inputs.long().clamp(min=0)
        with torch.no_grad():
            got = log_probs(family.model, family.model.parameters, inputs)
            labels = ids.masked_fill(~mask, -100)
            loss = family.theirs(input_ids=ids, attention_mask=mask.long(), labels=labels).loss
        assert got.shape == (4, 13)
        assert (got[~mask[:, 1:]] == 0).all()
        torch.testing.assert_close(-got.sum() / mask[:, 1:].sum(), loss, rtol=1e-5, atol=1e-6)

    def test_scores_follow_the_parameters(self, families):
        for name in ("llama", "llama_tied"):
            model = families(name).model
            features = model.features(model.parameters, token_rows())
            changed = {model.output: 2 * model.parameters[model.output]}
            torch.testing.assert_close(
                model.logits(features, HEAD, changed), 2 * model.logits(features, HEAD)
            )

    @pytest.mark.parametrize("name", ["bert", "t5"])
    def test_other_kinds_have_no_perplexity(self, families, name):
        with pytest.raises(UserError, match="perplexity needs a causal"):
            families(name).model.token_states({}, token_rows())
