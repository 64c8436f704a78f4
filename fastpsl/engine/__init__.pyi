from .dataset_pass import NAME as NAME
from .dataset_pass import EpochContext as EpochContext
from .dataset_pass import read_predictions as read_predictions
from .distributed import World as World
from .distributed import join_world as join_world
from .experiment import Experiment as Experiment

from .options import PretrainOptions as PretrainOptions
from .options import RunOptions as RunOptions
from .plan import Stage as Stage
from .plan import make_plan as make_plan

from .resume import open_folder as open_folder
from .run import Run as Run
from .run import RunData as RunData
from .run import open_both as open_both
from .run import open_given as open_given
from .task import Task as Task
from .train_step import TrainStep as TrainStep
from .trainer import StageTrainer as StageTrainer
from .trainer import pretrain as pretrain
