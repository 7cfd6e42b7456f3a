"""Findings as JUnit XML, which every CI system shows: each file is a test case that its errors fail.

Source: the schema that Jenkins' xUnit plugin publishes for JUnit 10.
"""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree

from ...config import Diagnostic, Severity
from ..console import Style
from .report import Report

_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(report: Report, style: Style) -> str:
    """The findings as XML."""
    suites = ElementTree.Element("testsuites", name="asgi-datasource")
    suite = ElementTree.SubElement(suites, "testsuite", name=f"asgi-datasource {report.tool}")
    by_file: dict[str, list[Diagnostic]] = {file: [] for file in report.files}
    for problem in report.diagnostics:
        file = problem.position.file if problem.position is not None else report.files[0]
        by_file.setdefault(file, []).append(problem)
    failures = 0
    for file, problems in by_file.items():
        case = ElementTree.SubElement(suite, "testcase", classname=f"asgi-datasource.{report.tool}", name=_clean(file))
        failing = [each for each in problems if report.is_strict or each.severity is Severity.ERROR]
        if failing:
            failures += 1
            count = f"{len(failing)} problem{'s' if len(failing) > 1 else ''}"
            failure = ElementTree.SubElement(case, "failure", message=count, type="diagnostics")
            failure.text = _clean("\n".join(map(str, failing)))
        others = [each for each in problems if each not in failing]
        if others:
            ElementTree.SubElement(case, "system-out").text = _clean("\n".join(map(str, others)))
    for element in (suites, suite):
        element.set("tests", str(len(by_file)))
        element.set("failures", str(failures))
        element.set("errors", "0")
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode")


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("�", text)
