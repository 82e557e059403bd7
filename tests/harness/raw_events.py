"""Every event of the page called as a program may call it: by its number, with whatever stands in a text."""

import json
import uuid
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class Answer:
    """What one event answered: its name, what it was sent, and each output with its component's kind."""

    event: str
    sent: str
    outputs: list[tuple[str, str]]
    error: str

    @property
    def as_html(self) -> str:
        """Return what a browser reads as HTML: the HTML components, and the message of an error."""
        return "\n".join([self.error, *(text for kind, text in self.outputs if kind in ("html", "markdown"))])


class RawEvents:
    """The events of an open page, from its own description of itself."""

    def __init__(self, url: str, events: tuple[str, ...] = ()) -> None:
        self._client = httpx.Client(base_url=url, timeout=120)
        # A visit of its own: the server keeps what each has seen.
        self._session = uuid.uuid4().hex
        config = self._client.get("/config").json()
        self._kinds = {one["id"]: one["type"] for one in config["components"]}
        self._values = {one["id"]: one["props"].get("value") for one in config["components"]}
        self._all = config["dependencies"]
        # What runs in the browser alone is none of the server's.
        asked = [one for one in self._all if one["inputs"] and one["backend_fn"]]
        self.events = [one for one in asked if not events or one["api_name"] in events]
        self.names = [str(one["api_name"]) for one in self.events]

    def fire(self, payloads: list[Any]) -> list[Answer]:
        """Send each payload to each event, in all of its inputs that hold a text or a choice at once."""
        sent: dict[str, tuple[dict[str, Any], str]] = {}
        for payload in payloads:
            for event in self.events:
                data = [self._input(number, payload) for number in event["inputs"]]
                sent[self._join(event["id"], data)] = (event, str(payload))
        return self._answers(sent)

    def call(self, event: str, *calls: list[Any]) -> list[Answer]:
        """Call one event with exactly these inputs, once for each list."""
        found = next(one for one in self._all if one["api_name"] == event)
        return self._answers({self._join(found["id"], data): (found, str(data)) for data in calls})

    def defaults(self, event: str) -> list[Any]:
        """Return what a fresh page would send."""
        found = next(one for one in self._all if one["api_name"] == event)
        return [self._values[number] for number in found["inputs"]]

    def _input(self, number: int, payload: Any) -> Any:
        kind = self._kinds[number]
        if kind in ("state", "checkbox", "number", "slider"):
            return None if kind == "state" else self._values[number]
        if kind == "file":
            return [{"path": payload, "url": payload, "orig_name": payload, "meta": {"_type": "gradio.FileData"}}]
        return payload

    def _join(self, number: int, data: list[Any]) -> str:
        body = json.dumps({"data": data, "fn_index": number, "session_hash": self._session})
        answer = self._client.post("/gradio_api/queue/join", content=body, headers={"content-type": "application/json"})
        return str(answer.raise_for_status().json()["event_id"])

    def _answers(self, sent: dict[str, tuple[dict[str, Any], str]]) -> list[Answer]:
        assert sent, "nothing was called: no answer would ever come"
        answers: dict[str, Answer] = {}
        order = list(sent)
        with self._client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self._session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line[6:]) if line.startswith("data: ") else {}
                if message.get("msg") != "process_completed":
                    continue
                event_id = message["event_id"]
                event, payload = sent.pop(event_id)
                output = message["output"] or {}
                kinds = [self._kinds.get(number, "") for number in event["outputs"]]
                values = [json.dumps(value, ensure_ascii=False) for value in output.get("data") or []]
                texts = list(zip(kinds or ["api"] * len(values), values, strict=False))
                answers[event_id] = Answer(str(event["api_name"]), payload, texts, str(output.get("error") or ""))
                if not sent:
                    break
        return [answers[one] for one in order]
