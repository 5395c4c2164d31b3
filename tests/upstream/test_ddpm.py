"""The oracle of diffusion/ddpm against what other people wrote: torch, SciPy and diffusers."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from scipy.stats import norm

import reference.diffusion.ddpm as oracle

SEEDS = [0, 1, 2]


def scheduler(variance_type: str, T: int = 50, start: float = 1e-3, end: float = 0.3):
    """diffusers' DDPM scheduler, which keeps its tables in float32, and our betas."""
    made = diffusers.DDPMScheduler(
        num_train_timesteps=T,
        beta_start=start,
        beta_end=end,
        variance_type=variance_type,
        clip_sample=False,
    )
    return made, oracle.linear_betas(T, start=start, end=end)


def worst(actual, expected) -> float:
    return float(np.max(np.abs(np.asarray(actual, dtype=np.float64) - expected)))


@pytest.mark.parametrize("seed", SEEDS)
def test_noising_agrees_with_diffusers(seed, record_property):
    """q_sample is DDPMScheduler.add_noise, up to its float32 tables."""
    made, betas = scheduler("fixed_small")
    rng = np.random.default_rng(seed)
    x0, noise, t = rng.normal(size=(5, 2, 3)), rng.normal(size=(5, 2, 3)), rng.integers(0, 50, 5)
    theirs = made.add_noise(*(torch.from_numpy(v) for v in (x0, noise, t))).numpy()
    error = worst(theirs, oracle.q_sample(x0, t, noise, betas))
    record_property("agreement", error)
    assert error < 1e-5


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(
    ("theirs", "ours"), [("fixed_small", "posterior"), ("fixed_large", "beta")]
)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_step_back_agrees_with_diffusers(seed, theirs, ours, clip, record_property):
    """p_sample is DDPMScheduler.step at every t, up to its float32 tables."""
    made, betas = scheduler(theirs)
    made.register_to_config(clip_sample=clip is not None, clip_sample_range=clip or 1.0)
    rng = np.random.default_rng(seed)
    x, eps = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    error = 0.0
    for t in range(49, -1, -1):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(3, 4, generator=generator, dtype=torch.float64).numpy()
        generator.manual_seed(seed)
        step = made.step(torch.from_numpy(eps), t, torch.from_numpy(x), generator=generator)
        mine = oracle.p_sample(lambda x_t, t: eps, x, t, z, betas, variance=ours, clip=clip)
        error = max(error, worst(step.prev_sample, mine))
    record_property("agreement", error)
    # 1 - alpha_bar in float32 has lost three or four digits at the first steps
    assert error < 2e-4


def test_the_paper_s_schedule_agrees_with_diffusers(record_property):
    """The default of linear_betas is that of DDPMScheduler, 1000 steps, in float32."""
    made = diffusers.DDPMScheduler()
    betas = oracle.linear_betas(1000)
    bars = np.cumprod(1.0 - betas)
    error = max(worst(made.betas, betas), worst(made.alphas_cumprod, bars))
    record_property("agreement", error)
    assert error < 2e-6


@pytest.mark.parametrize("dim", [4, 7, 32])
def test_the_embedding_agrees_with_diffusers(dim, record_property):
    """timestep_embedding is diffusers' default: sines first, frequencies down to 1/10000."""
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0, 1, 17, 500])
    error = worst(get_timestep_embedding(t, dim), oracle.timestep_embedding(t.numpy(), dim))
    record_property("agreement", error)
    # an angle of 500 in float32
    assert error < 1e-4


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("out_ch", [4, 6])
def test_the_block_agrees_with_diffusers(seed, out_ch, record_property):
    """resnet_block is ResnetBlock2D, with our names for its parameters."""
    from diffusers.models.resnet import ResnetBlock2D

    torch.manual_seed(seed)
    theirs = ResnetBlock2D(in_channels=4, out_channels=out_ch, temb_channels=5, groups=2, eps=1e-6)
    theirs = theirs.double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    names = {"time_emb_proj": "temb_proj", "conv_shortcut": "shortcut"}
    state = {}
    for name, value in theirs.state_dict().items():
        layer, part = name.split(".")
        state[f"{names.get(layer, layer)}.{part}"] = value.numpy()
    x, temb = torch.randn(3, 4, 5, 3).double(), torch.randn(3, 5).double()
    with torch.no_grad():
        expected = theirs(x, temb).numpy()
    error = worst(oracle.resnet_block(state, x.numpy(), temb.numpy(), 2), expected)
    record_property("agreement", error)
    assert error < 1e-10


@pytest.mark.parametrize("seed", SEEDS)
def test_bins_agree_with_scipy(seed, record_property):
    """A pixel's bin is the interval that SciPy's normal distribution gives it."""
    rng = np.random.default_rng(seed)
    k, mean, log_scale = rng.integers(1, 255, 40), rng.normal(size=40), rng.uniform(-1.5, 1.0, 40)
    k[:2], mean[:2] = (0, 255), 0.25
    low = np.where(k == 0, -np.inf, (k - 0.5) / 127.5 - 1.0)
    high = np.where(k == 255, np.inf, (k + 0.5) / 127.5 - 1.0)
    law = norm(mean, np.exp(log_scale))
    p = np.where(k / 127.5 - 1.0 < mean, law.cdf(high) - law.cdf(low), law.sf(low) - law.sf(high))
    mine = oracle.discretized_gaussian_nll(k / 127.5 - 1.0, mean, log_scale)
    error = worst(-np.log(np.maximum(p, 1e-12)), mine)
    record_property("agreement", error)
    assert error < 1e-8


@pytest.mark.parametrize("seed", SEEDS)
def test_the_kl_agrees_with_torch(seed, record_property):
    """gaussian_kl is torch.distributions' KL of two Gaussians."""
    rng = np.random.default_rng(seed)
    (m1, m2), (v1, v2) = rng.normal(size=(2, 7)), rng.uniform(0.1, 3.0, size=(2, 7))
    one, two = (
        torch.distributions.Normal(torch.from_numpy(m), torch.from_numpy(v).sqrt())
        for m, v in ((m1, v1), (m2, v2))
    )
    error = worst(torch.distributions.kl_divergence(one, two), oracle.gaussian_kl(m1, v1, m2, v2))
    record_property("agreement", error)
    assert error < 1e-12


@pytest.mark.parametrize(
    ("multipliers", "resolution"), [((1, 2, 2, 2), 32), ((1, 1, 2, 2, 4, 4), 256)]
)
def test_the_network_has_as_many_parameters_as_diffusers(multipliers, resolution, record_property):
    """UNet2DModel in the paper's two configurations has the parameters that we count."""
    levels = len(multipliers)
    at = [resolution >> i == 16 for i in range(levels)]
    with torch.device("meta"):
        model = diffusers.UNet2DModel(
            sample_size=resolution,
            in_channels=3,
            out_channels=3,
            block_out_channels=tuple(128 * m for m in multipliers),
            layers_per_block=2,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in at),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(at)),
            attention_head_dim=None,
            downsample_padding=0,
        )
    theirs = sum(p.numel() for p in model.parameters())
    mine = oracle.unet_parameter_count(multipliers=multipliers, resolution=resolution)
    record_property("agreement", abs(theirs - mine))
    assert theirs == mine
