"""What the reports of all audits share."""

from typing import TypeVar

__all__ = ["AuditError", "Report"]

_Report = TypeVar("_Report", bound="Report")


class AuditError(AssertionError):
    """An audit found that a model does less than it declares. It is a finding about data: do not publish it."""


class Report:
    """Mixin of the audits' results: `failures`, a tuple of sentences, decides the verdict."""

    failures: tuple[str, ...]

    @property
    def summary(self) -> str:
        """str, the figures in one clause."""
        raise NotImplementedError

    @property
    def passed(self) -> bool:
        """bool, whether nothing was found. An audit that passes proves nothing: see its power."""
        return not self.failures

    @property
    def verdict(self) -> str:
        """str, one line."""
        return f"{'pass' if self.passed else 'FAIL'}: {self.summary}" + "".join(f"; {text}" for text in self.failures)

    def check(self: _Report) -> _Report:
        """Raises `AuditError` unless the audit passed; returns the report."""
        if not self.passed:
            raise AuditError(self.verdict)
        return self
