"""The sizes of psl's tables, by recipe or evaluation: see `scales`. Other papers' tables have some of these, too."""

from fastpsl.tables.sizes import Sizes

SHOTS = (1, 2, 4, 8, 16, 32, 64, 96)  # of low-shot SVMs, which no table has

PAPER = Sizes(
    about="The paper's sizes: crops of 224 px (jigsaw: tiles of 64), batches of 256, 180 or 200 epochs.",
    num_processes=8,
    values={
        "jigsaw_r50": {
            "stage_epochs": (60, 60, 60), "batch_size": 256, "lr": 0.01, "intervals": (20, 20, 10, 10),
            "counts": (500, 1000, 2000), "grid": 3, "shorter_px": 256, "cell_px": 75, "tile_px": 64,
            "permutations_per_image": 1, "embedding_width": 1000,
        },
        "jigsaw_r50/reversed": {"levels": (3, 2, 1)},
        "jigsaw_r50/soon_hard": {"levels": (1, 3, 3)},
        "jigsaw_r50/rising": {"stage_epochs": (30, 60, 90)},
        "jigsaw_r50/two_stages": {"stage_epochs": (90, 90)},
        "jigsaw_r50/no_overlap": {"partition": ("1-2", "3-4", "5")},
        "rotation_rv50": {
            "stage_epochs": (60, 60, 60), "batch_size": 256, "lr": 0.01, "intervals": (20, 20, 10, 10),
            "shorter_px": 256, "size_px": 224, "rotations_per_image": "one",
        },
        "simclr_r50": {
            "stage_epochs": (60, 70, 70), "batch_size": 256, "lr": 0.3, "warmup_epochs": 10.0, "trust": 0.001,
            "weight_decay": 1e-6, "temperature": 0.1, "size_px": 224, "embedding_width": 128, "sync_batchnorm": True,
        },
        "mocov2_r50": {
            "stage_epochs": (60, 70, 70), "batch_size": 256, "lr": 0.03, "queue_size": 65_536, "momentum": 0.999,
            "temperature": 0.2, "key_group": 32, "size_px": 224, "embedding_width": 128,
        },
        "supervised": {
            "stage_epochs": (90,), "batch_size": 256, "lr": 0.1, "intervals": (30, 30, 20, 10), "weight_decay": 1e-4,
            "size_px": 224, "crop": "random_resized", "labels_per_class": None,
        },
        "linear/vissl": {"protocol": "vissl", "size_px": 224, "batch_size": 256, "epochs": 28, "lr": 0.01},
        "linear/moco": {"protocol": "moco", "size_px": 224, "batch_size": 256, "epochs": 100, "lr": 30.0},
        "semi_supervised/1": {
            "protocol": "pirl", "percent": 1.0, "size_px": 224, "batch_size": 256, "epochs": 70, "lr": 0.01,
        },
        "semi_supervised/10": {
            "protocol": "pirl", "percent": 10.0, "size_px": 224, "batch_size": 256, "epochs": 70, "lr": 0.01,
        },
        "detection/pirl": {
            "protocol": "pirl", "batch_size": 16, "num_steps": 25_000, "lr": 0.002, "short_px": tuple(range(480, 801, 32)),
            "anchor_px": (32, 64, 128, 256, 512),
        },
        "svm/vissl": {"costs": "vissl", "low_shot": False, "shots": SHOTS, "size_px": 224, "batch_size": 256},
        "linear/vissl_places205": {
            "protocol": "vissl_places205", "size_px": 224, "batch_size": 256, "epochs": 14, "lr": 0.01,
        },
        "linear/vissl_inat18": {
            "protocol": "vissl_inat18", "size_px": 224, "batch_size": 256, "epochs": 84, "lr": 0.01,
        },
    },
    flags={
        "simclr_r50": ("sync_batchnorm",),
        "linear/vissl": ("protocol",),
        "linear/moco": ("protocol",),
        "detection/pirl": ("protocol",),
        "svm/vissl": (),
        "linear/vissl_places205": ("protocol",),
        "linear/vissl_inat18": ("protocol",),
        "semi_supervised/1": ("protocol", "percent"),
        "semi_supervised/10": ("protocol", "percent"),
    },
)  # fmt: skip
TINY = Sizes(
    about="Tiny sizes, for any folder of pictures of 64 px or more: lengths in pixels are a quarter of the paper's, batches are "
    "of 32, networks are the paper's; 10 % and 50 % of the labels stand for 1 % and 10 %. It says nothing about ImageNet.",
    num_processes=1,
    values={
        "jigsaw_r50": {
            "stage_epochs": (6, 6, 6), "batch_size": 32, "lr": 0.03, "intervals": (4, 1, 1),
            "counts": (16, 32, 64), "grid": 3, "shorter_px": 64, "cell_px": 19, "tile_px": 16,
            "permutations_per_image": 8, "embedding_width": 64,
        },
        "jigsaw_r50/reversed": {"levels": (3, 2, 1)},
        "jigsaw_r50/soon_hard": {"levels": (1, 3, 3)},
        "jigsaw_r50/rising": {"stage_epochs": (3, 6, 9)},
        "jigsaw_r50/two_stages": {"stage_epochs": (9, 9)},
        "jigsaw_r50/no_overlap": {"partition": ("1-2", "3-4", "5")},
        "rotation_rv50": {
            "stage_epochs": (6, 6, 6), "batch_size": 32, "lr": 0.03, "intervals": (4, 1, 1),
            "shorter_px": 64, "size_px": 56, "rotations_per_image": "one",
        },
        "simclr_r50": {
            "stage_epochs": (6, 7, 7), "batch_size": 32, "lr": 0.2, "warmup_epochs": 1.0, "trust": 0.01,
            "weight_decay": 1e-6, "temperature": 0.2, "size_px": 56, "embedding_width": 128,
        },
        "mocov2_r50": {
            "stage_epochs": (6, 7, 7), "batch_size": 32, "lr": 0.12, "queue_size": 64, "momentum": 0.99,
            "temperature": 0.2, "key_group": 16, "size_px": 56, "embedding_width": 128,
        },
        "supervised": {
            "stage_epochs": (18,), "batch_size": 32, "lr": 0.2, "intervals": (30, 30, 20, 10), "weight_decay": 1e-4,
            "size_px": 56, "crop": "random_resized", "labels_per_class": None,
        },
        "linear/vissl": {"protocol": "vissl", "size_px": 56, "batch_size": 32, "epochs": 14, "lr": 0.05},
        "linear/moco": {"protocol": "moco", "size_px": 56, "batch_size": 32, "epochs": 25, "lr": 30.0},
        "semi_supervised/1": {
            "protocol": "pirl", "percent": 10.0, "size_px": 56, "batch_size": 16, "epochs": 30, "lr": 0.4,
        },
        "semi_supervised/10": {
            "protocol": "pirl", "percent": 50.0, "size_px": 56, "batch_size": 16, "epochs": 30, "lr": 0.4,
        },
        "detection/pirl": {
            "protocol": "pirl", "batch_size": 2, "num_steps": 40, "lr": 0.05, "short_px": (64,), "anchor_px": (32,),
        },
        "svm/vissl": {"costs": "vissl", "low_shot": False, "shots": SHOTS, "size_px": 56, "batch_size": 32},
        "linear/vissl_places205": {
            "protocol": "vissl_places205", "size_px": 56, "batch_size": 32, "epochs": 14, "lr": 0.05,
        },
        "linear/vissl_inat18": {
            "protocol": "vissl_inat18", "size_px": 56, "batch_size": 32, "epochs": 14, "lr": 0.05,
        },
    },
)  # fmt: skip
