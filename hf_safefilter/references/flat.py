"""FAISS inner-product indexes over unit vectors: written by FAISS, opened only after they have been checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_safefilter.data.vectors import lengths, unit
from hf_safefilter.errors import IntegrityError

_FLAT_INNER_PRODUCT = b"IxFI"
_HEADER_BYTES = 64


def flat_index(vectors: np.ndarray) -> Any:
    """A `faiss.IndexFlatIP` over float32 `vectors` (m, d)."""
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    return index


def to_bytes(index: Any) -> bytes:
    """The index as FAISS writes it: the same bytes for the same vectors."""
    import faiss

    return faiss.serialize_index(index).tobytes()


def from_bytes(content: bytes, vectors: np.ndarray, name: str) -> Any:
    """Read an index back, if it is a flat one over exactly `vectors` (m, d) float32.

    A digest only says that a file is what its maker wrote. FAISS's reader parses many formats, so the format and the
    size are settled before it sees the bytes, and what it read is compared with the vectors beside it.

    Raises:
        IntegrityError: any other index.
    """
    import faiss

    wrong = IntegrityError(f"{name} is not a flat index over the reference vectors", fix="build the references again")
    if not content.startswith(_FLAT_INNER_PRODUCT) or len(content) > vectors.nbytes + _HEADER_BYTES:
        raise wrong
    try:
        index = faiss.deserialize_index(np.frombuffer(content, dtype=np.uint8))
    except RuntimeError as error:
        raise wrong from error
    if (index.ntotal, index.d) != vectors.shape:
        raise wrong
    # Another machine's arithmetic may round the last digit of a unit vector the other way.
    if not np.allclose(index.reconstruct_n(0, index.ntotal), vectors, rtol=0, atol=1e-5):
        raise wrong
    return index


def search(index: Any, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` largest of the inner products of each row of `vectors` (n, d), scaled to length one, and where.

    Returns (n, k) float32 and (n, k) int64; NaN at place -1 for a row that is zero or not finite. To be called from one
    of our own threads (`by_piece`).
    """
    import faiss

    # Many threads search at once, so one core each is enough; the setting holds for the calling thread only.
    faiss.omp_set_num_threads(1)
    if vectors.dtype != np.float32:
        vectors = unit(vectors).astype(np.float32)
    size = lengths(vectors)
    bad = np.isnan(size)
    if bad.any():
        vectors = np.where(bad[:, None], np.float32(0), vectors)
    similarity, place = index.search(np.ascontiguousarray(vectors), k)
    similarity /= size[:, None]  # k numbers a row are scaled in place of all d
    place[bad] = -1
    return similarity, place
