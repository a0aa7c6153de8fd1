"""`zk0-hub init`: a new hub's folder. Everything in it is made once and never silently replaced."""

from __future__ import annotations

import getpass
import json
from pathlib import Path

from zk0d.durable import write_text
from zk0d.errors import ConfigError, UsageError
from zk0d.hub.config import HUB, parse, parse_address
from zk0d.hub.receipts import ReceiptKey
from zk0d.hub.store import Store
from zk0d.link.identity import Authority


def initialise(directory: Path, listen: str, name: str) -> str:
    """Make hub.toml, ca/, keys/ and hub.db in `directory` → the authority's fingerprint.

    Raises UsageError for an address that is none, ConfigError when there is a hub already.
    """
    if parse_address(listen) is None:
        raise UsageError(f"{listen!r} is no address", "give HOST:PORT, as in 0.0.0.0:7730")
    if (directory / "hub.toml").exists():
        raise ConfigError(f"there is a hub in {directory} already", f"run zk0-hub --dir {directory} serve")
    text = (
        "# Settings of this hub; docs/maintainer.md lists them all.\n"
        f"[hub]\nname = {json.dumps(name, ensure_ascii=False)}\nlisten = {json.dumps(listen)}\n"
    )
    parse(text, HUB, "hub.toml")
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    # A first attempt that was interrupted leaves no hub.toml: what it made is kept and used.
    ca = directory / "ca"
    authority = Authority.load(ca) if (ca / "ca.pem").exists() else Authority.create(ca, name)
    if not (directory / "keys" / "server.pem").exists():
        authority.issue_server(directory / "keys")
    if not (directory / "keys" / "receipt.key").exists():
        ReceiptKey.create(directory / "keys")
    store = Store(directory / "hub.db")
    if store.one("SELECT 1 FROM audit") is None:
        with store.write() as db:
            store.audit(db, f"admin:{getpass.getuser()}", "init", name, listen=listen, authority=authority.fingerprint)
    store.close()
    write_text(directory / "hub.toml", text)
    return authority.fingerprint
