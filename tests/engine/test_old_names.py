import pytest

from fastpsl.engine.old_names import _UNSAID, counted_inputs, current_arguments, current_record
from fastpsl.engine.recipe_files import find_recipe

SCIENCE = ("epochs", "num_clusters", "input_channels", "augment", "num_heads", "batch_size")


@pytest.mark.parametrize(
    ("recipe", "old", "new"),
    [
        ("jigsaw_r50", "--stage-epochs 1 2 3 --num-threads=4", "--epochs 1 2 3 --workers=4"),
        ("jigsaw_r50", "--shorter-px 99 --augment kornia", "--short-side 99 --augment-backend kornia"),
        ("jigsaw_r50", "--step graphed", "--compile on"),
        ("jigsaw_r50", "--step=eager", "--compile=off"),
        (
            "uic_r50",
            "--num-classes 9 --channels RGB --augmentation strong --augment auto",
            "--num-clusters 9 --input-channels RGB --augment strong --augment-backend auto",
        ),
        ("uic_r50", "--labels a.npz", "--pseudo-labels a.npz"),
        ("sslpp_iic", "--heads two --transforms gray", "--num-heads 2 --augment grey"),
        ("voc_detection", "--num-steps 5 --short-px 99", "--steps 5 --short-side 99"),
        ("voc_svm", "--num-processes 2", "--workers 2"),
        ("block_probe", "--heads conv_B2", "--heads conv_B2"),
        ("uic_r50", "--augment strong", "--augment strong"),
        ("jigsaw_r50", "--lr 0.1 -x --unknown", "--lr 0.1 -x --unknown"),
    ],
)
def test_arguments(recipe: str, old: str, new: str) -> None:
    names = find_recipe(recipe).options.__dataclass_fields__
    words, notes = current_arguments(old.split(), names)
    assert " ".join(words) == new
    given = [word.partition("=")[0] for word in old.split() if word.startswith("--")]
    now = [word.partition("=")[0] for word in new.split() if word.startswith("--")]
    assert [note.split()[0] for note in notes] == [a for a, b in zip(given, now, strict=True) if a != b]
    assert current_arguments(words, names) == (words, [])


def test_a_record_of_uic_and_of_iic() -> None:
    old = {
        "stage_epochs": [3], "num_classes": 9, "channels": "RGB", "augmentation": "strong", "apex": False,
        "batch_size": 8, "fine_tuned": {"stage_epochs": [1], "num_classes": 9},
    }  # fmt: skip
    assert current_record(old, SCIENCE) == {
        "epochs": [3], "num_clusters": 9, "input_channels": "RGB", "augment": "strong", "batch_size": 8,
        "fine_tuned": {"epochs": [1], "num_clusters": 9},
    }  # fmt: skip
    assert current_record({"heads": "two", "transforms": "sobel"}) == {"num_heads": 2, "augment": "sobel"}


def test_options_that_a_run_is_older_than() -> None:
    assert current_record({"recipe": "mocov2_r50"}) == {"recipe": "mocov2_r50", "sobel_p": 0.2}
    assert current_record({"recipe": "simclr_r50", "sobel_p": 0.0})["sobel_p"] == 0
    assert current_record({"recipe": "rotation_rv50"})["same_window"] is False
    assert current_record({"recipe": "simclr_r50"})["sobel_p"] == 0.2
    older = {"recipe": "supervised", "epochs": [9]}
    assert current_record(older) == older | {"crop": "random_resized", "labels_per_class": None}
    assert current_record(older | {"crop": "padded"})["crop"] == "padded"


def test_former_values_are_todays() -> None:
    for old, new in (("color", "colour"), ("gray", "grey"), ("sobel", "sobel")):
        assert current_record({"transforms": old}) == {"augment": new}
    for word, number in (("one", 1), ("two", 2)):
        assert current_record({"heads": word}) == {"num_heads": number}
    for old, new in (
        ("eager", "off"),
        ("fused", "fused"),
        ("compiled", "on"),
        ("graphed", "on"),
        ("graphs", "on"),
    ):
        assert current_record({"step": old}) == {"compile": new}


def test_which_batches_counted_inputs() -> None:
    """Those of methods that make several inputs of an image, in runs that do not tell their number."""
    for recipe, options, counted in (
        ("sslpp_iic", {}, True),
        ("sslpp_rotation", {}, True),
        ("sslpp_rotation", {"proxy": True}, True),
        ("sslpp_rotation", {"proxy": False}, False),
        ("sslpp_context", {}, False),
        ("rotation_rv50", {"rotations_per_image": "all"}, True),
        ("rotation_rv50", {"rotations_per_image": "one"}, False),
    ):
        assert counted_inputs({"recipe": recipe}, options) is counted, (recipe, options)
        assert not counted_inputs({"recipe": recipe, "inputs_per_image": {"E": 4}}, options)


def test_what_is_kept() -> None:
    labels = {"source": "random", "num_classes": 16}
    for record in (
        {"heads": ["conv_B2"]},
        {"apex": True},
        {"pseudo_labels": labels},
        {"num_clusters": 5, "num_classes": 7},
    ):
        assert current_record(record) == record
    assert current_record({"apex": False}, ("apex",)) == {"apex": False}
    choices = {"step": "compiled", "augment": "kornia", "fold_frozen": True}
    expected = {"compile": "on", "augment_backend": "kornia", "fold_frozen": True}
    assert current_record(choices, ("compile", "augment_backend")) == expected


@pytest.mark.parametrize("name", sorted(_UNSAID))
def test_a_record_of_today_is_complete(name: str) -> None:
    """A name that only the record of an older run got would make every run refuse its own checkpoints."""
    recipe = find_recipe(name)
    record = {"recipe": name, **recipe.with_paper(data="a.beton").science()}
    assert current_record(record, record.keys()) == record
