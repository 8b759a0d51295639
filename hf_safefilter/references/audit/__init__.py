"""What is wrong with reference rows, found from their text before a model is loaded."""

from hf_safefilter.references.audit.checks_made import Audit, Check
from hf_safefilter.references.audit.whole_audit import audit_index, audit_references

__all__ = ["Audit", "Check", "audit_index", "audit_references"]
