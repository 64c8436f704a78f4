"""The words for metrics: accuracies in percent, and losses beside those of a constant answer."""

from fastpsl.console.words import metric_words, val_words

SHARES = ("accuracy", "accuracy_labels", "agreement", "top1", "top5_B4")


def test_names_tell_which_metrics_are_shares() -> None:
    values = {name: metric_words(name, 0.1234) for name in SHARES}
    assert set(values.values()) == {"12.3 %"}
    assert metric_words("loss", 2.71828) == "2.718" and metric_words("entropy", 2.71828, ".2f") == "2.72"
    assert metric_words("stop1", 0.25) == "0.25"


def test_chance_follows_the_first_accuracy() -> None:
    chance = " (chance 10.0 %)"
    assert val_words({"loss": 1.5, "accuracy": 0.5}, chance) == "accuracy 50.0 % (chance 10.0 %)"
    agreement = val_words({"loss": 1.5, "agreement": 0.5}, chance)
    assert agreement == "agreement of two views 50.0 % (chance 10.0 %)"
    assert val_words({"top5": 0.75, "top1": 0.5}, chance) == "top-1 50.0 % (chance 10.0 %), top-5 75.0 %"
    blocks = {"top1_B2": 0.12345, "top1_B4": 0.5}
    assert val_words(blocks, chance) == "top-1 B2 12.3, B4 50.0 % (chance 10.0 %)"


def test_a_loss_is_told_beside_that_of_a_constant_answer() -> None:
    assert val_words({"loss": 0.1239, "loss_constant": 0.4}, "") == "loss 0.124 (a constant answer 0.400)"
    several = {"accuracy": 0.5, "loss": 3.0, "task_loss": 1.5, "task_loss_constant": 2.0}
    assert val_words(several, "") == "accuracy 50.0 %, task loss 1.500 (a constant answer 2.000)"
    assert val_words({"loss": -1.25}, " (chance 10.0 %)") == "loss -1.250"
    assert val_words({}, " (chance 10.0 %)") == ""
