"""The endpoints that make repositories, take uploads and land commits."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .routing import route
from .store import LFS_PATTERNS, Change, File, Refusal, Repo
from .wire import Reply, Request

if TYPE_CHECKING:
    from .server import Hub

LARGE = 10 << 20


@route("POST", "/api/repos/create")
def create(hub: Hub, request: Request) -> Reply:
    asked, user = request.json(), hub.signed_in(request)
    owner = asked.get("organization") or user
    if owner != user:
        raise Refusal(403, f"You don't have the rights to create a repository under {owner}")
    kind, name = f"{asked.get('type') or 'model'}s", f"{owner}/{asked['name']}"
    if kind not in ("models", "datasets"):
        raise Refusal(501, f"This Hub has no {kind}")
    url = f"{hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}"
    if (kind, name) in hub.repos:
        raise Refusal(409, "You already created this repo", url=url)
    hub.repos[kind, name] = Repo(kind, name, owner, private=asked.get("visibility") == "private")
    return Reply.json({"url": url, "name": name})


@route("DELETE", "/api/repos/delete")
def delete(hub: Hub, request: Request) -> Reply:
    asked, user = request.json(), hub.signed_in(request)
    kind, name = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or user}/{asked['name']}"
    hub.open(kind, name, request, write=True)
    del hub.repos[kind, name]
    return Reply.json({})


@route("POST", "/api/{kind}/{id}/branch/{rev}")
def branch(hub: Hub, request: Request, kind: str, id: str, rev: str) -> Reply:
    repo = hub.open(kind, id, request, write=True)
    return _new_ref(repo, f"refs/heads/{rev}", request.json().get("startingPoint") or "main")


@route("POST", "/api/{kind}/{id}/tag/{rev}")
def tag(hub: Hub, request: Request, kind: str, id: str, rev: str) -> Reply:
    repo = hub.open(kind, id, request, write=True)
    return _new_ref(repo, f"refs/tags/{request.json()['tag']}", rev)


@route("POST", "/api/{kind}/{id}/preupload/{rev}")
def preupload(hub: Hub, request: Request, kind: str, id: str, rev: str) -> Reply:
    commit = hub.open(kind, id, request, write=True).at(rev)

    def plan(asked: dict[str, Any]) -> dict[str, Any]:
        named = any(fnmatch(asked["path"], pattern) for pattern in LFS_PATTERNS)
        large = named or asked["size"] > LARGE or _binary(base64.b64decode(asked["sample"]))
        known = commit.files.get(asked["path"])
        oid = {"oid": known.sha256 if known.lfs else known.oid} if known else {}
        return {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False} | oid

    return Reply.json({"files": [plan(asked) for asked in request.json()["files"]], "commitOid": commit.id})


@route("POST", "/{prefix}{id}.git/info/lfs/objects/batch")
def lfs_batch(hub: Hub, request: Request, kind: str, id: str) -> Reply:
    kind = kind.strip("/") or "models"
    repo = hub.open(kind, id, request, write=True)

    def plan(asked: dict[str, Any]) -> dict[str, Any]:
        if asked["oid"] in repo.lfs:
            return asked
        upload = {"href": f"{hub.url}/lfs/{kind}/{id}/{asked['oid']}"}
        verify = {"href": f"{hub.url}/lfs/{kind}/{id}/verify"}
        return asked | {"actions": {"upload": upload, "verify": verify}}

    return Reply.json({"transfer": "basic", "objects": [plan(asked) for asked in request.json()["objects"]]})


@route("PUT", "/lfs/{kind}/{id}/{oid}")
def lfs_put(hub: Hub, request: Request, kind: str, id: str, oid: str) -> Reply:
    if File(request.body).sha256 != oid:
        raise Refusal(400, "The content does not have the sha256 it was announced with")
    hub.repos[kind, id].lfs[oid] = request.body
    return Reply()


@route("POST", "/lfs/{kind}/{id}/verify")
def lfs_verify(hub: Hub, request: Request, kind: str, id: str) -> Reply:
    asked = request.json()
    content = hub.open(kind, id, request, write=True).lfs.get(asked["oid"])
    if content is None or len(content) != asked["size"]:
        raise Refusal(404, "No such object, or not of that size")
    return Reply.json({})


@route("POST", "/api/{kind}/{id}/commit/{rev}")
def commit(hub: Hub, request: Request, kind: str, id: str, rev: str) -> Reply:
    repo = hub.open(kind, id, request, write=True)
    if parse_qs(request.query).get("create_pr"):
        raise Refusal(501, "This Hub has no pull requests")
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    changes = list(_changes(repo, lines))
    made = repo.commit(
        rev, changes, header["summary"], header.get("description", ""), request.user or "", header.get("parentCommit")
    )
    url = f"{hub.url}/{'datasets/' if kind == 'datasets' else ''}{id}/commit/{made.id}"
    return Reply.json({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})


def _changes(repo: Repo, lines: list[dict[str, Any]]) -> Iterator[Change]:
    for line in lines:
        value = line["value"]
        match line["key"]:
            case "header":
                continue
            case "file":
                content = base64.b64decode(value["content"], validate=True)
                if _binary(content):
                    raise Refusal(400, f"{value['path']} is binary: it must be uploaded through LFS")
                yield Change(value["path"], File(content))
            case "lfsFile":
                if value["oid"] not in repo.lfs:
                    raise Refusal(400, f"{value['path']} points to an LFS object that was not uploaded")
                yield Change(value["path"], File(repo.lfs[value["oid"]], lfs=True))
            case "deletedFile" | "deletedFolder" as key:
                yield Change(value["path"], folder=key == "deletedFolder")
            case other:
                raise Refusal(400, f"Unknown operation in a commit: {other}")


def _new_ref(repo: Repo, ref: str, start: str) -> Reply:
    if ref in repo.refs:
        raise Refusal(409, f"Reference already exists: {ref}")
    repo.refs[ref] = repo.at(start).id
    return Reply.json({})


def _binary(content: bytes) -> bool:
    return b"\0" in content
