"""The advice that a training gives: what does not suit its data, and what worked better on few images.

The screen and the documentation have it from here. Each piece names a value to give.
"""

import re
from typing import NamedTuple

from fastpsl.console.words import is_python, pasted

FEW_IMAGES = 5000
# Steps of a stage. On 180 photos, 72 and 96 taught nothing (docs/runs/simclr_clothing-200).
FEW_STEPS = 150
MAX_BATCH_SHARE = 0.1  # of the images
_TEACHER = "timm/tf_efficientnet_lite0"  # of the trainings in docs/runs


class Advice(NamedTuple):
    """A piece of advice.

    Attributes:
        when: The case, for the documentation.
        line: What the screen says, with places for values.
        why: The reason, for the documentation.
    """

    when: str
    line: str
    why: str


STEPS = Advice(
    f"a stage has fewer than {FEW_STEPS} steps",
    f"stages of fewer than {FEW_STEPS} steps were not seen to learn: {{few}}; give --epochs {{epochs}}",
    "Stages of 72 and 96 steps on 180 photos taught nothing; stages of 180 steps and more did.",
)
BATCH = Advice(
    f"a step has more than {MAX_BATCH_SHARE:.0%} of the images",
    "a step has {share:.0%} of the {num_images:,} images: give --batch-size {limit}",
    "The batches of an epoch should differ.",
)
WARM_UP = Advice(
    "the warm-up is as long as the run",
    "the rate rises for {warmup:g} epochs, and the run has {epochs}, so it never reaches --lr: give "
    "--warmup-epochs {fitting:g}",
    "A tenth of the run is usual.",
)
SIDES = Advice(
    "half of the images are smaller than what is cut from them",
    "half of the images have a side of {side} px or less and are enlarged to {needed} px: give {sides}",
    "Enlarged images cost time and show nothing new.",
)
DISTIL = Advice(
    f"there are fewer than {FEW_IMAGES:,} images and no `--init`",
    f"fewer than {FEW_IMAGES:,} images: in our runs a published network taught a small one more than such "
    "images did alone: {distil}",
    "With 10 labels a class, of 2,684 photos of clothes, a ResNet-18 named 55 % of others rightly. After "
    "SimCLR it named 22 %, and untrained 21 %.",
)
PUBLISHED = Advice(
    f"there are fewer than {FEW_IMAGES:,} images and no `--init`",
    "and its own features are worth more still: {look}",
    "That network itself named 66 % rightly.",
)
ALL = (DISTIL, PUBLISHED, STEPS, BATCH, WARM_UP, SIDES)


def on_few_images(data: str, val: str | None) -> list[str]:
    """Return what to do with few images instead, as commands, or as calls in a call of Python.

    `val` are the images that score, or None for images without classes.
    """
    if is_python():
        distil = f"fastpsl.pretrain('distill', {data!r}, teacher={_TEACHER!r})"
        look = f"features, labels = fastpsl.embed({_TEACHER!r}, {data!r})"
        if val is not None:
            look = f"fastpsl.evaluate.few_labels({_TEACHER!r}, {data!r}, {val!r}, labels_per_class=(5,))"
    else:
        distil = f"fastpsl train distill --data {pasted(data)} --teacher {_TEACHER}"
        look = f"fastpsl retrieve {_TEACHER} --gallery {pasted(data)} --queries {pasted(data)}"
        if val is not None:
            both = f"--data {pasted(data)} --val {pasted(val)}"
            look = f"fastpsl eval few-labels {_TEACHER} --labels-per-class 5 {both}"
    return [DISTIL.line.format(distil=distil), PUBLISHED.line.format(look=look)]


def listed() -> str:
    """Return all advice as a list in Markdown."""
    items, few = list[str](), dict(zip((DISTIL, PUBLISHED), on_few_images("photos", None), strict=True))
    for each in ALL:
        line = few.get(each) or re.sub(r"{.*?}", "…", each.line)
        items.append(f"- **If {each.when}.** {each.why}\n\n  ```text\n  {line}\n  ```\n")
    return "\n".join(items)
