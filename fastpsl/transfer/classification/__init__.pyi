from .task import PROTOCOLS as PROTOCOLS
from .task import MultiLabel as MultiLabel
from .task import MultiLabelProtocol as MultiLabelProtocol
from .task import changed as changed
from .task import constants_of as constants_of
from .task import crop_view as crop_view
from .task import label_scores as label_scores
from .task import reinitialise_fc as reinitialise_fc
