"""One joint step of both models beside PyTorch: logits and the gradient of every parameter."""

import jax
import numpy as np
import pytest
from golden_tools import SPECIAL, config_for
from weights_tools import export, random_weights

from electra_flax.model import electra
from electra_flax.training import masking, step
from electra_flax.training.objectives import make_objective
from electra_flax.training.objectives.objective import row_seeds
from electra_flax.trees import flat
from electra_flax.weights import names
from electra_flax.weights.delta import fold

torch = pytest.importorskip("torch", reason="NOT CHECKED: PyTorch is not installed")
TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")


class OnTopOf(torch.nn.Module):
    """A table as a fixed one and a difference, which is what is learned."""

    def __init__(self, table):
        super().__init__()
        self._table = [table]  # no parameter of this module

    def forward(self, difference):
        return self._table[0].detach() + difference

    def right_inverse(self, whole):
        return whole - self._table[0].detach()


@pytest.fixture(params=["embeddings", "a difference"])
def theirs(request, tmp_path):
    """Our weights, and both models of transformers that share their embeddings as they do in ELECTRA, or in GDES."""
    import transformers

    weights = random_weights(tmp_path, request.param)
    out = export(fold(weights), tmp_path / "out")
    generator = transformers.ElectraForMaskedLM.from_pretrained(out / "generator").eval()
    discriminator = transformers.ElectraForPreTraining.from_pretrained(out / "discriminator").eval()
    # Only PyTorch leaves out the gradient of [PAD], which the generator may sample like any other token.
    discriminator.electra.embeddings.word_embeddings.padding_idx = None
    if request.param == "embeddings":
        generator.electra.embeddings = discriminator.electra.embeddings
    generator.tie_weights()
    if request.param == "a difference":
        generator.electra.embeddings.word_embeddings.padding_idx = None
        for name in TABLES:
            base = getattr(generator.electra.embeddings, name).weight
            table = getattr(discriminator.electra.embeddings, name)
            torch.nn.utils.parametrize.register_parametrization(table, "weight", OnTopOf(base))
    return weights, generator, discriminator


@pytest.mark.slow
def test_logits_and_gradients_of_a_joint_step_are_pytorchs(theirs):
    weights, generator, discriminator = theirs
    config, params = config_for(weights.architecture), weights.to_params()
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 33, 16)
    mask = (np.arange(32) < lengths[:, None]).astype(np.int32)
    batch = {
        "input_ids": np.where(mask, rng.integers(5, 300, mask.shape), SPECIAL.pad).astype(np.int32),
        "attention_mask": mask,
        "token_type_ids": (np.arange(32) >= lengths[:, None] // 2).astype(np.int32) * mask,
    }
    key = jax.random.key(7)
    objective = make_objective(config, SPECIAL)
    gradients, sums = jax.jit(step.accumulate_gradients, static_argnums=0)(
        objective, params, batch, key, jax.numpy.int32(0)
    )

    # What our step hid and sampled.
    seeds = row_seeds(key, len(mask))
    hidden = objective.draw(batch, seeds, None).masked
    ours_BMV = electra.apply_generator(
        config.architecture, params, hidden.masked_ids_BT, mask, batch["token_type_ids"], hidden.positions_BM, None
    )
    sampled = masking.sample_replacements(seeds.sample_B, ours_BMV, hidden.targets_BM, 1.0, False)
    corrupted = masking.corrupt(batch["input_ids"], hidden, sampled)
    ours_BT = electra.apply_discriminator(
        config.architecture, params, corrupted.corrupted_ids_BT, mask, batch["token_type_ids"], None
    )

    def tensor(array):
        return torch.tensor(np.asarray(array), dtype=torch.long)

    shared = {"attention_mask": tensor(mask), "token_type_ids": tensor(batch["token_type_ids"])}
    positions = tensor(hidden.positions_BM)[..., None].expand(-1, -1, 300)
    logits_BMV = generator(tensor(hidden.masked_ids_BT), **shared).logits.gather(1, positions)
    logits_BT = discriminator(tensor(corrupted.corrupted_ids_BT), **shared).logits
    counted = np.asarray(hidden.weights_BM) > 0
    np.testing.assert_allclose(ours_BMV[counted], logits_BMV.detach()[torch.tensor(counted)], atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours_BT[mask > 0], logits_BT.detach()[torch.tensor(mask > 0)], atol=1e-4, rtol=0)

    generator_loss = torch.nn.functional.cross_entropy(
        logits_BMV[torch.tensor(counted)], tensor(hidden.targets_BM)[torch.tensor(counted)]
    )
    discriminator_loss = torch.nn.functional.binary_cross_entropy_with_logits(
        logits_BT[torch.tensor(mask > 0)], tensor(corrupted.is_replaced_BT)[torch.tensor(mask > 0)].float()
    )
    total = generator_loss + 50 * discriminator_loss
    np.testing.assert_allclose(objective.loss(sums, sums), total.item(), rtol=1e-5)
    total.backward()

    models = {"generator": generator, "discriminator": discriminator}
    tables = {"generator": names.generator_names, "discriminator": names.discriminator_names}
    compared = set()
    for part, torch_model in models.items():
        found = dict(torch_model.named_parameters())
        for hf_name, ours in tables[part](weights.shapes).items():
            torch_name = names.to_torch(hf_name)
            if part == "discriminator" and weights.architecture.has_delta and "/embeddings/" in hf_name:
                ours = ours.replace("electra/embeddings/", "discriminator_delta/")
                if "LayerNorm" not in ours:
                    torch_name = torch_name.replace(".weight", ".parametrizations.weight.original")
            gradient = found[torch_name].grad
            gradient = gradient.T if names.is_transposed_in_torch(hf_name) else gradient
            expected = flat(gradients)[ours]
            largest = np.abs(expected).max()
            # Softmax ignores the keys' biases: their gradients are rounding errors in both.
            assert largest > 1e-5 or ours.endswith("key/bias"), ours
            np.testing.assert_allclose(gradient, expected, atol=1e-4 * largest + 1e-7, rtol=0, err_msg=ours)
            compared.add(ours)
    assert compared == set(weights.shapes)
