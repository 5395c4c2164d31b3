"""The oracle of ppo against stable-baselines3, torch's distributions, scipy and torch's sampler."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from scipy.stats import entropy, zscore

from reference.reinforcement import ppo as oracle

# warnings of the libraries are theirs
pytestmark = pytest.mark.filterwarnings("ignore")

SINGLE = 3e-6  # where it computes in float32, as stable-baselines3 does
SEEDS = [0, 1, 2]


def numbers(*shape, seed):
    """Standard normal values."""
    return np.random.default_rng(seed).standard_normal(shape)


def steps(T, N, seed):
    """Rewards, values and dones of a rollout."""
    ended = np.random.default_rng(seed + 50).random((T, N)) < 0.2
    return numbers(T, N, seed=seed), numbers(T + 1, N, seed=seed + 9), ended


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("T", "N"), [(1, 1), (7, 3), (40, 2)])
def test_advantages_are_those_of_a_rollout_buffer(T, N, seed, agrees):
    """RolloutBuffer.compute_returns_and_advantage, whose dones are those of the step before."""
    from stable_baselines3.common.buffers import RolloutBuffer

    rewards, values, dones = steps(T, N, seed)
    space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(3)
    buffer = RolloutBuffer(T, *space, device="cpu", gae_lambda=0.8, gamma=0.9, n_envs=N)
    started = np.zeros(N)
    for t in range(T):
        buffer.add(
            np.zeros((N, 2)),
            np.zeros((N, 1)),
            rewards[t],
            started,
            torch.from_numpy(values[t]),
            torch.zeros(N),
        )
        started = dones[t].astype(float)
    buffer.compute_returns_and_advantage(torch.from_numpy(values[-1]), dones[-1])
    advantages, returns = oracle.gae(rewards, values, dones, gamma=0.9, lam=0.8)
    # the buffer holds float32
    agrees(advantages, buffer.advantages.astype(np.float64), SINGLE)
    agrees(returns, buffer.returns.astype(np.float64), SINGLE)


@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_are_those_of_a_linear_filter(seed, agrees):
    """Without dones they are the output of scipy's one-pole filter on the errors, run backwards."""
    rewards, values, _ = steps(50, 3, seed)
    dones = np.zeros_like(rewards, dtype=bool)
    errors = rewards + 0.99 * values[1:] - values[:-1]
    theirs = lfilter([1], [1, -0.99 * 0.95], errors[::-1], axis=0)[::-1]
    agrees(oracle.gae(rewards, values, dones)[0], theirs)
    agrees(oracle.gae_by_solving(rewards, values, dones, gamma=0.99, lam=0.95), theirs)


@pytest.mark.parametrize("seed", SEEDS)
def test_scans_are_those_of_a_linear_filter(seed, agrees):
    """With one slope for all steps, reverse_affine_scan is such a filter too."""
    b = numbers(33, 2, seed=seed)
    theirs = lfilter([1], [1, 0.7], b[::-1], axis=0)[::-1]
    agrees(oracle.reverse_affine_scan(np.full_like(b, -0.7), b), theirs)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_kl_of_choices_is_that_of_torch_and_scipy(seed, agrees):
    """torch.distributions.kl_divergence, scipy.stats.entropy; gradients by autograd."""
    from torch.distributions import Categorical, kl_divergence

    old, new = 3 * numbers(4, 5, seed=seed), 3 * numbers(4, 5, seed=seed + 9)
    inputs = [torch.from_numpy(x).requires_grad_(True) for x in (old, new)]
    theirs = kl_divergence(*(Categorical(logits=x) for x in inputs))
    agrees(oracle.categorical_kl(old, new), theirs)
    p, q = (x.detach().softmax(-1).numpy() for x in inputs)
    agrees(oracle.categorical_kl(old, new), entropy(p, q, axis=-1))
    grad = numbers(4, seed=seed + 20)
    slopes = torch.autograd.grad((torch.from_numpy(grad) * theirs).sum(), inputs)
    for ours, upstream in zip(oracle.categorical_kl_gradient(grad, old, new), slopes, strict=True):
        agrees(ours, upstream)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_kl_of_impossible_actions_is_that_of_torch(seed, agrees):
    """Actions of logit -inf in both."""
    from torch.distributions import Categorical, kl_divergence

    old, new = numbers(3, 4, seed=seed), numbers(3, 4, seed=seed + 9)
    old[1, 2] = new[1, 2] = old[2, 0] = -np.inf
    theirs = kl_divergence(*(Categorical(logits=torch.from_numpy(x)) for x in (old, new)))
    agrees(oracle.categorical_kl(old, new), theirs)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_kl_of_gaussians_is_that_of_torch(seed, agrees):
    """torch.distributions.kl_divergence of Normal, summed over the components."""
    from torch.distributions import Independent, Normal, kl_divergence

    old_mean, old_log_std, mean, log_std = (numbers(4, 3, seed=10 * seed + i) for i in range(4))
    pair = [
        Independent(Normal(torch.from_numpy(m), torch.from_numpy(s).exp()), 1)
        for m, s in ((old_mean, old_log_std), (mean, log_std))
    ]
    agrees(oracle.gaussian_kl(old_mean, old_log_std, mean, log_std), kl_divergence(*pair))


def learner(seed, **named):
    """PPO of stable-baselines3 on CartPole, its networks linear, with a rollout in its buffer."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    settings = {
        "n_steps": 16,
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "max_grad_norm": 1e9,
        "normalize_advantage": False,
        "policy_kwargs": {
            "net_arch": [],
            "ortho_init": False,
            "optimizer_class": torch.optim.SGD,
            "optimizer_kwargs": {},
        },
        "device": "cpu",
        "seed": seed,
    }
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=3, seed=seed), **settings | named)
    _, callback = model._setup_learn(48)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=16)
    return model


def batch_of(buffer, order):
    """The samples of a buffer, in the order in which it flattened them."""
    data = buffer._get_samples(order)
    names = {
        "observations": data.observations,
        "actions": data.actions.long().flatten(),
        "logp": data.old_log_prob,
        "advantages": data.advantages,
        "returns": data.returns,
    }
    return {
        name: x.numpy() if name == "actions" else x.double().numpy() for name, x in names.items()
    }


def theta_of(policy):
    """The weights of a linear policy and a linear value, as the oracle wants them."""
    places = [*policy.action_net.parameters(), *policy.value_net.parameters()]
    return torch.cat([p.detach().flatten() for p in places]).double().numpy()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_loss_is_that_of_stable_baselines3(seed, agrees):
    """What PPO.train logs of its own buffer: all six numbers, under a policy that has moved."""
    model = learner(seed, batch_size=48, n_epochs=1, clip_range=0.1, vf_coef=0.7, ent_coef=0.3)
    with torch.no_grad():
        for p in model.policy.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
    theta = theta_of(model.policy)
    model.train()
    logged = model.logger.name_to_value
    batch = batch_of(model.rollout_buffer, np.arange(48))
    ours = oracle.linear_numbers(theta, (2, 4), batch, clip=0.1, c1=0.7, c2=0.3)
    theirs = {
        "loss": logged["train/loss"],
        "policy": -logged["train/policy_gradient_loss"],
        "value": logged["train/value_loss"],
        "entropy": -logged["train/entropy_loss"],
        "clip_fraction": logged["train/clip_fraction"],
        "approx_kl": logged["train/approx_kl"],
    }
    assert ours["clip_fraction"] > 0.1
    for name, value in theirs.items():
        agrees(np.float64(ours[name]), np.float64(value), SINGLE)


@pytest.mark.parametrize("seed", SEEDS)
def test_algorithm_1_is_that_of_stable_baselines3(seed, agrees):
    """Three epochs of minibatches of 20, the last of 8, with SGD: where its weights end."""
    model = learner(
        seed,
        batch_size=20,
        n_epochs=3,
        clip_range=0.02,
        vf_coef=0.7,
        ent_coef=0.3,
        learning_rate=0.1,
    )
    theta = theta_of(model.policy)
    np.random.seed(seed)
    orders = [np.random.permutation(48) for _ in range(3)]
    np.random.seed(seed)
    model.train()
    blocks = [[order[i : i + 20] for i in range(0, 48, 20)] for order in orders]
    batch = batch_of(model.rollout_buffer, np.arange(48))
    named = {"rate": 0.1, "normalise": False, "clip": 0.02, "c1": 0.7, "c2": 0.3}
    ours, stats = oracle.ppo_update(theta, (2, 4), batch, blocks, **named)
    assert stats["clip_fraction"].max() > 0
    agrees(ours, theta_of(model.policy), SINGLE)


@pytest.mark.parametrize("seed", SEEDS)
def test_standardised_numbers_are_z_scores(seed, agrees):
    """scipy.stats.zscore, which divides by the population's deviation; eps aside."""
    x = 5 + 3 * numbers(9, seed=seed)
    agrees(oracle.standardise(x, eps=0.0), zscore(x))
