from . import backbones as backbones
from . import evaluate as evaluate
from . import losses as losses
from . import ops as ops
from . import optim as optim
from . import plot as plot
from . import pretext as pretext
from . import tasks as tasks
from . import views as views
from .dataloader import loader as loader
from .embedding import embed as embed
from .model import Model as Model
from .model import load as load
from .pipelines.beton.reader import Beton as Beton
from .pipelines.loader.loader import Loader as Loader
from .pipelines.views import ViewSpec as ViewSpec
from .records import compare as compare
from .records import runs as runs
from .replaying import replay as replay
from .training import Trained as Trained
from .training import pretrain as pretrain

__version__: str
