"""What a W&B server holds: runs and artefacts, and its answers to the SDK's GraphQL operations (wandb 0.31)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

ENTITY = "lab"
NOW = "2026-01-01T00:00:00"


@dataclass
class Run:
    """One run. ``history`` is line number -> JSON text: the SDK says at which line a piece starts."""

    name: str
    project: str
    variables: dict[str, Any] = field(default_factory=dict)
    streamed: dict[str, dict[int, str]] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    starts: int = 0
    rewritten: int = 0  # history lines that came again with another text
    complete: bool = False
    exitcode: int | None = None
    preempting: bool = False

    @property
    def config(self) -> dict[str, Any]:
        raw = json.loads(self.variables.get("config") or "{}")
        return {key: value["value"] for key, value in raw.items() if key != "_wandb"}

    @property
    def history(self) -> list[dict[str, Any]]:
        lines = self.streamed.get("wandb-history.jsonl", {})
        return [json.loads(lines[number]) for number in sorted(lines)]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.streamed.get("wandb-summary.json", {})
        return json.loads(lines[max(lines)]) if lines else {}

    @property
    def tags(self) -> list[str]:
        return list(self.variables.get("tags") or [])

    def upsert(self, variables: dict[str, Any]) -> bool:
        new = not self.variables
        self.variables |= {key: value for key, value in variables.items() if value is not None}
        self.complete = False
        return new

    def stream(self, body: dict[str, Any]) -> None:
        for file, part in (body.get("files") or {}).items():
            lines = self.streamed.setdefault(file, {})
            # the summary is one document that is replaced; the rest are lines with places
            for number, line in enumerate(part["content"], part["offset"]):
                if file == "wandb-history.jsonl" and lines.get(number, line) != line:
                    self.rewritten += 1
                lines[number] = line
        self.complete = self.complete or bool(body.get("complete"))
        self.preempting = self.preempting or bool(body.get("preempting"))
        if body.get("exitcode") is not None:
            self.exitcode = body["exitcode"]

    @property
    def state(self) -> str:
        return "running" if not self.complete else "failed" if self.exitcode else "finished"

    def resume_status(self) -> dict[str, Any]:
        def tail(file: str) -> str:
            lines = self.streamed.get(file, {})
            return json.dumps([lines[max(lines)]] if lines else [])

        def count(file: str) -> int:
            return len(self.streamed.get(file, {}))

        config = json.loads(self.variables.get("config") or "{}")
        telemetry = config.get("_wandb", {}).get("value", {}).get("t")
        started = json.dumps({"t": telemetry} if telemetry else {})  # how the SDK knows that a run has begun
        return {
            "id": f"bucket-{self.name}", "name": self.name, "displayName": self.variables.get("displayName"),
            "summaryMetrics": json.dumps(self.summary), "config": self.variables.get("config") or "{}",
            "historyLineCount": count("wandb-history.jsonl"), "eventsLineCount": count("wandb-events.jsonl"),
            "logLineCount": count("output.log"), "historyTail": tail("wandb-history.jsonl"),
            "eventsTail": tail("wandb-events.jsonl"), "tags": self.tags, "notes": "", "wandbConfig": started,
        }  # fmt: skip

    def as_node(self) -> dict[str, Any]:
        return self.resume_status() | {
            "projectId": 1, "state": self.state, "sweepName": None, "group": self.variables.get("groupName"),
            "jobType": self.variables.get("jobType"), "commit": None, "readOnly": False,
            "createdAt": NOW, "heartbeatAt": NOW, "description": "",
            "systemMetrics": "{}", "user": {"name": ENTITY, "username": ENTITY}, "historyKeys": None,
        }  # fmt: skip


@dataclass
class Artefact:
    """One version of a named artefact."""

    id: str
    name: str
    type: str
    digest: str
    version: int
    created: dict[str, Any]
    project: str
    manifest: str = ""  # its blob's name
    state: str = "PENDING"


class Served:
    """All runs and artefacts; ``answer`` speaks GraphQL, None for an operation it does not know."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.runs: dict[str, Run] = {}
        self.artefacts: dict[str, Artefact] = {}
        self.blobs: dict[str, bytes] = {}

    def run(self, name: str, project: str) -> Run:
        return self.runs.setdefault(name, Run(name, project))

    def entries(self, artefact: Artefact) -> dict[str, Any]:
        """The files of an artefact's manifest: path -> digest, ref, size, extra."""
        return json.loads(self.blobs[artefact.manifest])["contents"]

    def answer(self, name: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        known = getattr(self, f"_{name}", None)
        return known(variables.get("input") or variables) if known else None

    # --- who is asking, where

    def _Viewer(self, v: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        viewer = {"id": "u", "name": ENTITY, "entity": ENTITY, "username": ENTITY, "email": "a@b.c"}
        return {"viewer": viewer | {"admin": False, "flags": "{}", "deletedAt": None, "apiKeys": {"edges": []},
                                    "teams": teams}}  # fmt: skip

    _GetViewer = _GetDefaultEntity = _Viewer

    def _ServerFeaturesQuery(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    # --- runs

    def _RunResumeStatus(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(v["name"])
        project = {"id": "p", "name": v["project"], "entity": {"id": "e", "name": ENTITY}}
        return {"model": project | {"bucket": run.resume_status() if run and run.variables else None}}

    def _UpsertBucket(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.run(v["name"], v.get("project") or "")
        inserted = run.upsert(v)
        run.starts += "config" in v and "displayName" in v
        project = {"id": "p", "name": run.project, "entity": {"id": "e", "name": ENTITY}}
        return {"upsertBucket": {"bucket": run.resume_status() | {
            "description": "", "config": "{}", "sweepName": None, "project": project,
        }, "inserted": inserted}}  # fmt: skip

    def _CreateRunFiles(self, v: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": f, "uploadUrl": f"{self.url}/blob/{v['run']}/{f}"} for f in v["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}

    def _NotifyScriptableRunAlert(self, v: dict[str, Any]) -> dict[str, Any]:
        self.run(v["runName"], v["projectName"]).alerts.append(v)
        return {"notifyScriptableRunAlert": {"success": True}}

    def _Run(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(v["name"])
        return {"project": {"internalId": 1, "readOnly": False, "run": run.as_node() if run else None}}

    # --- artefacts

    def _ArtifactType(self, v: dict[str, Any]) -> dict[str, Any]:
        name = v.get("artifactName") or v.get("name") or ""
        found = self._newest(name.split(":")[0])
        return {"project": {"artifact": {"artifactType": {"name": found.type}} if found else None}}

    def _newest(self, collection: str) -> Artefact | None:
        versions = [a for a in self.artefacts.values() if a.name == collection and a.state == "COMMITTED"]
        return max(versions, key=lambda a: a.version, default=None)

    def _CreateArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        name = (
            v["artifactCollectionNames"][0]
            if v.get("artifactCollectionNames")
            else v["artifactCollectionName"]
        )
        latest = self._newest(name)
        same = [a for a in self.artefacts.values() if (a.name, a.digest) == (name, v["digest"])]
        if same:
            artefact = same[0]  # equal contents are one version, whoever logs them
        else:
            count = sum(a.name == name for a in self.artefacts.values())
            artefact = Artefact(
                f"artefact-{len(self.artefacts)}",
                name,
                v["artifactTypeName"],
                v["digest"],
                count,
                v,
                v["projectName"],
            )
            self.artefacts[artefact.id] = artefact
        if v.get("runName"):  # an input that no run has made comes without
            made = self.run(v["runName"], v["projectName"]).made
            made += [artefact.id] if artefact.id not in made else []
        sequence = {
            "id": f"sequence-{name}",
            "latestArtifact": latest and {"id": latest.id, "versionIndex": latest.version},
        }
        return {
            "createArtifact": {
                "artifact": {"id": artefact.id, "state": artefact.state, "artifactSequence": sequence}
            }
        }

    def _CreateArtifactManifest(self, v: dict[str, Any]) -> dict[str, Any]:
        artefact = self.artefacts[v["artifactID"]]
        artefact.manifest = f"manifest/{artefact.id}"
        file = {"id": "f", "uploadUrl": f"{self.url}/blob/{artefact.manifest}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": f"m-{artefact.id}", "file": file}}}

    def _UpdateArtifactManifest(self, v: dict[str, Any]) -> dict[str, Any]:
        answer = self._CreateArtifactManifest({"artifactID": v["artifactManifestID"].removeprefix("m-")})
        return {"updateArtifactManifest": answer["createArtifactManifest"]}

    def _CreateArtifactFiles(self, v: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for file in v["artifactFiles"]:
            path = f"artefact/{file['artifactID']}/{file['name']}"
            edges.append({"node": {"storagePath": path, "uploadUrl": f"{self.url}/blob/{path}", "uploadHeaders": [],
                                   "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}})  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _ArtifactByID(self, v: dict[str, Any]) -> dict[str, Any]:
        found = self.artefacts.get(v["id"])
        return {"artifact": found and self._node(found)}

    def _ArtifactMembershipByName(self, v: dict[str, Any]) -> dict[str, Any]:
        found = self._newest(v["name"].partition(":")[0])
        membership = found and {
            "__typename": "ArtifactCollectionMembership", "id": f"member-{found.id}", "versionIndex": found.version,
            "createdAt": NOW, "aliases": [], "artifactCollection": self._collection(found), "artifact": self._node(found),
        }  # fmt: skip
        return {"project": {"artifactCollectionMembership": membership}}

    def _collection(self, artefact: Artefact) -> dict[str, Any]:
        project = {"id": "p", "internalId": "1", "name": artefact.project, "entity": {"name": ENTITY}}
        return {"__typename": "ArtifactSequence", "name": artefact.name, "project": project}

    def _node(self, artefact: Artefact) -> dict[str, Any]:
        return {
            "__typename": "Artifact", "id": artefact.id, "artifactSequence": self._collection(artefact),
            "versionIndex": artefact.version, "artifactType": {"name": artefact.type}, "description": None,
            "metadata": artefact.created.get("metadata"), "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [],
            "historyStep": None, "state": artefact.state, "size": 0, "digest": artefact.digest, "digestAlgorithm": None,
            "commitHash": None, "fileCount": 1, "createdAt": NOW, "updatedAt": None, "aliases": [],
        }  # fmt: skip

    def _CommitArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        artefact = self.artefacts[v["artifactID"]]
        artefact.state = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": artefact.id, "digest": artefact.digest}}}

    def _RunInputArtifacts(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[v["run"]]
        edges = [{"node": self._node(self.artefacts[id])} for id in run.used]
        page = {"endCursor": None, "hasNextPage": False}
        found = {"totalCount": len(edges), "pageInfo": page, "edges": edges}
        return {"project": {"run": {"artifacts": found}}}

    def _UseArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        artefact = self.artefacts[v["artifactID"]]
        used = self.run(v["runName"], v["projectName"]).used
        if artefact.id not in used:
            used.append(artefact.id)
        return {"useArtifact": {"artifact": {"id": artefact.id, "digest": artefact.digest, "description": None,
                                             "state": artefact.state, "createdAt": NOW,
                                             "metadata": "{}"}}}  # fmt: skip
