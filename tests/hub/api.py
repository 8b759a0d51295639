"""The endpoints that the clients call, each a function of the hub and the request."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

import yaml

from .listing import entries, last_change
from .store import LFS_PATTERNS, Change, File, Refusal, Repo
from .wire import Reply, Request, ranged

if TYPE_CHECKING:
    from .server import Hub

LARGE = 10 << 20
_PARTS = {
    "kind": "(?P<kind>models|datasets)",
    "prefix": "(?P<kind>datasets/)?",
    "id": "(?P<id>[^/]+/[^/]+)",
    "rev": "(?P<rev>[^/]+)",
    "path": "(?P<path>.+)",
    "oid": "(?P<oid>[0-9a-f]{64})",
}
_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Reply]]] = []


def answer(hub: Hub, request: Request) -> Reply:
    """The reply to one request; 404 where no endpoint fits it."""
    try:
        for method, pattern, endpoint in _ROUTES:
            if method == request.method and (match := pattern.fullmatch(request.path)):
                return endpoint(hub, request, **{name: unquote(part or "") for name, part in match.groupdict().items()})
        raise Refusal(404, f"no such endpoint: {request.method} {request.path}")
    except Refusal as refusal:
        return refuse(refusal)


def refuse(refusal: Refusal) -> Reply:
    """A refusal as the Hub words it: the reason in the body and, for the client to act on, in the headers."""
    headers = {"X-Error-Message": refusal.message.encode("ascii", "replace").decode()}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return Reply.json({"error": refusal.message} | refusal.body, refusal.status, **headers)


def route(methods: str, template: str) -> Callable:
    """Register an endpoint; the parts of `template` in braces are its arguments."""
    pattern = re.compile(re.sub(r"\{(\w+)\}", lambda part: _PARTS[part[1]], template))

    def register(endpoint: Callable[..., Reply]) -> Callable[..., Reply]:
        _ROUTES.extend((method, pattern, endpoint) for method in methods.split())
        return endpoint

    return register


@route("GET", "/api/whoami-v2")
def whoami(hub: Hub, request: Request) -> Reply:
    user = hub.signed_in(request)
    token = {"displayName": "loopback", "role": "write"}
    return Reply.json(
        {"type": "user", "id": user, "name": user, "fullname": user, "orgs": [], "auth": {"accessToken": token}}
    )


@route("POST", "/api/repos/create")
def create(hub: Hub, request: Request) -> Reply:
    asked, user = request.json(), hub.signed_in(request)
    owner = asked.get("organization") or user
    if owner != user:
        raise Refusal(403, f"You don't have the rights to create a repository under {owner}")
    kind, name = f"{asked.get('type') or 'model'}s", f"{owner}/{asked['name']}"
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


@route("GET", "/api/{kind}/{id}")
@route("GET", "/api/{kind}/{id}/revision/{rev}")
def info(hub: Hub, request: Request, kind: str, id: str, rev: str = "main") -> Reply:
    repo = hub.open(kind, id, request)
    commit = repo.at(rev)
    detailed = parse_qs(request.query).get("blobs") is not None
    siblings = [
        {"rfilename": path} | ({"size": len(file.content), "blobId": file.oid, "lfs": _lfs(file)} if detailed else {})
        for path, file in sorted(commit.files.items())
    ]
    card, _ = _front_matter(commit.files["README.md"].content.decode()) if "README.md" in commit.files else (None, [])
    return Reply.json(
        {"id": id, "sha": commit.id, "private": repo.private, "author": repo.owner, "siblings": siblings}
        | {"gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0, "cardData": card or {}}
        | {"lastModified": commit.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")}
    )


@route("GET", "/api/{kind}/{id}/tree/{rev}")
@route("GET", "/api/{kind}/{id}/tree/{rev}/{path}")
def tree(hub: Hub, request: Request, kind: str, id: str, rev: str, path: str = "") -> Reply:
    repo = hub.open(kind, id, request)
    commit, query = repo.at(rev), parse_qs(request.query)
    recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
    found = [one for one in entries(commit.files, path) if recursive or "/" not in _below(one["path"], path)]
    if path and not found:
        raise Refusal(404, f"{path} does not exist on {rev}", "EntryNotFound")
    return Reply.json(_dated(repo, rev, found, query.get("expand", ["false"])[0]))


@route("POST", "/api/{kind}/{id}/paths-info/{rev}")
def paths_info(hub: Hub, request: Request, kind: str, id: str, rev: str) -> Reply:
    repo = hub.open(kind, id, request)
    form = parse_qs(request.body.decode())
    wanted = {path.strip("/") for path in form.get("paths", [])}
    found = [one for one in entries(repo.at(rev).files) if one["path"] in wanted]
    return Reply.json(_dated(repo, rev, found, form.get("expand", ["false"])[0]))


@route("GET", "/api/{kind}/{id}/refs")
def refs(hub: Hub, request: Request, kind: str, id: str) -> Reply:
    repo = hub.open(kind, id, request)

    def named(prefix: str) -> list[dict[str, str]]:
        own = ((ref, target) for ref, target in repo.refs.items() if ref.startswith(prefix))
        return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": target} for ref, target in own]

    return Reply.json(
        {"branches": named("refs/heads/"), "tags": named("refs/tags/"), "converts": [], "pullRequests": []}
    )


@route("GET", "/api/{kind}/{id}/commits/{rev}")
def commits(hub: Hub, request: Request, kind: str, id: str, rev: str) -> Reply:
    return Reply.json(
        [
            {"id": one.id, "title": one.title, "message": one.message, "authors": [{"user": one.author}]}
            | {"date": one.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")}
            for one in hub.open(kind, id, request).history(rev)
        ]
    )


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
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    changes = list(_changes(repo, lines))
    made = repo.commit(
        rev, changes, header["summary"], header.get("description", ""), request.user or "", header.get("parentCommit")
    )
    url = f"{hub.url}/{'datasets/' if kind == 'datasets' else ''}{id}/commit/{made.id}"
    return Reply.json({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: Hub, request: Request) -> Reply:
    card, errors = _front_matter(request.json()["content"])
    warnings = [] if card or errors else [{"message": "empty or missing yaml metadata in repo card"}]
    return Reply.json({"errors": errors, "warnings": warnings}, 400 if errors else 200)


@route("GET HEAD", "/{prefix}{id}/resolve/{rev}/{path}")
def resolve(hub: Hub, request: Request, kind: str, id: str, rev: str, path: str) -> Reply:
    commit = hub.open(kind.strip("/") or "models", id, request).at(rev)
    headers = {"X-Repo-Commit": commit.id}
    file = commit.files.get(path)
    if file is None:
        headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return Reply(404, b"Entry not found", headers)
    headers["ETag"] = f'"{file.oid}"'
    if file.lfs:
        headers |= {"X-Linked-Size": str(len(file.content)), "X-Linked-ETag": f'"{file.sha256}"'}
    return ranged(file.content, request.headers.get("range"), headers)


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


def _front_matter(text: str) -> tuple[dict[str, Any] | None, list[dict[str, str]]]:
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.DOTALL)
    try:
        card = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        return None, [{"message": f"YAML Metadata Error: {error}"}]
    if card is not None and not isinstance(card, dict):
        return None, [{"message": "YAML Metadata Error: not a mapping"}]
    return card, []


def _dated(repo: Repo, rev: str, found: list[dict[str, Any]], expand: str) -> list[dict[str, Any]]:
    if expand.lower() not in ("true", "1"):
        return found
    return [one | {"lastCommit": last_change(repo.history(rev), one["path"])} for one in found]


def _lfs(file: File) -> dict[str, Any] | None:
    return {"sha256": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)} if file.lfs else None


def _below(path: str, folder: str) -> str:
    return path[len(folder) + 1 :] if folder else path


def _binary(content: bytes) -> bool:
    return b"\0" in content
