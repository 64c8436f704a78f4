"""The boxes of --help, in their order. Options of a recipe that stand in none are its method's."""

METHOD, MACHINE_BOX = "this method", "speed and machine"
BOXES: dict[str, tuple[str, ...]] = {
    "data": (
        "data", "val", "checkpoint", "random_weights", "pseudo_labels", "label_list", "sbd", "order", "lanes",
        "on_bad_sample", "cache_dir", "cache_gb",
    ),
    METHOD: (),
    "plan": ("preset", "backbone", "plan", "epochs", "steps", "levels", "partition", "frozen_batchnorm"),
    "optimisation": (
        "batch_size", "lr", "intervals", "warmup_epochs", "weight_decay", "momentum", "trust", "dropout",
        "accumulate", "sync_batchnorm", "apex",
    ),
    "output and resume": (
        "out", "resume", "config", "seed", "max_steps_per_stage", "checkpoint_minutes", "checkpoint_steps",
        "keep_checkpoints",
    ),
    "monitoring": ("log_steps", "probe_every", "tensorboard", "wandb"),
    MACHINE_BOX: (
        "device", "precision", "decoder", "workers", "hw_decoder_load", "augment_backend", "compile", "graph",
        "fold_frozen", "prefetch_batches", "timeout_s",
    ),
}  # fmt: skip
