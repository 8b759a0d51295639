"""FAISS inner-product indexes over unit vectors: written by FAISS, and checked before they are opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from hf_safefilter.data.vectors import lengths, unit
from hf_safefilter.errors import IntegrityError

if TYPE_CHECKING:
    import faiss

_FLAT_INNER_PRODUCT = b"IxFI"
_HEADER_BYTES = 64


def flat_index(vectors: np.ndarray) -> faiss.IndexFlatIP:
    """A `faiss.IndexFlatIP` over float32 `vectors` (m, d)."""
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    return index


def to_bytes(index: faiss.IndexFlatIP) -> bytes:
    """The index as FAISS writes it: the same bytes for the same vectors."""
    import faiss

    return faiss.serialize_index(index).tobytes()


def from_bytes(content: bytes, vectors: np.ndarray, name: str) -> faiss.IndexFlatIP:
    """Read an index back, if it is a flat one over exactly `vectors` (m, d) float32.

    A digest only says that a file is what its author wrote. FAISS's reader parses many formats, so the format and the
    size are checked before it gets the bytes, and the result is compared with the vectors of the same reference set.

    Raises:
        IntegrityError: It is any other index.
    """
    import faiss

    wrong = IntegrityError(f"{name} is not a flat index over the reference vectors", fix="build the references again")
    if not content.startswith(_FLAT_INNER_PRODUCT) or len(content) > vectors.nbytes + _HEADER_BYTES:
        raise wrong
    try:
        # The first bytes of the file say that it is this kind of index.
        index = cast("faiss.IndexFlatIP", faiss.deserialize_index(np.frombuffer(content, dtype=np.uint8)))
    except RuntimeError as error:
        raise wrong from error
    if (index.ntotal, index.d) != vectors.shape:
        raise wrong
    # The last digit of a unit vector may be rounded differently on another machine.
    if not np.allclose(index.reconstruct_n(0, index.ntotal), vectors, rtol=0, atol=1e-5):
        raise wrong
    return index


def search(index: faiss.IndexFlatIP, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` largest inner products of each row of `vectors` (n, d), scaled to length one, and their positions.

    To be called from one of the package's own threads (`by_piece`).

    Returns:
        Inner products, float32 (n, k), and positions in the index, int64 (n, k); NaN and -1 for a row that is zero or
        not finite.
    """
    import faiss

    # Many threads search at the same time, so each needs one core; the setting applies to the calling thread only.
    faiss.omp_set_num_threads(1)
    if vectors.dtype != np.float32:
        vectors = unit(vectors).astype(np.float32)
    size = lengths(vectors)
    bad = np.isnan(size)
    if bad.any():
        vectors = np.where(bad[:, None], np.float32(0), vectors)
    similarity, position = index.search(np.ascontiguousarray(vectors), k)
    similarity /= size[:, None]  # cheaper than scaling all d numbers of each row
    position[bad] = -1
    return similarity, position
