"""All papers' tables by name."""

from fastpsl.tables import psl, psl_transfer, sslpp, sslpp_ablations, sslpp_transfer, uic, uic_transfer

_MODULES = (psl, psl_transfer, uic, uic_transfer, sslpp, sslpp_ablations, sslpp_transfer)
TABLES = {table.name: table for module in _MODULES for table in module.TABLES}
