"""Worker: one published folder to a repository of the Hugging Face Hub; and, without any network, what that would be.

A process of its own, so that the hub needs no huggingface_hub. Job {"plan": of `plan`, "folder", "endpoint"}; the token
comes in HF_TOKEN. Only what the plan lists is sent, and only if it is still what the plan says.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from zk0d.durable import sha256_file
from zk0d.errors import UsageError, WorkerError
from zk0d.worker import Message, WorkerChannel, run_worker


def plan(folder: Path, federation: str, version: int, repo: str, private: bool) -> dict[str, Any]:
    """Exactly what a push of `folder` is: repository, branch, tag, message, and each file's path, bytes and SHA-256.

    Hidden files and links are no part of a version and are left out. Raises UsageError when nothing is there.
    """
    files: list[dict[str, Any]] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_symlink() or not path.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        files.append({"path": name.as_posix(), "size": path.stat().st_size, "sha256": sha256_file(path)})
    if not files:
        raise UsageError(f"version {version} of {federation} has no published folder",
                         f"`zk0-hub evaluate {federation} {version}` makes it")  # fmt: skip
    return {
        "federation": federation, "version": version, "repo": repo, "private": private, "revision": "main",
        "tag": f"v{version:04d}", "message": f"{federation}, version {version}", "files": files,
        "bytes": sum(f["size"] for f in files),
    }  # fmt: skip


def main(job: Message, channel: WorkerChannel) -> Message:
    """Make the repository where there is none, commit the files, set the tag. Raises WorkerError."""
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise WorkerError("huggingface_hub is not installed", "install zk0d's `ml` packages") from error
    told, folder = job["plan"], Path(job["folder"])
    if not os.environ.get("HF_TOKEN"):
        raise WorkerError("there is no token for the Hugging Face Hub", "put it into keys/hf_token (0600), or HF_TOKEN")
    operations = []
    for file in told["files"]:
        path = folder / file["path"]
        if not path.is_file() or sha256_file(path) != file["sha256"]:
            raise WorkerError(f"{path} is not what it was", "it is tried again")
        operations.append(CommitOperationAdd(path_in_repo=file["path"], path_or_fileobj=path))
    api = HfApi(endpoint=job.get("endpoint") or None, token=os.environ["HF_TOKEN"])
    try:
        api.create_repo(told["repo"], private=told["private"], exist_ok=True)
        channel.emit("ready")
        made = api.create_commit(
            told["repo"], operations, commit_message=told["message"], revision=told["revision"], num_threads=2
        )
        api.create_tag(told["repo"], tag=told["tag"], revision=made.oid, exist_ok=True)
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()
        raise WorkerError(f"{told['repo']} does not take it: {first[0] if first else type(error).__name__}") from error
    return {"commit": made.oid, "url": str(made.commit_url), "files": len(operations)}


if __name__ == "__main__":
    sys.exit(run_worker(main))
