"""The oracle of dpo against Liger kernels, TRL, transformers, scipy and torch's sampler."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax

from reference.alignment import dpo as oracle

# warnings of the libraries are theirs
pytestmark = pytest.mark.filterwarnings("ignore")

SINGLE = 3e-6  # where it computes in float32, as Liger's streams and TRL's log-probabilities do
SEEDS = [0, 1, 2]


def numbers(*shape, seed):
    """Standard normal values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def four(seed):
    """Log-probabilities of five pairs under the policy and the reference."""
    return [5 * numbers(5, seed=4 * seed + i) for i in range(4)]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_loss_and_rewards_are_those_of_liger(seed, agrees):
    """Eq. 7 and the implicit rewards equal LigerFusedLinearDPOFunction.preference_loss_fn."""
    from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOFunction

    chosen, rejected, ref_chosen, ref_rejected = four(seed)
    loss, *rewards = LigerFusedLinearDPOFunction.preference_loss_fn(
        chosen,
        rejected,
        torch.zeros(10),
        ref_chosen_logps=ref_chosen,
        ref_rejected_logps=ref_rejected,
        beta=0.3,
    )
    ours = oracle.dpo_loss(*(x.numpy() for x in four(seed)), beta=0.3)
    agrees(ours["loss"], loss)
    for name, theirs in zip(("chosen_reward", "rejected_reward"), rewards, strict=False):
        agrees(ours[name], theirs)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_is_that_of_torch(seed, agrees):
    """The weight of section 4 gives the gradient that autograd finds for F.logsigmoid."""
    inputs = [x.requires_grad_(i < 2) for i, x in enumerate(four(seed))]
    chosen, rejected, ref_chosen, ref_rejected = inputs
    h = 0.3 * ((chosen - ref_chosen) - (rejected - ref_rejected))
    theirs = torch.autograd.grad(-torch.nn.functional.logsigmoid(h).mean(), inputs[:2])
    ours = oracle.dpo_gradient(*(x.detach().numpy() for x in inputs), beta=0.3)
    for a, b in zip(ours, theirs, strict=True):
        agrees(a, b)


@pytest.mark.parametrize("seed", SEEDS)
def test_sequences_are_those_of_trl(seed, agrees):
    """Sums of TRL's selective_log_softmax over shifted, counted labels equal sequence_logprob."""
    from trl.trainer.utils import selective_log_softmax

    logits = 3 * numbers(3, 6, 7, seed=seed)
    labels = torch.arange(18).reshape(3, 6) * 5 % 7
    labels[0, :3] = labels[2, 4:] = -100
    counted = labels[:, 1:] != -100
    token = selective_log_softmax(logits[:, :-1], labels[:, 1:].clamp(min=0))
    ours = oracle.sequence_logprob(logits.numpy(), labels.numpy())
    agrees(ours, (token * counted).sum(-1))


@pytest.mark.parametrize("seed", SEEDS)
def test_sequences_are_those_of_a_language_model_of_transformers(seed, agrees):
    """A causal LM's own loss, a mean over counted tokens in float32, is minus sequence_logprob."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    model = GPT2LMHeadModel(config).double().eval()
    tokens = torch.arange(7)[None] * 3 % 11
    labels = tokens.clone()
    labels[:, :2] = -100
    with torch.no_grad():
        out = model(input_ids=tokens, labels=labels)
    ours = oracle.sequence_logprob(out.logits.numpy(), labels.numpy())
    agrees(-ours[0] / 5, out.loss, SINGLE)


@pytest.mark.parametrize("seed", SEEDS)
def test_streamed_log_probabilities_are_those_of_liger(seed, agrees):
    """Liger's log-probabilities in blocks over sequence and vocabulary, and gradients, agree."""
    from liger_kernel.chunked_loss.fused_linear_ppo import _ChunkedSelectiveLogProbFunction

    hidden, weight = numbers(5, 8, seed=seed).float(), numbers(23, 8, seed=seed + 9).float()
    targets, grad = torch.tensor([0, 22, 7, 7, 11]), numbers(5, seed=seed + 20).float()
    hidden.requires_grad_(True)
    weight.requires_grad_(True)
    logp = _ChunkedSelectiveLogProbFunction.apply(hidden, weight, targets, None, 1.0, 6)
    theirs = torch.autograd.grad((grad * logp).sum(), (hidden, weight))
    h, w, g = (x.detach().double().numpy() for x in (hidden, weight, grad))
    ours, lse = oracle.linear_logprob_forward(h, w, targets.numpy())
    agrees(ours, logp, SINGLE)
    for a, b in zip(
        oracle.linear_logprob_backward(g, h, w, targets.numpy(), lse), theirs, strict=True
    ):
        agrees(a, b, SINGLE)


@pytest.mark.parametrize("seed", SEEDS)
def test_scipy_finds_no_better_policy(seed, agrees):
    """Climbing E[r] - beta KL numerically ends at Eq. 4, with the value beta E[log Z]."""
    ref = log_softmax(numbers(2, 4, seed=seed).numpy(), axis=-1)
    reward = numbers(2, 4, seed=seed + 9).numpy()

    def cost(x):
        return -oracle.objective(log_softmax(x.reshape(2, 4), axis=-1), ref, reward, beta=0.4)

    climbed = minimize(cost, ref.ravel(), tol=1e-12)
    logp, log_z = oracle.optimal_policy(ref, reward, beta=0.4)
    agrees(0.4 * log_z.mean(), np.float64(-climbed.fun), 1e-9)
    # at a maximum the value is flat: the policy is known to the root of the value's rounding
    agrees(np.exp(logp), np.exp(log_softmax(climbed.x.reshape(2, 4), axis=-1)), 1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_scipy_finds_no_better_reward_at_a_given_distance(seed, agrees):
    """SLSQP, which knows no beta, finds frontier_reward as the most under a bound on the KL."""
    ref = log_softmax(numbers(2, 4, seed=seed).numpy(), axis=-1)
    reward = numbers(2, 4, seed=seed + 9).numpy()

    def policy(x):
        return log_softmax(x.reshape(2, 4), axis=-1)

    found = minimize(
        lambda x: -oracle.expected_reward(policy(x), reward),
        ref.ravel() + 0.1 * reward.ravel(),
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda x: 0.3 - oracle.divergence(policy(x), ref)},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    agrees(np.float64(oracle.frontier_reward(0.3, ref, reward)), np.float64(-found.fun), 1e-6)


def test_rankings_are_drawn_as_torch_draws_without_replacement(agrees):
    """torch.multinomial without replacement draws rankings with Plackett-Luce frequencies."""
    score, draws = numbers(3, seed=0), 200_000
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(score.exp().expand(draws, 3), 3, generator=generator)
    for places in itertools.permutations(range(3)):
        often = (drawn == torch.tensor(places)).all(-1).double().mean().item()
        loss = oracle.plackett_luce_dpo_loss(
            2 * score[None].numpy(), np.zeros((1, 3)), np.array([places]), beta=0.5
        )
        # four standard deviations of a share of so many draws
        agrees(np.exp(-loss), np.float64(often), 4 * (0.25 / draws) ** 0.5)


def test_a_batch_through_trl_has_the_same_loss(tmp_path, agrees):
    """DPOTrainer.compute_loss on a tiny Llama, whose log-probabilities are float32, is Eq. 7."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(20)} | {"[PAD]": 20, "[UNK]": 21, "[EOS]": 22}
    inner = Tokenizer(models.WordLevel(words, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )

    def tiny(seed):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=23,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=20,
            eos_token_id=22,
            bos_token_id=None,
        )
        return LlamaForCausalLM(config).double()

    rows = [
        {"prompt": "w1 w2", "chosen": " w3 w4", "rejected": " w5"},
        {"prompt": "w6", "chosen": " w7", "rejected": " w8 w9"},
    ]
    settings = trl.DPOConfig(
        output_dir=str(tmp_path),
        report_to="none",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=2,
        beta=0.3,
        gradient_checkpointing=False,
        disable_dropout=True,
    )
    policy, reference = tiny(0), tiny(1)
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    tokens = batch["input_ids"]
    labels = tokens.masked_fill(batch["completion_mask"] == 0, -100).numpy()
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, batch)
        logits = [model(input_ids=tokens).logits.double().numpy() for model in (policy, reference)]
    both = [np.split(oracle.sequence_logprob(x, labels), 2) for x in logits]
    agrees(oracle.dpo_loss(*both[0], *both[1], beta=0.3)["loss"], theirs, SINGLE)
