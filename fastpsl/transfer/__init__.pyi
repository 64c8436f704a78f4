from .few_shot import MAX_POOL as MAX_POOL
from .few_shot import Accuracy as Accuracy
from .few_shot import classes_of as classes_of
from .few_shot import draw_episodes as draw_episodes
from .few_shot import few_shot_works as few_shot_works
from .few_shot import num_hits as num_hits
