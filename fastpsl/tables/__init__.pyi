from .page import make_table as make_table
from .report import Report as Report
from .report import make_report as make_report
from .rows import Row as Row
from .rows import Table as Table
