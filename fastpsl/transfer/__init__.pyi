from .classification.protocols import MultiLabelProtocol as MultiLabelProtocol
from .classification.task import MultiLabel as MultiLabel
from .detection.protocols import DetectionProtocol as DetectionProtocol
from .detection.task import Detection as Detection
from .few_shot import draw_episodes as draw_episodes
from .segmentation.protocols import SegmentationProtocol as SegmentationProtocol
from .segmentation.task import Segmentation as Segmentation
from .svm.protocol import SvmProtocol as SvmProtocol
