"""tests/vectors/: the wire as bytes with their meaning, for a second implementation; here ours is held against them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from zk0d.errors import PayloadError, ProtocolError
from zk0d.hub.receipts import RECEIPT_PREFIX, UPDATE_PREFIX, read_statement
from zk0d.link.enroll import hello_frame, request_frame, serve_enroll
from zk0d.link.gate import Gate, GateError, RefusalScanner, refusal_record
from zk0d.link.identity import verify
from zk0d.link.messages import TYPES, Message, MessageError, decode, encode, unpack
from zk0d.link.session import FRAME_HEAD
from zk0d.model.blobs import LEAF, BlobStore, Manifest
from zk0d.model.payload import parse_header

VECTORS = Path(__file__).parents[1] / "vectors"


def load(name: str) -> dict[str, Any]:
    return dict(json.loads((VECTORS / name).read_text()))


ZMTP, MESSAGES, MANIFESTS = load("zmtp.json"), load("messages.json"), load("manifests.json")
SIGNATURES, ENROLMENT, SAFETENSORS = load("signatures.json"), load("enrolment.json"), load("safetensors.json")


def named(rows: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.get("name") or row.get("type"))


def binary(value: Any) -> Any:
    """JSON's value with `{"$bin": hex}` as bytes."""
    if isinstance(value, dict):
        return bytes.fromhex(value["$bin"]) if value.keys() == {"$bin"} else {k: binary(v) for k, v in value.items()}
    return [binary(v) for v in value] if isinstance(value, list) else value


def frames(row: dict[str, Any]) -> list[bytes]:
    return [bytes.fromhex(f) for f in row["frames"]]


@named(ZMTP["accepted"])
@pytest.mark.parametrize("step", [1, 7, 10**6])
def test_the_gate_lets_it_pass_unchanged(row: dict[str, Any], step: int) -> None:
    data, gate, out = bytes.fromhex(row["hex"]), Gate(ZMTP["node_id"]), b""
    for at in range(0, len(data), step):
        out += bytes(gate.feed(data[at : at + step]))
    assert out == data and gate.open


@named(ZMTP["refused"])
@pytest.mark.parametrize("step", [1, 10**6])
def test_the_gate_refuses_it(row: dict[str, Any], step: int) -> None:
    data, gate = bytes.fromhex(row["hex"]), Gate(ZMTP["node_id"])
    with pytest.raises(GateError) as refused:
        for at in range(0, len(data), step):
            gate.feed(data[at : at + step])
    assert refused.value.reason == row["code"]


def test_refusal_records() -> None:
    for row in ZMTP["refusal_records"]:
        data = bytes.fromhex(row["hex"])
        assert refusal_record(row["code"], row["message"]) == data
        scanner = RefusalScanner()
        for at in range(len(data)):
            assert scanner.refusal is None and scanner.feed(data[at : at + 1]) == b""
        assert scanner.refusal == (row["code"], row["message"])


@named(MESSAGES["accepted"])
def test_a_message_is_these_bytes(row: dict[str, Any]) -> None:
    body, bulk = binary(row["body"]), None if row["bulk"] is None else bytes.fromhex(row["bulk"])
    message = Message(row["type"], row["id"], body, row["re"], bulk)
    assert encode(message) == frames(row)
    assert decode(list(frames(row))) == message


def test_every_type_has_a_vector() -> None:
    assert {row["type"] for row in MESSAGES["accepted"]} == set(TYPES)


@named(MESSAGES["tolerated"])
def test_a_message_of_a_later_peer_is_understood(row: dict[str, Any]) -> None:
    message = decode(list(frames(row)))
    assert (message.type, message.id, message.re, message.body) == (row["type"], row["id"], row["re"], row["body"])


@named(MESSAGES["refused"])
def test_a_message_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(MessageError) as refused:
        decode(list(frames(row)))
    assert (refused.value.wire_code, refused.value.re) == (row["code"], row["re"])


def manifest(row: dict[str, Any]) -> Manifest:
    return Manifest(row["digest"], row["size"], row["chunk_size"], bytes.fromhex("".join(row["leaves"])))


@named(MANIFESTS["accepted"])
def test_a_blob_is_called_and_cut_so(row: dict[str, Any], tmp_path: Path) -> None:
    pattern, size = bytes.fromhex(MANIFESTS["pattern"]), row["size"]
    blob = (pattern * (size // len(pattern) + 1))[:size]
    assert [hashlib.sha256(blob[i : i + MANIFESTS["leaf"]]).hexdigest() for i in range(0, size, LEAF)] == row["leaves"]
    assert "blob:" + hashlib.sha256(bytes.fromhex(row["root"])).hexdigest() == row["digest"]
    store = BlobStore(tmp_path, reserve=0)
    assert store.add_bytes(blob) == row["digest"]
    found = store.manifest(row["digest"], row["chunk_size"])
    assert found == manifest(row) and found.count == row["chunks"]


@named(MANIFESTS["refused"])
def test_a_manifest_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(PayloadError):
        manifest(row)


def test_statements_receipts_and_their_signatures() -> None:
    for key, name, prefix in (
        ("node_key", "statement", UPDATE_PREFIX), ("node_key", "statement_with_base", UPDATE_PREFIX),
        ("receipt_key", "receipt", RECEIPT_PREFIX),
    ):  # fmt: skip
        public, row = SIGNATURES[key]["public_pem"].encode(), SIGNATURES[name]
        raw, signature = bytes.fromhex(row["hex"]), bytes.fromhex(row["signature"])
        assert json.loads(raw) == row["means"]
        verify(public, prefix + raw, signature)
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SIGNATURES[key]["private"]))
        assert private.sign(prefix + raw) == signature
    for name in ("statement", "statement_with_base"):
        row = SIGNATURES[name]
        statement = read_statement(bytes.fromhex(row["hex"]), bytes.fromhex(row["signature"]))
        assert statement.digest == row["update"]
        assert {k: getattr(statement, k) for k in row["means"]} == row["means"]


@named(SIGNATURES["bad_signatures"])
def test_a_signature_is_refused(row: dict[str, Any]) -> None:
    raw = bytes.fromhex(SIGNATURES["statement"]["hex"])
    with pytest.raises(ProtocolError):
        verify(SIGNATURES["node_key"]["public_pem"].encode(), UPDATE_PREFIX + raw, bytes.fromhex(row["signature"]))


@named(SIGNATURES["refused_statements"])
def test_a_statement_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        read_statement(bytes.fromhex(row["hex"]), bytes(64))


def framed(data: str) -> bytes:
    raw = bytes.fromhex(data)
    (size,) = FRAME_HEAD.unpack_from(raw)
    assert len(raw) == FRAME_HEAD.size + size
    return raw[FRAME_HEAD.size :]


def test_enrolment_frames() -> None:
    hello, request = ENROLMENT["hello"], ENROLMENT["request"]
    assert framed(hello["hex"]) == hello_frame(binary(hello["means"])["ca"])
    means = binary(request["means"])
    assert request_frame({k: v for k, v in means.items() if k != "v"}) == bytes.fromhex(request["hex"])
    for row in ENROLMENT["answers"]:
        want = binary(row["means"])

        async def answer(body: dict[str, Any], want: dict[str, Any] = want) -> dict[str, Any]:
            assert body == {**{k: v for k, v in means.items() if k != "v"}, "address": "here"}
            return {k: v for k, v in want.items() if k != "v"}

        assert asyncio.run(serve_enroll(framed(request["hex"]), "here", answer)) == framed(row["hex"])


@named(ENROLMENT["refused_requests"])
def test_an_enrolment_request_is_refused(row: dict[str, Any]) -> None:
    async def never(body: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("a bad request came through")

    reply = unpack(asyncio.run(serve_enroll(framed(row["hex"]), "here", never)))
    assert (reply["state"], reply["v"]) == ("refused", 1)
    assert reply["code"] == row["code"]


@named(SAFETENSORS["accepted"])
def test_a_payload_header_is_taken(row: dict[str, Any]) -> None:
    entries, _ = parse_header(row["header"].encode(), row["data_bytes"])
    assert sorted(entries) == row["tensors"]


@named(SAFETENSORS["refused"])
def test_a_payload_header_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(PayloadError):
        parse_header(row["header"].encode(), row["data_bytes"])
