"""The formats of findings: for people, programs and CI systems."""

from .report import FORMATS, Report

__all__ = ["FORMATS", "Report"]
