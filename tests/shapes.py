"""Checks the shapes and types that the library's annotations state, at run time, in the tests only."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
