"""All papers' tables by name."""

from fastpsl.tables import psl, sslpp, sslpp_ablations, uic

TABLES = {table.name: table for table in (*psl.TABLES, *uic.TABLES, *sslpp.TABLES, *sslpp_ablations.TABLES)}
