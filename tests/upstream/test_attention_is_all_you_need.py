"""The oracle of attention_is_all_you_need against torch and transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reference.transformers import attention_is_all_you_need as oracle

SINGLE = 1e-6  # where it computes, or stores its table, in float32
SEEDS = [0, 1, 2]


def numbers(*shape, seed):
    """Standard normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(module, seed):
    """The module in float64, every parameter random but the attentions' biases, which are 0."""
    module = module.double().eval()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(module.named_parameters()):
            parameter.copy_(numbers(*parameter.shape, seed=1000 * seed + i) / 2)
            if "attn" in name and name.endswith("bias") and "norm" not in name:
                parameter.zero_()
    return module


def arrays(tensors):
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def torch_attention(module, name):
    """The four matrices of a torch.nn.MultiheadAttention, as x @ w."""
    w_q, w_k, w_v = module.in_proj_weight.chunk(3)
    matrices = {"w_q": w_q.T, "w_k": w_k.T, "w_v": w_v.T, "w_o": module.out_proj.weight.T}
    return {f"{name}.{key}": matrix for key, matrix in matrices.items()}


def torch_layer(layer, norms):
    """The rest of a torch layer: feed-forward network and norms."""
    state = {
        "w_1": layer.linear1.weight.T,
        "b_1": layer.linear1.bias,
        "w_2": layer.linear2.weight.T,
        "b_2": layer.linear2.bias,
    }
    for i in range(1, norms + 1):
        norm = getattr(layer, f"norm{i}")
        state |= {f"norm_{i}.weight": norm.weight, f"norm_{i}.bias": norm.bias}
    return state


@pytest.mark.parametrize("seed", SEEDS)
def test_attention_is_that_of_torch(seed, agrees):
    """Eq. 1 is torch's scaled_dot_product_attention, zeros for a row that sees nothing included."""
    q, k, v = (
        numbers(3, 4, 5, seed=seed),
        numbers(3, 6, 5, seed=seed + 9),
        numbers(3, 6, 2, seed=seed + 18),
    )
    mask = numbers(3, 4, 6, seed=seed + 27) > 0
    mask[1, 2] = False
    ours, _ = oracle.scaled_dot_product_attention(q.numpy(), k.numpy(), v.numpy(), mask.numpy())
    agrees(ours, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


@pytest.mark.parametrize("seed", SEEDS)
def test_heads_are_those_of_torch(seed, agrees):
    """Multi-head attention is torch.nn.MultiheadAttention without biases."""
    module = shaken(nn.MultiheadAttention(6, 3, bias=False, batch_first=True), seed)
    x_q, x_kv = numbers(3, 4, 6, seed=seed), numbers(3, 5, 6, seed=seed + 9)
    mask = numbers(4, 5, seed=seed + 18) > -0.5
    mask[:, 0] = True
    state = arrays(torch_attention(module, "a"))
    weights = [state[f"a.{w}"] for w in ("w_q", "w_k", "w_v", "w_o")]
    ours = oracle.multi_head_attention(
        x_q.numpy(), x_kv.numpy(), *weights, n_heads=3, mask=mask.numpy()
    )
    agrees(ours, module(x_q, x_kv, x_kv, attn_mask=~mask)[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_encoder_layer_is_that_of_torch(seed, agrees):
    """The encoder layer is torch.nn.TransformerEncoderLayer with its norms last."""
    layer = shaken(nn.TransformerEncoderLayer(6, 3, 5, batch_first=True, norm_first=False), seed)
    x, mask = numbers(3, 4, 6, seed=seed), torch.ones(4, 4, dtype=torch.bool).tril()
    state = arrays(torch_attention(layer.self_attn, "self_attention") | torch_layer(layer, 2))
    agrees(
        oracle.encoder_layer(state, x.numpy(), mask.numpy(), n_heads=3), layer(x, src_mask=~mask)
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_the_decoder_layer_is_that_of_torch(seed, agrees):
    """The decoder layer is torch.nn.TransformerDecoderLayer with its norms last."""
    layer = shaken(nn.TransformerDecoderLayer(6, 3, 5, batch_first=True, norm_first=False), seed)
    x, memory = numbers(3, 4, 6, seed=seed), numbers(3, 5, 6, seed=seed + 9)
    own = torch.ones(4, 4, dtype=torch.bool).tril()
    cross = torch.tensor([[True] * 5, [True, False, True, True, False], [False] * 4 + [True]])
    state = arrays(
        torch_attention(layer.self_attn, "self_attention")
        | torch_attention(layer.multihead_attn, "cross_attention")
        | torch_layer(layer, 3)
    )
    masks = own.numpy(), cross[:, None, None].numpy()
    ours = oracle.decoder_layer(state, x.numpy(), memory.numpy(), *masks, n_heads=3)
    agrees(ours, layer(x, memory, tgt_mask=~own, memory_key_padding_mask=~cross))


@pytest.mark.parametrize(("n", "width"), [(1, 2), (7, 6), (50, 16)])
def test_positions_are_those_of_distilbert(n, width, agrees):
    """The interleaved table is the one DistilBERT starts from; it is stored in float32."""
    from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings

    table = torch.zeros(n, width)
    create_sinusoidal_embeddings(n, width, table)
    agrees(oracle.sinusoidal_positions(n, width), table, SINGLE)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_transformer_is_marian(seed, agrees):
    """Marian, whose positions have another order of columns, gives our logits with ours."""
    from transformers import MarianConfig, MarianMTModel

    config = MarianConfig(
        vocab_size=11,
        d_model=6,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=5,
        decoder_ffn_dim=5,
        activation_function="relu",
        scale_embedding=True,
        max_position_embeddings=8,
        pad_token_id=10,
        eos_token_id=9,
        decoder_start_token_id=10,
        forced_eos_token_id=None,
        attn_implementation="eager",
    )
    model = shaken(MarianMTModel(config), seed)
    positions = torch.tensor(oracle.sinusoidal_positions(8, 6))
    with torch.no_grad():
        for stack in (model.model.encoder, model.model.decoder):
            stack.embed_positions.weight.copy_(positions)
    generator = torch.Generator().manual_seed(seed)
    src, tgt = (torch.randint(9, (3, t), generator=generator) for t in (5, 4))
    src[0, 3:], src[2, 4:] = 10, 10
    with torch.no_grad():
        theirs = model(
            input_ids=src, attention_mask=(src != 10).long(), decoder_input_ids=tgt
        ).logits
    ours = oracle.transformer(arrays(marian(model)), src.numpy(), tgt.numpy(), n_heads=3, pad_id=10)
    agrees(ours, theirs)


def marian(model):
    """The weights of Marian under our names."""
    state = {"embedding": model.model.shared.weight}
    for stack in ("encoder", "decoder"):
        for i, layer in enumerate(getattr(model.model, stack).layers):
            named = {"self_attention": layer.self_attn}
            norms = [layer.self_attn_layer_norm, layer.final_layer_norm]
            if stack == "decoder":
                named["cross_attention"] = layer.encoder_attn
                norms.insert(1, layer.encoder_attn_layer_norm)
            own = {"w_1": layer.fc1.weight.T, "b_1": layer.fc1.bias}
            own |= {"w_2": layer.fc2.weight.T, "b_2": layer.fc2.bias}
            for name, attention in named.items():
                for letter in "qkv":
                    own[f"{name}.w_{letter}"] = getattr(attention, f"{letter}_proj").weight.T
                own[f"{name}.w_o"] = attention.out_proj.weight.T
            for number, norm in enumerate(norms, start=1):
                own |= {f"norm_{number}.weight": norm.weight, f"norm_{number}.bias": norm.bias}
            state |= {f"{stack}.{i}.{name}": tensor for name, tensor in own.items()}
    return state


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_loss_is_that_of_torch(seed, eps, agrees):
    """The smoothed loss and its gradient are those of torch's cross_entropy."""
    logits = (3 * numbers(3, 4, 5, seed=seed)).requires_grad_()
    target = torch.randint(5, (3, 4), generator=torch.Generator().manual_seed(seed))
    loss = F.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=2, label_smoothing=eps
    )
    (grad,) = torch.autograd.grad(loss, logits)
    arguments = (logits.detach().numpy(), target.numpy())
    agrees(oracle.label_smoothed_loss(*arguments, eps=eps, pad_id=2), loss)
    agrees(oracle.loss_gradient(*arguments, eps=eps, pad_id=2), grad)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_loss_is_that_of_transformers(seed, agrees):
    """The smoothed loss is the one of the Trainer's LabelSmoother; it sums a part in float32."""
    from transformers.trainer_pt_utils import LabelSmoother

    logits = numbers(3, 4, 5, seed=seed)
    target = torch.randint(5, (3, 4), generator=torch.Generator().manual_seed(seed))
    theirs = LabelSmoother(epsilon=0.2, ignore_index=2)({"logits": logits}, target.clone())
    agrees(
        oracle.label_smoothed_loss(logits.numpy(), target.numpy(), eps=0.2, pad_id=2),
        theirs,
        SINGLE,
    )


@pytest.mark.parametrize(("width", "warmup"), [(512, 4000), (48, 150), (16, 1)])
def test_the_schedule_is_the_inverse_square_root(width, warmup, agrees):
    """Eq. 3 is the inverse square root schedule of transformers with the peak (D warmup)^-0.5."""
    from transformers import get_inverse_sqrt_schedule

    peak = (width * warmup) ** -0.5
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    factor = get_inverse_sqrt_schedule(optimizer, num_warmup_steps=warmup).lr_lambdas[0]
    steps = [1, 2, warmup, warmup + 1, 4 * warmup, 99999]
    ours = np.array([oracle.noam_lr(step, width, warmup=warmup) for step in steps])
    agrees(ours / peak, np.array([factor(step) for step in steps]))


def test_the_models_have_the_papers_sizes(agrees):
    """Table 3 gives the base model 65 million weights and the big one 213, for 37000 tokens."""
    ours = [
        oracle.parameter_count(37000, 512, 2048, 6),
        oracle.parameter_count(37000, 1024, 4096, 6),
    ]
    agrees(ours / np.array([65e6, 213e6]), np.ones(2), tolerance=0.04)
