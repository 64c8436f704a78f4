import numpy as np
import pytest
import torch

from fastpsl.kernels.geometry import AllTurns, Flip, Shift
from fastpsl.tasks.rotation import RotationHead
from fastpsl.tasks.sslpp.rotnet import RotNet
from tests.engine.tiny import noise_batch
from tests.tasks.proxies import learned, means, small_modules, val


def test_all_four_turns_of_each_image_and_their_labels() -> None:
    task = RotNet(32)
    _, head = small_modules(task)
    batch = noise_batch([task.view()], 3)
    (inputs,) = batch.inputs([task.view()], torch.float32)
    assert task.inputs_per_image(1) == 4 and inputs.shape == (12, 3, 32, 32)
    whole = inputs.unflatten(0, (3, 4))
    for turn in range(4):
        torch.testing.assert_close(whole[:, turn], torch.rot90(whole[:, 0], turn, (-2, -1)))
    # A head that reads the turn from the features names all of them.
    features = torch.nn.functional.one_hot(torch.arange(12) % 4, 16).float()[..., None, None]
    assert isinstance(head, RotationHead)
    with torch.no_grad():
        head.classify.weight.copy_(20 * torch.eye(4, 16))
        head.classify.bias.zero_()
    loss, metrics = task.features_loss(features, head.eval(), batch)
    assert loss.item() < 1e-6 and means(metrics)["accuracy"] == 1
    assert means(metrics)["loss_constant"] == pytest.approx(np.log(4)) and task.chance(1) == 0.25
    sheet, view = task.contact_sheet([inputs], batch), task.view()
    assert sheet.shape == (3, 3, 32, 4 * 33 - 1) and (sheet[..., 32::33] == 1).all()
    for turn in range(4):
        shown = sheet[..., 33 * turn : 33 * turn + 32]
        torch.testing.assert_close(shown, view.denormalise(whole[:, turn]))
    assert view.ops == (Shift(4), Flip(0.5), AllTurns(4))
    assert RotNet(64, "random_resized").view().ops == view.ops[1:]


def test_padding_counts_for_none_of_its_turns() -> None:
    """The loss is the mean over the four turns of the images that are there."""
    task = RotNet(32)
    _, head = small_modules(task)
    batch = noise_batch([task.view()], 3)
    features = torch.randn(12, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    logits = head.eval()(features)
    turns = batch.draw(AllTurns)["turns"].flatten()
    of_each = torch.nn.functional.cross_entropy(logits, turns, reduction="none")
    right = (logits.argmax(1) == turns).float()
    batch.indices[1] = -1
    loss, metrics = task.features_loss(features, head, batch)
    kept = [0, 1, 2, 3, 8, 9, 10, 11]
    torch.testing.assert_close(loss, of_each[kept].mean())
    assert means(metrics)["accuracy"] == pytest.approx(float(right[kept].mean()))


@pytest.mark.slow
def test_learned_it_beats_the_constant_on_validation_images() -> None:
    """It does so by looking: with another turn's features it scores worse."""
    task = RotNet(32)
    blocks, head = learned(task)
    inputs, batch = val(task)
    with torch.no_grad():
        features = blocks(inputs)
        metrics = means(task.features_loss(features, head, batch)[1])
        other = means(task.features_loss(features.roll(1, 0), head, batch)[1])
    assert (
        metrics["loss"] < 0.6 * metrics["loss_constant"] < 0.6 * other["loss"] and metrics["accuracy"] > 0.75
    )
