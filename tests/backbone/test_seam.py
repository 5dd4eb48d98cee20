"""The attention seam: prefixes against a hand-written softmax, and the stock result whenever there is no prefix."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ALL_MODELS, IMAGE_SIZE, WIDTH, build_tiny, byte_tokenizer, save_tiny, t5_config
from torch import Tensor, nn

from contune.backbone.assemble import assemble
from contune.backbone.attention import interface as seam
from contune.backbone.backbone import Backbone
from contune.backbone.config import ModelConfig
from contune.backbone.reader.inputs import ModelInputs
from contune.errors import CombinationError, ConfigError

TEXTS = ["the quick brown fox", "a", "jumps over the"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: save_tiny(name, root / name) for name in ALL_MODELS}


@pytest.fixture(params=ALL_MODELS)
def backbone(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Backbone:
    return Backbone.load(ModelConfig(path=str(folders[request.param])))


def batch_of(backbone: Backbone, rows: int = 3) -> ModelInputs:
    inputs: Any = TEXTS
    if backbone.modality == "image":
        random = np.random.default_rng(0)
        inputs = [random.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8) for _ in range(3)]
    return backbone.collate([(backbone.prepare(inputs), np.arange(rows))])


def random_prefix(backbone: Backbone, layer: int, *shape: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(layer)
    size = (*shape, backbone.kv_width(layer))
    return scale * torch.randn(size, generator=generator), torch.randn(size, generator=generator)


def stock_features(folder: Path, backbone: Backbone, inputs: ModelInputs) -> Tensor:
    """The same features with the model on its own attention function instead of the seam."""
    other = Backbone.load(ModelConfig(path=str(folder)))
    other.model.set_attn_implementation("sdpa")
    return other.features(inputs)


def test_without_a_prefix_the_seam_is_the_stock_kernel(backbone: Backbone) -> None:
    inputs = batch_of(backbone)
    stock = stock_features(Path(backbone.config.path), backbone, inputs)
    assert torch.equal(backbone.features(inputs), stock)
    empty = {layer: random_prefix(backbone, layer, 0) for layer in range(backbone.depth)}
    with backbone.prefixes(empty):
        assert torch.equal(backbone.features(inputs), stock)


def test_prefix_changes_features_but_not_shapes_and_gets_gradients(backbone: Backbone) -> None:
    inputs = batch_of(backbone)
    base = backbone.encode(inputs).states
    prefixes = {layer: random_prefix(backbone, layer, 2) for layer in (0, backbone.depth - 1)}
    for keys, values in prefixes.values():
        keys.requires_grad_()
        values.requires_grad_()
    with backbone.prefixes(prefixes):
        encoded = backbone.encode(inputs)
    assert encoded.states.shape == base.shape
    assert encoded.prompts == 0
    assert (encoded.states - base).abs().max() > 1e-3
    encoded.states.square().sum().backward()
    for keys, values in prefixes.values():
        assert keys.grad is not None
        assert values.grad is not None
        assert keys.grad.abs().sum() > 0
        assert values.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    assert torch.equal(backbone.encode(inputs).states, base)


def test_rows_see_only_their_own_prefix(backbone: Backbone) -> None:
    inputs = batch_of(backbone)
    keys, values = random_prefix(backbone, 1, 3, 2)
    other = values.clone()
    other[2] += 1.0
    with backbone.prefixes({1: (keys, values)}):
        first = backbone.features(inputs)
    with backbone.prefixes({1: (keys, other)}):
        second = backbone.features(inputs)
    assert torch.equal(first[:2], second[:2])
    assert (first[2] - second[2]).abs().max() > 1e-4
    with backbone.prefixes({1: (keys[:1].expand(3, -1, -1), values[:1].expand(3, -1, -1))}):
        expanded = backbone.features(inputs)
    with backbone.prefixes({1: (keys[0], values[0])}):
        shared = backbone.features(inputs)
    assert torch.equal(expanded, shared)


@contextmanager
def recorded_attention(module: nn.Module) -> Iterator[list[tuple[Any, ...]]]:
    """What the stock kernel is given and gives back for one module, prefix included."""
    import transformers.integrations.sdpa_attention as stock

    seen: list[tuple[Any, ...]] = []
    original = stock.sdpa_attention_forward

    def spy(caller: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
        result = original(caller, query, key, value, mask, **options)
        if caller is module:
            seen.append((query, key, value, mask, options, result[0]))
        return result

    stock.sdpa_attention_forward = spy
    try:
        yield seen
    finally:
        stock.sdpa_attention_forward = original


def naive_attention(
    query: Tensor, key: Tensor, value: Tensor, prefix: seam.Prefix, visible: Tensor, scale: float, bias: Tensor | None
) -> Tensor:
    """softmax(scale * Q [P_K; K]^T + bias) [P_V; V], row by row and head by head; visible (B, q, k)."""
    batch, heads, queries, width = query.shape
    group = heads // key.shape[1]
    out = torch.zeros(batch, queries, heads, width)
    for row in range(batch):
        for head in range(heads):
            shared = head // group
            columns = slice(shared * width, (shared + 1) * width)
            keys = torch.cat([prefix[0][row][:, columns], key[row, shared]])
            values = torch.cat([prefix[1][row][:, columns], value[row, shared]])
            scores = scale * query[row, head] @ keys.T
            length = len(keys) - key.shape[2]
            if bias is not None:
                scores[:, length:] += bias[0, head]
            scores[:, length:][~visible[row]] = -math.inf
            out[row, :, head] = torch.softmax(scores, dim=-1) @ values
    return out


@pytest.mark.parametrize("layer", [0, 2])
def test_prefix_equals_a_softmax_written_by_hand(backbone: Backbone, layer: int) -> None:
    """Covers grouped queries, padding, causal masks, a position bias and, in ModernBERT's layer 2, a sliding window."""
    inputs = batch_of(backbone)
    module = backbone.attention[layer]
    prefix = random_prefix(backbone, layer, 3, 2)
    with recorded_attention(module) as plain:
        backbone.encode(inputs)
    with backbone.prefixes({layer: prefix}), recorded_attention(module) as seen:
        backbone.encode(inputs)
    query, key, value, mask, options, _ = plain[0]
    result = seen[0][-1]
    batch, length = query.shape[0], query.shape[2]
    if mask is None:
        visible = torch.ones(batch, length, length, dtype=torch.bool)
        if getattr(module, "is_causal", False):
            visible = visible.tril()
    else:
        visible = mask[:, 0].expand(batch, length, length)
    scale = options["scaling"]
    expected = naive_attention(query, key, value, prefix, visible, scale, options.get("position_bias"))
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=1e-5)
    without_last = (prefix[0][:, :1], prefix[1][:, :1])
    wrong = naive_attention(query, key, value, without_last, visible, scale, options.get("position_bias"))
    assert (result - wrong).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kernel", ["sdpa", "products"])
def test_unpadded_causal_batch_keeps_its_causality(kernel: seam.Kernel, name: str, folders: dict[str, Path]) -> None:
    """sdpa's stock mask is absent here, so the seam has to write the causal one itself."""
    config = ModelConfig(path=str(folders[name]))
    backbone = Backbone(config, assemble(config, "cpu", kernel))
    prepared = backbone.prepare(["abcdef", "abcdez"])
    inputs = backbone.collate([(prepared, np.arange(2))])
    with backbone.prefixes({0: random_prefix(backbone, 0, 2), 2: random_prefix(backbone, 2, 2)}):
        states = backbone.encode(inputs).states
    torch.testing.assert_close(states[0, :-1], states[1, :-1])
    assert (states[0, -1] - states[1, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_left_padding_with_a_prefix_gives_the_unpadded_states(name: str) -> None:
    seam.register()
    model = build_tiny(name)
    model.set_attn_implementation("contune")
    with seam.watch() as calls:
        model(input_ids=torch.tensor([[7, 8]]), use_cache=False)
    generator = torch.Generator().manual_seed(0)
    prefix = tuple(torch.randn(3, calls[0].key_width, generator=generator) for _ in range(2))
    ids = torch.tensor([[9, 10, 11, 12]])
    padded, mask = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids], 1), torch.tensor([[0, 0, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with seam.attach({calls[1].module: prefix}):
        alone = model(input_ids=ids, use_cache=False).last_hidden_state
        left = model(input_ids=padded, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    bare = model(input_ids=ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(left[:, 2:], alone, atol=1e-5, rtol=1e-5)
    assert (alone - bare).abs().max() > 1e-3


def test_prefix_in_the_decoder_of_t5_extends_mask_and_position_bias() -> None:
    """Self-attention of a decoder: causal and with a position bias that later layers share."""
    from transformers import T5Model

    torch.manual_seed(0)
    seam.register()
    model = T5Model(t5_config()).eval()
    model.set_attn_implementation("contune")
    source, target = torch.tensor([[7, 8, 9]]), torch.tensor([[0, 11, 12, 13]])
    inside = model.decoder.block[0].layer[0].SelfAttention
    prefix = (torch.randn(2, WIDTH), torch.randn(2, WIDTH))
    bare = model(input_ids=source, decoder_input_ids=target, use_cache=False).last_hidden_state
    with seam.attach({inside: prefix}), recorded_attention(inside) as seen:
        first = model(input_ids=source, decoder_input_ids=target, use_cache=False).last_hidden_state
    changed = target.clone()
    changed[0, -1] = 14
    with seam.attach({inside: prefix}):
        second = model(input_ids=source, decoder_input_ids=changed, use_cache=False).last_hidden_state
    query, key, value, _, options, result = seen[0]
    assert key.shape[2] == 6
    assert options["position_bias"].shape[-1] == 6
    assert options["position_bias"][..., :2].abs().max() == 0
    visible = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    expected = naive_attention(
        query, key[:, :, 2:], value[:, :, 2:], (prefix[0][None], prefix[1][None]), visible, 1.0,
        options["position_bias"][..., 2:],
    )  # fmt: skip
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(first[:, :-1], second[:, :-1])
    assert (first - bare).abs().max() > 1e-3


def test_prefix_that_scores_minus_infinity_is_no_prefix_and_zero_values_are_one(folders: dict[str, Path]) -> None:
    backbone = Backbone.load(ModelConfig(path=str(folders["vit"])))
    inputs = batch_of(backbone)
    module = backbone.attention[1]
    with recorded_attention(module) as seen:
        base = backbone.encode(inputs).states
    query = seen[0][0]
    # A key opposite to the mean query of every head and row; only queries that point away from it could still see it.
    shift = query.mean(dim=2, keepdim=True)
    queries = query - shift + 10 * shift.sign()
    keys = seam.prefix_heads(torch.zeros(3, 1, backbone.kv_width(1)), seen[0][1]) - 1e4 * shift.sign()
    assert (queries @ keys.transpose(2, 3)).max() < 0
    flat = keys.transpose(1, 2).reshape(3, 1, -1)
    # The projection's bias is replaced so that queries lie where the key repels them.
    with replaced_queries(module, queries):
        expected = backbone.encode(inputs).states
        with backbone.prefixes({1: (flat, torch.ones_like(flat))}):
            repelled = backbone.encode(inputs).states
    torch.testing.assert_close(repelled, expected, atol=1e-5, rtol=1e-5)
    zero = torch.zeros(2, backbone.kv_width(1))
    with backbone.prefixes({1: (zero, zero)}):
        assert (backbone.encode(inputs).states - base).abs().max() > 1e-3


@contextmanager
def replaced_queries(module: Any, queries: Tensor) -> Iterator[None]:
    flat = queries.transpose(1, 2).flatten(2)
    handle = module.q_proj.register_forward_hook(lambda *_: flat)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "vit", "clip-vision", "modernbert"])
@pytest.mark.parametrize("kernel", ["products", "eager"])
def test_other_kernels_behind_the_seam_agree(kernel: seam.Kernel, name: str, folders: dict[str, Path]) -> None:
    config = ModelConfig(path=str(folders[name]))
    fast, plain = Backbone.load(config), Backbone(config, assemble(config, "cpu", kernel))
    inputs = batch_of(fast)
    prefix = {layer: random_prefix(fast, layer, 3, 2) for layer in range(fast.depth)}
    with fast.prefixes(prefix):
        one = fast.features(inputs)
    with plain.prefixes(prefix):
        other = plain.features(inputs)
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    assert (one - fast.features(inputs)).abs().max() > 1e-3


def test_a_seam_that_forgets_the_mask_would_be_caught(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: hide the prefix columns, and the hand-written softmax above no longer agrees."""
    monkeypatch.setattr(seam, "widen_mask", lambda mask, n: nn.functional.pad(mask, (n, 0), value=False))
    backbone = Backbone.load(ModelConfig(path=str(folders["bert"])))
    with pytest.raises(AssertionError):
        test_prefix_equals_a_softmax_written_by_hand(backbone, 0)


def test_kv_width_is_the_grouped_width(folders: dict[str, Path]) -> None:
    backbone = Backbone.load(ModelConfig(path=str(folders["llama"])))
    assert [backbone.kv_width(layer) for layer in range(backbone.depth)] == [WIDTH // 2] * 3


def test_wrong_prefixes_are_refused_before_any_compute(folders: dict[str, Path]) -> None:
    backbone = Backbone.load(ModelConfig(path=str(folders["llama"])))
    good = random_prefix(backbone, 0, 2)
    with (
        pytest.raises(CombinationError, match=r"give both as \(n, 16\)"),
        backbone.prefixes({0: (good[0], good[1][:1])}),
    ):
        pass
    with pytest.raises(CombinationError, match=r"\(2, 32\)"), backbone.prefixes({0: (torch.zeros(2, 32),) * 2}):
        pass
    with pytest.raises(ConfigError, match="layers 0 to 2"), backbone.prefixes({3: good}):
        pass
    with backbone.prefixes({0: good}), backbone.prefixes({1: good}):
        with pytest.raises(CombinationError, match="has a prefix already"), backbone.prefixes({0: good}):
            pass
        assert len(seam.attached()) == 2
    assert not seam.attached()
    four = random_prefix(backbone, 0, 4, 2)
    with backbone.prefixes({0: four}), pytest.raises(CombinationError, match="batch of 3 rows"):
        backbone.features(batch_of(backbone))


def test_a_model_without_the_seam_still_gives_features_but_takes_no_prefix(tmp_path: Path) -> None:
    from transformers import DebertaV2Config, DebertaV2Model

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    DebertaV2Model(DebertaV2Config(vocab_size=262, max_position_embeddings=128, **size)).save_pretrained(tmp_path)
    byte_tokenizer("deberta").save_pretrained(tmp_path)
    backbone = Backbone.load(ModelConfig(path=str(tmp_path)))
    assert backbone.features(batch_of(backbone)).shape == (3, 32)
    with pytest.raises(CombinationError, match="DebertaV2Model does not call its attention through"):
        backbone.kv_width(0)
