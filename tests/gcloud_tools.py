"""gcloud for tests: the real one, led to stand-ins of Google's services, or one that speaks to them itself."""

import fnmatch
import json
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from tpu.gcloud import Gcloud, GcloudError
from tpu.settings import Settings

HAS_GCLOUD = shutil.which("gcloud") is not None


def settings(**changes):
    """Of a run of the demo on a v3-8, in bucket `bucket`."""
    fields = {
        "project": "my-project", "zone": "us-central1-a", "bucket": "bucket", "data": "gs://bucket/shards",
        "config": str(Path(__file__).parents[1] / "configs/demo.yaml"), "max_dollars": 100.0, "dollars_per_hour": 8.0,
    }  # fmt: skip
    return Settings(**{**fields, **changes})


class StandIn(Gcloud):
    """Answers from a FakeTpuApi and a dict of objects, without gcloud: quick enough for hundreds of looks."""

    def __init__(self, api, objects=None, clock=time.time):
        """`clock` is the bucket's."""
        super().__init__()
        self.api, self.clock = api, clock
        self.objects = {} if objects is None else objects
        self.written = {}
        """When, by the bucket's clock."""
        self.answers = {}
        """What is printed instead, or the GcloudError raised, by the first words of a command."""
        self.asked = []
        self.failing = False
        """Whether Google cannot be reached."""

    def put(self, url, text):
        """As somebody else writes an object."""
        self.objects[url], self.written[url] = text, self.clock()

    is_there = True

    def ask(self, command, stdin=""):
        self.asked.append(command)
        if self.failing:
            raise GcloudError(command, "ERROR: connection reset")
        for beginning, answer in self.answers.items():
            if " ".join(command).startswith(beginning):
                if isinstance(answer, str):
                    return answer
                raise GcloudError(command, *answer)
        words = [word for word in command if not word.startswith("--")]
        flags = dict(word[2:].partition("=")[::2] for word in command if word.startswith("--"))
        if words[0] == "storage":
            return self._storage(command, words[1:], stdin)
        kind, verb, name = (*words[2:5], "")[:3]
        kind = {"tpu-vm": "nodes", "queued-resources": "queuedResources"}[kind]
        path = f"/v2/projects/{flags['project']}/locations/{flags['zone']}/{kind}"
        body = {}
        if verb == "create":
            node = {
                "metadata": dict(pair.split("=", 1) for pair in flags["metadata"].split(",")),
                "acceleratorType": flags["accelerator-type"],
            }
            body = {"tpu": {"nodeSpec": [{"nodeId": flags["node-id"], "node": node}]}} if "node-id" in flags else node
            path += f"?{'nodeId' if kind == 'nodes' else 'queuedResourceId'}={name}"
        else:
            path += f"/{name}"
        code, answer = self.api.answer({"create": "POST", "delete": "DELETE"}.get(verb, "GET"), path, body)
        if code != 200:
            raise GcloudError(command, f"ERROR: {answer['error']['status']}: {answer['error']['message']}")
        if verb == "create" and "error" in answer:
            raise GcloudError(command, f"ERROR: (gcloud.x) {json.dumps(answer['error'], indent=2)}")
        return json.dumps(answer)

    def _storage(self, command, words, stdin):
        verb, *urls = words
        missing = GcloudError(command, "ERROR: The following URLs matched no objects or files")
        if verb == "cp" and urls[0] == "-":
            self.put(urls[1], stdin)
        elif verb == "cp" and urls[0].startswith("gs://"):
            prefix, out = urls[0].removesuffix("*"), Path(urls[1])
            found = {name: text for name, text in self.objects.items() if name.startswith(prefix)}
            if not found:
                raise missing
            for name, text in found.items():
                (out / name.removeprefix(prefix)).parent.mkdir(parents=True, exist_ok=True)
                (out / name.removeprefix(prefix)).write_text(text)
        elif verb == "cp":
            for path in urls[:-1]:
                self.objects[urls[-1] + Path(path).name] = Path(path).read_bytes()
        elif verb == "objects":  # list
            found = [name for name in sorted(self.objects) if any(fnmatch.fnmatch(name, url) for url in urls[1:])]
            times = {name: datetime.fromtimestamp(self.written.get(name, self.clock()), UTC) for name in found}
            return json.dumps([
                {"name": name.split("/", 3)[3], "update_time": f"{when:%Y-%m-%dT%H:%M:%S%z}"}
                for name, when in times.items()
            ])  # fmt: skip
        elif verb == "cat":
            names = sorted(name for name in self.objects if fnmatch.fnmatch(name, urls[0]))
            if not names:
                raise missing
            return "".join(self.objects[name] for name in names)
        return ""


def real_environment(api, storage, home):
    """`storage` is what the fixture google_storage gives."""
    return {
        **api.environment(home), **storage,
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{storage['STORAGE_EMULATOR_HOST']}/",
    }  # fmt: skip
