from .examination import examine as examine
from .measurements import Measurements as Measurements
from .report import Check as Check
from .report import Report as Report
