"""gcloud for tests: the real one, led to stand-ins of Google's services, or one that speaks to them itself."""

import fnmatch
import json
import shutil
from pathlib import Path

from tpu.gcloud import Gcloud, GcloudError
from tpu.settings import Settings

HAS_GCLOUD = shutil.which("gcloud") is not None


def settings(**changes):
    """Of a run of the demo on a v3-8, in bucket `bucket`."""
    fields = {
        "project": "my-project", "zone": "us-central1-a", "bucket": "bucket", "data": "gs://bucket/shards",
        "config": str(Path(__file__).parents[1] / "configs/demo.yaml"), "max_dollars": 100.0,
    }  # fmt: skip
    return Settings(**{**fields, **changes})


class StandIn(Gcloud):
    """Answers from a FakeTpuApi and a dict of objects, without gcloud: quick enough for hundreds of looks."""

    def __init__(self, api, objects=None):
        super().__init__()
        self.api = api
        self.objects = {} if objects is None else objects
        self.asked = []
        self.failing = False
        """Whether Google cannot be reached."""

    is_there = True

    def ask(self, command, stdin=""):
        self.asked.append(command)
        if self.failing:
            raise GcloudError(command, "ERROR: connection reset")
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
        return json.dumps(answer)

    def _storage(self, command, words, stdin):
        verb, *urls = words
        missing = GcloudError(command, "ERROR: The following URLs matched no objects or files")
        if verb == "cp" and urls[0] == "-":
            self.objects[urls[1]] = stdin
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
