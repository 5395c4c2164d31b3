"""Proximal policy optimization: many steps on the same data, held back by a clipped ratio.

*Paper*  Schulman, Wolski, Dhariwal, Radford, Klimov (2017), Proximal Policy Optimization
Algorithms, arXiv:1707.06347. Read sections 3 to 5 first; Eq. 11 is arXiv:1506.02438.

*Why*  A policy gradient is right for one step; then the policy is another, and the data are stale.
The ratio rho of new to old probability corrects for that, but ascending on it rewards going too
far. PPO takes the worse of the ratio and the ratio clipped to 1 +- clip, so that nothing is gained
by leaving the neighbourhood of the old policy: K epochs of plain minibatch steps become safe.

*Names*
    r_t             rewards             (T, N)       of N actors side by side, for T steps
    V(s_t)          values              (T + 1, N)   the last row is V(s_T)
                    dones               (T, N)       bool; True: the episode ended AT step t
    delta_t, A_t    deltas, advantages  (T, N)
    gamma, lambda   gamma, lam          the discount, and the decay of the sum of errors
    pi, pi_old      logp, old_logp      (B,)         log-probabilities of the actions taken
    r_t(theta)      ratio, or rho       (B,)         exp(logp - old_logp)
    epsilon         clip                how far from 1 the ratio is worth anything
    V^targ, S       returns, entropy    (B,)
    beta, d_targ    beta, target        the price of a nat of KL[pi_old, pi], and the KL wanted
    K, M            epochs, minibatch   T, N, B, O, A, D: steps, actors, samples, and the widths of
                                        an observation, a choice of actions, a Gaussian action

*Tasks*  td_errors, gae, affine_compose, reverse_affine_scan, gae_scan, clipped_surrogate,
kl_penalised_surrogate, adapt_beta, categorical_kl, gaussian_kl, ppo_objective, minibatches,
linear_anneal, standardise, ppo_update.

*Differs*  The exponents of r_{T-1} in Eq. 10 and of delta_{T-1} in Eq. 11 are printed T - t + 1;
they are T - t - 1. Here advantages may be standardised in each minibatch, log-ratios are clamped to
+-20, and an episode cut by a time limit bootstraps: `rollout` adds gamma V(its last state) to its
last reward. gymnasium's vector environments answer the step after an end with a reset, whatever the
action; that is no transition, and `mask` leaves it out. The scan is not in the paper.

*Limits*  Discrete actions in the update, feed-forward networks, one process. Neither gradient
norms nor values are clipped, as the authors' code did.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

LIMIT = 20.0  # of a log-ratio: exp(20) is 5e8
KEYS = ("observations", "actions", "logp", "advantages", "returns")  # of ppo_update's batch
Pair = tuple[Tensor, Tensor]
Model = Callable[[Tensor], Tensor]


def td_errors(rewards: Tensor, values: Tensor, dones: Tensor, *, gamma: float = 0.99) -> Tensor:
    """How much better each step went than expected: (T, N), (T + 1, N), (T, N) -> (T, N)  [Eq. 12].

    delta_t = r_t + gamma V_{t+1} - V_t, without the middle term where dones[t]

    dones is bool. Behind a done, values[t + 1] belongs to another episode and is not read: nan or
    inf there does not reach delta_t. Differentiable by rewards and values.

    Raises ValueError: values that are not (T + 1, N) ("values"), dones that are not (T, N)
    ("dones"), gamma outside [0, 1] ("gamma").
    """
    # Task: check, then one line; select, do not multiply.
    if values.shape != (len(rewards) + 1, *rewards.shape[1:]):
        raise ValueError(f"values {tuple(values.shape)} do not fit rewards {tuple(rewards.shape)}")
    if dones.shape != rewards.shape:
        raise ValueError(f"dones {tuple(dones.shape)} do not fit rewards {tuple(rewards.shape)}")
    _check_share("gamma", gamma)
    return rewards + gamma * values[1:].where(~dones, 0.0) - values[:-1]


def gae(
    rewards: Tensor, values: Tensor, dones: Tensor, *, gamma: float = 0.99, lam: float = 0.95
) -> Pair:
    """Advantages and returns of a rollout: (T, N), (T + 1, N), (T, N) -> (T, N), (T, N)  [Eq. 11].

    A_t = delta_t + gamma lam A_{t+1}, with A_T = 0, and without the last term where dones[t]
    returns = A + V

    T >= 1. Nothing behind a done reaches a step before it, nan and inf included. Both answers are
    detached and have the dtype of the inputs.

    Raises ValueError: what td_errors refuses; lam outside [0, 1] ("lam").
    """
    # Task: walk backwards, and forget what was carried where an episode ended.
    _check_share("lam", lam)
    deltas = td_errors(rewards, values, dones, gamma=gamma).detach()
    advantages = torch.empty_like(deltas)
    carried = torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        carried = deltas[t] + gamma * lam * carried.where(~dones[t], 0.0)
        advantages[t] = carried
    return advantages, advantages + values[:-1].detach()


def affine_compose(first: Pair, second: Pair) -> Pair:
    """The map "second, then first" of x -> a x + b: pairs (a, b) of one shape -> a pair.

    a1 (a2 x + b2) + b1 = (a1 a2) x + (a1 b2 + b1)

    Where a1 is 0 the first map forgets what it is given, so nan or inf in b2 does not reach the
    answer there; elsewhere it does. Differentiable by all four, also where a1 is 0.
    """
    # Task: one line for each half of the pair, after 0 times nan is taken care of.
    (a1, b1), (a2, b2) = first, second
    b2 = b2.where((a1 != 0) | b2.isfinite(), 0.0)
    return a1 * a2, a1 * b2 + b1


def reverse_affine_scan(a: Tensor, b: Tensor) -> Tensor:
    """All x_t = a_t x_{t+1} + b_t, with x_T = 0, at once: (T, ...), (T, ...) -> (T, ...).

    There is no loop over T: a pass composes every map with the one `stride` steps behind it, and
    stride doubles from 1, so that ceil(log2 T) passes, each of a fixed number of operations on
    O(T) numbers, are enough; one more does no harm. T >= 1 is any number, not only a power of two;
    a may hold zeros, behind which nan and inf in b stay, as in affine_compose. Differentiable by
    a and b.

    Raises ValueError: a and b of different shapes ("shape").
    """
    # Task: which map leaves everything as it is? Put it behind the end.
    _same_shape(a=a, b=b)
    stride = 1
    while stride < len(a):
        one, zero = torch.ones_like(a[:stride]), torch.zeros_like(b[:stride])
        behind = torch.cat([a[stride:], one]), torch.cat([b[stride:], zero])
        a, b = affine_compose((a, b), behind)
        stride *= 2
    return b


def gae_scan(
    rewards: Tensor, values: Tensor, dones: Tensor, *, gamma: float = 0.99, lam: float = 0.95
) -> Pair:
    """What `gae` answers and refuses, in ceil(log2 T) passes instead of T steps  [Eq. 11].

    Eq. 11 backwards is the scan of the maps x -> gamma lam x + delta_t, whose slope is 0 where
    dones[t].
    """
    # Task: td_errors, the slopes, the scan.
    _check_share("lam", lam)
    deltas = td_errors(rewards, values, dones, gamma=gamma).detach()
    slopes = gamma * lam * (~dones).to(deltas.dtype)
    advantages = reverse_affine_scan(slopes, deltas)
    return advantages, advantages + values[:-1].detach()


def clipped_surrogate(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, *, clip: float = 0.2
) -> dict[str, Tensor]:
    """The clipped objective, to be MAXIMISED, from three tensors (B,)  [Eq. 7].

    rho = exp(logp - old_logp), the log-ratio clamped to +-20 before exp
    objective = mean of min(rho A, clamp(rho, 1 - clip, 1 + clip) A)

    Returns a dict of scalars: `objective`; `clip_fraction`, the share of samples with
    |rho - 1| > clip; `approx_kl`, the mean of (rho - 1) - log rho, an estimate of KL[pi_old, pi]
    that is never negative and keeps its digits for log-ratios of 1e-3 in float32. Only `objective`
    carries a gradient, and only to logp. clip = inf never clips: Eq. 6.

    Raises ValueError: inputs of different shapes ("shape"), clip <= 0 ("clip").
    """
    # Task: the ratio, the two products, the smaller. What does expm1 do that exp does not?
    _same_shape(logp=logp, old_logp=old_logp, advantages=advantages)
    if clip <= 0:
        raise ValueError(f"clip must be positive, got {clip}")
    advantages = advantages.detach()
    log_ratio = (logp - old_logp.detach()).clamp(-LIMIT, LIMIT)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    objective = torch.minimum(ratio * advantages, clipped * advantages).mean()
    change = log_ratio.detach().expm1()
    return {
        "objective": objective,
        "clip_fraction": (change.abs() > clip).to(change.dtype).mean(),
        "approx_kl": (change - log_ratio.detach()).mean(),
    }


def kl_penalised_surrogate(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, kl: Tensor, *, beta: float
) -> Tensor:
    """The other way to hold back, to be MAXIMISED too: four tensors (B,) -> scalar  [Eq. 8].

    mean of rho A - beta mean of kl, with rho as in clipped_surrogate

    kl is KL[pi_old, pi] of the two distributions over actions, one number a state, from
    categorical_kl or gaussian_kl. Gradients flow to logp and kl only.

    Raises ValueError: inputs of different shapes ("shape"), beta < 0 ("beta").
    """
    # Task: one line after the checks.
    _same_shape(logp=logp, old_logp=old_logp, advantages=advantages, kl=kl)
    if beta < 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    ratio = (logp - old_logp.detach()).clamp(-LIMIT, LIMIT).exp()
    return (ratio * advantages.detach()).mean() - beta * kl.mean()


def adapt_beta(beta: float, kl: float, *, target: float) -> float:
    """The coefficient for the next policy update, from the mean KL of this one  [section 4].

    Half of beta where kl < target / 1.5, twice beta where kl > 1.5 target, beta in between and at
    both limits. A Python number in, a Python number out.

    Raises ValueError: beta <= 0 ("beta"), target <= 0 ("target").
    """
    # Task: a KL that is too small may cost less.
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if target <= 0:
        raise ValueError(f"target must be positive, got {target}")
    if kl < target / 1.5:
        return beta / 2
    return beta * 2 if kl > 1.5 * target else beta


def categorical_kl(old_logits: Tensor, logits: Tensor) -> Tensor:
    """KL[old, new] of two distributions over A actions, row by row: (B, A), (B, A) -> (B,).

    sum over actions of p_old (log p_old - log p_new), the logits not normalised

    An action of old logit -inf contributes 0 to value and gradient, also where the new one is -inf;
    an action that only the new one rules out makes the KL inf. Differentiable by both. Right for
    logits of +-1e4.

    Raises ValueError: logits of different shapes ("shape").
    """
    # Task: log-probabilities first; what is 0 times the difference of two infinities?
    _same_shape(old_logits=old_logits, logits=logits)
    old_logp, logp = old_logits.log_softmax(-1), logits.log_softmax(-1)
    p = old_logp.exp()
    gap = (old_logp - logp).where(p > 0, 0.0)
    return (p * gap).sum(-1)


def gaussian_kl(old_mean: Tensor, old_log_std: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """KL[old, new] of two Gaussians with independent components: four tensors (B, D) -> (B,).

    sum over D of log_std - old_log_std + (old_std^2 + (old_mean - mean)^2) / (2 std^2) - 1/2

    Differentiable by all four. Never negative, and right for log_std of +-50 in float32: no square
    of such a std is representable, but the ratio of two is.

    Raises ValueError: inputs of different shapes ("shape").
    """
    # Task: the formula, with std only in ratios.
    _same_shape(old_mean=old_mean, old_log_std=old_log_std, mean=mean, log_std=log_std)
    wider = 2 * (old_log_std - log_std)
    shift = (old_mean - mean) * torch.exp(-log_std)
    return ((wider.expm1() - wider + shift**2) / 2).sum(-1)


def ppo_objective(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    values: Tensor,
    returns: Tensor,
    entropy: Tensor,
    *,
    clip: float = 0.2,
    c1: float = 1.0,
    c2: float = 0.01,
) -> dict[str, Tensor]:
    """The loss of policy and value together, to be MINIMISED, from six tensors (B,)  [Eq. 9].

    loss = -(L_CLIP - c1 mean of (V - R)^2 + c2 mean of entropy)

    The square is plain: no factor 1/2, no clipping. Returns a dict of scalars: `loss`; `policy`,
    which is L_CLIP; `value`, the mean square; `entropy`, its mean; and `clip_fraction` and
    `approx_kl` of clipped_surrogate. Only `loss` carries a gradient, to logp, values and entropy.

    Raises ValueError: inputs of different shapes ("shape"), clip <= 0 ("clip").
    """
    # Task: which of the three terms are to grow, and which is to shrink?
    _same_shape(advantages=advantages, values=values, returns=returns, entropy=entropy)
    surrogate = clipped_surrogate(logp, old_logp, advantages, clip=clip)
    policy = surrogate.pop("objective")
    value = (values - returns.detach()).square().mean()
    loss = -(policy - c1 * value + c2 * entropy.mean())
    return {
        "loss": loss,
        "policy": policy.detach(),
        "value": value.detach(),
        "entropy": entropy.detach().mean(),
        **surrogate,
    }


def minibatches(
    size: int, batch: int, *, epochs: int, generator: torch.Generator
) -> Iterable[Tensor]:
    """The indices of every minibatch of every epoch, each (<= batch,) int64  [Algorithm 1].

    An epoch is torch.randperm(size, generator=generator), drawn anew, cut into blocks of `batch`;
    a last block that is shorter is kept. So every index occurs once an epoch. A list of them, or
    an iterator that draws an epoch when it begins.

    Raises ValueError, when called or when first asked for a block: batch < 1 ("batch").
    """
    # Task: a permutation an epoch, then its pieces in order.
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    orders = [torch.randperm(size, generator=generator) for _ in range(epochs)]
    return [block for order in orders for block in order.split(batch)]


def linear_anneal(step: int, total: int) -> float:
    """alpha, a factor of learning rate AND clip: 1 at step 0, 0 from step total on  [Table 5].

    Raises ValueError: total < 1 ("total").
    """
    # Task: it never becomes negative.
    if total < 1:
        raise ValueError(f"total must be at least 1, got {total}")
    return max(0.0, 1 - step / total)


def standardise(x: Tensor, *, eps: float = 1e-8) -> Tensor:
    """x with mean 0 and standard deviation 1: (B,) -> (B,).

    (x - mean) / (std + eps), where std is the population's: it divides by B, not by B - 1

    One element, or equal ones, give 0.
    """
    # Task: one line; mind std's correction.
    return (x - x.mean()) / (x.std(correction=0) + eps)


def ppo_update(
    policy: Model,
    value: Model,
    optimiser: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    *,
    epochs: int = 10,
    minibatch: int = 64,
    clip: float = 0.2,
    c1: float = 1.0,
    c2: float = 0.01,
    normalise: bool = True,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """K epochs of minibatch steps on one rollout: the inner loop of Algorithm 1.

    policy: observations (b, O) -> logits (b, A).  value: observations (b, O) -> (b,).
    batch: `observations` (B, O), `actions` (B,) int64, and `logp`, `advantages`, `returns` (B,):
    these three come from the rollout and stay as they are for all epochs.

    Blocks come from minibatches(B, minibatch, ...). For each, policy and value run once, in the
    modes they are in, and the optimiser takes one step on the loss of ppo_objective; gradients left
    from before do not count. With normalise the block's advantages are standardised first.

    Returns the six numbers of ppo_objective, each (epochs,) and detached: the mean over the epoch's
    samples, so that a shorter block weighs less, each block measured before its own step.
    """
    # Task: gather a block, ask both networks, take the step, keep the numbers.
    size = len(batch["actions"])
    blocks = minibatches(size, minibatch, epochs=epochs, generator=generator)
    stats: dict[str, Tensor] = {}
    seen = 0
    for index in blocks:
        observations, actions, old_logp, advantages, returns = (batch[name][index] for name in KEYS)
        if normalise:
            advantages = standardise(advantages)
        logp, entropy = log_prob_and_entropy(policy(observations), actions)
        values = value(observations)
        numbers = ppo_objective(
            logp, old_logp, advantages, values, returns, entropy, clip=clip, c1=c1, c2=c2
        )
        optimiser.zero_grad()
        numbers["loss"].backward()
        optimiser.step()
        for name, number in numbers.items():
            total = stats.setdefault(name, number.new_zeros(epochs))
            total[seen // size] += number.detach() * len(index) / size
        seen += len(index)
    return stats


def log_prob_and_entropy(logits: Tensor, actions: Tensor) -> Pair:
    """Of a distribution over actions: (b, A), (b,) -> (b,), (b,); logits may be -inf (given)."""
    logp = logits.log_softmax(-1)
    p = logp.exp()
    return logp.gather(-1, actions[:, None])[:, 0], -(p * logp.where(p > 0, 0.0)).sum(-1)


def network(
    inputs: int, outputs: int, generator: torch.Generator, *, hidden: int = 64, gain: float = 1.0
) -> nn.Sequential:
    """Two tanh layers and a linear one (given): (b, inputs) -> (b, outputs), (b,) for one output.

    Orthogonal weights of gain sqrt(2), the last of `gain`, drawn from generator; biases 0.
    """
    layers: list[nn.Module] = []
    for sizes in itertools.pairwise((inputs, hidden, hidden, outputs)):
        with torch.random.fork_rng(devices=[]):  # torch draws weights that are then replaced
            linear = nn.Linear(*sizes)
        last = len(layers) == 4
        nn.init.orthogonal_(linear.weight, gain if last else 2**0.5, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    layers[-1] = nn.Flatten(0 if outputs == 1 else 1)
    return nn.Sequential(*layers)


@torch.no_grad()
def rollout(
    env: Any,
    policy: Model,
    value: Model,
    T: int,
    generator: torch.Generator,
    *,
    gamma: float = 0.99,
    state: dict[str, Any] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """T steps of pi_old in each of N environments (given): (data, state).

    env: a vector environment of gymnasium with its usual next-step autoreset and discrete actions.
    state: as returned by the rollout before, which this one goes on from; None resets env, with a
    seed from generator. state["finished"] lists the returns of the episodes that ended.

    data: `observations` (T, N, O); `actions`, `logp`, `rewards`, `dones`, `mask` (T, N);
    `values` (T + 1, N). Where an episode was cut by a time limit, gamma V(last state) is added to
    its last reward. mask is False where env reset: dones is True there, and its row is no sample.

    Raises ValueError: env has another autoreset mode ("autoreset").
    """
    if getattr(env.metadata.get("autoreset_mode"), "value", None) != "NextStep":
        raise ValueError("env must have gymnasium's next-step autoreset mode")
    if state is None:
        start, _ = env.reset(seed=int(torch.randint(2**31, (), generator=generator)))
        score, over = torch.zeros(len(start)), torch.zeros(len(start), dtype=torch.bool)
        state = {"observations": torch.as_tensor(start), "over": over, "score": score}
    seen, over, score = state["observations"], state["over"], state["score"].clone()
    rows, finished = [], []
    for _ in range(T):
        logits, expected = policy(seen), value(seen)
        actions = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        after, *outcome, _ = env.step(actions.numpy())
        after, reward, terminated, cut = (torch.as_tensor(x) for x in (after, *outcome))
        ended, reward = terminated | cut, reward.to(expected.dtype)
        bootstrap = gamma * value(after).where(cut & ~terminated, 0.0) if cut.any() else 0.0
        logp, _ = log_prob_and_entropy(logits, actions)
        rows.append((seen, actions, logp, reward + bootstrap, ended | over, ~over, expected))
        score += reward
        finished += score[ended].tolist()
        score[ended] = 0.0
        seen, over = after, ended
    names = ("observations", "actions", "logp", "rewards", "dones", "mask", "values")
    data = dict(zip(names, map(torch.stack, zip(*rows, strict=True)), strict=True))
    data["values"] = torch.cat([data["values"], value(seen)[None]])
    return data, {"observations": seen, "over": over, "score": score, "finished": finished}


def samples(data: dict[str, Tensor], advantages: Tensor, returns: Tensor) -> dict[str, Tensor]:
    """The batch that ppo_update takes, (B, ...): the rows of a rollout that mask keeps (given)."""
    whole = {**data, "advantages": advantages, "returns": returns}
    return {name: whole[name][data["mask"]] for name in KEYS}


def _check_share(name: str, number: float) -> None:
    """Refuse a number outside [0, 1] (given)."""
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {number}")


def _same_shape(**named: Tensor) -> None:
    """Refuse tensors of different shapes, which would broadcast in silence (given)."""
    if len({x.shape for x in named.values()}) > 1:
        shapes = {name: tuple(x.shape) for name, x in named.items()}
        raise ValueError(f"the inputs must have the same shape, got {shapes}")
