"""All papers' tables by name."""

from fastpsl.tables import psl, uic

TABLES = {table.name: table for table in (*psl.TABLES, *uic.TABLES)}
