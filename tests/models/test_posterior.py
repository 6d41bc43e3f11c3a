from __future__ import annotations

import pytest
import torch

from rayvideo.models import Normaliser, Posterior

MEAN, STD = torch.tensor([-0.76, 0.5, 0.0]), torch.tensor([2.8, 1.0, 0.3])
PER_CHANNEL = Normaliser(shift=MEAN, scale=1 / STD)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4, 6), (10, 3, 4, 6)])
def test_each_channel_has_its_own_mean_and_deviation(shape):
    z = torch.randn(shape)
    latents = PER_CHANNEL.normalise(z)
    for channel in range(3):
        plain = (z[:, channel] - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(latents[:, channel], plain)
    torch.testing.assert_close(PER_CHANNEL.restore(latents), z)


def test_one_number_serves_all_channels_and_the_default_is_no_change():
    z = torch.randn(2, 3, 5, 4, 6)
    torch.testing.assert_close(Normaliser(0.5, 2.0).normalise(z), (z - 0.5) * 2)
    torch.testing.assert_close(Normaliser(0.5, 2.0).restore(z), z / 2 + 0.5)
    assert torch.equal(Normaliser().normalise(z), z)
    assert torch.equal(Normaliser().restore(z), z)


def test_latents_keep_their_number_format():
    z = torch.randn(1, 3, 2, 4, 4, dtype=torch.bfloat16)
    assert PER_CHANNEL.normalise(z).dtype == PER_CHANNEL.restore(z).dtype == torch.bfloat16


def test_a_sample_has_the_posteriors_mean_and_deviation_in_the_denoisers_units():
    shape = (2, 3, 50, 8, 8)
    z_mean, z_std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0])
    mean, logvar = (x.view(3, 1, 1, 1).expand(shape) for x in (z_mean, 2 * z_std.log()))
    posterior = Posterior(mean, logvar, PER_CHANNEL)
    latents = posterior.sample(torch.Generator().manual_seed(0)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(1), (z_mean - MEAN) / STD, rtol=0, atol=0.2)
    torch.testing.assert_close(latents.std(1), z_std / STD, rtol=0.05, atol=0)
    torch.testing.assert_close(posterior.mode()[:, :, 0, 0, 0], ((z_mean - MEAN) / STD).expand(2, 3))
