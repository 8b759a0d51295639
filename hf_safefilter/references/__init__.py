"""The unsafe and safe rows to compare with: their vectors, their FAISS indexes, and where they come from."""

from hf_safefilter.references.files import SIDES, ReferenceRow
from hf_safefilter.references.index import Neighbours, ReferenceIndex, references

__all__ = ["SIDES", "Neighbours", "ReferenceIndex", "ReferenceRow", "references"]
