from .recipe import Evaluation as Evaluation
from .recipe import Recipe as Recipe
from .recipe import require_given_classes as require_given_classes
