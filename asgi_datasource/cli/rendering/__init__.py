"""How findings are printed: for people, for programs, for the places where CI systems show them."""

from .report import FORMATS, Report

__all__ = ["FORMATS", "Report"]
