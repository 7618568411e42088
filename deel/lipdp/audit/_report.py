"""What the reports of all audits share."""

__all__ = ["AuditError", "Report"]


class AuditError(AssertionError):
    """An audit found that a model does less than it declares. It is a finding about data: do not publish it."""


class Report:
    """Mixin of the audits' results: `failures`, a tuple of sentences, decides the verdict."""

    @property
    def passed(self):
        """bool, whether nothing was found. An audit that passes proves nothing: see its power."""
        return not self.failures

    @property
    def verdict(self):
        """str, one line."""
        return f"{'pass' if self.passed else 'FAIL'}: {self.summary}" + "".join(f"; {text}" for text in self.failures)

    def check(self):
        """Raises `AuditError` unless the audit passed; returns the report."""
        if not self.passed:
            raise AuditError(self.verdict)
        return self
