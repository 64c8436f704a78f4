from .page import make_table as make_table
