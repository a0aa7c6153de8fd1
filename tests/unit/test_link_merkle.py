"""The Merkle tree against Certificate Transparency's published vectors, and over random logs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zk0d.errors import ProtocolError
from zk0d.link import merkle

# certificate-transparency, merkletree/merkle_tree_test.cc: eight entries, their roots, and proofs.
INPUTS = [bytes.fromhex(h) for h in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")]  # fmt: skip
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
A, B, C = (
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
)
D, E = (
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
)
PATHS = {(0, 8): (A, B, C), (5, 8): (D, E, ROOTS[3]), (2, 3): (ROOTS[1],), (1, 5): (ROOTS[0], B, D), (0, 1): ()}
PROOFS = {
    (1, 1): (),
    (1, 8): (A, B, C),
    (6, 8): ("0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a", E, ROOTS[3]),
    (2, 5): (B, D),
}


class Log:
    def __init__(self, entries: list[bytes]) -> None:
        self.size = 0
        self.nodes: dict[tuple[int, int], bytes] = {}
        for entry in entries:
            for level, position, made in merkle.append(self.size, merkle.leaf_hash(entry), self.get):
                self.nodes[level, position] = made
            self.size += 1

    def get(self, level: int, position: int) -> bytes:
        return self.nodes[level, position]


def test_published_roots_and_proofs() -> None:
    log = Log(INPUTS)
    assert merkle.EMPTY.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert [merkle.root(n, log.get).hex() for n in range(1, 9)] == list(ROOTS)
    for (index, size), path in PATHS.items():
        assert [h.hex() for h in merkle.inclusion(index, size, log.get)] == list(path)
    for (old, new), path in PROOFS.items():
        assert [h.hex() for h in merkle.consistency(old, new, log.get)] == list(path)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.data())
def test_every_proof_verifies_and_no_changed_one_does(size: int, data: st.DataObject) -> None:
    log = Log([bytes([i]) for i in range(size)])
    head = merkle.root(size, log.get)
    index = data.draw(st.integers(0, size - 1))
    path = merkle.inclusion(index, size, log.get)
    leaf = merkle.leaf_hash(bytes([index]))
    merkle.verify_inclusion(leaf, index, size, path, head)
    old = data.draw(st.integers(0, size))
    proof, old_head = merkle.consistency(old, size, log.get), merkle.root(old, log.get)
    merkle.verify_consistency(old, size, old_head, head, proof)
    other = Log([bytes([i]) for i in range(max(0, old - 1))] + [b"other"] * (size - max(0, old - 1)))
    forked = merkle.root(size, other.get)
    if old:
        with pytest.raises(ProtocolError):
            merkle.verify_consistency(old, size, old_head, forked, merkle.consistency(old, size, other.get))
        with pytest.raises(ProtocolError, match=r"shrank|different"):
            merkle.verify_consistency(size, old, head, forked if old == size else old_head, [])
    for wrong in ([*path, head], path[:-1], [head, *path[1:]]):
        if wrong != path:
            with pytest.raises(ProtocolError):
                merkle.verify_inclusion(leaf, index, size, wrong, head)
    with pytest.raises(ProtocolError):
        merkle.verify_inclusion(merkle.leaf_hash(b"not there"), index, size, path, head)
