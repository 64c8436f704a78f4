from .box_scores import box_scores as box_scores
from .box_scores import require_pycocotools as require_pycocotools
from .protocols import PROTOCOLS as PROTOCOLS
from .protocols import DetectionProtocol as DetectionProtocol
from .task import Detection as Detection
